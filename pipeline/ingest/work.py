"""What the stages of one run share."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from pipeline.core.errors import SourceError
from pipeline.core.globs import PathFilter
from pipeline.ingest.embedding import Embedder
from pipeline.ingest.pace import Pace
from pipeline.ingest.pool import ExtractionPool
from pipeline.ingest.progress import Progress
from pipeline.store.database import Database
from pipeline.store.models import Target
from pipeline.store.queue import Order
from pipeline.store.scopes import Scope


class Bell:
    """Wakes the one stage that waits for it. A ring while nobody waits is not lost."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.closed = False

    def ring(self) -> None:
        """There may be something to do."""
        self._event.set()

    def close(self) -> None:
        """Nothing more will come."""
        self.closed = True
        self._event.set()

    async def wait(self) -> None:
        """Until it rang since the last wait, or is closed."""
        await self._event.wait()
        if not self.closed:
            self._event.clear()


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look for documents: a source, and the folder or file in it (empty: all of it).

    priority: what is found here goes before what has a higher number.
    """

    source_id: int
    root: str
    folder: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be in memory or under way at once.

    look_ahead, look_ahead_tokens: chunks, and tokens of all that is read ahead, sorted by length before it is sent.
    request_chunks, request_tokens: chunks in one request, and their tokens; a longer chunk goes by itself.
    requests_in_flight: requests sent before the first is answered, and answers that wait to be stored.
    queued_chunks: chunks that wait for a vector before reading pauses: what was read longest ago only grows stale.
    patience: seconds that a model server may refuse everything for the moment before the run ends.
    first_pause: seconds before it is asked again for the first time; each further pause is twice as long.
    stop_seconds: how long requests under way may still take after a stop. What is not answered by then stays queued.
    """

    look_ahead: int = 1024
    request_chunks: int = 64
    requests_in_flight: int = 3
    queued_chunks: int = 16_384
    look_ahead_tokens: int = 262_144
    request_tokens: int = 16_384
    patience: float = 120.0
    first_pause: float = 1.0
    stop_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Looking:
    """How folders are looked at.

    wanted: which files. settle: seconds that a file must have been left alone before it is read. silence: seconds
    without any answer from a folder before it counts as away.
    """

    wanted: PathFilter = field(default_factory=PathFilter)
    settle: float = 0.0
    silence: float = 60.0

    @property
    def patience(self) -> float:
        """Seconds that a run with nothing else to do waits for files that are written to."""
        return max(1.0, 3 * self.settle)


@dataclass(slots=True)
class Work:
    """One run's work: what is to be done, with what, and how far it is.

    scopes: the documents that this run may touch; None for every one in the database.
    confirm_deletions: a person said that many documents may be gone.
    embedder: None to read only, and leave the vectors to another run.
    dimension: of the vectors that it must give; None is not checked.
    order: of what waits with the same priority. pace: what may still begin.
    errors: sources that could not be trusted; nothing of them was deleted.
    passwords_tried: what says of an encrypted document that this run's passwords were tried (`ingest.passwords`).
    within: ids of the sources whose files this host can read; None for all.
    postponed: contents that this run left for later, and may yet come back to.
    silent: roots of sources that gave no answer; nothing of them is waited for again.
    """

    run_id: str
    store: Database
    places: Sequence[Place]
    scopes: Sequence[Scope] | None
    target: Target
    pool: ExtractionPool
    embedder: Embedder | None
    progress: Progress
    stop: asyncio.Event
    limits: Limits = field(default_factory=Limits)
    confirm_deletions: bool = False
    order: Order = "newest"
    pace: Pace = field(default_factory=lambda: Pace(None, utc_now))
    looking: Looking = field(default_factory=Looking)
    passwords_tried: str | None = None
    within: Collection[int] | None = None
    dimension: int | None = None
    postponed: set[int] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    to_extract: Bell = field(default_factory=Bell)
    to_embed: Bell = field(default_factory=Bell)
    embedded: Bell = field(default_factory=Bell)
    errors: list[SourceError] = field(default_factory=list)

    def wake_readers(self) -> None:
        """There is something to read, or something that an earlier run read and that waits for its vectors."""
        self.to_extract.ring()
        self.to_embed.ring()


def utc_now() -> dt.datetime:
    """The time for what is written into rows."""
    return dt.datetime.now(dt.UTC)
