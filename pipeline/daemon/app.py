"""The daemon: builds everything, runs until it is told to stop, closes it in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import resource
import signal
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from pipeline.backends.accelerator import find_accelerator, gpu_vendor
from pipeline.backends.launch import Gpu, Programs
from pipeline.backends.models import resolve
from pipeline.backends.options import EmbeddingOptions, GenerationOptions
from pipeline.backends.orphans import ChildRegistry
from pipeline.backends.served import Served
from pipeline.backends.server import ModelServer
from pipeline.core.errors import ModelError, NightshiftError, SettingsError, UsageError
from pipeline.core.modes import Device, Mode, Slot
from pipeline.core.redaction import redacted
from pipeline.core.shift import Margins
from pipeline.daemon.governor import Governor
from pipeline.daemon.host import Host
from pipeline.daemon.journal import StoredJournal
from pipeline.daemon.memory import DeviceMemory
from pipeline.daemon.notify import notify
from pipeline.daemon.runs import Runs
from pipeline.daemon.servers import SlotModel, SlotServer, find_programs, kind_of, make_server, with_device
from pipeline.daemon.texts import Texts
from pipeline.ingest.work import utc_now
from pipeline.runner.forecast import timing_of
from pipeline.runner.mirroring import Mirroring, beside, keep_in_line
from pipeline.runner.ownership import own_host
from pipeline.runner.questions import QuestionServer
from pipeline.runner.target import embedding_options, identity, named_by, timeouts
from pipeline.runner.tuned import with_tunings
from pipeline.runner.untold import report_untold
from pipeline.scheduler.clock import Clock, steady
from pipeline.scheduler.jobs import LoadedJobs, fingerprint, load_jobs, reload
from pipeline.settings import LoadedSettings, Settings
from pipeline.store import loads, models, switches
from pipeline.store.database import Database
from pipeline.switcher.admission import Admission
from pipeline.switcher.switcher import Switcher
from pipeline.web.app import create_app
from pipeline.web.metrics import Metrics
from pipeline.web.options import WebOptions, is_loopback
from pipeline.web.serve import bind, serving

log = structlog.get_logger(__name__)

UNKNOWN_LOAD = 60.0
"""Seconds that a model is taken to need to load that was never loaded here."""

GPU_LOOK = 2.0
ENGINE_LOOK = 5.0
TEXTS_LOOK = 60.0
QUESTIONS_LOOK = 1.0
UNTOLD_LOOK = 60.0
WATCHDOG_SECONDS = 20.0
SHUTDOWN = 5.0
RUN_GRACE = 15.0


async def run_daemon(loaded: LoadedSettings, clock: Callable[[], dt.datetime] = utc_now) -> None:
    """Serve, switch and ingest until SIGTERM or SIGINT. SIGHUP reads the job files again.

    clock: the time by which the schedule goes.

    Raises:
        HostBusy: another daemon or run owns this host.
        UsageError: it is to listen where anybody could reach it without a key, or cannot listen at all.
        StoreError: the database cannot be used.
    """
    settings = loaded.settings
    _refuse_open_door(settings)
    _raise_descriptor_limit()
    async with AsyncExitStack() as opened:
        # The lock before the port: who holds the host is the better answer to a second daemon.
        tell_url = opened.enter_context(own_host(settings.data_dir, "daemon"))
        listener = bind(settings.host, settings.port)
        opened.callback(listener.close)
        url = f"http://{settings.host}:{listener.getsockname()[1]}"
        tell_url(url)
        store = await asyncio.to_thread(Database.open, settings.database_url, settings.node)
        opened.push_async_callback(asyncio.to_thread, store.close)
        mirroring = await opened.enter_async_context(beside(settings, store))
        await store.write(switches.interrupt_switches, utc_now())
        registry = ChildRegistry(settings.data_dir / "run" / "children.json")
        await registry.end_orphans()
        host, metrics = await _build(loaded, store, registry, steady(clock))
        opened.push_async_callback(host.switcher.close)
        opened.push_async_callback(host.questions.stop)
        opened.push_async_callback(_end_run, host.runs)
        options = WebOptions(
            host=settings.host,
            api_key=settings.api_key.get_secret_value() if settings.api_key else "",
            allowed_hosts=tuple(name.strip() for name in settings.gateway.allowed_hosts.split(",") if name.strip()),
            read_timeout=settings.gateway.read_timeout,
        )
        app = create_app(host.services(), options, metrics)
        edge = await opened.enter_async_context(serving(app, listener, grace=SHUTDOWN))
        edges = opened.enter_context(Clock(host.governor.wake))
        await _until_stopped(host, edge.task, edges, url, mirroring)


async def _until_stopped(
    host: Host, edge: asyncio.Task[None], clock: Clock, url: str, mirroring: Mirroring | None
) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, host.jobs.read_again)
    log.info("the daemon is ready", url=url, jobs=len(host.jobs.loaded.jobs))
    notify("READY=1")
    tasks = [
        asyncio.create_task(host.governor.govern(), name="governor"),
        asyncio.create_task(_watch_gpu(host), name="gpu"),
        asyncio.create_task(_watch_engine(host), name="engine"),
        asyncio.create_task(_beat(), name="watchdog"),
        asyncio.create_task(_watch_texts(host), name="texts"),
        asyncio.create_task(_watch_questions(host), name="questions"),
        asyncio.create_task(_report_untold(host), name="reports"),
        asyncio.create_task(host.jobs.watch(clock), name="jobs"),
        *([] if mirroring is None else [asyncio.create_task(keep_in_line(mirroring), name="mirror")]),
        edge,
    ]
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        # A task that ended by itself failed: to go on without it would be to pretend.
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()
        log.info("the daemon stops")
        notify("STOPPING=1")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
        for task in [*tasks[:-1], stopping]:
            task.cancel()
        await asyncio.gather(*tasks[:-1], stopping, return_exceptions=True)


async def _build(
    loaded: LoadedSettings, store: Database, registry: ChildRegistry, clock: Callable[[], dt.datetime]
) -> tuple[Host, Metrics]:
    settings = loaded.settings
    slot_models, unconfigured = await slot_models_of(loaded, store)
    accelerator = await asyncio.to_thread(find_accelerator)
    vendor = gpu_vendor()
    metrics = Metrics()
    admission = Admission(settings.gateway.max_waiting, settings.gateway.max_wait)
    estimates = await _estimates(store, slot_models)

    async def on_ready(server: Served) -> None:
        model = slot_models[server.slot]
        if isinstance(server, ModelServer):
            # What it learnt by crashing, the next one need not learn again.
            slot_models[server.slot] = replace(model, options=server.options)
        if server.load_seconds is None:
            return
        with contextlib.suppress(NightshiftError):
            load = await store.write(
                loads.note_load, model.fingerprint, model.kind, server.device.value, server.load_seconds, utc_now()
            )
            estimates[server.slot, server.device] = load.seconds_max

    async def before_load(server: Served) -> None:
        # What was measured while the daemon ran counts too.
        file = slot_models[server.slot].file
        if isinstance(server, ModelServer) and isinstance(server.options, EmbeddingOptions) and file is not None:
            name = identity(file, settings.embedding.pooling)
            with contextlib.suppress(NightshiftError):
                server.use(await with_tunings(server.options, store, name, server.kind))

    def fresh(slot: Slot, device: Device) -> SlotServer:
        return make_server(
            slot_models[slot],
            device,
            log_dir=settings.data_dir / "logs",
            gpu=vendor,
            programs=find_programs(),
            registry=registry,
            timeouts=timeouts(settings),
            on_ready=on_ready,
            before_load=before_load,
        )

    switcher = Switcher(
        admission=admission,
        memory=DeviceMemory(accelerator, settings),
        journal=StoredJournal(store, metrics),
        make_server=fresh,
        configured=slot_models.keys(),
        has_gpu=vendor is not None,
    )

    def load_seconds(mode: Mode) -> float:
        places = switcher.placement(mode).items()
        return max((estimates.get(place, UNKNOWN_LOAD) for place in places), default=0.0)

    jobs = JobFiles(settings.jobs_dir)

    reported = asyncio.Event()

    def on_end(outcome: str, chunks: int) -> None:
        reported.set()
        metrics.observe_run(outcome, utc_now())
        metrics.observe_chunks(chunks)

    runs = Runs(
        settings, store, lambda: governor.wake(), clock=clock, on_end=on_end, read_jobs=lambda: jobs.loaded.jobs
    )
    governor = Governor(
        store=store,
        switcher=switcher,
        runs=runs,
        read_jobs=lambda: jobs.loaded,
        load_seconds=load_seconds,
        clock=clock,
        margins=Margins(reserve=settings.switch.reserve, prepare=settings.switch.prepare),
        cut_grace=settings.switch.cut_grace,
        default=Mode(settings.default_mode),
        on_death=metrics.observe_backend_death,
    )
    jobs.changed = governor.wake
    texts = Texts(settings.data_dir / "texts", store, settings.gateway.max_texts, lambda: None)
    texts.changed = lambda: _ingest_texts(runs, texts)
    host = Host(
        loaded,
        store,
        admission,
        switcher,
        governor,
        runs,
        texts,
        slot_models,
        unconfigured,
        accelerator,
        jobs,
        QuestionServer(settings, store, registry),
        utc_now(),
        reported=reported,
    )
    return host, metrics


def _ingest_texts(runs: Runs, texts: Texts) -> None:
    if not any(asked.origin == "texts" for asked in runs.asked):
        runs.ask([texts.folder], "texts")


async def slot_models_of(loaded: LoadedSettings, store: Database) -> tuple[dict[Slot, SlotModel], dict[Slot, str]]:
    """The slots that have a model, and why the others have none. A model that is missing is a state, not an end."""
    settings = loaded.settings
    known = await store.read(models.known_fingerprints)
    programs, gpu = find_programs(), gpu_vendor()
    found: dict[Slot, SlotModel] = {}
    missing: dict[Slot, str] = {}
    for slot in Slot:
        wanted = settings.generation if slot is Slot.GENERATION else settings.embedding
        if wanted.model is None:
            missing[slot] = f"set NIGHTSHIFT_{slot.value.upper()}_MODEL"
            if slot is Slot.GENERATION:
                log.warning(
                    "there is no language model: NIGHTSHIFT_GENERATION_MODEL is not set. Runs, search and embeddings "
                    "work; chat and completions do not, in any mode"
                )
            continue
        try:
            found[slot] = await asyncio.to_thread(_slot_model, loaded, slot, wanted.model, known, programs, gpu)
            found[slot] = await asyncio.to_thread(with_device, found[slot], programs)
            if found[slot].unused_gpu:
                log.warning("a GPU is not used", slot=slot.value, problem=found[slot].unused_gpu)
        except (ModelError, SettingsError) as error:
            missing[slot] = str(error)
            log.error("a slot has no model", slot=slot.value, error=str(error))
    return found, missing


def _slot_model(
    loaded: LoadedSettings,
    slot: Slot,
    name: str,
    known: Mapping[tuple[str, int, int], str],
    programs: Programs,
    gpu: Gpu,
) -> SlotModel:
    settings, place = loaded.settings, loaded.place
    wanted = settings.generation if slot is Slot.GENERATION else settings.embedding
    key = wanted.api_key.get_secret_value() if wanted.api_key else None
    if wanted.backend == "remote" and not wanted.url:
        problem = f"is remote, and nothing says where: set NIGHTSHIFT_{slot.value.upper()}_URL"
        raise SettingsError(f"{slot.value}.backend", problem, place(f"{slot.value}.backend"))
    if wanted.backend == "remote" and slot is Slot.GENERATION:
        # Its weights are somebody else's business; the name is what it is asked for.
        where = redacted(f"remote {wanted.url}")
        return SlotModel(slot, name, where, "remote", generation_options(settings), None, wanted.url or "", key)
    # For embedding the file is needed all the same: chunks are counted with its tokenizer, and vectors belong to it.
    try:
        with named_by(f"{slot.value}.model"):
            file = resolve(name, settings.data_dir / "models", known=known)
            kind = kind_of(slot, wanted.backend, file, gpu, programs)
    except ModelError as error:
        raise ModelError(f"{error} (set in {place(f'{slot.value}.model')})") from error
    options = generation_options(settings) if slot is Slot.GENERATION else embedding_options(settings, str(file.path))
    return SlotModel(
        slot, file.name, file.fingerprint, kind, options, file, wanted.url or "", key, settings.embedding.gzip
    )


def generation_options(settings: Settings) -> GenerationOptions:
    """How the settings want the language model loaded."""
    wanted = settings.generation.model_dump(exclude={"model", "alias", "backend", "url", "api_key"})
    return GenerationOptions(**wanted)


async def _estimates(store: Database, slot_models: Mapping[Slot, SlotModel]) -> dict[tuple[Slot, Device], float]:
    measured = await store.read(loads.measured_loads)
    return {
        (slot, Device(load.device)): load.seconds_max
        for slot, model in slot_models.items()
        for load in measured
        if (load.fingerprint, load.kind) == (model.fingerprint, model.kind)
    }


def _refuse_open_door(settings: Settings) -> None:
    if settings.api_key is None and not is_loopback(settings.host) and not settings.gateway.allow_no_key:
        raise UsageError(
            f"to listen on {settings.host}, where others can reach it, set api_key (NIGHTSHIFT_API_KEY); "
            "or say a second time that you want it open: NIGHTSHIFT_GATEWAY_ALLOW_NO_KEY=true"
        )


def _raise_descriptor_limit() -> None:
    """Let this process open as many files as it may: the usual limit of 1,024 is for programs that use select."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # a system may have a limit of its own below that
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _beat() -> None:
    """Tell systemd that the loop turns, also while a switch takes its minutes."""
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(WATCHDOG_SECONDS)


async def _end_run(runs: Runs) -> None:
    """Have the run store its batches in flight; one that hangs is cut off, which loses no more than these."""
    runs.asked.clear()
    runs.stop()
    await runs.ended_within(RUN_GRACE)


async def _report_untold(host: Host) -> None:
    """A run that was cut off, or died with an earlier daemon, is reported now and not after the next one."""
    settings = host.loaded.settings
    while True:
        timing = timing_of(settings, host.governor.hold)
        await report_untold(host.store, settings, host.jobs.loaded.jobs, timing, utc_now(), host.hearts)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNTOLD_LOOK):
                await host.reported.wait()
        host.reported.clear()


async def _watch_texts(host: Host) -> None:
    """Ask again for the texts that no run got to: those of an earlier daemon, or of a run that failed."""
    while True:
        with contextlib.suppress(NightshiftError):
            if (await host.texts.count())["queued"]:
                host.texts.changed()
        await asyncio.sleep(TEXTS_LOOK)


async def _watch_questions(host: Host) -> None:
    """End the server for questions when it is not needed any more."""
    while True:
        if host.questions.running:
            with contextlib.suppress(NightshiftError):
                await host.questions.review(await host.questions_wanted())
        await asyncio.sleep(QUESTIONS_LOOK)


async def _watch_engine(host: Host) -> None:
    """Look at the engine's counters often enough that little of them is lost with a server that dies."""
    while True:
        await host.engine.look(host.embedding_server())
        await asyncio.sleep(ENGINE_LOOK)


async def _watch_gpu(host: Host) -> None:
    while True:
        if host.accelerator is not None:
            with contextlib.suppress(OSError):
                host.gpu = await asyncio.to_thread(host.accelerator.read)
        await asyncio.sleep(GPU_LOOK)


@dataclass(slots=True)
class JobFiles:
    """The jobs as their files are now. changed: called when they are others."""

    folder: Path
    loaded: LoadedJobs = field(init=False)
    changed: object = None
    _seen: object = None

    def __post_init__(self) -> None:
        self._seen = fingerprint(self.folder)
        self.loaded = load_jobs(self.folder)
        self._report()

    def read_again(self) -> None:
        """Take up changes; a broken file keeps its job and is reported."""
        self._seen = fingerprint(self.folder)
        self.loaded = reload(self.loaded, self.folder)
        log.info("the job files were read", jobs=len(self.loaded.jobs), problems=len(self.loaded.problems))
        self._report()
        if callable(self.changed):
            self.changed()

    async def watch(self, clock: Clock) -> None:
        """Take up changes of the files within seconds."""
        while True:
            await clock.tick()
            if await asyncio.to_thread(fingerprint, self.folder) != self._seen:
                self.read_again()

    def _report(self) -> None:
        for problem in self.loaded.problems:
            log.error("a job file has a mistake", problem=str(problem))
