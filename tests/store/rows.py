"""Rows for the store's tests, made through the store's own functions."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.changes import Moves
from pipeline.core.documents import Chunk, DocumentKind
from pipeline.core.fusion import By
from pipeline.core.vectors import to_blob
from pipeline.store import library, models, queue, runs
from pipeline.store.library import ReadFile
from pipeline.store.models import Target
from pipeline.store.queue import ExtractedContent, StoredBatch
from pipeline.store.runs import Process
from pipeline.store.search import Hit, Query, find
from pipeline.store.view import view_of

DIMENSION = 4
ME = Process("here", 1, 0.0)


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def add_target(session: Session, name: str = "m", recipe: str = "r") -> Target:
    model = models.ensure_model(
        session,
        fingerprint=digest(name),
        name=name,
        path=f"/models/{name}.gguf",
        size=1,
        mtime_ns=1,
        dimension=DIMENSION,
        now=utc_now(),
    )
    return Target(model.id, recipe)


def begin(session: Session, run_id: str = "run") -> str:
    runs.start_run(session, run_id, ME, [], utc_now(), lambda process: False)
    return run_id


def search(session: Session, question: NDArray[np.float32], model_id: int, k: int) -> list[Hit]:
    """The `k` passages of a model that are nearest to a vector."""
    return find(session, Query("", question, By.VECTOR, k), view_of(session, model_id))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_file(path: str, content: str, size: int = 10, mtime_ns: int = 1) -> ReadFile:
    return ReadFile(path, DocumentKind(path.rpartition(".")[2]), size, mtime_ns, digest(content))


def register(session: Session, source_id: int, target: Target, **contents: str) -> int:
    """Files by name (without .pdf) and content."""
    files = [read_file(f"{name}.pdf", content) for name, content in contents.items()]
    return library.register(session, source_id, files, Moves([]), target, utc_now())


def tokens_of(text: str) -> list[int]:
    """Other ones for each text."""
    return [101, 7, int(digest(text)[:7], 16), 102]


def extracted(*texts: str) -> ExtractedContent:
    chunks, start = [], 0
    for ordinal, text in enumerate(texts):
        chunks.append(Chunk(ordinal, start, start + len(text), text, 1, 1, ("Heading",), tokens_of(text)))
        start += len(text)
    return ExtractedContent("Title", {"engine": "test"}, 1, start, chunks)


def extract_all(session: Session, target: Target, texts: Sequence[str] = ("one", "two", "three")) -> list[int]:
    claimed = queue.claim_to_extract(session, "run", None, target, utc_now(), 100)
    for content in claimed:
        queue.store_extracted(session, content.content_id, extracted(*texts), utc_now())
    return [content.content_id for content in claimed]


def vector(number: int) -> bytes:
    values = np.zeros(DIMENSION, np.float32)
    values[number % DIMENSION] = 1.0
    return to_blob(values)


def embed_all(session: Session, target: Target, bad: Sequence[int] = ()) -> list[StoredBatch]:
    """Give every queued chunk a vector; those with an ordinal in `bad` an error."""
    batches = []
    for content_id in queue.claim_to_embed(session, "run", None, target, utc_now(), 100):
        chunks = queue.pending_chunks(session, content_id, 0, 100)
        good = [(c, vector(n)) for n, c in enumerate(chunks) if n not in bad]
        failed = [(c, "it broke") for n, c in enumerate(chunks) if n in bad]
        batches.append(queue.store_vectors(session, "run", good, failed, utc_now()))
    return batches
