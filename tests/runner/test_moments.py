"""Moments as people type them."""

from __future__ import annotations

import datetime as dt

import pytest

from pipeline.runner.moments import parse_moment

BERLIN_SUMMER = dt.timezone(dt.timedelta(hours=2))
NOW = dt.datetime(2026, 7, 15, 12, 30, tzinfo=BERLIN_SUMMER)


def local(*parts: int) -> dt.datetime:
    return dt.datetime(*parts).astimezone()  # type: ignore[arg-type]  # as many as are given


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("2026-01-31", local(2026, 1, 31)),
        (" 2026-01-31 14:30 ", local(2026, 1, 31, 14, 30)),
        ("2026-01-31T14:30:15", local(2026, 1, 31, 14, 30, 15)),
        ("2026-01-31T14:30Z", dt.datetime(2026, 1, 31, 14, 30, tzinfo=dt.UTC)),
        ("2026-01-31 14:30+05:30", dt.datetime(2026, 1, 31, 9, 0, tzinfo=dt.UTC)),
        ("2026-03", local(2026, 3, 1)),
        ("2026", local(2026, 1, 1)),
        ("7d", NOW - dt.timedelta(days=7)),
        ("2W", NOW - dt.timedelta(days=14)),
        ("36h", NOW - dt.timedelta(hours=36)),
        ("400d", NOW - dt.timedelta(days=400)),
        ("0d", NOW),
        ("Now", NOW),
    ],
)
def test_what_is_typed_is_what_is_meant(typed: str, meant: dt.datetime) -> None:
    read = parse_moment(typed, NOW)
    assert read == meant
    assert read.tzinfo is not None


def test_days_begin_at_local_midnight() -> None:
    day = NOW.astimezone().date()
    assert parse_moment("Today", NOW) == local(day.year, day.month, day.day)
    before = day - dt.timedelta(days=1)
    assert parse_moment("yesterday", NOW) == local(before.year, before.month, before.day)
    after = day + dt.timedelta(days=1)
    assert parse_moment("tomorrow", NOW) == local(after.year, after.month, after.day)


WRONG = ["soon", "2026-13", "2026-02-30", "31.01.2026", "7", "d", "-7d", "0000", "2026-1-1", "7m", "\u0667d", "today\0"]


@pytest.mark.parametrize("typed", ["", "9" * 5000, *WRONG])
def test_what_is_no_date_says_what_would_be(typed: str) -> None:
    with pytest.raises(ValueError, match="is no date: use one such as 2026-01-31") as error:
        parse_moment(typed, NOW)
    assert len(str(error.value)) < 200


def test_a_moment_before_the_calendar_is_none() -> None:
    with pytest.raises(ValueError, match="is no date"):
        parse_moment("99999w", dt.datetime(1000, 1, 1, tzinfo=dt.UTC))
