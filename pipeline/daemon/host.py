"""What the HTTP edge may ask of the daemon: `Services`, filled. Each answer is put together here and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pipeline
from pipeline.backends.accelerator import Accelerator, Reading
from pipeline.backends.gpus import build_of
from pipeline.backends.served import Served
from pipeline.backends.server import BackendState
from pipeline.core.errors import BackendDied, SwitchUnderWay, UsageError
from pipeline.core.modes import Mode, Slot, slots_of
from pipeline.core.naming import Names, names_of
from pipeline.core.schedule import Hold, desired_mode, next_change, retry_after
from pipeline.daemon.counters import EngineCounters
from pipeline.daemon.documents import StoredDocuments
from pipeline.daemon.governor import Governor
from pipeline.daemon.runs import Runs
from pipeline.daemon.searching import Searching
from pipeline.daemon.servers import SlotModel, SlotServer
from pipeline.daemon.texts import Texts
from pipeline.ingest.names import real_path
from pipeline.runner.forecast import make_plan, timing_of
from pipeline.runner.inbox import make_inbox, never_looked_at
from pipeline.runner.looking import looking
from pipeline.runner.places import look_at_paths
from pipeline.runner.question import too_long_explained
from pipeline.runner.questions import QuestionServer
from pipeline.runner.target import aimed_at, identity, unaliased
from pipeline.scheduler.jobs import LoadedJobs
from pipeline.scheduler.overview import overview as jobs_overview
from pipeline.settings import LoadedSettings
from pipeline.store import inventory, models, overview, reports, runs, switches
from pipeline.store.absent import waiting_deletions
from pipeline.store.database import Database
from pipeline.store.models import StoredModel
from pipeline.store.runs import Hearts
from pipeline.switcher.admission import Admission, Gate
from pipeline.switcher.switcher import Switcher
from pipeline.web import shapes
from pipeline.web.management import degraded_because
from pipeline.web.services import EngineFigures, Services, Target

SCHEDULE_AGE = 1.0
"""Seconds for which what the schedule says is not worked out anew: requests may come by the thousand."""

GIVEN_UP_RETRY = 300.0

STATUS = {
    BackendState.READY: "serving",
    BackendState.DRAINING: "draining",
    BackendState.STARTING: "loading",
    BackendState.FAILED: "failed",
}


@dataclass(slots=True)
class Host:
    """The parts of the daemon that answer questions."""

    loaded: LoadedSettings
    store: Database
    admission: Admission
    switcher: Switcher
    governor: Governor
    runs: Runs
    texts: Texts
    slot_models: Mapping[Slot, SlotModel]
    unconfigured: Mapping[Slot, str]
    accelerator: Accelerator | None
    jobs: Any
    questions: QuestionServer
    started_at: dt.datetime
    reported: asyncio.Event = field(default_factory=asyncio.Event)
    hearts: Hearts = field(default_factory=dict)
    gpu: Reading | None = None
    engine: EngineCounters = field(default_factory=EngineCounters)
    _asked: dict[Slot, tuple[float, float | None]] = field(default_factory=dict)

    def services(self) -> Services:
        """Everything, for the web."""
        searching = Searching(self.store, self._embed_question, self.loaded.settings)
        return Services(
            version=pipeline.__version__,
            started_at=self.started_at,
            admission=self.admission,
            target=self._target,
            retry_after=self._retry_after,
            models=self._models,
            host=self.state,
            broken=lambda: self.store.lost or self.governor.broken,
            config=self._config,
            jobs=self._jobs,
            progress=self.progress,
            counts=self._counts,
            engine=self._engine,
            switch=self._switch,
            end_hold=self.governor.end_hold,
            runs=self._runs,
            start_run=self._start_run,
            stop_run=self._stop_run,
            run_result=self.runs.results.get,
            report=self._report,
            plan=self._plan,
            switches=self._switches,
            documents=StoredDocuments(self.store, self.loaded.settings),
            index_models=self._index_models,
            use_model=self._use_model,
            search=searching.passages,
            search_documents=searching.documents,
            embed_text=self.texts.take,
            text_state=self.texts.state,
        )

    def state(self) -> shapes.HostState:
        """What the host is doing now, from memory."""
        switcher, shift, now = self.switcher, self.governor.shift, self._now()
        record = switcher.under_way
        change = self._next_change(now)
        hold = self.governor.hold
        state = shapes.HostState(
            mode=switcher.mode,
            since=switcher.since,
            switching=None
            if record is None
            else shapes.Switching(
                source=record.from_mode,
                target=record.to_mode,
                phase=record.phase,
                reason=record.reason,
                seconds=time.monotonic() - record.began,
            ),
            wanted=shift.mode if shift else switcher.mode,
            wanted_because=f"{shift.reason} {shift.detail}".strip() if shift else "",
            next_change=change,
            next_mode=None if change is None else desired_mode(self._loaded().jobs, change, hold).mode,
            hold=None if hold is None else shapes.HoldState(mode=hold.mode, until=hold.until),
            slots=[self._slot(slot) for slot in Slot],
            gpu=None
            if self.gpu is None or self.accelerator is None
            else shapes.GpuMemory(
                used_bytes=self.gpu.used_bytes, total_bytes=self.gpu.total_bytes, name=self.accelerator.name
            ),
            questions=shapes.QuestionServerState.model_validate(self.questions.state()),
        )
        problems = dict.fromkeys([*degraded_because(state), *self._problems()])
        return state.model_copy(update={"problems": list(problems)})

    def progress(self) -> shapes.RunProgress | None:
        """How far the run at work has come."""
        active = self.runs.active
        if active is None:
            return None
        now, progress = time.monotonic(), active.progress
        return shapes.RunProgress(
            run_id=active.id,
            phase=progress.phase,
            stopping=active.stop.is_set(),
            seconds=now - progress.started_monotonic,
            documents_total=progress.documents_total,
            documents_read=progress.documents_read,
            documents_done=progress.documents_done,
            documents_failed=progress.documents_failed,
            chunks_total=progress.chunks_total,
            chunks_done=progress.chunks_done,
            chunks_computed=progress.chunks_computed,
            waiting=progress.waiting,
            chunks_per_second=progress.rate(now),
            seconds_left=progress.seconds_left(now),
            current=progress.current,
            failures=[shapes.FailedDocument(path=f.path, state=f.state, reason=f.reason) for f in progress.failures],
            unsettled=list(progress.unsettled),
        )

    def embedding_server(self) -> Served | None:
        """The embedding slot's server, where there is one."""
        server = self.switcher.servers.get(Slot.EMBEDDING)
        return server.model if isinstance(server, SlotServer) else None

    async def _engine(self) -> EngineFigures:
        stats = await self.engine.look(self.embedding_server())
        return EngineFigures(stats, self.engine.tokens_per_second)

    def _slot(self, slot: Slot) -> shapes.SlotState:
        model, server = self.slot_models.get(slot), self.switcher.servers.get(slot)
        backend = server.model if isinstance(server, SlotServer) else None
        failed = self.governor.failed.get(slot)
        told = (backend.told if backend else {}) or (model.told if model else {})
        return shapes.SlotState(
            slot=slot,
            model=model.name if model else None,
            kind=model.kind if model else None,
            device=server.device if server else None,
            device_name=told.get("device"),
            build=build_of(told),
            state=("failed" if failed else backend.state.value if backend else "stopped"),
            gate=self.admission.gate(slot).value,
            pid=backend.pid if backend else None,
            load_seconds=backend.load_seconds if backend else None,
            why_failed=failed or (backend.why_failed if backend else None) or self.unconfigured.get(slot),
            in_flight=self.admission.in_flight(slot),
            waiting=self.admission.waiting(slot),
        )

    def _problems(self) -> list[str]:
        found = [self.store.lost] if self.store.lost else []
        found += [str(problem) for problem in self._loaded().problems]
        found += dict.fromkeys(model.unused_gpu for model in self.slot_models.values() if model.unused_gpu)
        found += [f"{slot.value}: {why}" for slot, why in self.governor.failed.items()]
        wanted = self.governor.shift.mode if self.governor.shift else Mode.IDLE
        found += [
            f"the mode {wanted.value} has no {slot.value} model: {why}"
            for slot, why in self.unconfigured.items()
            if slot in slots_of(wanted)
        ]
        found += self.governor.ahead
        if self.governor.problem:
            found.append(self.governor.problem)
        return found

    def _target(self, slot: Slot) -> Target | None:
        server = self.switcher.servers.get(slot)
        if not isinstance(server, SlotServer) or server.model.base_url is None:
            return None
        model = server.model
        return Target(
            model.base_url or "", model.model_name, model.api_key, rewrite_model=model.kind in ("vllm", "remote")
        )

    def _retry_after(self, slot: Slot) -> float | None:
        if slot in self.governor.failed:
            return GIVEN_UP_RETRY  # whatever the schedule says, a person has to look
        now = time.monotonic()
        asked = self._asked.get(slot)
        if asked is None or now - asked[0] > SCHEDULE_AGE:
            seconds = (
                retry_after(
                    self._loaded().jobs,
                    self._now(),
                    slot,
                    self.governor.hold,
                    self.governor.default,
                    finished=self.governor.finished,
                )
                if slot in self.slot_models
                else None
            )
            self._asked[slot] = asked = (now, seconds)
        return asked[1]

    def _models(self) -> list[shapes.ModelCard]:
        cards = []
        for slot, model in self.slot_models.items():
            server = self.switcher.servers.get(slot)
            backend = server.model.state if isinstance(server, SlotServer) else BackendState.STOPPED
            status = "failed" if slot in self.governor.failed else STATUS.get(backend, "stopped")
            cards.append(
                shapes.ModelCard(
                    id=model.name,
                    names=self._names(slot, model),
                    slot=slot,
                    status=status,  # type: ignore[arg-type]  # one of the names above
                    created=int(self.started_at.timestamp()),
                    meta={"kind": model.kind},
                )
            )
        return cards

    def _names(self, slot: Slot, model: SlotModel) -> Names:
        settings = self.loaded.settings
        wanted = settings.generation if slot is Slot.GENERATION else settings.embedding
        names = [wanted.model] if wanted.model else []
        return names_of(str(model.file.path) if model.file else "", model.name, [*wanted.alias, *names])

    def _config(self) -> list[shapes.Setting]:
        values, origins = self.loaded.settings.flatten(), self.loaded.origins
        return [shapes.Setting(key=key, value=value, origin=origins[key]) for key, value in values.items()]

    def _jobs(self) -> shapes.Jobs:
        loaded, now = self._loaded(), self._now().astimezone()
        desired = desired_mode(loaded.jobs, now, self.governor.hold, self.governor.default)
        return shapes.Jobs.model_validate(jobs_overview(loaded, now, desired))

    async def _counts(self) -> shapes.Counts:
        documents = await self.store.read(overview.count_documents)
        chunks = await self.store.read(overview.count_chunks)
        model = await self.store.read(models.active_model)
        last = await self._runs(1)
        return shapes.Counts(
            documents=documents,
            chunks=chunks,
            texts=await self.texts.count(),
            model=shapes.EmbeddingModel(name=model.name, dimension=model.dimension) if model else None,
            last_run=last[0] if last else None,
            deletions=[shapes.WaitingDeletion.model_validate(one) for one in await self.store.read(waiting_deletions)],
        )

    async def _switch(self, mode: Mode, reason: str, hold: float | None) -> shapes.SwitchDone:
        if self.switcher.under_way is not None:
            under_way = self.switcher.under_way
            raise SwitchUnderWay(f"the host is being switched to {under_way.to_mode.value} now; try again")
        now = self._now()
        held = Hold(mode, now + dt.timedelta(seconds=hold)) if hold is not None else self._until_next_change(mode, now)
        began = time.monotonic()
        by_hand = reason == "operator"
        await self.governor.switch_now(
            held, "operator" if by_hand else "request", "by hand" if by_hand else "by request"
        )
        return shapes.SwitchDone(
            mode=mode,
            outcome="done",
            seconds=time.monotonic() - began,
            hold=shapes.HoldState(mode=held.mode, until=held.until),
        )

    def _is(self, mine: SlotModel, model: StoredModel) -> bool:
        pooling = self.loaded.settings.embedding.pooling
        return mine.file is not None and identity(mine.file, pooling) == model.fingerprint

    def _until_next_change(self, mode: Mode, now: dt.datetime) -> Hold:
        """Without a length a switch lasts until the schedule wants another mode than it does now."""
        return Hold(mode, next_change(self._loaded().jobs, now, None, self.governor.default))

    async def _runs(self, limit: int) -> list[shapes.LastRun]:
        # A run that failed before it had a row is known to nobody but us.
        unwritten = [
            shapes.LastRun(
                run_id=run_id,
                outcome="failed",
                started_at=failed.at,
                finished_at=failed.at,
                chunks_embedded=0,
                error=failed.error,
            )
            for run_id, failed in self.runs.failed.items()
        ]
        written = [
            shapes.LastRun(
                run_id=run.id,
                outcome=run.state,  # type: ignore[arg-type]  # the column holds one of the names
                started_at=run.started_at,
                finished_at=run.finished_at,
                job=run.job,
                task=run.task,
                sources=run.sources,
                chunks_embedded=run.chunks_embedded,
                error=run.error,
                host=run.process.host,
            )
            for run in await self.store.read(runs.latest_runs, limit)
        ]
        known = {run.run_id for run in written}
        return [*written, *(run for run in unwritten if run.run_id not in known)][: max(limit, 1)]

    async def _report(self, run_id: str | None) -> dict[str, Any] | None:
        return await self.store.read(reports.find_report, run_id)

    async def _plan(self) -> dict[str, Any]:
        timing = timing_of(self.loaded.settings, self.governor.hold)
        known = await self.store.read(models.known_fingerprints)
        aim = await asyncio.to_thread(aimed_at, self.loaded.settings, known)
        jobs = self._loaded().jobs
        plan = await self.store.read(make_plan, jobs, self._now(), timing, aim)
        return replace(
            plan, never_looked_at=await self.store.read(never_looked_at, self.loaded.settings, jobs)
        ).as_json()

    async def _start_run(self, paths: Sequence[str] | None, confirm_deletions: bool, reads_only: bool) -> str:
        if Slot.EMBEDDING not in self.slot_models:
            raise UsageError(f"there is no embedding model: {self.unconfigured.get(Slot.EMBEDDING, 'none is set')}")
        for path in paths or []:
            if not Path(path).is_absolute():
                raise UsageError(f"{path}: an absolute path is wanted")
        named = None if paths is None else [real_path("/", path) for path in paths]
        await make_inbox(self.loaded.settings, self.store)
        for seen in await look_at_paths(named or [], looking(self.loaded.settings).silence):
            if seen.there == "nothing":
                raise UsageError(f"{seen.path}: no such file or folder")
        return self.runs.ask(named, confirm_deletions=confirm_deletions, reads_only=reads_only)

    async def _stop_run(self) -> bool:
        self.runs.refuse("stopped before it began", reading=True)
        return self.runs.stop(by_hand=True)

    async def _switches(self, limit: int) -> list[shapes.SwitchRow]:
        return [
            shapes.SwitchRow(
                id=row.id,
                source=row.from_mode,
                target=row.to_mode,
                reason=row.reason,
                outcome=row.outcome,
                started_at=row.started_at,
                finished_at=row.finished_at,
                seconds=row.seconds,
                phases=row.phases,
                memory_before=row.memory_before,
                memory_after=row.memory_after,
                pids=[*row.pids_before, *row.pids_after],
                error=row.error,
            )
            for row in await self.store.read(switches.latest_switches, limit)
        ]

    async def _index_models(self) -> list[shapes.IndexModel]:
        known = await self.store.read(inventory.list_inventory)
        return [shapes.IndexModel.model_validate(model) for model in known]

    async def _use_model(self, name: str, anyway: bool) -> shapes.ModelUsed:
        name = unaliased(self.loaded.settings, name)
        return shapes.ModelUsed.model_validate(await self.store.write(inventory.use_model, name, anyway=anyway))

    async def _embed_question(self, model: StoredModel, text: str) -> NDArray[np.float32]:
        """The vector of a question by the model that search uses, whatever the mode and whatever the settings name."""
        server = self._answering_slot(model)
        if server is not None:
            # A switch waits for it, as for any request; a server that dies is no reason to fail.
            with contextlib.suppress(BackendDied), too_long_explained():
                async with await self.admission.reserve(Slot.EMBEDDING):
                    vectors: NDArray[np.float32] = await server.embedder.embed([text])
                    return np.asarray(vectors[0], np.float32)
        return await self.questions.embed(model, text)

    async def questions_wanted(self) -> str | None:
        """The fingerprint of the model that questions are put to `questions` for; None where the slot answers them."""
        model = await self.store.read(models.active_model)
        return None if model is None or self._answering_slot(model) is not None else model.fingerprint

    def _answering_slot(self, model: StoredModel) -> Served | None:
        server, mine = self.embedding_server(), self.slot_models.get(Slot.EMBEDDING)
        serves = server is not None and server.alive and self.admission.gate(Slot.EMBEDDING) is Gate.OPEN
        return server if serves and mine is not None and self._is(mine, model) else None

    def _next_change(self, now: dt.datetime) -> dt.datetime | None:
        jobs, hold, default = self._loaded().jobs, self.governor.hold, self.governor.default
        return next_change(jobs, now, hold, default, finished=self.governor.finished)

    def _loaded(self) -> LoadedJobs:
        return self.governor.read_jobs()

    def _now(self) -> dt.datetime:
        return self.governor.clock()
