"""The run itself: take the lease, ingest, record how it ended."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog

from pipeline.backends.embedding import EmbeddingBackend
from pipeline.core.errors import NightshiftError
from pipeline.core.shift import Task
from pipeline.ingest.embedding import Embedder
from pipeline.ingest.flow import ingest
from pipeline.ingest.names import stored_name
from pipeline.ingest.pool import ExtractionPool
from pipeline.ingest.progress import Progress
from pipeline.ingest.work import Limits, Place, Work, utc_now
from pipeline.runner.places import check_paths, find_places
from pipeline.runner.report import Outcome, RunReport, newest_first
from pipeline.runner.target import Aim, embedding_options, take_aim, timeouts
from pipeline.settings import Settings
from pipeline.store import models, overview, queue, runs
from pipeline.store.database import Database
from pipeline.store.runs import HEARTBEAT, Process
from pipeline.store.scopes import Scope

log = structlog.get_logger(__name__)

FAILING_LISTED = 1000
"""Documents named in a report; an archive may hold more bad files than anybody reads."""


def new_run_id() -> str:
    """A name for a run that sorts by time."""
    return f"{utc_now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True)
class Run:
    """What is to be done, and with what.

    paths: None is the inbox, and everything else that waits in the database.
    embedder: a model server that runs already; None is one of the run's own, started when it is needed.
    stop: a stop lets the batches in flight be stored.
    task: the job's that this run does, None for one by hand.
    confirm_deletions: a person said that many documents may be gone.
    """

    settings: Settings
    store: Database
    paths: Sequence[Path] | None
    progress: Progress
    stop: asyncio.Event
    embedder: Embedder | None = None
    id: str = field(default_factory=new_run_id)
    task: Task | None = None
    confirm_deletions: bool = False


async def run_now(
    settings: Settings,
    paths: Sequence[Path] | None,
    progress: Progress,
    stop: asyncio.Event,
    *,
    confirm_deletions: bool = False,
) -> RunReport:
    """A run by hand, with a database and a model server of its own. Raises as `carry_out`."""
    store = await asyncio.to_thread(Database.open, settings.database_url)
    try:
        run = Run(settings, store, paths, progress, stop, confirm_deletions=confirm_deletions)
        return await carry_out(run)
    finally:
        await asyncio.to_thread(store.close)


async def carry_out(run: Run) -> RunReport:
    """Do a run, and say how it went.

    Single documents that cannot be read are in the report; a source that cannot be trusted, or a
    model server that does not come up, makes it `failed`.

    Raises:
        UsageError: a path is not there. Nothing was done.
        StoreError: the database cannot be used, or another run is at work on it.
        ModelError, SettingsError: the model cannot be used as it is set.
    """
    began = time.monotonic()
    store = run.store
    paths = run.paths or [run.settings.inbox]
    await store.read(check_paths, paths)
    async with _lease(run, paths) as errors:
        # Under the lease: to note a source may take others in, which a run at work relies on.
        places = await store.write(find_places, paths)
        scopes = None if run.paths is None else [Scope(place.source_id, place.folder) for place in places]
        aim = await take_aim(run.settings, store)
        try:
            await _ingest(run, places, scopes, aim, errors)
        except* NightshiftError as group:
            errors += [str(error) for error in _leaves(group)]
        outcome: Outcome = "failed" if errors else "stopped" if run.stop.is_set() else "complete"
        if outcome == "complete" and await store.write(models.activate_when_complete, aim.target):
            log.info("search has moved over to the new model", model=aim.model.name)
        await store.write(runs.finish_run, run.id, outcome, "; ".join(errors) or None, utc_now())
        return await _report(run, outcome, scopes, aim, errors, time.monotonic() - began)


async def _ingest(
    run: Run, places: Sequence[Place], scopes: Sequence[Scope] | None, aim: Aim, errors: list[str]
) -> None:
    settings = run.settings
    async with AsyncExitStack() as opened:
        embedder = run.embedder
        if embedder is None:
            # Not entered: that would start it, and a run without work needs none.
            options = embedding_options(settings, str(aim.file.path))
            embedder = EmbeddingBackend(
                options,
                aim.file,
                settings.data_dir / "logs",
                timeouts=timeouts(settings),
                # By then nothing is in flight, and a process that is gone at once is as clean as one that says goodbye.
                stop_grace=0.0,
            )
            opened.push_async_callback(embedder.stop)
        pool = await opened.enter_async_context(
            ExtractionPool(
                settings.extract.workers,
                model_path=aim.file.path,
                limit=settings.chunk.tokens,
                overlap=settings.chunk.overlap,
                pdf_engine=settings.extract.pdf_engine,
                timeout_s=settings.extract.timeout,
                memory_limit_bytes=settings.extract.memory_mib << 20,
                nice=settings.extract.nice,
            )
        )
        limits = Limits(settings.run.look_ahead, settings.run.request_chunks, settings.run.requests_in_flight)
        work = Work(
            run.id,
            run.store,
            places,
            scopes,
            aim.target,
            pool,
            embedder,
            run.progress,
            run.stop,
            limits,
            run.confirm_deletions,
        )
        try:
            await ingest(work)
        finally:
            errors += [str(error) for error in work.errors]


@asynccontextmanager
async def _lease(run: Run, paths: Sequence[Path]) -> AsyncIterator[list[str]]:
    """Hold the database for this run, with a heartbeat. What ends it early is written into its row.

    Yields a list for what goes wrong beyond single documents.
    """
    store, task = run.store, run.task
    me = Process(socket.gethostname(), os.getpid(), psutil.Process().create_time())
    dead = await store.write(
        runs.start_run,
        run.id,
        me,
        _names(paths),
        utc_now(),
        is_alive,
        job=task.job.name if task else None,
        window=task.window if task else None,
        stop_at=task.stop_at if task else None,
    )
    for earlier in dead:
        seen = f"{earlier.heartbeat_at.astimezone():%Y-%m-%d %H:%M:%S %Z}"
        log.warning("an earlier run died; what it left is taken up", run=earlier.id, last_seen=seen)
    beating = asyncio.create_task(_beat(store, run.id), name="heartbeat")
    try:
        yield []
    except BaseException as error:
        reason = str(error) if isinstance(error, NightshiftError) else repr(error)
        state = "stopped" if isinstance(error, asyncio.CancelledError | KeyboardInterrupt) else "failed"
        await store.write(runs.finish_run, run.id, state, reason, utc_now())
        raise
    finally:
        beating.cancel()


def _names(paths: Sequence[Path]) -> list[str]:
    return [stored_name(os.path.realpath(path)) for path in paths]


async def _beat(store: Database, run_id: str) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT.total_seconds())
        try:
            await store.write(runs.heartbeat, run_id, utc_now())
        except NightshiftError as error:  # a database that is away for a moment must not end the run here
            log.warning("the heartbeat could not be written", error=str(error))


def is_alive(process: Process) -> bool:
    """Whether a process of this host still runs; a later one with the same pid is another."""
    try:
        return bool(abs(psutil.Process(process.pid).create_time() - process.started) < 1.0)
    except psutil.Error:
        return False


def _leaves(group: BaseExceptionGroup[NightshiftError]) -> list[NightshiftError]:
    found: list[NightshiftError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def _report(
    run: Run, outcome: Outcome, scopes: Sequence[Scope] | None, aim: Aim, errors: Sequence[str], seconds: float
) -> RunReport:
    store, progress = run.store, run.progress
    known = await store.read(overview.list_models)
    failing = await store.read(overview.list_documents, overview.FAILING, scopes, FAILING_LISTED)
    everything = await store.read(queue.backlog, None, aim.target)
    mine = await store.read(queue.backlog, scopes, aim.target)
    return RunReport(
        run_id=run.id,
        outcome=outcome,
        documents=await store.read(overview.count_documents, scopes),
        chunks=await store.read(overview.count_chunks, scopes),
        chunks_embedded=progress.chunks_done,
        seconds=seconds,
        failing=newest_first(failing, [failure.path for failure in progress.failures]),
        errors=errors,
        waiting_elsewhere=everything.contents - mine.contents,
        failed_now=progress.documents_failed,
        changes=progress.changes,
        model=await store.read(overview.show_model, aim.model.id),
        searched_with=next((model for model in known if model.active), None),
    )
