"""Windows as instants, through every change of the clocks."""

from __future__ import annotations

from calendar import isleap
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.core.schedule import Job, Window
from pipeline.core.windows import (
    instant_of,
    local,
    next_windows,
    parse_duration,
    parse_until,
    until_text,
    window_at,
    windows_around,
)
from tests.core.clock import DAY, MINUTE, ZONES, changes_of, day_shifts, job

ZONE_YEARS = st.sampled_from(sorted(ZONES)).flatmap(lambda zone: st.tuples(st.just(zone), st.sampled_from(ZONES[zone])))


def shown(window: Window, zone: str) -> str:
    start, end = (instant.astimezone(ZoneInfo(zone)) for instant in (window.start, window.end))
    return f"{start:%d %H:%M%z} {end:%d %H:%M%z}"


def first_windows(cron: str, until: str, zone: str, since: str, count: int) -> list[str]:
    now = datetime.fromisoformat(since).replace(tzinfo=ZoneInfo(zone))
    return [shown(window, zone) for window in next_windows(job("a", cron, until, zone), now, count)]


@pytest.mark.parametrize(
    ("cron", "until", "zone", "since", "expected"),
    [
        # Spring: 02:00 to 03:00 is skipped.
        (
            "0 2 * * *",
            "08:00",
            "Europe/Berlin",
            "2026-03-28",
            ["28 02:00+0100 28 08:00+0100", "29 03:00+0200 29 08:00+0200", "30 02:00+0200 30 08:00+0200"],
        ),
        ("30 2 * * *", "6h", "America/New_York", "2026-03-08", ["08 03:00-0400 08 09:00-0400"]),
        ("0 18 * * *", "02:30", "Europe/Berlin", "2026-03-28", ["28 18:00+0100 29 03:00+0200"]),
        # All of it is skipped: it comes after the jump, as long as it was to be.
        (
            "10 2 * * *",
            "02:40",
            "Europe/Berlin",
            "2026-03-29",
            ["29 03:00+0200 29 03:30+0200", "30 02:10+0200 30 02:40+0200"],
        ),
        ("30 2 * * *", "03:00", "Europe/Berlin", "2026-03-29", ["29 03:00+0200 29 03:30+0200"]),
        # Several starts are skipped: one window, and no longer than to the next start.
        (
            "*/20 2-3 * * *",
            "15m",
            "Europe/Berlin",
            "2026-03-29",
            ["29 03:00+0200 29 03:15+0200", "29 03:20+0200 29 03:35+0200", "29 03:40+0200 29 03:55+0200"],
        ),
        # Autumn: 02:00 to 03:00 comes twice, and what starts in it starts once.
        (
            "30 2 * * *",
            "02:45",
            "Europe/Berlin",
            "2026-10-25",
            ["25 02:30+0200 25 02:45+0200", "26 02:30+0100 26 02:45+0100"],
        ),
        ("0 2 * * *", "08:00", "Europe/Berlin", "2026-10-25", ["25 02:00+0200 25 08:00+0100"]),
        ("50 2 * * *", "02:10", "Europe/Berlin", "2026-10-25", ["25 02:50+0200 26 02:10+0100"]),
        ("0 18 * * *", "02:00", "Europe/Berlin", "2026-10-24", ["24 18:00+0200 25 02:00+0200"]),
        ("0 * * * *", "30m", "Europe/Berlin", "2026-10-25T01:30", ["25 02:00+0200 25 02:30+0200"]),
        ("0 * * * *", "30m", "Europe/Berlin", "2026-10-25T02:30", ["25 03:00+0100 25 03:30+0100"]),
        # A length is real time; the next start ends it at the latest.
        ("0 0 * * *", "24h", "Europe/Berlin", "2026-10-24T12:00", ["25 00:00+0200 25 23:00+0100"]),
        ("0 0 * * *", "24h", "Europe/Berlin", "2026-03-28T12:00", ["29 00:00+0100 30 00:00+0200"]),
        ("0 0 * * *", "24:00", "Europe/Berlin", "2026-10-24T12:00", ["25 00:00+0200 26 00:00+0100"]),
        # At midnight, by half an hour, and a day that was left out.
        ("0 0 * * *", "06:00", "America/Havana", "2026-03-07T12:00", ["08 01:00-0400 08 06:00-0400"]),
        ("15 2 * * *", "08:00", "Australia/Lord_Howe", "2026-10-04", ["04 02:30+1100 04 08:00+1100"]),
        (
            "0 2 * * *",
            "08:00",
            "Pacific/Apia",
            "2011-12-29",
            ["29 02:00-1000 29 08:00-1000", "31 00:00+1400 31 02:00+1400", "31 02:00+1400 31 08:00+1400"],
        ),
        ("0 18 * * *", "02:00", "Pacific/Apia", "2011-12-29", ["29 18:00-1000 31 00:00+1400"]),
    ],
)
def test_a_window_follows_the_local_clock(cron: str, until: str, zone: str, since: str, expected: list[str]) -> None:
    before = (datetime.fromisoformat(since) - MINUTE).isoformat()
    assert first_windows(cron, until, zone, before, len(expected)) == expected


def test_while_the_clock_stands_still_the_next_start_is_still_ahead() -> None:
    """At the second 02:30, what started at the first one is over and does not start again."""
    berlin = ZoneInfo("Europe/Berlin")
    quarter = job("a", "30 2 * * *", "02:45", "Europe/Berlin")
    second = datetime(2026, 10, 25, 2, 30, tzinfo=berlin, fold=1)
    assert window_at(quarter, second) is None
    assert window_at(quarter, second.replace(fold=0)) is not None
    assert [shown(window, "Europe/Berlin") for window in next_windows(quarter, second)] == [
        "26 02:30+0100 26 02:45+0100"
    ]
    # 02:50 has been shown before the clock went back to 02:10.
    late = job("b", "50 2 * * *", "08:00", "Europe/Berlin")
    assert window_at(late, datetime(2026, 10, 25, 2, 10, tzinfo=berlin, fold=1)) is not None


@settings(max_examples=60, deadline=None)
@given(ZONE_YEARS)
@example(("Pacific/Apia", 2011))
@example(("Pacific/Kwajalein", 1993))
@example(("America/Sao_Paulo", 2018))
@example(("Australia/Lord_Howe", 2026))
@example(("Africa/Casablanca", 2026))
@example(("America/Havana", 2026))
@example(("Antarctica/Troll", 2026))
def test_in_every_year_each_day_has_its_windows_once(zone_year: tuple[str, int]) -> None:
    zone, year = zone_year
    there = ZoneInfo(zone)
    begin, end = (instant_of(datetime.fromisoformat(f"{each}-01-01"), there) for each in (year, year + 1))
    for shift in day_shifts(zone):
        windows = [window for window in next_windows(shift, begin - MINUTE, 367) if window.start < end]
        assert len(windows) == 366 if isleap(year) else 365
        assert all(one.start < one.end <= other.start for one, other in pairwise(windows))
        assert all(window_at(shift, window.start) == window for window in windows[::50])


@settings(max_examples=40, deadline=None)
@given(ZONE_YEARS)
@example(("America/Sao_Paulo", 2018))
@example(("Australia/Lord_Howe", 2026))
@example(("Africa/Casablanca", 2026))
@example(("America/Havana", 2026))
@example(("Antarctica/Troll", 2026))
def test_in_every_year_windows_that_touch_tile_the_time(zone_year: tuple[str, int]) -> None:
    zone, year = zone_year
    begin = datetime(year, 1, 1, tzinfo=UTC)
    merged = sorted(
        (window for shift in day_shifts(zone) for window in next_windows(shift, begin, 360)),
        key=lambda window: (window.start, window.due),
    )
    for one, other in pairwise(merged):
        if other.start != other.due and other.start - other.due <= -timedelta(hours=3):
            continue  # a whole day was skipped, and its windows with it: test_schedule looks at these
        assert one.end == other.start


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(ZONES)).flatmap(
        lambda zone: st.tuples(
            st.just(zone),
            st.datetimes(datetime.fromisoformat("1985-01-01"), datetime.fromisoformat("2060-01-01")),
            st.timedeltas(timedelta(0), timedelta(days=2)),
        )
    )
)
def test_the_clock_of_windows_never_goes_back(drawn: tuple[str, datetime, timedelta]) -> None:
    name, wall, later = drawn
    zone = ZoneInfo(name)
    wall, after = wall.replace(microsecond=0), (wall + later).replace(microsecond=0)
    instant = instant_of(wall, zone)
    assert instant <= instant_of(after, zone)
    assert local(instant, zone) >= wall
    assert local(instant - timedelta(seconds=1), zone) != wall


@pytest.mark.parametrize("zone", sorted(ZONES))
def test_around_each_change_an_instant_is_the_first_that_shows_the_time(zone: str) -> None:
    there = ZoneInfo(zone)
    for day in [day for year in list(ZONES[zone])[:40:8] for day in changes_of(zone, year)[:3]]:
        first: dict[datetime, datetime] = {}
        furthest = local(day - DAY, there)
        for count in range(-24 * 60, 48 * 60):
            instant = day + count * MINUTE
            while furthest <= local(instant, there):
                first[furthest] = instant
                furthest += MINUTE
        for wall in list(first)[::7]:
            assert instant_of(wall, there) == first[wall]


def test_the_windows_around_an_instant() -> None:
    nightly = job("a", "0 2 * * *", "08:00")
    for now in ("2026-06-02T02:00+00:00", "2026-06-02T09:00+00:00", "2026-06-02T10:00+02:00"):
        last, following = windows_around(nightly, datetime.fromisoformat(now))
        assert last is not None
        assert following is not None
        assert (last.start, following.start) == (
            datetime(2026, 6, 2, 2, tzinfo=UTC),
            datetime(2026, 6, 3, 2, tzinfo=UTC),
        )
        assert last.seconds == 6 * 3600


def test_an_instant_needs_a_time_zone() -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        window_at(job("a", "0 2 * * *", "08:00"), datetime.fromisoformat("2026-06-02T02:00"))


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("08:00", time(8)),
        ("8:05", time(8, 5)),
        ("24:00", time(0)),
        ("6h", timedelta(hours=6)),
        ("1h30m", timedelta(minutes=90)),
        ("20s", timedelta(seconds=20)),
        ("1d", timedelta(days=1)),
    ],
)
def test_until_is_read_and_written(text: str, until: time | timedelta) -> None:
    assert parse_until(text) == until
    assert parse_until(until_text(until)) == until


@pytest.mark.parametrize(
    "text", ["", "8", "08:60", "25:00", "24:01", "6", "h", "6 h", "30m1h", "1h1h", "0s", "32d", "-1h"]
)
def test_what_is_no_until_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_until(text)


def test_a_length_that_is_refused_says_how_one_looks() -> None:
    with pytest.raises(ValueError, match=r'such as "6h"'):
        parse_duration("six hours")


def window_jobs(zone: str) -> list[Job]:
    return [
        job("a", "*/7 * * * *", "5m", zone),
        job("b", "30 1-3 * * *", "02:30", zone),
        job("c", "0 0 * * *", "24h", zone),
    ]


@settings(max_examples=40, deadline=None)
@given(ZONE_YEARS, st.data())
def test_what_is_open_is_what_is_listed(zone_year: tuple[str, int], data: st.DataObject) -> None:
    zone, year = zone_year
    days = changes_of(zone, year) or [datetime(year, 6, 1, tzinfo=UTC)]
    start = data.draw(st.sampled_from(days)) - timedelta(hours=data.draw(st.integers(-20, 30)))
    for one in window_jobs(zone):
        listed = next_windows(one, start, 30)
        assert all(earlier.end <= later.start for earlier, later in pairwise(listed))
        for window, following in pairwise(listed):
            for instant in (window.start, window.end - timedelta(seconds=1)):
                assert window_at(one, instant) == window
                assert next_windows(one, instant)[0] == following
            if window.end < following.start:
                assert window_at(one, window.end) is None
