"""The APScheduler edge: wakes the daemon at each whole minute, and lets it look at its files every few seconds.

What is to happen is decided elsewhere, from the time that it is by then; a tick that is late or lost
costs nothing, so nothing is stored and nothing is made up for here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

LOOK_SECONDS = 2
NEVER_TOO_LATE = None
"""APScheduler's own default drops a call that is a second late."""


class Clock:
    """Calls `wake` at each whole minute, while it is entered; `tick` waits for the next look."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._ticks = asyncio.Event()
        self._scheduler = AsyncIOScheduler(timezone="UTC")

    def __enter__(self) -> Self:
        for call, trigger in (
            (self._wake, CronTrigger(second=0, timezone="UTC")),
            (self._ticks.set, IntervalTrigger(seconds=LOOK_SECONDS, timezone="UTC")),
        ):
            self._scheduler.add_job(
                _as_coroutine(call), trigger, misfire_grace_time=NEVER_TOO_LATE, coalesce=True, max_instances=1
            )
        self._scheduler.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._scheduler.shutdown(wait=False)

    async def tick(self) -> None:
        """Until the next look at the files is due."""
        await self._ticks.wait()
        self._ticks.clear()


def _as_coroutine(call: Callable[[], None]) -> Callable[[], object]:
    async def run() -> None:  # so that it runs in the loop, and not in a thread of the scheduler's
        call()

    return run
