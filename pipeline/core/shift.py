"""What the host should do now: which mode, whether to ingest, until when, what to make ready.

    the schedule and a hold say which mode is wanted        (core.schedule)
    a person's run, or a missed night, may want another one for a while
    the next change may have to begin early: `until` means that generation *serves again*

Everything is worked out anew each time from a `Situation`; nothing remembers.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.core.modes import Mode, Slot, serves
from pipeline.core.schedule import Desired, Hold, Job, Window, desired_mode, missed_window, next_change, window_at

Reason = Literal["schedule", "job", "operator", "request"]

LOOK_AGAIN = dt.timedelta(seconds=30)
"""The longest that the host goes without looking: clocks are set, hosts sleep, files change."""


@dataclass(frozen=True, slots=True)
class Margins:
    """Seconds that a change takes or is given.

    drain: for requests to the embedding model to end. reserve: for the last batch to be computed and
    stored. prepare: how long ahead the next backend is made ready; 0 is not at all.
    """

    drain: float = 5.0
    reserve: float = 10.0
    prepare: float = 60.0


@dataclass(frozen=True, slots=True)
class Past:
    """What is known of a job: since when, when its task was last begun and completed, and how often it failed since."""

    known_since: dt.datetime | None = None
    started: dt.datetime | None = None
    finished: dt.datetime | None = None
    failures: int = 0

    def by(self, now: dt.datetime) -> Past:
        """Without what lies in the future, which was noted by a clock that was ahead."""
        known, started, finished = (
            None if at is None or at > now else at for at in (self.known_since, self.started, self.finished)
        )
        return Past(known, started, finished, self.failures)

    def gave_up(self, job: Job, window: Window) -> bool:
        """Whether it failed in this window more often than it may; what came before does not count."""
        return self.started is not None and self.started >= window.start and self.failures > job.retries


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that counts.

    load_seconds: how long a mode's models take to be ready, as it was measured.
    requested: whether a person wants a run.
    """

    now: dt.datetime
    jobs: Sequence[Job]
    mode: Mode
    load_seconds: Callable[[Mode], float]
    hold: Hold | None = None
    past: Mapping[str, Past] = field(default_factory=dict)
    requested: bool = False
    default: Mode = Mode.IDLE
    margins: Margins = Margins()


@dataclass(frozen=True, slots=True)
class Task:
    """A job's task that is to be done now. stop_at: when it must have stored its last batch."""

    job: Job
    window: Window
    stop_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Shift:
    """What to do.

    mode: the one to be in now; reason and detail say why, job which job's drain policy counts.
    task: a job's ingest that should be running. stop_at: when whatever runs must end, if it must.
    reading: a job's task that only reads, and should be running where nothing else is.
    prepare: the mode to make ready for, if that time has come. look_again: when to ask again at the latest.
    drain: seconds that requests may take at the most, where a promise waits for the switch.
    """

    mode: Mode
    reason: Reason
    detail: str
    job: Job | None
    task: Task | None
    stop_at: dt.datetime | None
    prepare: Mode | None
    look_again: dt.datetime
    drain: float | None = None
    reading: Task | None = None


def plan_shift(it: Situation) -> Shift:
    """What to do in a situation."""
    it = replace(it, past={name: past.by(it.now) for name, past in it.past.items()})
    shift = _plan_mode(it)
    reading = _reading(it)
    if reading is None:
        return shift
    return replace(shift, reading=reading, look_again=min(shift.look_again, reading.stop_at))


def _plan_mode(it: Situation) -> Shift:
    finished = {name: past.finished for name, past in it.past.items() if past.finished is not None}
    wanted = desired_mode(it.jobs, it.now, it.hold, it.default, finished=finished)
    change = next_change(it.jobs, it.now, it.hold, it.default, finished=finished)
    following = None if change is None else desired_mode(it.jobs, change, it.hold, it.default, finished=finished)
    missed = None if it.hold is not None or _wants_work(it, wanted) else _missed(it)
    in_force = wanted.mode if missed is None else missed[0].mode or wanted.mode
    begin = None if change is None or following is None else change - _lead(it, in_force, following.mode)
    if begin is not None and following is not None and it.now >= begin:
        assert change is not None
        return Shift(
            following.mode,
            "schedule",
            f"{_name(following)} at {change:%H:%M} UTC",
            following.job,
            None,
            it.now,
            None,
            min(change, it.now + LOOK_AGAIN),
            it.margins.drain,
        )
    stop_at = None if begin is None else begin - dt.timedelta(seconds=it.margins.reserve)
    prepare_at = None if begin is None else begin - dt.timedelta(seconds=it.margins.prepare)
    ready_for = following.mode if following and it.margins.prepare and prepare_at and it.now >= prepare_at else None
    task = _task(it, wanted, stop_at)
    mode, job, detail = wanted.mode, wanted.job, "" if wanted.job is None else _name(wanted)
    reason: Reason = "operator" if wanted.job is None and it.hold is not None else "schedule"
    if missed is not None and (stop_at is None or it.now < stop_at):
        task = _made_up(it, *missed, stop_at)
        if task is not None:
            assert missed[0].mode is not None
            mode, reason, detail, job = missed[0].mode, "job", f"{missed[0].name}, made up for", missed[0]
    if it.requested and not serves(mode, Slot.EMBEDDING):
        # Beside a language model that serves, the embedding model has the processor.
        mode = Mode.MIXED if serves(mode, Slot.GENERATION) else Mode.EMBEDDING
        reason, detail = "request", "a run was asked for"
    instants = [it.now + LOOK_AGAIN, wanted.until, begin, stop_at, prepare_at, None if task is None else task.stop_at]
    look_again = min(at for at in instants if at is not None and at > it.now)
    return Shift(mode, reason, detail, job, task, stop_at, ready_for, look_again)


def _lead(it: Situation, now: Mode, following: Mode) -> dt.timedelta:
    """How long before its time a change begins, so that generation serves when it was promised."""
    if serves(now, Slot.GENERATION) or not serves(following, Slot.GENERATION):
        return dt.timedelta()
    return dt.timedelta(seconds=it.load_seconds(following) + it.margins.drain)


def _wants_work(it: Situation, wanted: Desired) -> bool:
    """Whether the window that is open has a task of its own that is not over."""
    return _task(it, wanted, None) is not None


def _task(it: Situation, wanted: Desired, stop_at: dt.datetime | None) -> Task | None:
    job, window = wanted.job, wanted.window
    if job is None or window is None or job.task is None:
        return None
    past = it.past.get(job.name, Past())
    if (past.finished is not None and past.finished >= window.start) or past.gave_up(job, window):
        return None
    end = window.end if stop_at is None else min(window.end, stop_at)
    return Task(job, window, end) if it.now < end else None


def _reading(it: Situation) -> Task | None:
    """The task of the job that only reads and is open now: of the highest priority, then the first by its name."""
    tasks = [task for job in it.jobs if (task := _reading_of(it, job)) is not None]
    return min(tasks, key=lambda task: (-task.job.priority, task.job.name), default=None)


def _reading_of(it: Situation, job: Job) -> Task | None:
    if job.task != "extract" or not job.enabled:
        return None
    window, past = window_at(job, it.now), it.past.get(job.name, Past())
    if window is None or past.gave_up(job, window):
        return None
    done = past.finished is not None and past.finished >= window.start
    return None if done else Task(job, window, window.end)


def _missed(it: Situation) -> tuple[Job, Window] | None:
    """A job that is to be made up for, and the window that it missed."""
    for job in it.jobs:
        if job.mode is None:
            continue
        past = it.past.get(job.name, Past())
        window = missed_window(job, it.now, past.finished, past.known_since)
        if window is not None and not past.gave_up(job, window):
            return job, window
    return None


def _made_up(it: Situation, job: Job, window: Window, stop_at: dt.datetime | None) -> Task | None:
    """The task of a missed window: as long as the window was, counted from when it was first taken up."""
    started = it.past.get(job.name, Past()).started
    since = started if started is not None and started >= window.end else it.now
    end = since + (window.end - window.start)
    end = end if stop_at is None else min(end, stop_at)
    return Task(job, window, end) if it.now < end else None


def _name(desired: Desired) -> str:
    return f"job {desired.job.name}" if desired.job is not None else "no job"
