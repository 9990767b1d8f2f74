"""The lease of a run on its database: one run of a host at a time, that lives for as long as its heart beats."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from pipeline.core.errors import LeaseLost, NightshiftError, RunInProgress
from pipeline.core.redaction import redacted
from pipeline.core.shift import Task
from pipeline.ingest.names import stored_name
from pipeline.ingest.work import utc_now
from pipeline.runner.ending import Ending
from pipeline.runner.untold import end_dead, is_alive, report_untold, this_process
from pipeline.store import runs
from pipeline.store.database import Database
from pipeline.store.runs import HEARTBEAT, Hearts, StoredRun

log = structlog.get_logger(__name__)

READS = "extract"

ROOM_SECONDS = 30.0
"""That a run which only reads may take to hear that it is to make room, and to end."""

BEATS = 8
"""In a lease, at least: a few may be lost."""

CUT_OFF = "it was cut off: it did not end in time"


@asynccontextmanager
async def hold_lease(
    store: Database, run_id: str, paths: Sequence[Path], task: Task | None, ending: Ending, stop: asyncio.Event
) -> AsyncIterator[None]:
    """Hold the database for a run, with a heartbeat. What ends it early is written into its row, and reported.

    A run that only reads makes room for one that embeds. What dead runs of other hosts held is taken up while it goes.

    stop: set where the run is to make room.

    Raises RunInProgress, and LeaseLost where the run was taken for dead.
    """
    dead = await _start(store, run_id, paths, task, ending, stop)
    for earlier in dead:
        seen = f"{earlier.heartbeat_at.astimezone():%Y-%m-%d %H:%M:%S %Z}"
        log.warning("an earlier run died; what it left is taken up", run=earlier.id, last_seen=seen)
    ending.interrupted = [(earlier.id, earlier.heartbeat_at) for earlier in dead]
    heart = asyncio.timeout(None)
    beating = asyncio.create_task(_beat(store, run_id, task, ending, stop, heart), name="heartbeat")
    try:
        try:
            async with heart:
                await report_untold(store, ending.settings, ending.jobs, ending.timing, utc_now(), {})
                yield
        except TimeoutError:
            if not heart.expired():
                raise
            raise LeaseLost from None
    except BaseException as error:
        reason = str(error) if isinstance(error, NightshiftError) else redacted(repr(error))
        if isinstance(error, LeaseLost):
            log.error("the run ends: it was taken for dead", run=run_id)
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            # Something else has to go on, and there is no time for a report: `report_untold` makes it up.
            await store.write(runs.finish_run, run_id, "stopped", CUT_OFF, utc_now(), ending.measured())
        else:
            await ending.end(store, "failed", [reason])
        raise
    finally:
        beating.cancel()


def _names(paths: Sequence[Path]) -> list[str]:
    return [stored_name(os.path.realpath(path)) for path in paths]


async def _start(
    store: Database, run_id: str, paths: Sequence[Path], task: Task | None, ending: Ending, stop: asyncio.Event
) -> list[StoredRun]:
    """Begin, where another run is at work that only reads, after it; returns what `start_run` does."""
    latest = asyncio.get_running_loop().time() + ROOM_SECONDS
    while True:
        try:
            return await store.write(
                runs.start_run,
                run_id,
                this_process(store.host),
                _names(paths),
                utc_now(),
                is_alive,
                job=task.job.name if task else None,
                window=task.window if task else None,
                stop_at=task.stop_at if task else None,
                task=ending.task,
                lease=_lease(ending),
            )
        except RunInProgress:
            late = stop.is_set() or asyncio.get_running_loop().time() > latest
            if late or ending.task == READS or not await store.write(runs.ask_for_room, utc_now(), store.host):
                raise
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await stop.wait()


def _lease(ending: Ending) -> dt.timedelta:
    return dt.timedelta(seconds=ending.settings.run.lease)


async def _beat(
    store: Database, run_id: str, task: Task | None, ending: Ending, stop: asyncio.Event, heart: asyncio.Timeout
) -> None:
    """Say again and again that the run lives. heart: expires where nobody takes it for alive any more."""
    ends, lease = task.stop_at if task else None, _lease(ending)
    pause = min(HEARTBEAT, lease / BEATS).total_seconds()
    seen: Hearts = {}
    while True:
        await asyncio.sleep(pause)
        try:
            stop_at = await store.write(runs.heartbeat, run_id, utc_now(), ending.measured())
            await end_dead(store, lease, utc_now(), seen, run_id)
        except LeaseLost:
            heart.reschedule(asyncio.get_running_loop().time())
            return
        except NightshiftError as error:  # a database that is away for a moment must not end the run here
            log.warning("the heartbeat could not be written", error=str(error))
            continue
        if ending.task == READS and stop_at != ends and not stop.is_set():
            log.info("the run makes room for one that embeds", run=run_id)
            stop.set()
