"""What prompts the daemon, while the host's clock is set by seconds and by months."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scheduler.clock import STANDS_STILL, Clock, EachMinute, steady

NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
MONTH = dt.timedelta(days=30)


@given(st.timedeltas(min_value=-MONTH, max_value=MONTH), st.timedeltas(min_value=-MONTH, max_value=MONTH))
def test_the_next_minute_is_near_whatever_the_clock_did_before(before: dt.timedelta, now: dt.timedelta) -> None:
    following = EachMinute().get_next_fire_time(NOON + before, NOON + now)
    assert NOON + now < following <= NOON + now + dt.timedelta(minutes=1)
    assert (following.second, following.microsecond) == (0, 0)


async def test_a_leap_of_a_month_is_one_tick_and_not_all_that_were_missed() -> None:
    with Clock(lambda: None) as clock:
        job = clock._job
        assert len(job._get_run_times(job.next_run_time + MONTH)) == 1


@pytest.mark.parametrize("step", [-MONTH, -dt.timedelta(hours=1), dt.timedelta(hours=1), MONTH])
async def test_looks_go_on_and_the_daemon_is_woken_when_the_clock_is_set(step: dt.timedelta) -> None:
    ahead, woken = 0.0, 0

    def wake() -> None:
        nonlocal woken
        woken += 1

    with Clock(wake, lambda: time.time() + ahead, look=0.01) as clock:
        async with asyncio.timeout(30):
            await clock.tick()
            before = woken  # a whole minute may have come
            ahead = step.total_seconds()
            for _ in range(3):
                await clock.tick()
    assert woken > before


def replay(*seconds: float) -> Iterator[dt.datetime]:
    return (NOON + dt.timedelta(seconds=each) for each in seconds)


def test_a_clock_that_goes_back_by_seconds_is_waited_for_and_one_that_goes_back_further_is_followed() -> None:
    told = replay(0, 10, 9, 9.5, 10.5, -60, -59, 3600, 3590)
    now = steady(lambda: next(told))
    assert [(now() - NOON).total_seconds() for _ in range(8)] == [10, 10, 10, 10.5, -60, -59, 3600, 3600]


@given(st.lists(st.floats(-1e7, 1e7), min_size=2, max_size=30))
def test_a_steady_clock_is_never_behind_and_never_goes_back_by_seconds(seconds: list[float]) -> None:
    told, shown = list(replay(*seconds)), replay(*seconds)
    now = steady(lambda: next(shown))
    last = told[0]
    for read in told[1:]:
        given_now = now()
        assert read <= given_now < read + STANDS_STILL
        assert given_now >= last or given_now <= last - STANDS_STILL
        last = given_now
