"""The windows of a job: from its cron time to its `until`, as instants.

A cron time is a time on the local clock, and local clocks jump. A window follows a clock that
never goes back: where the local clock skips an hour, this one skips it too, and what was to
happen in it happens at once; where the local clock repeats an hour, this one stands still until
the hour is over, so what happened in it does not happen again. `instant_of` is that clock. It
never decreases, so times of day that touch give windows that touch, in every zone and year.

Instants are given in UTC. Nothing here reads a clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from itertools import islice
from typing import Protocol

from pipeline.core.cron import Cron

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
LONGEST = timedelta(days=31)


class Recurring(Protocol):
    """What has windows: a job."""

    @property
    def cron(self) -> Cron:
        """When a window starts, on the local clock."""
        ...

    @property
    def until(self) -> time | timedelta:
        """When it ends: a time of day on the local clock, or how long it lasts."""
        ...

    @property
    def timezone(self) -> tzinfo:
        """Where that clock hangs."""
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """From `start` to before `end`.

    due: when it would have started had the clock not jumped just then; otherwise `start`. It
    settles which of two windows that a jump brought to the same instant is the later one.
    """

    start: datetime
    end: datetime
    due: datetime

    def __contains__(self, instant: datetime) -> bool:
        return self.start <= instant < self.end

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return (self.end - self.start).total_seconds()


def instant_of(wall: datetime, zone: tzinfo) -> datetime:
    """The first instant at which the local clock of `zone` shows `wall` or, where it skips that, more.

    wall: without a time zone, whole seconds. Never decreases as `wall` grows.
    """
    instant = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if local(instant, zone) == wall:
        return instant
    # Skipped: with the offset of after the jump `wall` lies before it, with that of before the jump at or behind it.
    before = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    low, high = 0, int((instant - before) / _SECOND)
    while high - low > 1:
        middle = (low + high) // 2
        if local(before + middle * _SECOND, zone) > wall:
            high = middle
        else:
            low = middle
    return before + high * _SECOND


def utc(instant: datetime) -> datetime:
    """An instant of any time zone, in UTC. Raises ValueError for one without, which is a time of day nowhere."""
    if instant.tzinfo is None:
        raise ValueError(f"{instant} has no time zone")
    return instant.astimezone(UTC)


def local(instant: datetime, zone: tzinfo) -> datetime:
    """What the clock of `zone` shows at an instant, without a time zone."""
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def windows_around(job: Recurring, instant: datetime) -> tuple[Window | None, Window | None]:
    """The window that started last at or before an instant, over or not, and the one that starts next after it."""
    instant = utc(instant)
    wall = _latest_start(job, instant)
    if wall is not None:
        last = _window(job, wall)
        return last, next(_windows_after(job, last.start), None)
    return None, next(_windows_after(job, instant), None)


def window_at(job: Recurring, now: datetime) -> Window | None:
    """The window that is open at `now`. There is at most one: a window ends where the job's next one starts."""
    now = utc(now)
    wall = _latest_start(job, now)
    window = None if wall is None else _window(job, wall)
    return window if window is not None and now in window else None


def next_windows(job: Recurring, now: datetime, count: int = 1) -> tuple[Window, ...]:
    """The next `count` windows that start later than `now`."""
    now = utc(now)
    wall = _latest_start(job, now)
    # A window is looked for from the start before it: the clock may stand still at `now`.
    since = now if wall is None else instant_of(wall, job.timezone)
    return tuple(islice(_windows_after(job, since), count))


def next_start(job: Recurring, now: datetime) -> datetime | None:
    """When the next window starts, later than `now`; None past the end of the calendar."""
    window = next(iter(next_windows(job, now)), None)
    return None if window is None else window.start


def wall_end(wall: datetime, until: time | timedelta) -> datetime:
    """Where a window that starts at `wall` ends on a clock that never jumps."""
    if isinstance(until, timedelta):
        return wall + until
    end = datetime.combine(wall.date(), until)
    return end if end > wall else end + _DAY


def parse_until(text: str) -> time | timedelta:
    """Read `08:00` (24:00 is midnight) or a length such as `6h`, `1h30m` or `90s`.

    Raises ValueError, half a sentence for a person.
    """
    clock = re.fullmatch(r"(\d{1,2}):(\d{2})", text, flags=re.ASCII)
    if clock is not None:
        hour, minute = int(clock[1]), int(clock[2])
        if (hour, minute) == (24, 0):
            return time()
        if hour < 24 and minute < 60:
            return time(hour, minute)
        raise ValueError(f'"{text}" is no time of day: use 00:00 to 24:00')
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ValueError('should be a time of day such as "08:00", or a length such as "6h" or "1h30m"') from error


def parse_duration(text: str) -> timedelta:
    """Read a length such as `2h`, `1h30m`, `45s` or `1d`, more than nothing and at most 31 days.

    Raises ValueError, half a sentence for a person.
    """
    parts = re.findall(r"(\d{1,9})([dhms])", text, flags=re.ASCII)
    units = [unit for _, unit in parts]
    in_order = units == sorted(set(units), key="dhms".index)
    if not parts or not in_order or "".join(number + unit for number, unit in parts) != text:
        raise ValueError('should be a length such as "6h", "1h30m" or "90s"')
    length = sum((timedelta(**{_UNITS[unit]: int(number)}) for number, unit in parts), timedelta())
    if not timedelta() < length <= LONGEST:
        raise ValueError("should be a length of more than nothing and at most 31 days")
    return length


def until_text(until: time | timedelta) -> str:
    """As `parse_until` reads it."""
    if isinstance(until, time):
        return f"{until:%H:%M}"
    left = int(until.total_seconds())
    amounts = [(left // 86400, "d"), (left // 3600 % 24, "h"), (left // 60 % 60, "m"), (left % 60, "s")]
    return "".join(f"{amount}{unit}" for amount, unit in amounts if amount)


def _windows_after(job: Recurring, instant: datetime) -> Iterator[Window]:
    """Windows that start later than an instant at which the local clock does not stand still."""
    shown = local(instant, job.timezone)
    while (wall := job.cron.after(shown)) is not None:
        # Of the times that the clock skips together, the last one gives the window: they are one start, not many.
        shown = local(instant_of(wall, job.timezone), job.timezone)
        yield _window(job, job.cron.latest(shown) or wall)


def _window(job: Recurring, wall: datetime) -> Window:
    """The window of a cron time, of several that are skipped together the last."""
    start = instant_of(wall, job.timezone)
    if isinstance(job.until, timedelta):
        end = start + job.until
    else:
        closing = wall_end(wall, job.until)
        end = instant_of(closing, job.timezone)
        if end <= start:
            # The clock skipped all of it: it is moved behind the jump, never left out.
            end = start + (closing - wall)
    following = job.cron.after(local(start, job.timezone))
    if following is not None:
        end = min(end, instant_of(following, job.timezone))
    # Of starts that a jump of the clock brings together, the one that it would have shown last is the latest.
    before = start - timedelta(minutes=1)
    return Window(start, end, before + (wall - local(before, job.timezone)))


def _latest_start(job: Recurring, now: datetime) -> datetime | None:
    """The last cron time whose instant is not later than `now`."""
    shown = now.astimezone(job.timezone)
    wall = shown.replace(tzinfo=None, fold=0)
    if shown.fold:
        # The clock repeats what it has shown: all that it showed before it went back has started.
        first, second = shown.replace(fold=0).utcoffset(), shown.utcoffset()
        if first is not None and second is not None:
            wall += first - second
    start = job.cron.latest(wall)
    while start is not None and instant_of(start, job.timezone) > now:
        start = job.cron.latest(start - timedelta(minutes=1))
    return start
