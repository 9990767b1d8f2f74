"""One job file: its keys, what they may be, and what is wrong with a file and where.

Is given the text and reads no file; docs/jobs.md is tested against `KEYS`.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from difflib import get_close_matches
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from pipeline.core.cron import Cron, parse_cron
from pipeline.core.modes import Mode, Slot, serves
from pipeline.core.overlaps import own_overlap
from pipeline.core.schedule import Job
from pipeline.core.windows import parse_duration, parse_until, until_text
from pipeline.settings.wording import shown, unknown_key

LOCAL = "local"
_MOST_LINES = 1_000


class Fault(NamedTuple):
    """What is wrong with a file. line: from 1; None where it is the file as a whole."""

    line: int | None
    message: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a file is read for. folder: where relative paths start. zone: the host's own; raises ValueError."""

    folder: Path
    now: datetime
    zone: Callable[[], ZoneInfo]


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a job file.

    default: as the documentation writes it. read: the value as a Job has it; raises ValueError,
    half a sentence, for a wrong one.
    """

    name: str
    default: str
    description: str
    read: Callable[[Any, Surroundings], Any]

    @property
    def required(self) -> bool:
        """Whether a file without it is wrong."""
        return self.default == "required"


def read_job(text: str, stem: str, around: Surroundings) -> tuple[Job | None, list[Fault]]:
    """The job of a file, or all that is wrong with it. stem: the file's name without its ending."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).rstrip(")").partition(" (at ")
        line = re.match(r"line (\d+)", where)
        return None, [Fault(int(line[1]) if line else max(1, len(text.splitlines())), f"is not TOML: {what}")]
    lines = _lines_of(text, values)
    known = {key.name: key for key in KEYS}
    faults = [Fault(lines.get(name), f"{name}: {unknown_key(name, known, ())}") for name in values if name not in known]
    read: dict[str, Any] = {"name": stem}
    for key in KEYS:
        if key.name == "mode" and key.name not in values and values.get("task") == "extract":
            read["mode"] = None
        elif key.name not in values and key.required:
            faults.append(Fault(None, f"{key.name}: is missing"))
        elif key.name in values or key.name in ("name", "timezone"):
            try:
                read[key.name] = key.read(values.get(key.name, read.get(key.name, LOCAL)), around)
            except ValueError as error:
                faults.append(Fault(lines.get(key.name), f"{key.name}: {error}"))
    clashes = list(_contradictions(read)) if "task" in read or "task" not in values else []
    if not faults and not clashes:
        job = Job(**read)
        clashes = list(_overlap(job, around.now))
    faults += [Fault(lines.get(name), f"{name}: {problem}") for name, problem in clashes]
    return (None, sorted(faults, key=lambda fault: fault.line or 0)) if faults else (job, [])


def line_of(text: str, key: str) -> int | None:
    """The line of a file, which is TOML, that sets a key of the top level."""
    return _lines_of(text, (key,)).get(key)


def local_zone(environ: Mapping[str, str] = os.environ, localtime: Path = Path("/etc/localtime")) -> ZoneInfo:
    """The time zone of the host: that of TZ, else that of /etc/localtime, else UTC.

    Raises ValueError where TZ is not the name of a zone.
    """
    named = environ.get("TZ")
    if named is not None:
        name = named.removeprefix(":")
        if name.startswith("/"):
            return _zone_of_file(Path(name))
        try:
            return _zone(name or "UTC")
        except ValueError as error:
            raise ValueError(f"the host's own is not known: the environment variable TZ {error}") from error
    return _zone_of_file(localtime) if localtime.exists() else _zone("UTC")


def _contradictions(read: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key -> what is wrong with it when the others stand, of those that could be read."""
    task, mode = read.get("task"), read.get("mode")
    if task == "ingest" and mode is not None and not serves(mode, Slot.EMBEDDING):
        yield "task", f'"{task}" needs the mode "embedding" or "mixed", not "{mode}"'
    if task == "extract" and mode is not None:
        yield "mode", 'is not for a job with task = "extract", which reads beside whatever mode is on: leave it out'
    for name in ("sources", "catch_up", "order", "workers", "nice"):
        value = read.get(name)
        if task is None and value is not None and value is not False and value != ():
            yield name, 'is for a job with task = "ingest"'
    if read.get("catch_up") and task == "extract":
        yield "catch_up", 'is for a job with task = "ingest": what was not read ahead is read at night'


def _overlap(job: Job, now: datetime) -> Iterator[tuple[str, str]]:
    """That a window is still open when the next one starts."""
    clash = own_overlap(job, now)
    if clash is not None:
        first, second = clash
        yield (
            "until",
            f"the window that starts on {first:%a %H:%M} and lasts until {until_text(job.until)} "
            f"is still open on {second:%a %H:%M}, when the next one starts",
        )


def _lines_of(text: str, keys: Iterable[str]) -> dict[str, int]:
    """Key -> the line where it is set. A key is set behind the longest beginning of the file that lacks it."""
    wanted = set(keys)
    found: dict[str, int] = {}
    last_whole = 0
    for number, beginning in enumerate(accumulate(text.splitlines(keepends=True)[:_MOST_LINES]), start=1):
        try:
            values = tomllib.loads(beginning)
        except tomllib.TOMLDecodeError:
            continue
        for key in wanted & values.keys():
            found[key] = last_whole + 1
        wanted -= values.keys()
        if not wanted:
            break
        last_whole = number
    return found


def _wrong(expected: str, value: object) -> ValueError:
    return ValueError(f"should be {expected}, not {shown(value)}")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _wrong("text", value)
    return value


def _name(value: object, _: Surroundings) -> str:
    name = _text(value)
    if not re.fullmatch(r"\w[\w.-]{0,63}", name):
        raise _wrong("1 to 64 letters, digits, dots and dashes", name)
    return name


def _cron(value: object, _: Surroundings) -> Cron:
    return parse_cron(_text(value))


def _until(value: object, _: Surroundings) -> time | timedelta:
    if isinstance(value, time):
        if value != time(value.hour, value.minute):
            raise _wrong("a whole minute", f"{value}")
        return value
    return parse_until(_text(value))


def _timezone(value: object, around: Surroundings) -> ZoneInfo:
    name = _text(value)
    return around.zone() if name == LOCAL else _zone(name)


def _choice(*choices: str) -> Callable[[object, Surroundings], str]:
    expected = ", ".join(f'"{choice}"' for choice in choices[:-1])
    expected = f'{expected} or "{choices[-1]}"' if expected else f'"{choices[-1]}"'

    def read(value: object, _: Surroundings) -> str:
        if value not in choices:
            raise _wrong(expected, value)
        return str(value)

    return read


def _mode(value: object, around: Surroundings) -> Mode:
    return Mode(_choice(*Mode)(value, around))


def _sources(value: object, around: Surroundings) -> tuple[Path, ...]:
    if not isinstance(value, list) or not all(isinstance(path, str) and path for path in value):
        raise ValueError('should be a list of paths, such as ["/srv/documents"]')
    if any("://" in path for path in value):
        raise ValueError("should be paths: mount the share, and name the folder where it is mounted")
    return tuple(Path(os.path.normpath(around.folder / Path(path).expanduser())) for path in value)


def _flag(value: object, _: Surroundings) -> bool:
    if not isinstance(value, bool):
        raise _wrong("true or false", value)
    return value


def _seconds(value: object, _: Surroundings) -> float:
    if isinstance(value, str):
        return parse_duration(value).total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise _wrong('seconds, from 0, or a length such as "5m"', value)
    return float(value)


def _whole(low: int, high: int) -> Callable[[object, Surroundings], int]:
    def read(value: object, _: Surroundings) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _wrong(f"a whole number, {low} to {high}", value)
        return value

    return read


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        names = {known.lower(): known for known in available_timezones()}
        if not names:
            raise ValueError("this host has no time zone data: install its tzdata package") from error
        cities = [known for known in names if known.rpartition("/")[2] == name.lower().replace(" ", "_")]
        near = sorted(cities) or get_close_matches(name.lower(), names, 1)
        meant = f', did you mean "{names[near[0]]}"?' if near else ", such as Europe/Berlin"
        raise ValueError(f"should be a time zone{meant}, not {shown(name)}") from error


def _zone_of_file(path: Path) -> ZoneInfo:
    """The zone of a compiled zone file, by its name where the file is a link to one of the zone database."""
    _, found, name = str(path.resolve()).partition("/zoneinfo/")
    if found and name in available_timezones():
        return ZoneInfo(name)
    try:
        with path.open("rb") as file:
            return ZoneInfo.from_file(file, key=LOCAL)
    except (OSError, ValueError) as error:
        raise ValueError(f"the host's own cannot be read from {path}: {error}") from error


KEYS = (
    Key("name", "the file's name", "What the job is called; no two jobs share a name.", _name),
    Key(
        "cron",
        "required",
        "When a window starts, on the local clock: minute, hour, day of month, month, weekday. Weekdays by name.",
        _cron,
    ),
    Key(
        "until",
        "required",
        'When it ends: a time of day (`"08:00"`), the first after its start, or how long it lasts '
        '(`"6h"`, `"1h30m"`, `"90s"`).',
        _until,
    ),
    Key("timezone", LOCAL, "Whose clock: a name such as `Europe/Berlin`, or `local` for the host's own.", _timezone),
    Key(
        "mode",
        "required",
        "What the host is for in the window: `generation`, `embedding`, `mixed` or `idle`; left out with "
        '`task = "extract"`.',
        _mode,
    ),
    Key(
        "task",
        "not set",
        "What is done in it: `ingest`, in the mode `embedding` or `mixed`; `extract`, which only reads documents, "
        "beside any mode; not set: nothing but to serve.",
        _choice("ingest", "extract"),
    ),
    Key(
        "sources",
        "the inbox",
        "The files and folders that a task looks at, as a list: what is in the first goes first. A folder that "
        "`run-now FOLDER` was once given is not looked at again by itself: name it here, too. A relative path starts "
        "from the job file's folder.",
        _sources,
    ),
    Key("enabled", "true", "Whether the job counts at all.", _flag),
    Key(
        "on_finish",
        "return",
        "When the task is complete before the window ends: `return` to what the schedule wants without this window, "
        "or `stay` in the mode until its end.",
        _choice("return", "stay"),
    ),
    Key(
        "drain",
        "wait",
        "Requests under way when the window starts: `wait` for them up to `drain_timeout` and then end them, `cut` "
        "them at once, or `defer` the switch while there are any.",
        _choice("wait", "cut", "defer"),
    ),
    Key("drain_timeout", "60", 'Seconds, or a length such as `"5m"`, that requests under way may take.', _seconds),
    Key("retries", "2", "How often a task that failed is tried again in its window.", _whole(0, 100)),
    Key("catch_up", "false", "Whether a window in which the host was off is made up for as soon as it is on.", _flag),
    Key("priority", "0", "Of windows open together, the one with the highest counts.", _whole(-1000, 1000)),
    Key(
        "order",
        "run.order",
        "Which documents of a source go first: those changed last (`newest`), or longest ago (`oldest`).",
        _choice("newest", "oldest"),
    ),
    Key(
        "workers",
        "1, or extract.workers",
        "Processes that read documents: 1 for `extract`, and what the settings say for `ingest`.",
        _whole(1, 256),
    ),
    Key(
        "nice",
        "19, or extract.nice",
        "How far these stand back for others, 0 to 19: 19 for `extract`, and what the settings say for `ingest`.",
        _whole(0, 19),
    ),
)
