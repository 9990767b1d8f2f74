"""The run itself: take the lease, ingest, record how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from pipeline.backends.embedder import ServerEmbedder
from pipeline.backends.embedding import EmbeddingBackend
from pipeline.backends.gpus import build_of, unused_gpu
from pipeline.backends.launch import own_kind
from pipeline.core.errors import BackendDied, NightshiftError, StoreError
from pipeline.core.modes import Device
from pipeline.core.schedule import Job
from pipeline.core.shift import Task
from pipeline.ingest.embedding import Embedder
from pipeline.ingest.flow import ingest
from pipeline.ingest.pace import Pace
from pipeline.ingest.passwords import mark_of
from pipeline.ingest.pool import ExtractionPool
from pipeline.ingest.progress import Progress
from pipeline.ingest.tesseract import Ocr
from pipeline.ingest.work import Limits, Place, Work, utc_now
from pipeline.runner.counting import engine_counted
from pipeline.runner.ending import Ending
from pipeline.runner.forecast import Timing, bytes_a_page, samples
from pipeline.runner.inbox import make_inbox
from pipeline.runner.indexing import renew_indexes
from pipeline.runner.lease import hold_lease
from pipeline.runner.looking import looking, passwords
from pipeline.runner.mirroring import mirrored
from pipeline.runner.places import check_paths, find_places, look_at_paths
from pipeline.runner.report import Outcome, RunReport, newest_first
from pipeline.runner.shared import readable_sources
from pipeline.runner.target import Aim, check_model, embedding_options, longest_document, ocr_wanted, take_aim, timeouts
from pipeline.runner.tuned import with_tunings
from pipeline.settings import Settings
from pipeline.store import counts, hosts, library, models, overview, queue, retry
from pipeline.store.database import Database
from pipeline.store.mirror import outbox
from pipeline.store.scopes import Scope

log = structlog.get_logger(__name__)

READING_WORKERS = 1
READING_NICE = 19
"""Of a run that only reads: it goes on beside whatever the host is there for."""


END = dt.timedelta(seconds=1)
"""A run that was stopped this shortly before its time was over was stopped by that."""

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
    reads_only: documents are read and cut, and nothing is embedded.
    device: where the embedder computes, `gpu` or `cpu`; None is not known, or not yet.
    jobs: the schedule, for the forecast in the report. clock: by which the task has to end.
    timing: what a change of mode takes.
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
    reads_only: bool = False
    device: str | None = None
    jobs: Sequence[Job] | None = None
    clock: Callable[[], dt.datetime] = utc_now
    timing: Timing = field(default_factory=Timing)


async def run_now(
    settings: Settings,
    paths: Sequence[Path] | None,
    progress: Progress,
    stop: asyncio.Event,
    *,
    confirm_deletions: bool = False,
    reads_only: bool = False,
    jobs: Sequence[Job] | None = None,
) -> RunReport:
    """A run by hand, with a database and a model server of its own. Raises as `carry_out`."""
    store = await asyncio.to_thread(Database.open, settings.database_url, settings.node)
    try:
        run = Run(
            settings,
            store,
            paths,
            progress,
            stop,
            confirm_deletions=confirm_deletions,
            reads_only=reads_only,
            jobs=jobs,
        )
        async with mirrored(settings, store):
            report = await carry_out(run)
        with contextlib.suppress(StoreError):
            # Of after the run, when delivery went on.
            report = replace(report, mirror=await store.read(outbox.standing))
        return report
    finally:
        await asyncio.to_thread(store.close)


async def carry_out(run: Run) -> RunReport:
    """Do a run, and say how it went.

    Single documents that cannot be read are in the report; a source that cannot be trusted, or a
    model server that does not come up, makes it `failed`.

    Raises:
        UsageError: a path is not there. Nothing was done.
        SourceMissing: the default inbox cannot be made.
        StoreError: the database cannot be used, or another run is at work on it.
        ModelError, SettingsError: the model, the file of passwords, or OCR cannot be used as it is set.
    """
    store = run.store
    paths = run.paths or [run.settings.inbox]
    await make_inbox(run.settings, store)
    known_passwords = await asyncio.to_thread(passwords, run.settings)
    ocr = await ocr_wanted(run.settings)
    # Before any transaction: what asks a disk may wait.
    own = [run.settings.inbox, run.settings.data_dir / "texts"] if store.is_shared else []
    named = await look_at_paths(paths, looking(run.settings).silence, own)
    await store.read(check_paths, named, looking(run.settings).wanted)
    # Who asked by hand is told at once, and nothing is on record; of a job's run the morning's report has to tell.
    checked = await check_model(run.settings, store) if run.task is None else None
    ending = Ending(
        run.id,
        run.settings,
        run.progress,
        task="extract" if run.reads_only else "ingest",
        job=run.task.job.name if run.task else None,
        sources=[str(path) for path in paths],
        jobs=run.jobs,
        timing=run.timing,
        device=lambda: run.device,
    )
    errors: list[str] = []
    async with hold_lease(store, run.id, paths, run.task, ending, run.stop):
        # Under the lease: to note a source may take others in, which a run at work relies on.
        found = await store.write(find_places, named, run.id)
        places = [replace(place, priority=number) for number, place in enumerate(found)]
        silence = looking(run.settings).silence
        within = await readable_sources(store, places, silence, trusted=run.confirm_deletions)
        scopes = None if run.paths is None else [Scope(place.source_id, place.folder) for place in places]
        aim = await take_aim(run.settings, store, checked)
        ending.fingerprint, ending.model = aim.model.fingerprint, aim.model.name
        if scopes is not None:
            await store.write(queue.prioritise, scopes)
        pace = await _pace(run)
        try:
            await _ingest(run, places, scopes, within, aim, pace, ending, errors, known_passwords, ocr)
        except* NightshiftError as group:
            errors += [str(error) for error in _leaves(group)]
        if ending.interrupted:
            # What a run that died had replaced, and had not cleared away: nothing here may have changed since.
            await store.write(library.drop_leftovers)
        stopped = run.stop.is_set() or pace.passed_over
        outcome: Outcome = "failed" if errors else "stopped" if stopped else "complete"
        # Also of a run that failed, because a source that is away or a deletion that waits may be so for weeks.
        if not run.reads_only and await store.write(models.activate_when_complete, aim.target):
            log.info("search has moved over to the new model", model=aim.model.name)
        if not run.reads_only:
            await renew_indexes(store, run.settings.search.quantized, run.stop)
        if (
            outcome == "stopped"
            and run.task is not None
            and (pace.out_of_time or run.clock() >= run.task.stop_at - END)
        ):
            ending.until = run.task.window.end
        await ending.end(store, outcome, errors)
        report = await _report(run, outcome, places, scopes, aim, errors, ending.seconds)
        return replace(
            report,
            out_of_time=pace.out_of_time,
            reads_only=run.reads_only,
            engine=ending.engine.as_json(),
            device_name=ending.told.get("device"),
            build=build_of(ending.told),
            unused_gpu=ending.unused_gpu,
            cut_off=ending.cut_off,
        )


async def _ingest(
    run: Run,
    places: Sequence[Place],
    scopes: Sequence[Scope] | None,
    within: Collection[int] | None,
    aim: Aim,
    pace: Pace,
    ending: Ending,
    errors: list[str],
    known_passwords: Sequence[str],
    ocr: Ocr | None,
) -> None:
    settings, job = run.settings, run.task.job if run.task else None
    marks = await run.store.read(retry.tried_passwords, scopes, aim.target)
    mark = await asyncio.to_thread(mark_of, known_passwords, [known for known in marks if known])
    async with AsyncExitStack() as opened:
        embedder = run.embedder
        if embedder is None and not run.reads_only:
            # Not entered: that would start it, and a run without work needs none.
            options = embedding_options(settings, str(aim.file.path))
            options = await with_tunings(options, run.store, aim.model.fingerprint, own_kind(aim.file))
            embedder = own = EmbeddingBackend(
                options,
                aim.file,
                settings.data_dir / "logs",
                timeouts=timeouts(settings),
                # By then nothing is in flight, and a process that is gone at once is as clean as one that says goodbye.
                stop_grace=0.0,
            )
            opened.push_async_callback(own.stop)
            ending.device = lambda: _device_of(own)
        pool = await opened.enter_async_context(
            ExtractionPool(
                pace.workers,
                model_path=aim.file.path,
                limit=settings.chunk.tokens,
                overlap=settings.chunk.overlap,
                pdf_engine=settings.extract.pdf_engine,
                timeout_s=settings.extract.timeout,
                timeout_per_page_s=settings.extract.page_timeout,
                memory_limit_bytes=settings.extract.memory_mib << 20,
                nice=_first(job.nice if job else None, READING_NICE if run.reads_only else settings.extract.nice),
                passwords=known_passwords,
                document_tokens=longest_document(settings),
                late_chunking=settings.embedding.late_chunking,
                ocr=ocr,
            )
        )
        limits = Limits(
            settings.run.look_ahead,
            settings.run.request_chunks,
            settings.run.requests_in_flight,
            look_ahead_tokens=settings.run.look_ahead_tokens,
            request_tokens=settings.run.request_tokens,
            patience=settings.embedding.total_timeout,
        )
        work = Work(
            run.id,
            run.store,
            places,
            scopes,
            aim.target,
            pool,
            None if run.reads_only else embedder,
            run.progress,
            run.stop,
            limits,
            run.confirm_deletions,
            order=(job.order if job else None) or settings.run.order,
            pace=pace,
            looking=looking(settings),
            passwords_tried=mark,
            within=within,
            dimension=aim.model.dimension,
        )
        try:
            async with engine_counted(embedder) as ending.engine:
                await ingest(work)
        finally:
            errors += [str(error) for error in work.errors]
            if isinstance(embedder, ServerEmbedder):
                ending.told = embedder.told
                ending.unused_gpu = await _unused_gpu(run, embedder)


async def _pace(run: Run) -> Pace:
    """What may still be begun: all of it where the run need not end, else what the plan says."""
    job = run.task.job if run.task else None
    workers = _first(job.workers if job else None, READING_WORKERS if run.reads_only else run.settings.extract.workers)
    if run.task is None:
        return Pace(None, run.clock, workers=workers)
    earlier = await run.store.read(samples, run.device)
    sizes = await run.store.read(bytes_a_page)
    return Pace(run.task.stop_at, run.clock, earlier, sizes, workers)


def _first(wanted: int | None, otherwise: int) -> int:
    return otherwise if wanted is None else wanted


def _device_of(backend: EmbeddingBackend) -> str | None:
    with contextlib.suppress(BackendDied):
        return (Device.GPU if backend.info.on_gpu else Device.CPU).value
    return None


async def _unused_gpu(run: Run, embedder: ServerEmbedder) -> str | None:
    """That llama.cpp embedded on the processor where there is a GPU, unless the processor was meant."""
    meant = run.settings.embedding.n_gpu_layers == 0 or run.device == Device.CPU.value
    if meant or embedder.told.get("on_gpu") is not False or "library" not in embedder.told:
        return None
    return await asyncio.to_thread(unused_gpu)


def _leaves(group: BaseExceptionGroup[NightshiftError]) -> list[NightshiftError]:
    found: list[NightshiftError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def _report(
    run: Run,
    outcome: Outcome,
    places: Sequence[Place],
    scopes: Sequence[Scope] | None,
    aim: Aim,
    errors: Sequence[str],
    seconds: float,
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
        chunks_reused=progress.chunks_reused,
        documents_read=progress.meter.documents,
        pages_read=progress.meter.pages,
        seconds=seconds,
        failing=newest_first(failing, [failure.path for failure in progress.failures]),
        errors=errors,
        waiting_elsewhere=everything.contents - mine.contents,
        failed_now=progress.documents_failed,
        changes=progress.changes,
        unsettled=list(progress.unsettled),
        not_looked_at=[] if run.paths else await _elsewhere(run, places),
        others={
            other.host: other.reads + other.embeds
            for other in await store.read(hosts.others_at_work, run.id, scopes, aim.target)
        },
        model=await store.read(overview.show_model, aim.model.id),
        searched_with=next((model for model in known if model.active), None),
        mirror=await store.read(outbox.standing),
        sources=[str(path) for path in run.paths or [run.settings.inbox]],
    )


async def _elsewhere(run: Run, places: Sequence[Place]) -> list[str]:
    """Sources of this host with documents that none of the places is in."""
    looked_at = {place.source_id for place in places}
    known = await run.store.read(library.sources)
    documents = await run.store.read(counts.by_source)
    return [
        root for root, source_id in sorted(known.items()) if documents.get(source_id) and source_id not in looked_at
    ]
