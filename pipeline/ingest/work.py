"""What the stages of one run share."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.core.errors import SourceError
from pipeline.ingest.embedding import Embedder
from pipeline.ingest.pool import ExtractionPool
from pipeline.ingest.progress import Progress
from pipeline.store.database import Database
from pipeline.store.models import Target
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
    """Where to look for documents: a source, and the folder or file in it (empty: all of it)."""

    source_id: int
    root: str
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be in memory or under way at once.

    look_ahead: chunks sorted by length before they are sent.
    request_chunks: chunks in one request, and so in one transaction.
    requests_in_flight: requests sent before the first is answered.
    queued_chunks: chunks that wait for a vector before reading pauses: what was read longest ago only grows stale.
    """

    look_ahead: int = 1024
    request_chunks: int = 64
    requests_in_flight: int = 3
    queued_chunks: int = 16_384


@dataclass(slots=True)
class Work:
    """One run's work: what is to be done, with what, and how far it is.

    scopes: the documents that this run may touch; None for every one in the database.
    confirm_deletions: a person said that many documents may be gone.
    errors: sources that could not be trusted; nothing of them was deleted.
    """

    run_id: str
    store: Database
    places: Sequence[Place]
    scopes: Sequence[Scope] | None
    target: Target
    pool: ExtractionPool
    embedder: Embedder
    progress: Progress
    stop: asyncio.Event
    limits: Limits = field(default_factory=Limits)
    confirm_deletions: bool = False
    to_extract: Bell = field(default_factory=Bell)
    to_embed: Bell = field(default_factory=Bell)
    embedded: Bell = field(default_factory=Bell)
    errors: list[SourceError] = field(default_factory=list)


def utc_now() -> dt.datetime:
    """The time for what is written into rows."""
    return dt.datetime.now(dt.UTC)
