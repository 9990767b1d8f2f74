"""The jobs of a folder: one TOML file each. A file that is broken takes no other down.

`load_jobs` and `reload` always give jobs to work with, and say what is wrong beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from zoneinfo import ZoneInfo

from pipeline.core.overlaps import overlap_of
from pipeline.core.schedule import Job
from pipeline.scheduler.job_file import Fault, Surroundings, line_of, local_zone, read_job

_LARGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a file or the folder. line: from 1; None where it is the whole of it."""

    file: Path
    line: int | None
    message: str

    def __str__(self) -> str:
        return ":".join([str(self.file), *([str(self.line)] if self.line else [])]) + f": {self.message}"


@dataclass(frozen=True, slots=True)
class LoadedJobs:
    """jobs: by the name of their file. files: job's name -> its file. problems: in the order of the files."""

    jobs: tuple[Job, ...] = ()
    problems: tuple[Problem, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)

    def of_file(self, path: Path) -> Job | None:
        """The job that a file gave."""
        return next((job for job in self.jobs if self.files[job.name] == path), None)


def load_jobs(folder: Path, *, now: datetime | None = None, zone: Callable[[], ZoneInfo] = local_zone) -> LoadedJobs:
    """The jobs of `folder`/*.toml.

    now: where the search for overlaps starts; the present by default. zone: the one that `local` means.
    """
    return reload(LoadedJobs(), folder, now=now, zone=zone)


def reload(
    previous: LoadedJobs, folder: Path, *, now: datetime | None = None, zone: Callable[[], ZoneInfo] = local_zone
) -> LoadedJobs:
    """The jobs as the files are now; a file that is broken keeps the job that it gave before.

    A file that is gone takes its job with it. A folder that cannot be listed keeps all jobs.
    """
    now = now or datetime.now(UTC)
    try:
        paths = _job_files(folder)
    except OSError as error:
        return LoadedJobs(previous.jobs, (Problem(folder, None, f"cannot be read: {error.strerror}"),), previous.files)
    around = Surroundings(folder.absolute(), now, zone)
    texts: dict[Path, str] = {}
    jobs: dict[Path, Job] = {}
    problems: list[Problem] = []
    for path in paths:
        job, faults = _read(path, around, texts)
        problems += [Problem(path, line, message) for line, message in faults]
        job = job or previous.of_file(path)
        if job is not None:
            jobs[path] = job
    problems += _drop_namesakes(jobs, texts)
    problems += _overlaps(jobs, texts, now)
    return LoadedJobs(
        tuple(jobs.values()),
        tuple(sorted(problems, key=lambda problem: (problem.file, problem.line or 0))),
        {job.name: path for path, job in jobs.items()},
    )


def fingerprint(folder: Path) -> frozenset[tuple[str, int, int, int]]:
    """What differs when a job file was changed, added or removed; empty where the folder cannot be listed."""
    try:
        return frozenset(_mark(path) for path in _job_files(folder))
    except OSError:
        return frozenset()


def _job_files(folder: Path) -> list[Path]:
    """Sorted by name; without what editors hide there while they write."""
    return sorted(path for path in folder.iterdir() if path.suffix == ".toml" and not path.name.startswith("."))


def _mark(path: Path) -> tuple[str, int, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return path.name, 0, 0, 0
    return path.name, stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(path: Path, around: Surroundings, texts: dict[Path, str]) -> tuple[Job | None, list[Fault]]:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            return None, [Fault(None, "is too large for a job file")]
        texts[path] = content.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        return None, [Fault(None, f"cannot be read: {error.strerror}")]
    except UnicodeDecodeError:
        return None, [Fault(None, "is not UTF-8 text")]
    return read_job(texts[path], path.stem, around)


def _drop_namesakes(jobs: dict[Path, Job], texts: Mapping[Path, str]) -> list[Problem]:
    """Leave of the jobs that share a name the first."""
    owners: dict[str, Path] = {}
    problems = []
    for path, job in list(jobs.items()):
        owner = owners.setdefault(job.name, path)
        if owner != path:
            del jobs[path]
            line = line_of(texts.get(path, ""), "name")
            problems.append(Problem(path, line, f'name: "{job.name}" is the name of the job in {owner.name} too'))
    return problems


def _overlaps(jobs: Mapping[Path, Job], texts: Mapping[Path, str], now: datetime) -> list[Problem]:
    """Each pair of jobs that are open together with nothing to say which goes first, at the later file."""
    problems = []
    enabled = [(path, job) for path, job in jobs.items() if job.enabled and job.mode is not None]
    for (path, job), (other_path, other) in combinations(enabled, 2):
        overlap = None if job.priority != other.priority else overlap_of(job, other, now)
        if overlap is not None:
            start, end = (instant.astimezone(other.timezone) for instant in (overlap.start, overlap.end))
            message = (
                f'cron: the window overlaps that of "{job.name}" ({path.name}), first on '
                f"{start:%a %Y-%m-%d %H:%M} to {end:%H:%M}: change one, or give them different priorities"
            )
            problems.append(Problem(other_path, line_of(texts.get(other_path, ""), "cron"), message))
    return problems
