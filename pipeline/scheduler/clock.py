"""The APScheduler edge: wakes the daemon at each whole minute, and lets it look at its files every few seconds.

What is to happen is decided elsewhere, from the time that it is by then; a tick that is late or lost
costs nothing, so nothing is stored and nothing is made up for here.

The clock of a host may be set at any time, by seconds or by months. Looks at files go by a clock that nobody sets. The
minutes are counted anew after each step.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable
from typing import Self

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

log = structlog.get_logger(__name__)

LOOK_SECONDS = 2.0
NEVER_TOO_LATE = None
"""APScheduler's own default drops a call that is a second late."""

STEP = 1.0
"""Seconds by which the clock has to be off, between two looks, to count as set."""

STANDS_STILL = dt.timedelta(seconds=30)
"""A clock that goes back by less is waited for."""


class EachMinute(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """The next whole minute. APScheduler's own triggers list all that a leap of the clock passed over."""

    def get_next_fire_time(self, previous_fire_time: dt.datetime | None, now: dt.datetime) -> dt.datetime:
        """After `now`, whatever was before."""
        return now.replace(second=0, microsecond=0) + dt.timedelta(minutes=1)


class Clock:
    """Calls `wake` at each whole minute, and when the clock was set, while it is entered; `tick` waits for a look.

    wall: the seconds that the host's clock shows. look: seconds between two looks.
    """

    def __init__(
        self, wake: Callable[[], None], wall: Callable[[], float] = time.time, look: float = LOOK_SECONDS
    ) -> None:
        self._wake = wake
        self._wall = wall
        self._look = look
        self._ahead = wall() - time.monotonic()
        self._scheduler = AsyncIOScheduler(timezone="UTC")

    def __enter__(self) -> Self:
        async def wake() -> None:  # so that it runs in the loop, and not in a thread of the scheduler's
            self._wake()

        self._job = self._scheduler.add_job(
            wake, EachMinute(), misfire_grace_time=NEVER_TOO_LATE, coalesce=True, max_instances=1
        )
        self._scheduler.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._scheduler.shutdown(wait=False)

    async def tick(self) -> None:
        """Until the next look at the files is due."""
        await asyncio.sleep(self._look)
        ahead = self._wall() - time.monotonic()
        step, self._ahead = ahead - self._ahead, ahead
        if abs(step) > STEP:
            log.warning("the clock was set, or the host slept", seconds=round(step, 1))
            self._job.reschedule(EachMinute())
            self._wake()


def steady(clock: Callable[[], dt.datetime]) -> Callable[[], dt.datetime]:
    """A clock that stands still where `clock` went back by a few seconds, until that has caught up.

    So what was done a moment ago is never to come, and no window that is over opens again for a moment.
    """
    last = clock()

    def now() -> dt.datetime:
        nonlocal last
        read = clock()
        if not last - STANDS_STILL < read < last:
            last = read
        return last

    return now
