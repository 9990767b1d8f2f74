"""`jobs` and `jobs check`: the job files with their next times, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from pipeline.cli.console import EXIT_FAILED, errors_explained, load_settings, out
from pipeline.cli.view import printable
from pipeline.cli.words import counted, program
from pipeline.core.modes import Mode
from pipeline.core.schedule import Desired, Job, Reason, Window, desired_mode, next_windows, window_at
from pipeline.core.windows import next_start
from pipeline.scheduler.jobs import LoadedJobs, Problem, load_jobs
from pipeline.scheduler.overview import overview, zone_name

if TYPE_CHECKING:
    from rich.console import Console

_HEADER = ("", "job", "mode", "open", "next", "time zone", "task")


def list_command(*, as_json: bool) -> None:
    """The `jobs` command."""
    with errors_explained(as_json=as_json):
        settings, now = load_settings().settings, datetime.now(UTC).astimezone()
        loaded = load_jobs(settings.jobs_dir)
        desired = desired_mode(loaded.jobs, now, default=Mode(settings.default_mode))
        list_jobs(loaded, now, out(), as_json=as_json, desired=desired)


def check_command(*, as_json: bool) -> None:
    """The `jobs check` command; exit code 1 where something is wrong."""
    with errors_explained(as_json=as_json):
        folder = load_settings().settings.jobs_dir
        if check_jobs(load_jobs(folder), out(), as_json=as_json):
            raise typer.Exit(EXIT_FAILED)


def list_jobs(
    loaded: LoadedJobs, now: datetime, console: Console, *, as_json: bool = False, desired: Desired | None = None
) -> None:
    """Each job with its open and its next window by its own clock, in the order of the next starts.

    Those that count now have a star: the one that decides the mode, and those whose window is open and that go beside
    any mode.

    now: an instant, shown in its own time zone. desired: what is wanted now, where more than the
    jobs decides that. A table on a terminal, aligned lines in a pipe, or one JSON object.
    """
    desired = desired or desired_mode(loaded.jobs, now)
    loaded = replace(loaded, jobs=_soonest_first(loaded.jobs, now))
    if as_json:
        _print_line(console, json.dumps(overview(loaded, now, desired), ensure_ascii=False, indent=2))
        return
    if loaded.jobs:
        rows = [tuple(printable(cell, console.encoding) for cell in _row(job, now, desired)) for job in loaded.jobs]
        _print_rows(console, rows)
        _print_line(console, "")
    _print_line(console, _wanted(desired, now))
    if loaded.problems:
        _print_line(console, f"{counted(len(loaded.problems), 'problem')}: {program()} jobs check")


def check_jobs(loaded: LoadedJobs, console: Console, *, as_json: bool = False, cwd: Path | None = None) -> int:
    """Print each problem as `jobs/x.toml:3: message`, and give the exit code: 1 where there is one.

    cwd: paths in it are shortened; the current folder by default. JSON: `jobs` (names), `problems`.
    """
    here = cwd or Path.cwd()
    if as_json:
        document = {
            "jobs": [job.name for job in loaded.jobs],
            "problems": [
                {"file": str(problem.file), "line": problem.line, "message": problem.message}
                for problem in loaded.problems
            ],
        }
        _print_line(console, json.dumps(document, ensure_ascii=False, indent=2))
    elif loaded.problems:
        for problem in loaded.problems:
            _print_line(console, printable(_line(problem, here), console.encoding))
    else:
        _print_line(console, f"{counted(len(loaded.jobs), 'job')}, nothing wrong")
    return EXIT_FAILED if loaded.problems else 0


def _soonest_first(jobs: Sequence[Job], now: datetime) -> tuple[Job, ...]:
    """By the time of the next start; those that never start, or are off, come last."""
    never = datetime.max.replace(tzinfo=UTC)
    starts = {job.name: (next_start(job, now) if job.enabled else None) or never for job in jobs}
    return tuple(sorted(jobs, key=lambda job: (starts[job.name], job.name)))


def _row(job: Job, now: datetime, desired: Desired) -> tuple[str, ...]:
    current = desired.job is not None and desired.job.name == job.name
    if not job.enabled:
        return ("", job.name, job.mode or "any", "off", "", zone_name(job.timezone), job.task or "")
    opened = window_at(job, now)
    following = next(iter(next_windows(job, now)), None)
    beside = opened is not None and job.mode is None
    return (
        "*" if current or beside else "",
        job.name,
        job.mode or "any",
        f"until {_until(opened, job)}" if opened else "",
        _span(following, job) if following else "never",
        zone_name(job.timezone),
        job.task or "",
    )


def _span(window: Window, job: Job) -> str:
    start = window.start.astimezone(job.timezone)
    return f"{start:%a %Y-%m-%d %H:%M} to {_until(window, job)}"


def _until(window: Window, job: Job) -> str:
    """The end of a window: the time of day, and the day where that alone could be misread."""
    end = window.end.astimezone(job.timezone)
    clock = f"{end:%H:%M:%S}" if end.second else f"{end:%H:%M}"
    return clock if window.seconds < 86_400 else f"{end:%a %Y-%m-%d} {clock}"


def _wanted(desired: Desired, now: datetime) -> str:
    """What is wanted now, why, and until when, in one line."""
    if desired.reason is Reason.OPERATOR:
        why = "held by an operator"
    else:
        why = f"job {desired.job.name}" if desired.job else "no window is open"
    until = f" until {desired.until.astimezone(now.tzinfo):%a %Y-%m-%d %H:%M %Z}" if desired.until else ""
    return f"wanted now: {desired.mode}{until} ({why})"


def _line(problem: Problem, here: Path) -> str:
    file = problem.file.relative_to(here) if problem.file.is_relative_to(here) else problem.file
    return str(Problem(file, problem.line, problem.message))


def _print_rows(console: Console, rows: list[tuple[str, ...]]) -> None:
    if console.is_terminal:
        table = Table(*_HEADER, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row), style="bold" if row[0] else "")
        console.print(table)
        return
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(_HEADER))]
    for row in rows:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        _print_line(console, "  ".join(cells).rstrip())


def _print_line(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=True)
