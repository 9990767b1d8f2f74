"""What the windows of jobs are, found the slow way: by watching the local clock minute by minute.

It knows neither `instant_of` nor what a gap or a fold is. It only looks at what the clock shows,
and remembers the furthest that it has ever shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from pipeline.core.cron import parse_cron
from pipeline.core.modes import Mode
from pipeline.core.schedule import Job
from pipeline.core.windows import parse_until

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)

# Changes of an hour, of 30 minutes, of two hours, at midnight, of the standard time, and days left out altogether.
ZONES = {
    "UTC": range(1990, 2060),
    "America/New_York": range(1990, 2060),
    "Europe/London": range(1990, 2060),
    "Europe/Berlin": range(1990, 2060),
    "Australia/Lord_Howe": range(1990, 2060),
    "America/Sao_Paulo": range(1990, 2020),
    "America/Havana": range(1990, 2060),
    "America/Caracas": range(2007, 2018),
    "Asia/Kolkata": range(1990, 2060),
    "Asia/Seoul": range(1986, 2060),
    "Asia/Pyongyang": range(2015, 2019),
    "Africa/Casablanca": range(2008, 2060),
    "Africa/Cairo": range(1990, 2060),
    "Antarctica/Troll": range(2005, 2060),
    "Pacific/Apia": range(2009, 2022),
    "Pacific/Kwajalein": range(1992, 1995),
}


def job(name: str, cron: str, until: str, zone: str = "UTC", mode: Mode = Mode.EMBEDDING, priority: int = 0) -> Job:
    return Job(name, parse_cron(cron), parse_until(until), ZoneInfo(zone), mode, priority=priority)


def day_shifts(zone: str) -> list[Job]:
    """The three that ship."""
    return [
        job("nightly", "0 2 * * *", "08:00", zone, Mode.EMBEDDING),
        job("day", "0 8 * * *", "18:00", zone, Mode.GENERATION),
        job("evening", "0 18 * * *", "02:00", zone, Mode.MIXED),
    ]


def changes_of(zone: str, year: int) -> list[datetime]:
    """The UTC days of a year on which the clock of a zone is changed."""
    there = ZoneInfo(zone)
    days = [datetime(year, 1, 1, tzinfo=UTC) + count * DAY for count in range(366)]
    offsets = [day.astimezone(there).utcoffset() for day in days]
    return [day for day, before, after in zip(days, offsets, offsets[1:], strict=False) if before != after]


@dataclass(slots=True)
class Watched:
    """A window as it was seen. rank: which of several is the later one."""

    start: datetime
    rank: tuple[datetime, datetime]
    closing: datetime
    ends: datetime | None


def watch(jobs: Sequence[Job], start: datetime, minutes: int) -> Iterator[tuple[datetime, dict[str, Watched]]]:
    """For each minute of UTC from `start`: the open windows, by job. The first days miss what opened before."""
    furthest = {one.name: _shown(start - MINUTE, one) for one in jobs}
    open_now: dict[str, Watched] = {}
    for count in range(minutes):
        now = start + count * MINUTE
        for one in jobs:
            before, shown = furthest[one.name], max(furthest[one.name], _shown(now, one))
            for wall in _minutes(before, shown):
                if one.cron.has_day(wall.date()) and wall.hour * 60 + wall.minute in one.cron.times:
                    open_now[one.name] = _opened(one, wall, now, now - MINUTE + (wall - before), shown)
            furthest[one.name] = shown
            watched = open_now.get(one.name)
            if watched and (now >= watched.ends if watched.ends else shown >= watched.closing):
                del open_now[one.name]
        yield now, dict(open_now)


def wanted(jobs: Iterable[Job], open_now: dict[str, Watched]) -> Job | None:
    """Of the jobs with an open window the one that counts."""
    claims = [one for one in jobs if one.name in open_now]
    return max(claims, key=lambda one: (one.priority, open_now[one.name].rank, one.name), default=None)


def _opened(one: Job, wall: datetime, now: datetime, due: datetime, shown: datetime) -> Watched:
    if isinstance(one.until, timedelta):
        return Watched(now, (now, due), wall, now + one.until)
    closing = wall + MINUTE
    while closing.time() != time(one.until.hour, one.until.minute):
        closing += MINUTE
    return Watched(now, (now, due), closing, now + (closing - wall) if shown >= closing else None)


def _minutes(after: datetime, last: datetime) -> Iterator[datetime]:
    while after < last:
        after += MINUTE
        yield after


def _shown(now: datetime, one: Job) -> datetime:
    return now.astimezone(one.timezone).replace(tzinfo=None, fold=0)
