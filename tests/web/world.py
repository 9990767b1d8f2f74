"""Everything behind the API, in memory: what the daemon fills `Services` with, made of what a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.core.documents import DocumentState
from pipeline.core.engine_stats import EngineStats
from pipeline.core.errors import TextQueueFull
from pipeline.core.fusion import By
from pipeline.core.modes import Device, Mode, Slot, serves
from pipeline.core.naming import names_of
from pipeline.runner.searching import Asked
from pipeline.switcher.admission import Admission, Gate
from pipeline.web import shapes
from pipeline.web.search_shapes import DocumentHit, DocumentResults, SearchHit, SearchResults
from pipeline.web.services import EngineFigures, Services, Target
from pipeline.web.uploads import UploadFolder

NOW = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
KEY = "backend-secret"
MODELS = {Slot.GENERATION: "tiny-llama", Slot.EMBEDDING: "tiny-minilm"}


def _index_model(name: str, *, active: bool) -> shapes.IndexModel:
    return shapes.IndexModel(
        name=name,
        path=f"/models/{name}.gguf",
        fingerprint=name * 8,
        dimension=384,
        active=active,
        building=not active,
        set_aside=False,
        complete=active,
        documents=3,
        missing=0 if active else 2,
        chunks=12,
        size=20_000,
        created_at=NOW,
        last_embedded_at=None,
    )


@dataclass(slots=True)
class World:
    """A host whose state is set by hand. failure: raised by whatever is asked next of a service that does things."""

    upstream: str
    inbox: Path
    mode: Mode = Mode.MIXED
    admission: Admission = field(default_factory=lambda: Admission(max_waiting=2, max_wait=5.0))
    retry_after: float | None = 0.0
    models: dict[Slot, str] = field(default_factory=lambda: dict(MODELS))
    rewrite_model: bool = False
    broken: str | None = None
    wanted: Mode | None = None
    failed: dict[Slot, str] = field(default_factory=dict)
    gpu: shapes.GpuMemory | None = None
    failure: Exception | None = None
    hold: float | None = None
    run: str | None = None
    run_paths: Sequence[str] | None = None
    run_confirmed: bool = False
    run_reads_only: bool = False
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    texts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    retried: list[tuple[Sequence[int] | None, Sequence[DocumentState]]] = field(default_factory=list)
    switches: list[tuple[Mode, str, float | None]] = field(default_factory=list)
    used: list[tuple[str, bool]] = field(default_factory=list)
    engine: EngineStats = field(default_factory=EngineStats)
    asked: list[Asked] = field(default_factory=list)

    def enter(self, mode: Mode) -> None:
        """Be in a mode."""
        self.mode = mode
        for slot in Slot:
            self.admission.set_gate(slot, Gate.OPEN if serves(mode, slot) else Gate.CLOSED)

    def services(self) -> Services:
        """What the application is made with."""
        return Services(
            version="9.9",
            started_at=NOW,
            admission=self.admission,
            target=lambda slot: Target(self.upstream, self.models[slot], KEY, self.rewrite_model),
            retry_after=lambda _: self.retry_after,
            models=self._models,
            host=self._host,
            broken=lambda: self.broken,
            config=lambda: [shapes.Setting(key="chunk.tokens", value=512, origin="nightshift.toml")],
            jobs=self._jobs,
            progress=self._progress,
            engine=self._engine,
            counts=self._counts,
            switch=self._switch,
            end_hold=self._end_hold,
            runs=self._runs,
            start_run=self._start_run,
            stop_run=self._stop_run,
            run_result={"run1": {"outcome": "complete"}}.get,
            report=self._report,
            plan=self._plan,
            switches=self._switches,
            documents=_Documents(self),
            index_models=self._index_models,
            use_model=self._use_model,
            search=self._search,
            search_documents=self._search_documents,
            embed_text=self._embed_text,
            text_state=self._text_state,
        )

    def fail_if_told(self) -> None:
        """Raise what the test wants raised."""
        if self.failure is not None:
            raise self.failure

    def _models(self) -> list[shapes.ModelCard]:
        return [
            shapes.ModelCard(
                id=name,
                names=names_of(f"/models/owner/repo/{name}-F16.gguf", name, [f"my {slot.value}"]),
                slot=slot,
                status="serving" if serves(self.mode, slot) else "stopped",
            )
            for slot, name in self.models.items()
        ]

    def _host(self) -> shapes.HostState:
        return shapes.HostState(
            mode=self.mode,
            since=NOW,
            wanted=self.wanted or self.mode,
            wanted_because="job generation",
            gpu=self.gpu,
            slots=[
                shapes.SlotState(
                    slot=slot,
                    model=name,
                    kind="llama-server",
                    device=Device.CPU,
                    state="failed" if slot in self.failed else "ready" if serves(self.mode, slot) else "stopped",
                    gate=self.admission.gate(slot).value,
                    why_failed=self.failed.get(slot),
                )
                for slot, name in self.models.items()
            ],
        )

    def _jobs(self) -> shapes.Jobs:
        wanted = shapes.WantedMode(mode=self.mode, job=None, reason="schedule", until=None)
        problem = shapes.JobProblem(file="jobs/a.toml", line=3, message="cron: never fires")
        return shapes.Jobs(now=NOW, wanted=wanted, jobs=[], problems=[problem])

    async def _engine(self) -> EngineFigures:
        return EngineFigures(self.engine, 1234.5)

    def _progress(self) -> shapes.RunProgress | None:
        if self.run is None:
            return None
        return shapes.RunProgress(
            run_id=self.run,
            phase="working",
            seconds=2.0,
            documents_total=10,
            documents_read=5,
            documents_done=4,
            documents_failed=1,
            chunks_total=100,
            chunks_done=40,
            chunks_per_second=20.0,
            seconds_left=8.0,
            current="/inbox/a.pdf",
        )

    async def _counts(self) -> shapes.Counts:
        self.fail_if_told()
        documents = {"total": 3} | {state.value: 0 for state in DocumentState} | {"embedded": 2, "failed": 1}
        return shapes.Counts(documents=documents, chunks={"total": 12, "embedded": 9}, texts={"queued": 1})

    async def _switch(self, mode: Mode, reason: str, hold: float | None) -> shapes.SwitchDone:
        self.fail_if_told()
        self.switches.append((mode, reason, hold))
        self.enter(mode)
        return shapes.SwitchDone(mode=mode, outcome="done", seconds=1.25, phases={"load": 1.0})

    async def _end_hold(self) -> bool:
        held, self.hold = self.hold, None
        return held is not None

    async def _runs(self, limit: int) -> Sequence[shapes.LastRun]:
        run = shapes.LastRun(run_id="r1", outcome="complete", started_at=NOW, finished_at=NOW, chunks_embedded=7)
        return [run] * limit

    async def _report(self, run_id: str | None) -> dict[str, Any] | None:
        return self.reports.get(run_id or "r1")

    async def _plan(self) -> dict[str, Any]:
        return {"known": False}

    async def _start_run(self, paths: Sequence[str] | None, confirm_deletions: bool, extract_only: bool) -> str:
        self.fail_if_told()
        self.run, self.run_paths, self.run_confirmed = "r2", paths, confirm_deletions
        self.run_reads_only = extract_only
        return self.run

    async def _stop_run(self) -> bool:
        return self.run is not None

    async def _switches(self, limit: int) -> Sequence[shapes.SwitchRow]:
        row = shapes.SwitchRow(
            id=1,
            source=Mode.GENERATION,
            target=Mode.EMBEDDING,
            reason="schedule",
            outcome="done",
            started_at=NOW,
            finished_at=NOW,
            seconds=1.5,
            phases={"drain": 0.5},
        )
        return [row] * limit

    async def _search_documents(self, asked: Asked) -> DocumentResults:
        self.asked.append(asked)
        found = DocumentHit(
            rank=1,
            score=0.5,
            file="/docs/a.pdf",
            link="file:///docs/a.pdf",
            type="pdf",
            title=None,
            pages=asked.k,
            method="mean",
        )
        return DocumentResults(query=asked.text, model="m", by=By.VECTOR, results=[found])

    async def _search(self, asked: Asked) -> SearchResults:
        self.fail_if_told()
        self.asked.append(asked)
        hit = SearchHit(
            rank=1,
            score=0.5,
            file="/inbox/a.pdf",
            link="file:///inbox/a.pdf#page=1",
            type="pdf",
            title="A",
            pages=(1, 2),
            heading=None,
            text=asked.text,
            excerpt=(0, len(asked.text)),
        )
        return SearchResults(query=asked.text, model="tiny-minilm", by=By.FUSED, results=[hit] * asked.k)

    async def _index_models(self) -> list[shapes.IndexModel]:
        return [_index_model("old", active=True), _index_model("new", active=False)]

    async def _use_model(self, name: str, anyway: bool) -> shapes.ModelUsed:
        self.fail_if_told()
        self.used.append((name, anyway))
        return shapes.ModelUsed(model=_index_model(name, active=True), moved=True, missing=int(anyway))

    async def _embed_text(self, text: str, metadata: dict[str, Any]) -> shapes.TextTaken:
        if len(self.texts) >= 2:
            raise TextQueueFull(2)
        self.texts.append((text, metadata))
        return shapes.TextTaken(id=f"t{len(self.texts)}", waiting=len(self.texts))

    async def _text_state(self, text_id: str) -> shapes.TextState | None:
        return shapes.TextState(id=text_id, status="queued") if text_id in ("t1", "t2") else None


@dataclass(slots=True)
class _Documents:
    world: World

    async def list(self, states: Sequence[DocumentState] | None, limit: int, offset: int) -> Sequence[Any]:
        lines = [_line(1, DocumentState.EMBEDDED), _line(2, DocumentState.FAILED), _line(3, DocumentState.EMPTY)]
        return [line for line in lines if states is None or line.state in states][offset : offset + limit]

    async def show(self, document_id: int) -> shapes.DocumentDetail | None:
        if document_id != 1:
            return None
        chunk = shapes.ChunkLine(
            ordinal=0, page_first=1, page_last=1, headings=["H"], tokens=9, embedded=True, error=None, text="words"
        )
        return shapes.DocumentDetail(
            **_line(1, DocumentState.EMBEDDED).model_dump(),
            link="file:///inbox/1.pdf",
            kind="pdf",
            size=10,
            sha256="ab",
            stage=None,
            attempts=1,
            retry_at=None,
            embedded_at=NOW,
            details={},
            replacing=False,
            chunk_list=[chunk],
        )

    async def retry(self, document_ids: Sequence[int] | None, states: Sequence[DocumentState]) -> int:
        self.world.retried.append((document_ids, states))
        return 1 if document_ids else 2

    async def upload(self, name: str, parts: AsyncIterator[bytes]) -> shapes.Uploaded:
        return await UploadFolder(self.world.inbox).write(name, parts)


def _line(document_id: int, state: DocumentState) -> shapes.DocumentLine:
    return shapes.DocumentLine(
        id=document_id,
        file=f"/inbox/{document_id}.pdf",
        state=state,
        reason=None,
        title=None,
        pages=1,
        chunks=1,
        embedded=1,
        pages_without_text=0,
    )
