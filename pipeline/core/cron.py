"""Cron expressions: five fields that say on which minutes of the local clock something starts.

Minute, hour, day of month, month and weekday, with lists, ranges, steps and `*`; months by number
or name, weekdays by name only. A day is meant when the day of month and the weekday both fit, or,
where neither field begins with `*`, when one of them does (crontab(5)). Works on wall-clock times
without a time zone; what they are as instants is for `windows` to say.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta

_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)
# Weekdays and dates of the Gregorian calendar come together again after at most 40 years, a century's end included.
_FAR = 40 * 366

_LONGEST_MONTH = {month: 29 if month == 2 else 30 if month in (4, 6, 9, 11) else 31 for month in range(1, 13)}
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def _names(full: tuple[str, ...], first: int) -> dict[str, int]:
    return {name: number for number, word in enumerate(full, first) for name in (word, word[:3])}


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: Mapping[str, int] = field(default_factory=dict)


_MINUTES = _Field("minute", 0, 59)
_HOURS = _Field("hour", 0, 23)
_DAYS = _Field("day of month", 1, 31)
_MONTH = _Field("month", 1, 12, _names(_MONTHS, 1))
_WEEKDAY = _Field("weekday", 0, 6, _names(_WEEKDAYS, 0))


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression that fires at some time; made by `parse_cron`.

    times: minutes since midnight, ascending. weekdays: Monday is 0, as in `datetime`.
    either: whether a day is meant when its day of month or its weekday fits, not only when both do.
    """

    text: str
    times: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool

    def has_day(self, day: date) -> bool:
        """Whether it fires on a day."""
        if day.month not in self.months:
            return False
        by_date, by_weekday = day.day in self.days, day.weekday() in self.weekdays
        return (by_date or by_weekday) if self.either else (by_date and by_weekday)

    def after(self, wall: datetime) -> datetime | None:
        """The first time later than `wall`; None past the end of the calendar. Both without a time zone."""
        at = bisect_right(self.times, wall.hour * 60 + wall.minute)
        if at < len(self.times) and self.has_day(wall.date()):
            return _at(wall.date(), self.times[at])
        day = next(self._days(wall.date(), 1), None)
        return None if day is None else _at(day, self.times[0])

    def latest(self, wall: datetime) -> datetime | None:
        """The last time at or before `wall`; None before the beginning of the calendar. Both without a time zone."""
        at = bisect_left(self.times, wall.hour * 60 + wall.minute + 1)
        if at > 0 and self.has_day(wall.date()):
            return _at(wall.date(), self.times[at - 1])
        day = next(self._days(wall.date(), -1), None)
        return None if day is None else _at(day, self.times[-1])

    def _days(self, day: date, step: int) -> Iterator[date]:
        """The days that it fires on, beyond `day` in one direction."""
        for _ in range(_FAR):
            try:
                day += step * _DAY
            except OverflowError:
                return
            if self.has_day(day):
                yield day


def parse_cron(text: str) -> Cron:
    """Read a cron expression.

    Raises ValueError, half a sentence for a person, where it is not five fields, a field is wrong,
    a weekday is a number, or no day of any year fits.
    """
    parts = text.lower().split()
    if len(parts) != 5:
        raise ValueError(f"should have five fields (minute, hour, day of month, month, weekday), not {len(parts)}")
    minute, hour, day, month, weekday = parts
    hours, minutes = _values(_HOURS, hour), _values(_MINUTES, minute)
    days, months, weekdays = _values(_DAYS, day), _values(_MONTH, month), _values(_WEEKDAY, weekday)
    if weekday == "*" and all(min(days) > _LONGEST_MONTH[each] for each in months):
        named = " or ".join(_MONTHS[each - 1].capitalize() for each in sorted(months))
        raise ValueError(f"never fires: there is no day {min(days)} in {named}")
    return Cron(
        text=" ".join(parts),
        times=tuple(sorted(hour * 60 + minute for hour in hours for minute in minutes)),
        days=days,
        months=months,
        weekdays=weekdays,
        either=not (day.startswith("*") or weekday.startswith("*")),
    )


def _values(known: _Field, text: str) -> frozenset[int]:
    return frozenset(value for item in text.split(",") for value in _item(known, item))


def _item(known: _Field, item: str) -> list[int]:
    """The values of `*`, `a` or `a-b`, the first and the last with or without `/step`, in order."""
    parsed = re.fullmatch(r"(\*|(\w+)(?:-(\w+))?)(?:/(\d+))?", item, flags=re.ASCII)
    if parsed is None:
        raise ValueError(f'{known.name} "{item}" is not understood: use numbers or names, ",", "-", "/" and "*"')
    span, first, last, step = parsed.groups()
    if known is _WEEKDAY and (re.search(r"\d", span) or (span == "*" and step)):
        raise ValueError(
            f'weekday "{item}" should be names, such as mon-fri or sat,sun: '
            "cron counts the days from Sunday, other programs from Monday"
        )
    if step is not None and int(step) == 0:
        raise ValueError(f'{known.name} "{item}" should have a step of at least 1')
    if step is not None and span == first:
        raise ValueError(f'{known.name} "{item}" should have a range before the step, such as "*/{step}"')
    if span == "*":
        values = list(range(known.low, known.high + 1))
    elif last is None:
        values = [_number(known, first)]
    else:
        values = _range(known, item, first, last)
    return values[:: int(step or 1)]


def _range(known: _Field, item: str, first: str, last: str) -> list[int]:
    """From first to last. A range of names may go over the end of the week or year; numbers that do are a slip."""
    low, high = _number(known, first), _number(known, last)
    if low <= high:
        return list(range(low, high + 1))
    if first in known.names and last in known.names:
        return [*range(low, known.high + 1), *range(known.low, high + 1)]
    raise ValueError(f'{known.name} "{item}" runs backwards: write {low}-{known.high},{known.low}-{high}')


def _number(known: _Field, text: str) -> int:
    value = known.names.get(text, int(text) if text.isdecimal() else None)
    if value is None or not known.low <= value <= known.high:
        if known is _WEEKDAY:
            raise ValueError(f'weekday "{text}" should be one of mon, tue, wed, thu, fri, sat, sun')
        names = " or a name such as jan" if known.names else ""
        raise ValueError(f'{known.name} "{text}" should be {known.low} to {known.high}{names}')
    return value


def _at(day: date, minutes: int) -> datetime:
    return datetime.combine(day, time(minutes // 60, minutes % 60))
