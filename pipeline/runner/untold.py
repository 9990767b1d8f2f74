"""Reports of runs that could not make their own: they died, were cut off, or had lost their database."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

import structlog
from sqlalchemy.orm import Session

from pipeline.backends import family
from pipeline.core.errors import StoreError
from pipeline.core.schedule import Job
from pipeline.ingest.meter import Busy, Meter
from pipeline.ingest.progress import Progress
from pipeline.runner.forecast import Timing, make_plan
from pipeline.runner.morning import Facts, make_report, write_report
from pipeline.settings import Settings
from pipeline.store import reports, runs
from pipeline.store.database import Database
from pipeline.store.runs import Hearts, Process, StoredRun

log = structlog.get_logger(__name__)

WITHIN = dt.timedelta(days=7)
"""How long ago a run may have begun; what happened before is no news."""

MOST = 5
"""Runs that are reported at once; the others come next time."""

AFTERWARDS = "this report was made afterwards, from what the run had stored"


def this_process(host: str | None = None) -> Process:
    """Who a run of this process is. host: what this host is called; None is the system's name."""
    return Process(host or socket.gethostname(), os.getpid(), family.birth(os.getpid()) or 0.0)


def is_alive(process: Process) -> bool:
    """Whether a process of this host still runs; a later one with the same pid is another."""
    return family.is_alive(process.pid, process.started)


async def end_dead(
    store: Database, lease: dt.timedelta, now: dt.datetime, seen: Hearts | None, mine: str | None = None
) -> None:
    """Mark runs that died, as `runs.end_dead_runs` does. Raises StoreError.

    seen: what earlier calls saw of other hosts' runs, which are judged by that alone; None judges them at once.
    """
    unheard = None
    if seen is not None:
        unheard = runs.watch_hearts(seen, await store.read(runs.living_runs), time.monotonic(), lease)
    me = this_process(store.host)
    await store.write(runs.end_dead_runs, me, now, is_alive, lease=lease, mine=mine, unheard=unheard)


async def report_untold(
    store: Database,
    settings: Settings,
    jobs: Sequence[Job] | None,
    timing: Timing,
    now: dt.datetime,
    seen: Hearts | None = None,
) -> list[str]:
    """Report the runs that ended without a report of their own, oldest first; returns which.

    What cannot be done is logged, and stays to be done. seen: as in `end_dead`.
    """
    told: list[str] = []
    try:
        await end_dead(store, dt.timedelta(seconds=settings.run.lease), now, seen)
        for run in await store.read(reports.untold_runs, now - WITHIN, MOST):
            report = await store.read(_report, run, jobs, timing, now)
            if not await store.write(reports.save_first_report, run.id, report):
                continue  # another host told of it meanwhile
            told.append(run.id)
            await keep_as_files(settings, report, now)
    except StoreError as error:
        log.warning("runs that could not report themselves were not reported", error=str(error))
    return told


async def keep_as_files(settings: Settings, report: dict[str, Any], now: dt.datetime) -> None:
    """Write the files of a report; where that fails it is logged, and the database has it all the same."""
    wanted, folder = settings.report, settings.data_dir / "reports"
    try:
        await asyncio.to_thread(write_report, folder, report, keep=wanted.keep, keep_days=wanted.keep_days, now=now)
    except OSError as error:
        log.warning("the report could not be written as a file", run=report["run_id"], error=str(error))


def _report(
    session: Session, run: StoredRun, jobs: Sequence[Job] | None, timing: Timing, now: dt.datetime
) -> dict[str, Any]:
    did, ended = run.measured, run.finished_at or run.heartbeat_at
    meter = Meter(
        reading=Busy(_total=did.extract_seconds),
        embedding=Busy(_total=did.embed_seconds),
        documents=did.documents_read,
        pages=did.pages_read,
        characters=did.characters,
        tokens=did.tokens_embedded,
        slowest_request=did.request_seconds,
    )
    progress = Progress(
        started_monotonic=0.0, documents_done=did.documents_done, chunks_done=run.chunks_embedded, meter=meter
    )
    facts = Facts(
        run_id=run.id,
        job=run.job,
        task=run.task,
        outcome=run.state,
        started_at=run.started_at,
        finished_at=ended,
        seconds=max(0.0, (ended - run.started_at).total_seconds()),
        progress=progress,
        errors=[f"{run.error or 'how it ended is not known'}; {AFTERWARDS}"],
        plan=None if jobs is None else make_plan(session, jobs, now, timing).as_json(),
        device=did.device,
        sources=run.sources,
    )
    return make_report(session, facts)
