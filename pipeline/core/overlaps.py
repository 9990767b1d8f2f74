"""Whether windows get in each other's way: those of two jobs, or of one job with itself.

What only a change of the clocks brings together, once or twice a year, does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo

from pipeline.core.cron import Cron
from pipeline.core.windows import Recurring, local, next_windows, utc, wall_end, window_at

# A weekly cron repeats after a week, and after a year in zones that change their clocks apart from each other;
# any other after the four years that hold each 29 February.
_WEEK = timedelta(days=8)
_YEAR = timedelta(days=400)
_LEAP_CYCLE = timedelta(days=1500)
_SAMPLE = 20


@dataclass(frozen=True, slots=True)
class Overlap:
    """From `start` to before `end` two windows are open. Instants, in UTC."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class _OnWall:
    """A job on a clock that never jumps."""

    cron: Cron
    until: time | timedelta
    timezone: tzinfo = UTC


def overlap_of(one: Recurring, other: Recurring, since: datetime) -> Overlap | None:
    """The first time after `since` at which both have a window open; None where that never happens.

    Jobs of one time zone are compared by what its clock shows, and the answer is the instant of that.
    """
    same_clock = one.timezone == other.timezone
    since = utc(since)
    if same_clock:
        zone = one.timezone
        since = local(since, zone).replace(tzinfo=UTC)
        found = _overlap(_OnWall(one.cron, one.until), _OnWall(other.cron, other.until), since, apart=False)
        return found and Overlap(_from_wall(found.start, zone), _from_wall(found.end, zone))
    return _overlap(one, other, since, apart=True)


def own_overlap(job: Recurring, since: datetime) -> tuple[datetime, datetime] | None:
    """Two starts in a row after `since`, by the local clock, where the second comes before the first window ends."""
    since = local(since, job.timezone)
    start = job.cron.after(since)
    limit = since + (_WEEK if _is_weekly(job.cron) else _LEAP_CYCLE)
    while start is not None and start < limit:
        following = job.cron.after(start)
        if following is not None and following < wall_end(start, job.until):
            return start, following
        start = following
    return None


def _overlap(one: Recurring, other: Recurring, since: datetime, *, apart: bool) -> Overlap | None:
    rare, frequent = sorted((one, other), key=lambda job: _reach(job, since), reverse=True)
    span = _LEAP_CYCLE
    if _is_weekly(one.cron) and _is_weekly(other.cron):
        span = _YEAR if apart else _WEEK
    at = since
    while (window := next(iter(next_windows(rare, at)), None)) is not None and window.start < since + span:
        at = window.start
        beside = window_at(frequent, at) or next(iter(next_windows(frequent, at)), None)
        if beside is not None and beside.start < window.end:
            return Overlap(max(at, beside.start), min(window.end, beside.end))
    return None


def _reach(job: Recurring, since: datetime) -> timedelta:
    """How long its next windows take to come round: the longer, the fewer there are to look at."""
    windows = next_windows(job, since, _SAMPLE)
    return windows[-1].start - since if len(windows) == _SAMPLE else timedelta.max


def _is_weekly(cron: Cron) -> bool:
    return len(cron.days) == 31 and len(cron.months) == 12


def _from_wall(shown: datetime, zone: tzinfo) -> datetime:
    return shown.replace(tzinfo=zone).astimezone(UTC)
