"""Which mode the host should be in, computed from the jobs and the time.

The answer is a level: it depends on what is passed and on nothing that happened before, so that
a daemon that starts, wakes up or was delayed at any time asks the same question and gets the
right answer. Instants may be given in any time zone and are returned in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from enum import StrEnum
from pathlib import PurePath
from typing import Literal
from zoneinfo import ZoneInfo

from pipeline.core.cron import Cron
from pipeline.core.modes import Mode, Slot, serves
from pipeline.core.windows import Window, next_start, next_windows, utc, window_at, windows_around

__all__ = [
    "Desired",
    "Hold",
    "Job",
    "Reason",
    "Window",
    "desired_mode",
    "forecast",
    "latest_end",
    "missed_window",
    "next_change",
    "next_windows",
    "retry_after",
    "so_far",
    "window_at",
    "windows_around",
]

# How far ahead a change is looked for. A schedule whose mode stays the same for so long is taken to stay for good.
_HORIZON = timedelta(days=400)
_MOST_STEPS = 2_000


@dataclass(frozen=True, slots=True)
class Job:
    """What is to happen when: one file under jobs/.

    until: a time of day, or how long a window lasts.
    mode: None for a job that wants none: one whose task is `extract` reads beside whatever mode is on.
    task: what is done in the mode; None is nothing but to be in it.
    sources: what a task works on; empty is the inbox of the settings.
    on_finish: whether a window ends with its task (`return` to what the schedule wants without
        it) or lasts to its end all the same (`stay`).
    drain: what happens to requests that are under way when the window starts: they may end
        within `drain_timeout` seconds and are then ended (`wait`), are ended at once (`cut`), or
        the switch is put off while there are any (`defer`).
    retries: how often a failed task is tried again in its window.
    catch_up: whether a window in which the host was off is made up for.
    priority: of windows that are open together, the one with the highest counts.
    order, workers, nice: of the documents and of the processes that read them; None is what the settings say.
    """

    name: str
    cron: Cron
    until: time | timedelta
    timezone: ZoneInfo
    mode: Mode | None
    task: Literal["ingest", "extract"] | None = None
    sources: tuple[PurePath, ...] = ()
    enabled: bool = True
    on_finish: Literal["return", "stay"] = "return"
    drain: Literal["wait", "cut", "defer"] = "wait"
    drain_timeout: float = 60.0
    retries: int = 2
    catch_up: bool = False
    priority: int = 0
    order: Literal["newest", "oldest"] | None = None
    workers: int | None = None
    nice: int | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """An operator's mode, from when it is set until an instant, or until it is taken back where that is None."""

    mode: Mode
    until: datetime | None = None

    def holds(self, now: datetime) -> bool:
        """Whether it still counts."""
        return self.until is None or now < self.until


class Reason(StrEnum):
    """Why a mode is wanted."""

    SCHEDULE = "schedule"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Desired:
    """The mode that the host should be in, and why.

    job, window: what asks for it; None where an operator does, or where no window is open.
    until: when the question has to be asked again; the answer may then be the same mode. None is never.
    """

    mode: Mode
    job: Job | None
    window: Window | None
    reason: Reason
    until: datetime | None


def desired_mode(
    jobs: Iterable[Job],
    now: datetime,
    hold: Hold | None = None,
    default: Mode = Mode.IDLE,
    *,
    finished: Mapping[str, datetime] | None = None,
) -> Desired:
    """The mode that is wanted at `now`.

    A hold that has not ended goes first. Then, of the windows that are open, the one of the
    highest priority; of these the one that began last (a job with the later name, where two began
    at the same instant). Without one it is `default`.

    finished: job's name -> when its task was last completed. A job with `on_finish = "return"`
    gives up the window in which that was. What lies in the future does not count.
    """
    now = utc(now)
    if hold is not None and hold.holds(now):
        return Desired(hold.mode, None, None, Reason.OPERATOR, hold.until)
    enabled = [job for job in jobs if job.enabled and job.mode is not None]
    best = max(_open(enabled, now, so_far(finished or {}, now)), key=_rank, default=None)
    if best is None:
        return Desired(default, None, None, Reason.SCHEDULE, _first(next_start(job, now) for job in enabled))
    job, window = best
    assert job.mode is not None
    # Only a window that goes first can end this one early.
    others = _first(next_start(other, now) for other in enabled if other.priority >= job.priority)
    return Desired(job.mode, job, window, Reason.SCHEDULE, _first([window.end, others]))


def forecast(
    jobs: Iterable[Job],
    now: datetime,
    hold: Hold | None = None,
    default: Mode = Mode.IDLE,
    *,
    finished: Mapping[str, datetime] | None = None,
) -> Iterator[tuple[datetime, Desired]]:
    """What is wanted at `now`, and then at each instant at which the question has to be asked again.

    What lies in the future now does not count then either.
    Ends after 400 days without a change of the mode, or 2,000 windows.
    """
    jobs = tuple(jobs)
    at = last_change = utc(now)
    finished = so_far(finished or {}, at)
    mode: Mode | None = None
    for _ in range(_MOST_STEPS):
        desired = desired_mode(jobs, at, hold, default, finished=finished)
        yield at, desired
        if desired.mode is not mode:
            mode, last_change = desired.mode, at
        if desired.until is None:
            return
        at = utc(desired.until)
        if at - last_change > _HORIZON and desired.job is not None:
            return


def next_change(
    jobs: Iterable[Job],
    now: datetime,
    hold: Hold | None = None,
    default: Mode = Mode.IDLE,
    *,
    finished: Mapping[str, datetime] | None = None,
) -> datetime | None:
    """When another mode is wanted than at `now`; None where none is in sight."""
    steps = forecast(jobs, now, hold, default, finished=finished)
    _, first = next(steps)
    return next((at for at, desired in steps if desired.mode is not first.mode), None)


def retry_after(
    jobs: Iterable[Job],
    now: datetime,
    slot: Slot,
    hold: Hold | None = None,
    default: Mode = Mode.IDLE,
    *,
    finished: Mapping[str, datetime] | None = None,
) -> float | None:
    """Seconds until a mode that serves a slot is wanted: 0 where one is, None where none is in sight."""
    now = utc(now)
    steps = forecast(jobs, now, hold, default, finished=finished)
    at = next((at for at, desired in steps if serves(desired.mode, slot)), None)
    return None if at is None else (at - now).total_seconds()


def latest_end(
    window_end: datetime, load_seconds: float, drain_seconds: float, commit_reserve_seconds: float
) -> datetime:
    """When the work of a window must end so that the next mode is *serving* at the window's end.

    load_seconds: until the next model is ready. drain_seconds: for requests to the model of this
    window to end. commit_reserve_seconds: for the last batch to be computed and stored.
    """
    needed = load_seconds + drain_seconds + commit_reserve_seconds
    return utc(window_end) - timedelta(seconds=needed)


def missed_window(
    job: Job, now: datetime, last_finished: datetime | None, known_since: datetime | None = None
) -> Window | None:
    """The window to make up for: the last one, if it is over and its task was not completed since it began.

    last_finished: when the task last came to an end of its own or of its window's, not by a crash.
    known_since: when the job was first seen; windows that began before owe nothing. What lies in the future does not
    count. Without either, nothing is owed. Of several missed windows one is made up for: what was pending then is
    pending now. None too while a window is open: the schedule itself asks for the task.
    """
    now = utc(now)
    since = max((each for each in (last_finished, known_since) if each is not None and utc(each) <= now), default=None)
    if since is None or job.task is None or not (job.enabled and job.catch_up):
        return None
    last, _ = windows_around(job, now)
    if last is None or now in last or since > last.start:
        return None
    return last


def so_far(instants: Mapping[str, datetime], now: datetime) -> dict[str, datetime]:
    """Those that are not in the future: what was noted by a clock that was ahead says nothing about the present."""
    return {name: instant for name, instant in instants.items() if utc(instant) <= utc(now)}


def _open(jobs: Iterable[Job], now: datetime, finished: Mapping[str, datetime]) -> Iterator[tuple[Job, Window]]:
    """The jobs that have a window open and have not given it up."""
    for job in jobs:
        window = window_at(job, now)
        if window is not None and not _given_up(job, window, finished.get(job.name)):
            yield job, window


def _given_up(job: Job, window: Window, finished: datetime | None) -> bool:
    return job.task is not None and job.on_finish == "return" and finished is not None and utc(finished) >= window.start


def _first(instants: Iterable[datetime | None]) -> datetime | None:
    return min((instant for instant in instants if instant is not None), default=None)


def _rank(claim: tuple[Job, Window]) -> tuple[int, datetime, datetime, str]:
    job, window = claim
    return job.priority, window.start, window.due, job.name
