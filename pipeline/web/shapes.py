"""What the API takes and gives, as JSON. Instants are ISO 8601 with an offset, durations are seconds, sizes bytes.

The names of `SwitchBackendDone`, `ManagementHealth` and `TextTaken` are those that existing clients know.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    model_validator,
)

from pipeline.core.documents import DocumentState
from pipeline.core.modes import Device, Mode, Slot
from pipeline.core.redaction import redacted
from pipeline.core.windows import LONGEST, parse_duration


class Shape(BaseModel):
    """A value that is written once and read by many."""

    model_config = ConfigDict(frozen=True, from_attributes=True, protected_namespaces=())


Message = Annotated[str, AfterValidator(redacted)]
"""A sentence for a person, without secrets: it may quote an address, or what another library said."""


DEEPEST = 64
"""Of lists and objects within each other."""

MOST_INTEGER = 2**63 - 1
"""What a database can hold."""

InAddress = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""A text in the query of an address. One with the character 0 is refused before anything else looks at it."""


class Request(BaseModel):
    """What a client sends: a key that is not known is an error, so that a misspelt one is noticed.

    Texts, numbers and depth are such that they can be stored and written as JSON again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _makes_sense(cls, value: object) -> object:
        level = [value]
        for _ in range(DEEPEST):
            level = [part for one in level for part in _parts(one)]
            if not level:
                return value
        raise ValueError(f"should not be deeper than {DEEPEST} levels")


def _parts(value: object) -> Iterable[object]:
    """What is in a JSON value. Raises ValueError for one that makes no sense."""
    match value:
        case str() if "\0" in value or value.encode(errors="ignore") != value.encode(errors="surrogatepass"):
            raise ValueError("a text should have neither the character 0 nor half of a pair of surrogates")
        case float() if not math.isfinite(value):
            raise ValueError("a number should be finite")
        case int() if not -MOST_INTEGER - 1 <= value <= MOST_INTEGER:
            raise ValueError("an integer should have 64 bits")
        case dict():
            return [*value.keys(), *value.values()]
        case list():
            return value
    return ()


def _seconds(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number of seconds, or a length such as 2h30m")  # noqa: TRY004  pydantic's way
    return parse_duration(value).total_seconds() if isinstance(value, str) else value


Seconds = Annotated[
    float,
    BeforeValidator(_seconds, json_schema_input_type=float | str),
    Field(ge=0, le=LONGEST.total_seconds(), allow_inf_nan=False),
]
"""Seconds, or a text such as `2h30m`; at most 31 days."""


# --- The gateway -------------------------------------------------------------------------------


class ModelCard(Shape):
    """A configured model. status: `serving` where requests for it are answered now, else why not.

    names: what else it may be called; see `core.naming`.
    """

    id: str
    names: Sequence[Sequence[str]] = ()
    slot: Slot
    status: Literal["serving", "loading", "draining", "stopped", "failed"]
    created: int = 0
    meta: Mapping[str, Any] = Field(default_factory=dict)


class ListedModel(BaseModel):
    """A model as OpenAI's clients read it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "nightshift"
    slot: Slot
    status: str
    meta: Mapping[str, Any]


class ListedModels(BaseModel):
    """The answer of `/v1/models`."""

    object: Literal["list"] = "list"
    data: Sequence[ListedModel]


class ApiError(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ApiErrorBody(BaseModel):
    """An error answer of `/v1/...`."""

    error: ApiError


class Detail(BaseModel):
    """An error answer of everything else."""

    detail: str


# --- Health and state --------------------------------------------------------------------------


class Healthy(BaseModel):
    """The answer of `/health`."""

    status: Literal["healthy"] = "healthy"


class GpuMemory(Shape):
    """Memory of the GPU. name: the device's."""

    used_bytes: int
    total_bytes: int
    name: str = ""


class Switching(Shape):
    """A switch under way. phase: close, drain, stop, release, start, ready, canary or open."""

    source: Mode
    target: Mode
    phase: str
    reason: str
    seconds: float


class SlotState(Shape):
    """A slot and the backend in it. state: the backend's. gate: whether requests are let in.

    device_name, build: what the device is called, and what the backend was built with, where it says so.
    """

    slot: Slot
    model: str | None
    kind: str | None
    device: Device | None
    device_name: str | None = None
    build: str | None = None
    state: Literal["stopped", "starting", "ready", "draining", "stopping", "failed"]
    gate: Literal["open", "soon", "closed"]
    pid: int | None = None
    load_seconds: float | None = None
    why_failed: Message | None = None
    in_flight: int = 0
    waiting: int = 0


class HoldState(Shape):
    """An operator's mode. until: None is until it is taken back."""

    mode: Mode
    until: datetime | None = None


class QuestionServerState(Shape):
    """The small server that embeds questions while the embedding slot does not.

    model: the name of its model. asking: questions under way. starts, answered: since the daemon began.
    """

    state: Literal["stopped", "starting", "ready", "stopping", "failed"] = "stopped"
    model: str | None = None
    pid: int | None = None
    asking: int = 0
    starts: int = 0
    answered: int = 0
    why_failed: Message | None = None


class HostState(Shape):
    """What the host is doing now; all of it is known without asking the database.

    wanted: what schedule and operator want now, and `wanted_because` who of them and which job.
    next_change: when another mode will be wanted, and which.
    """

    mode: Mode
    since: datetime
    switching: Switching | None = None
    wanted: Mode
    wanted_because: str
    next_change: datetime | None = None
    next_mode: Mode | None = None
    hold: HoldState | None = None
    slots: Sequence[SlotState]
    gpu: GpuMemory | None = None
    questions: QuestionServerState = QuestionServerState()
    problems: Sequence[Message] = ()


class LastRun(Shape):
    """A run, as the database has it. job: the name of the job that it was for, None for a run by hand.

    task: `ingest`, or `extract` for one that only reads. host: where it is, or was; several may share the database.
    """

    run_id: str
    host: str = ""
    outcome: Literal["running", "complete", "stopped", "failed", "interrupted"]
    started_at: datetime
    finished_at: datetime | None
    job: str | None = None
    task: str = "ingest"
    sources: Sequence[str] = ()
    chunks_embedded: int
    error: Message | None = None


class EmbeddingModel(Shape):
    """The model whose vectors search uses."""

    name: str
    dimension: int


class WaitingDeletion(Shape):
    """Documents of the source at `root` whose files are gone since `since`, and that stay until a person says so."""

    root: str
    documents: int
    since: datetime


class Counts(Shape):
    """What the database holds. documents: by state, and `total`. chunks: `total` and `embedded`. texts: by state.

    deletions: those that wait for a person, by source.
    """

    documents: Mapping[str, int]
    chunks: Mapping[str, int]
    texts: Mapping[str, int] = Field(default_factory=dict)
    model: EmbeddingModel | None = None
    last_run: LastRun | None = None
    deletions: Sequence[WaitingDeletion] = ()


class Status(Shape):
    """The answer of `/api/status`. run: the one at work, None where none is. deletions: as in `Counts`."""

    version: str
    started_at: datetime
    host: HostState
    run: RunProgress | None
    documents: Mapping[str, int]
    chunks: Mapping[str, int]
    texts: Mapping[str, int]
    model: EmbeddingModel | None
    last_run: LastRun | None
    deletions: Sequence[WaitingDeletion]


class GpuMemoryUsage(BaseModel):
    """Memory of the GPU. percent: of the total, 0 to 100."""

    used_bytes: int
    total_bytes: int
    percent: float


class ManagementHealth(BaseModel):
    """The answer of `/management/health`, by which a service mesh restarts a host.

    status: `healthy`; `degraded` where a slot failed or the host is not in the mode that is wanted
    for another reason than a switch; `unhealthy`, with the HTTP status 503, where the daemon itself
    cannot go on. loaded_model: the language model where one is loaded, else the embedding model.
    reasons: why it is not healthy; they are among the `problems` too.
    """

    status: Literal["healthy", "degraded", "unhealthy"]
    reasons: Sequence[Message] = ()
    server_mode: Mode
    loaded_model: str | None
    gpu_memory_usage: GpuMemoryUsage | None
    loaded_models: Mapping[Slot, str]
    switching: Switching | None
    problems: Sequence[Message]


class Setting(Shape):
    """A setting. value: what counts, with secrets left out. origin: where it was set."""

    key: str
    value: Any
    origin: str


# --- Switches ----------------------------------------------------------------------------------


class SwitchBackendRequest(Request):
    """The body of `/switch-backend`, for clients that send one instead of a query."""

    model_name: str | None = None
    model_type: Literal["generation", "embedding"] | None = None


class SwitchBackendDone(BaseModel):
    """The answer of `/switch-backend`, when the model serves. seconds: of the switch, 0 where none was needed."""

    status: Literal["success"] = "success"
    model_name: str
    model_type: Literal["generation", "embedding"]
    server_mode: Mode
    seconds: float


class SwitchRequest(Request):
    """The body of `/api/switch`. hold: how long the mode is kept against the schedule; None is not at all."""

    mode: Mode
    hold: Seconds | None = None


class SwitchDone(Shape):
    """A switch that is over, or that was not needed. seconds: by phase in `phases`."""

    mode: Mode
    outcome: str
    seconds: float
    phases: Mapping[str, float] = Field(default_factory=dict)
    hold: HoldState | None = None


class SwitchRow(Shape):
    """A switch in the journal. memory_before, memory_after: of the GPU, around the release."""

    id: int | str
    source: Mode
    target: Mode
    reason: str
    outcome: str
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None
    phases: Mapping[str, float] = Field(default_factory=dict)
    memory_before: int | None = None
    memory_after: int | None = None
    pids: Sequence[int] = ()
    error: Message | None = None


# --- Jobs and runs -----------------------------------------------------------------------------


class JobWindow(Shape):
    """When a job counts."""

    start: datetime
    end: datetime


class JobState(Shape):
    """A job, with its windows: the one that is open, and the next ones. current: whether its mode is wanted now."""

    name: str
    file: str
    enabled: bool
    current: bool
    mode: Mode | None
    cron: str
    until: str
    timezone: str
    task: str | None
    sources: Sequence[str]
    on_finish: str
    drain: str
    drain_timeout: float
    retries: int
    catch_up: bool
    priority: int
    order: str | None = None
    workers: int | None = None
    nice: int | None = None
    open: JobWindow | None
    next: Sequence[JobWindow]


class WantedMode(Shape):
    """The mode that is wanted now. until: when the question is asked again."""

    mode: Mode
    job: str | None
    reason: str
    until: datetime | None


class JobProblem(Shape):
    """What is wrong with a job file."""

    file: str
    line: int | None
    message: str


class Jobs(Shape):
    """The answer of `/api/jobs`."""

    now: datetime
    wanted: WantedMode
    jobs: Sequence[JobState]
    problems: Sequence[JobProblem]


class RunRequest(Request):
    """The body of `POST /api/runs`. paths: files and folders on the host; left out: the inbox and all that waits.

    confirm_deletions: believe it where many documents of a folder are gone, and delete them from the index.
    extract_only: read the documents, and leave the vectors to another run; needs no model.
    """

    paths: list[str] | None = Field(default=None, min_length=1, max_length=1000)
    confirm_deletions: StrictBool = False
    extract_only: StrictBool = False


class RunStarted(Shape):
    """A run that began."""

    run_id: str


class FailedDocument(Shape):
    """A document of a run that gave nothing to search."""

    path: str
    state: str
    reason: Message


class RunProgress(Shape):
    """How far the run at work has come. chunks_per_second: over the last half minute.

    chunks_done: chunks whose vectors are stored. chunks_computed: with the part of those at the model server.
    waiting: why nothing goes on at the moment; empty where it does.
    unsettled: files that are still being written to, which a later run reads.
    """

    run_id: str
    phase: str
    stopping: bool = False
    seconds: float
    documents_total: int
    documents_read: int
    documents_done: int
    documents_failed: int
    chunks_total: int
    chunks_done: int
    chunks_computed: float = 0.0
    chunks_per_second: float
    waiting: str = ""
    seconds_left: float | None
    current: str
    failures: Sequence[FailedDocument] = ()
    unsettled: Sequence[str] = ()


class CurrentRun(BaseModel):
    """The answer of `/api/runs/current`: None where no run is at work."""

    run: RunProgress | None


class StopAsked(BaseModel):
    """Whether there was a run to stop; its last batches are stored before it ends."""

    stopping: bool


# --- Documents, search, texts ------------------------------------------------------------------


class DocumentLine(Shape):
    """A document in a list. file: its absolute path. embedded: how many of its chunks have a vector.

    pages_without_text: how many of its pages are pictures, or empty.
    """

    id: int
    file: str
    state: DocumentState
    reason: str | None
    title: str | None
    pages: int
    chunks: int
    embedded: int
    pages_without_text: int


class ChunkLine(Shape):
    """A chunk of a document. prefix: the header of the table that its text begins inside of."""

    ordinal: int
    page_first: int | None
    page_last: int | None
    headings: Sequence[str]
    tokens: int
    embedded: bool
    error: str | None
    text: str
    prefix: str = ""


class DocumentDetail(DocumentLine):
    """Everything about one document. replacing: search sees an older version of it until this one is done.

    link: opens its file on the host. method: how its own vector was made: `model`, over the whole text at once, or
    `mean`, of its chunks. gone_at: since when its file is gone, where its deletion waits for a person.
    """

    link: str
    kind: str | None
    size: int
    sha256: str | None
    stage: str | None
    attempts: int
    retry_at: datetime | None
    embedded_at: datetime | None
    details: Mapping[str, Any]
    replacing: bool
    method: str | None = None
    gone_at: datetime | None = None
    chunk_list: Sequence[ChunkLine]


class RetryRequest(Request):
    """The body of `POST /api/documents/retry`. states: empty, encrypted and failed where left out."""

    states: list[Literal["empty", "encrypted", "failed"]] | None = Field(default=None, min_length=1)


class Retried(BaseModel):
    """How many documents the next run tries again."""

    documents: int


class Uploaded(Shape):
    """A file that was written into the inbox. replaced: whether there was one of that name."""

    file: str
    size: int
    sha256: str
    replaced: bool


class IndexModel(Shape):
    """A model that made vectors.

    path: of its file, where it was last. active: search uses it. building: documents wait for it.
    set_aside: a person moved search away from it, and it does not move back by itself.
    documents: that have been through it; missing: that have not; complete: none is missing.
    chunks: with a vector of it. size: bytes that all this takes in the database, about.
    """

    name: str
    path: str
    fingerprint: str
    dimension: int
    active: bool
    building: bool
    set_aside: bool
    complete: bool
    documents: int
    missing: int
    chunks: int
    size: int
    created_at: datetime
    last_embedded_at: datetime | None


class UseModelRequest(Request):
    """The body of `POST /api/models/use`.

    model: its name, its file's name, or the start of its fingerprint.
    anyway: even if documents have not been through it.
    """

    model: str = Field(min_length=1)
    anyway: StrictBool = False


class ModelUsed(Shape):
    """The model that search uses now. moved: it used another one before. missing: documents that it does not find."""

    model: IndexModel
    moved: bool
    missing: int


class TextRequest(Request):
    """The body of `POST /embed`."""

    text: str = Field(min_length=1)
    metadata: dict[str, Any] = Field(default_factory=dict)


class TextTaken(Shape):
    """A text that waits to be embedded. waiting: how many wait, this one included."""

    id: str
    status: Literal["queued"] = "queued"
    waiting: int | None = None


class TextState(Shape):
    """What became of a text. attempts: how often it was tried."""

    id: str
    status: Literal["queued", "embedded", "failed"]
    queued_at: datetime | None = None
    embedded_at: datetime | None = None
    attempts: int = 0
    error: str | None = None


Status.model_rebuild()
