"""What the HTTP edge calls: one value, filled by whoever builds the program.

Plain functions are answered from memory and must not block; asynchronous ones may take their time.
They raise the errors of `core.errors`, which `web.errors` turns into HTTP answers: `UsageError` is a
wrong request; `RunInProgress`, `ModelIncomplete`, `SwitchUnderWay` and `SwitchDeferred` are a conflict;
`TextQueueFull` is too many requests; every other one is a service that is not available now.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from pipeline.core.documents import DocumentState
from pipeline.core.engine_stats import EngineStats
from pipeline.core.modes import Mode, Slot
from pipeline.runner.searching import Asked
from pipeline.switcher.admission import Admission
from pipeline.web import shapes
from pipeline.web.search_shapes import DocumentResults, SearchResults


@dataclass(frozen=True, slots=True)
class Target:
    """The backend in a slot.

    base_url: without `/v1`. model: the name that it knows its model by.
    rewrite_model: whether a request has to name it so; else requests are passed on as they come.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    rewrite_model: bool = False


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What the embedding engine counted since the daemon began, and its tokens a second between the last two looks."""

    stats: EngineStats
    tokens_per_second: float


class SwitchService(Protocol):
    """Changes the mode. One at a time; asked for the mode that is on already, it has nothing to do."""

    async def __call__(self, mode: Mode, reason: str, hold: float | None) -> shapes.SwitchDone:
        """Switch, and come back when requests are served.

        reason: `operator` (`/api/switch`) or `request` (`/switch-backend`).
        hold: seconds for which the mode is kept against the schedule; None is not at all.

        Raises:
            SwitchUnderWay: another one is at it.
            SwitchDeferred: requests are in flight that may not be cut.
            SwitchError: it failed; the message says where the host is now.
        """
        ...


class DocumentsService(Protocol):
    """The documents of the index."""

    async def list(self, states: Sequence[DocumentState] | None, limit: int, offset: int) -> Sequence[Any]:
        """Documents by path. Each has the attributes of `shapes.DocumentLine` (or is one)."""
        ...

    async def show(self, document_id: int) -> shapes.DocumentDetail | None:
        """One document with its chunks; None where there is none of that id."""
        ...

    async def retry(self, document_ids: Sequence[int] | None, states: Sequence[DocumentState]) -> int:
        """Send documents back into the queue: those of the ids, or all in these states; returns how many."""
        ...

    async def upload(self, name: str, parts: AsyncIterator[bytes]) -> shapes.Uploaded:
        """Write a file into the inbox, whole or not at all.

        name: a file name without folders, as `web.uploads.checked_name` lets pass; it may still be
        hostile in length or case. An exception of `parts` must leave nothing behind.

        Raises:
            UsageError: no document can have that name.
        """
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """Everything behind the API.

    admission: the doors of the slots; requests hold a reservation until their last byte.
    target: the backend to send a request to that was admitted; None where there is none after all.
    retry_after: seconds until the schedule serves a slot; 0 where it does, None where that is not in sight.
    models: the configured models, whatever the mode.
    host: mode, slots, GPU memory.
    broken: why the daemon cannot go on, None where it can; `/management/health` is then 503.
    engine: the embedding engine's counters.
    counts: what the database holds. progress: of the run at work, None where none is.
    jobs, config: as the command line shows them; secrets are left out by whoever fills this.
    switch: see `SwitchService`. end_hold: whether there was one.
    runs: the last ones, newest first. start_run: begins one and returns its id (None: the inbox and
        all that waits; the flags: deletions that wait for a person are confirmed; documents are only read).
        stop_run: asks it to end, and says whether there was one. run_result: what one of the last came to, as
        `run-now --json` says it; None where that is not known.
    report: of a run, or the newest; None where there is none. plan: what waits, and when it is done.
    switches: the journal, newest first.
    index_models: those that made vectors, the one that search uses first. use_model: moves search to the one
        that a name means, and says what it lacks (`True`: whatever it lacks); raises ModelIncomplete.
    search, search_documents: see `runner.searching`. embed_text: text and metadata onto the queue; raises
        TextQueueFull.
    text_state: what became of such a text; None where there is none of that id.
    """

    version: str
    started_at: datetime
    admission: Admission
    target: Callable[[Slot], Target | None]
    retry_after: Callable[[Slot], float | None]
    models: Callable[[], Sequence[shapes.ModelCard]]
    host: Callable[[], shapes.HostState]
    broken: Callable[[], str | None]
    config: Callable[[], Sequence[shapes.Setting]]
    jobs: Callable[[], shapes.Jobs]
    progress: Callable[[], shapes.RunProgress | None]
    counts: Callable[[], Awaitable[shapes.Counts]]
    engine: Callable[[], Awaitable[EngineFigures]]
    switch: SwitchService
    end_hold: Callable[[], Awaitable[bool]]
    runs: Callable[[int], Awaitable[Sequence[shapes.LastRun]]]
    start_run: Callable[[Sequence[str] | None, bool, bool], Awaitable[str]]
    stop_run: Callable[[], Awaitable[bool]]
    run_result: Callable[[str], dict[str, Any] | None]
    report: Callable[[str | None], Awaitable[dict[str, Any] | None]]
    plan: Callable[[], Awaitable[dict[str, Any]]]
    switches: Callable[[int], Awaitable[Sequence[shapes.SwitchRow]]]
    documents: DocumentsService
    index_models: Callable[[], Awaitable[Sequence[shapes.IndexModel]]]
    use_model: Callable[[str, bool], Awaitable[shapes.ModelUsed]]
    search: Callable[[Asked], Awaitable[SearchResults]]
    search_documents: Callable[[Asked], Awaitable[DocumentResults]]
    embed_text: Callable[[str, dict[str, Any]], Awaitable[shapes.TextTaken]]
    text_state: Callable[[str], Awaitable[shapes.TextState | None]]
