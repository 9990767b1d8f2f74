"""Fills databases of any size with made-up documents.

The first ones go through the program's own functions, as a run has it. The others are copies of these, made by SQL with
other bytes and other paths: however the rows came there, the database takes the same to find them.
"""

from __future__ import annotations

import datetime as dt
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.changes import Moves
from pipeline.core.documents import Chunk, DocumentKind
from pipeline.store import library, models, queue, runs
from pipeline.store.bulk import table_of
from pipeline.store.database import Database
from pipeline.store.library import ReadFile
from pipeline.store.models import Target
from pipeline.store.queue import ExtractedContent
from pipeline.store.runs import Process
from pipeline.store.tables import (
    ChunkRow,
    ChunkWordsRow,
    ContentEmbeddingRow,
    ContentRow,
    DocumentRow,
    EmbeddingRow,
    PendingChunkRow,
)

CHUNKS_A_DOCUMENT = 10
TOKENS_A_CHUNK = 128
DIMENSION = 384
BATCH = 64
FIRST = 10_000
"""Chunks that are not copies."""

MORE = 128
"""Documents that are read and embedded when the database is as large as it gets."""

REGISTERED_AT_ONCE = 128
WAITING = 20
"""One document in so many is unread in the end, and one is read and waits."""

RUN = "fill"
RECIPE = "recipe"
SENTENCE = "The pump of the third basin was serviced in March, and its seals were replaced by ones of another make. "


@dataclass(slots=True)
class Times:
    """Milliseconds, of the thread's processor time and by the clock."""

    processor: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take the time of the block."""
        processor, clock = time.thread_time(), time.perf_counter()
        yield
        self.processor.append(1000 * (time.thread_time() - processor))
        self.clock.append(1000 * (time.perf_counter() - clock))

    def shown(self, percent: float = 50) -> str:
        """What half of them, or so many of a hundred, do not exceed."""
        return f"{np.percentile(self.processor, percent):10.2f} {np.percentile(self.clock, percent):10.2f}"

    def rate(self, each: int) -> str:
        """So many in each, a second."""
        taken = statistics.mean(self.processor), statistics.mean(self.clock)
        return f"{1000 * each / taken[0]:10.0f} {1000 * each / taken[1]:10.0f}"


@dataclass(slots=True)
class Filling:
    """Transactions that stored a document's chunks, and a batch of vectors."""

    extracted: Times = field(default_factory=Times)
    vectors: Times = field(default_factory=Times)


class Filler:
    """Fills one database."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self._random = np.random.default_rng(7)
        vectors: NDArray[np.float32] = self._random.standard_normal((1024, DIMENSION), np.float32)
        self._vectors = [vector.tobytes() for vector in vectors / np.linalg.norm(vectors, axis=1, keepdims=True)]
        self.target = Target(1, RECIPE)

    def fill(self, chunks: int) -> tuple[Filling, Filling]:
        """Documents with `chunks` chunks in all, most of them with vectors; how the first went, and some at the end."""
        first, last = Filling(), Filling()
        documents, now = min(chunks, FIRST) // CHUNKS_A_DOCUMENT, dt.datetime.now(dt.UTC)
        with self._store.begin() as session:
            runs.start_run(session, RUN, Process("here", 1, 0.0), [], now, lambda process: False)
            model = models.ensure_model(
                session, fingerprint="f", name="m", path="/m", size=1, mtime_ns=1, dimension=DIMENSION, now=now
            )
            source = library.ensure_source(session, "/documents", now)
        self.target = Target(model.id, RECIPE)
        for start in range(0, documents, REGISTERED_AT_ONCE):
            files = [_file(number) for number in range(start, min(start + REGISTERED_AT_ONCE, documents))]
            with self._store.begin() as session:
                library.register(session, source, files, Moves([]), self.target, now)
        waiting = documents // WAITING
        self.extract(documents - 2 * waiting, first.extracted)
        self.embed(first.vectors)
        self.extract(waiting, Times())
        with self._store.begin() as session:  # copies are claimed by nobody
            session.execute(sa.update(ContentRow).values(claimed_by=None))
        for number in range(1, chunks // (documents * CHUNKS_A_DOCUMENT)):
            with self._store.begin() as session:
                _copy(session, number, documents)
        with self._store.begin() as session:
            _go_on_numbering(session)
        self.extract(min(MORE, waiting), last.extracted)
        self.embed(last.vectors, min(MORE, waiting))
        return first, last

    def extract(self, documents: int, times: Times) -> None:
        """Store the chunks of so many documents that wait for that."""
        left = documents
        while left > 0:
            now = dt.datetime.now(dt.UTC)
            with self._store.begin() as session:
                claimed = queue.claim_to_extract(session, RUN, None, self.target, now, min(left, 16))
            left -= len(claimed)
            for content in claimed:
                extracted = self._extracted()
                with times.taken(), self._store.begin() as session:
                    queue.store_extracted(session, content.content_id, extracted, now)

    def embed(self, times: Times, documents: int | None = None) -> None:
        """Store vectors for all documents that wait for them, or so many."""
        waiting, left = list[queue.PendingChunk](), documents
        while left is None or left > 0:
            now = dt.datetime.now(dt.UTC)
            with self._store.begin() as session:
                claimed = queue.claim_to_embed(session, RUN, None, self.target, now, 16)
            with self._store.snapshot() as session:
                for content_id in claimed:
                    waiting += queue.pending_chunks(session, content_id, 0, CHUNKS_A_DOCUMENT)
            left = None if left is None else left - len(claimed)
            while len(waiting) >= BATCH or (waiting and not claimed):
                batch, waiting = waiting[:BATCH], waiting[BATCH:]
                made = [(chunk, self._vectors[chunk.chunk_id % len(self._vectors)]) for chunk in batch]
                with times.taken(), self._store.begin() as session:
                    queue.store_vectors(session, RUN, made, [], now)
            if not claimed:
                return

    def _extracted(self) -> ExtractedContent:
        text = SENTENCE * 5
        chunks = [
            Chunk(
                ordinal,
                ordinal * len(text),
                (ordinal + 1) * len(text),
                text,
                ordinal // 3 + 1,
                ordinal // 3 + 1,
                ("Maintenance", "Basins"),
                self._random.integers(1000, 30_000, TOKENS_A_CHUNK).tolist(),
            )
            for ordinal in range(CHUNKS_A_DOCUMENT)
        ]
        return ExtractedContent("A report", {"engine": "pdfium"}, 4, CHUNKS_A_DOCUMENT * len(text), chunks)


def _file(number: int) -> ReadFile:
    name = f"{number // 10_000:03}/{number // 100 % 100:02}/report {number:07} of the archive.pdf"
    return ReadFile(name, DocumentKind.PDF, 250_000, 10**18 + number, f"{number:064x}")


def _copy(session: Session, number: int, documents: int) -> None:
    """Put copy `number` of the first documents beside them, as other files with other bytes."""
    chunks = documents * CHUNKS_A_DOCUMENT
    for row, key, most in (
        (ContentRow, "id", documents),
        (DocumentRow, "id", documents),
        (ChunkRow, "id", chunks),
        (PendingChunkRow, "chunk_id", chunks),
        (ChunkWordsRow, "chunk_id", chunks),
        (EmbeddingRow, "chunk_id", chunks),
        (ContentEmbeddingRow, "content_id", documents),
    ):
        columns = table_of(row).c
        moved = {"content_id": documents, "current_id": documents, "pending_id": documents, "chunk_id": chunks}
        moved["id"] = most
        changed: dict[str, sa.ColumnElement[Any]] = {
            name: columns[name] + number * by for name, by in moved.items() if name in columns
        }
        if "sha256" in columns:
            changed["sha256"] = sa.literal(f"{number:08x}").concat(sa.func.substr(columns.sha256, 9))
        if "path" in columns:
            changed["path"] = sa.literal(f"copy {number}/").concat(columns.path)
        selected = sa.select(*(changed.get(column.name, column) for column in columns)).where(columns[key] <= most)
        session.connection().execute(sa.insert(table_of(row)).from_select([c.name for c in columns], selected))


def _go_on_numbering(session: Session) -> None:
    if session.get_bind().dialect.name != "postgresql":
        return
    for name in ("contents", "documents", "chunks"):
        session.execute(sa.text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), (SELECT MAX(id) FROM {name}))"))


def write_all(url: str) -> None:
    """Store all vectors that are waited for while somebody reads, so that all of it stays in the write-ahead log."""
    with Database.open(url) as store, store.snapshot() as reader:
        reader.execute(sa.select(sa.func.count()).select_from(ContentRow)).all()
        Filler(store).embed(Times())
        print("written", flush=True)
        while True:
            time.sleep(60)
