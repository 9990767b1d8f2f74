"""Holds a database so that nobody else is at work on it, on whatever host: for what mends it, or imports into it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

import structlog
from sqlalchemy.orm import Session

from pipeline.core.errors import NightshiftError
from pipeline.ingest.work import utc_now
from pipeline.runner.run import new_run_id
from pipeline.runner.untold import is_alive, this_process
from pipeline.store import runs
from pipeline.store.database import Database
from pipeline.store.runs import HEARTBEAT

log = structlog.get_logger(__name__)


P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Alone:
    """A database that nobody else is at work on."""

    store: Database
    run_id: str

    async def write(self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `Database.write`. Raises LeaseLost where this process was taken for dead, and others may be at work."""

        def checked(session: Session) -> T:
            self.check(session)
            return function(session, *args, **kwargs)

        return await self.store.write(checked)

    def check(self, session: Session) -> None:
        """Make sure that it still is so, to the end of this transaction. Raises LeaseLost."""
        runs.check_lease(session, self.run_id)


@asynccontextmanager
async def hold_alone(store: Database) -> AsyncIterator[Alone]:
    """Hold it, as a run that nothing can be beside. Raises RunInProgress where a run is at work, on whatever host."""
    run_id = new_run_id()
    me = this_process(store.host)
    await store.write(runs.start_run, run_id, me, [], utc_now(), is_alive, task=runs.REPAIR)
    beating = asyncio.create_task(_beat(store, run_id), name="heartbeat")
    outcome, error = "failed", "it did not end by itself"
    try:
        yield Alone(store, run_id)
        outcome, error = "complete", ""
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating
        await store.write(runs.finish_run, run_id, outcome, error or None, utc_now())


async def _beat(store: Database, run_id: str) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT.total_seconds())
        try:
            await store.write(runs.heartbeat, run_id, utc_now())
        except NightshiftError as error:
            log.warning("the heartbeat could not be written", error=str(error))
