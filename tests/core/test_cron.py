"""Cron expressions, against a plain search minute by minute."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.cron import Cron, parse_cron

MINUTE = timedelta(minutes=1)
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def fires(text: str, since: str, count: int) -> list[str]:
    cron, wall, found = parse_cron(text), datetime.fromisoformat(since), []
    for _ in range(count):
        following = cron.after(wall)
        assert following is not None
        wall = following
        found.append(f"{wall:%a %Y-%m-%d %H:%M}")
    return found


@pytest.mark.parametrize(
    ("text", "since", "expected"),
    [
        ("0 2 * * *", "2026-01-01T02:00", ["Fri 2026-01-02 02:00"]),
        ("0 2 * * *", "2026-01-01T01:59:59", ["Thu 2026-01-01 02:00"]),
        ("*/20 1-3/2 * * *", "2026-01-01", [f"Thu 2026-01-01 {t}" for t in ["01:00", "01:20", "01:40", "03:00"]]),
        ("30 8,18 * * mon-fri", "2026-01-02T12:00", ["Fri 2026-01-02 18:30", "Mon 2026-01-05 08:30"]),
        ("0 0 * * FRI-Monday", "2026-01-01", ["Fri 2026-01-02 00:00", "Sat 2026-01-03 00:00", "Sun 2026-01-04 00:00"]),
        ("0 0 * * mon-fri/2", "2026-01-04", ["Mon 2026-01-05 00:00", "Wed 2026-01-07 00:00", "Fri 2026-01-09 00:00"]),
        ("0 0 * * sat-tue/2", "2026-01-04", ["Mon 2026-01-05 00:00", "Sat 2026-01-10 00:00"]),
        ("0 0 1 nov-feb *", "2026-01-15", ["Sun 2026-02-01 00:00", "Sun 2026-11-01 00:00"]),
        ("0 0 31 * *", "2026-02-01", ["Tue 2026-03-31 00:00", "Sun 2026-05-31 00:00"]),
        ("0 12 29 2 *", "2097-01-01", ["Fri 2104-02-29 12:00"]),
        # Both days are restricted: either will do.
        ("0 0 13 * fri", "2026-01-01", ["Fri 2026-01-02 00:00", "Fri 2026-01-09 00:00", "Tue 2026-01-13 00:00"]),
        ("0 0 30 2 sun", "2026-02-20", ["Sun 2026-02-22 00:00", "Sun 2027-02-07 00:00"]),
        # A field that begins with a star restricts nothing by itself: both have to fit.
        ("0 0 */31 2 mon", "2026-02-02", ["Mon 2027-02-01 00:00", "Mon 2038-02-01 00:00"]),
        ("59 23 31 dec *", "2025-12-31T23:59", ["Thu 2026-12-31 23:59"]),
    ],
)
def test_it_fires_when_crontab_says(text: str, since: str, expected: list[str]) -> None:
    assert fires(text, since, len(expected)) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0 2 * *", "should have five fields (minute, hour, day of month, month, weekday), not 4"),
        ("0 0 2 * * *", "five fields"),
        ("@daily", "five fields"),
        ("", "five fields"),
        ("60 * * * *", 'minute "60" should be 0 to 59'),
        ("0 24 * * *", 'hour "24" should be 0 to 23'),
        ("0 2 0 * *", 'day of month "0" should be 1 to 31'),
        ("0 2 L * *", 'day of month "l" should be 1 to 31'),
        ("0 2 * 13 *", 'month "13" should be 1 to 12 or a name such as jan'),
        ("0 2 * juli *", 'month "juli" should be 1 to 12 or a name such as jan'),
        ("0 2 * * 1-5", 'weekday "1-5" should be names, such as mon-fri or sat,sun: cron counts the days from Sunday'),
        ("0 2 * * sun,7", 'weekday "7" should be names'),
        ("0 2 * * 0", 'weekday "0" should be names'),
        ("0 2 * * */2", 'weekday "*/2" should be names'),
        ("0 2 * * freitag", 'weekday "freitag" should be one of mon, tue'),
        ("0 2 * * fri#2", 'weekday "fri#2" is not understood'),
        ("0 22-2 * * *", 'hour "22-2" runs backwards: write 22-23,0-2'),
        ("0 2 * 11-2 *", 'month "11-2" runs backwards: write 11-12,1-2'),
        ("*/0 * * * *", 'minute "*/0" should have a step of at least 1'),
        ("5/15 * * * *", 'minute "5/15" should have a range before the step, such as "*/15"'),
        ("1,,2 * * * *", 'minute "" is not understood'),
        ("-5 * * * *", 'minute "-5" is not understood'),
        ("² * * * *", 'minute "²" is not understood'),
        ("0 2 30 2 *", "never fires: there is no day 30 in February"),
        ("0 2 31 feb,apr,jun *", "never fires: there is no day 31 in February or April or June"),
    ],
)
def test_what_is_wrong_is_said(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_cron(text)
    assert problem in str(caught.value)


WALLS = st.datetimes(datetime.fromisoformat("1995-01-01"), datetime.fromisoformat("2060-01-01"))


@st.composite
def crons(draw: st.DrawFn) -> tuple[str, list[set[int]], bool]:
    """A cron's text, the values of its fields as they were written, and whether either day will do."""

    def numbers(low: int, high: int, drawn_to: int) -> tuple[str, set[int]]:
        step = draw(st.integers(1, 12))
        first, last = sorted((draw(st.integers(low, drawn_to)), draw(st.integers(low, drawn_to))))
        choices = [
            ("*", set(range(low, high + 1))),
            (f"*/{step}", set(range(low, high + 1, step))),
            (f"{first}-{last}/{step},{low}", {low, *range(first, last + 1, step)}),
            (f"{first},{last}", {first, last}),
        ]
        return choices[draw(st.integers(0, len(choices) - 1))]

    minute, hour, day = numbers(0, 59, 59), numbers(0, 23, 23), numbers(1, 31, 28)
    months = draw(st.sets(st.integers(1, 12), min_size=1))
    days = draw(st.none() | st.sets(st.integers(0, 6), min_size=1))
    texts = [minute[0], hour[0], day[0], ",".join(MONTHS[month - 1] for month in months)]
    texts.append("*" if days is None else ",".join(WEEKDAYS[weekday] for weekday in days))
    either = days is not None and not day[0].startswith("*")
    values = [minute[1], hour[1], day[1], months, set(range(7)) if days is None else days]
    return " ".join(texts), values, either


def meant(wall: datetime, values: list[set[int]], either: bool) -> bool:
    minutes, hours, days, months, weekdays = values
    if wall.minute not in minutes or wall.hour not in hours or wall.month not in months:
        return False
    fits = (wall.day in days, wall.weekday() in weekdays)
    return any(fits) if either else all(fits)


@settings(max_examples=100, deadline=None)
@given(crons(), WALLS)
def test_it_agrees_with_a_search_minute_by_minute(drawn: tuple[str, list[set[int]], bool], start: datetime) -> None:
    text, values, either = drawn
    cron = parse_cron(text)
    # The plain search goes over two days, from one whose date may fit.
    near = cron.after(start)
    assert near is not None
    begin = (near - timedelta(days=1)).replace(hour=12, minute=0)
    minutes = [begin + count * MINUTE for count in range(2 * 24 * 60)]
    expected = [wall for wall in minutes if meant(wall, values, either)]
    assert near in expected
    assert everything(cron, begin - MINUTE, minutes[-1]) == expected
    assert [cron.latest(wall + timedelta(seconds=59)) for wall in expected] == expected
    assert [cron.latest(later - MINUTE) for later in expected[1:]] == expected[:-1]


def everything(cron: Cron, start: datetime, last: datetime) -> list[datetime]:
    """All that fires later than `start`, up to `last`."""
    found = []
    wall = cron.after(start)
    while wall is not None and wall <= last:
        found.append(wall)
        wall = cron.after(wall)
    return found


@settings(max_examples=100, deadline=None)
@given(crons(), WALLS)
def test_nothing_lies_between_the_last_and_the_next(drawn: tuple[str, list[set[int]], bool], wall: datetime) -> None:
    cron = parse_cron(drawn[0])
    last, following = cron.latest(wall), cron.after(wall)
    assert last is not None
    assert following is not None
    assert last <= wall < following
    assert cron.after(last) == following
    assert cron.latest(following - MINUTE) == last


def test_there_is_nothing_past_the_calendar() -> None:
    cron = parse_cron("0 2 * * *")
    assert cron.after(datetime.fromisoformat("9999-12-31T23:00")) is None
    assert cron.latest(datetime.fromisoformat("0001-01-01T01:00")) is None
