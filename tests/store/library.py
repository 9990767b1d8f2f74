"""A small library whose passages have known words and known angles to a question, for the tests of search."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from math import cos, radians, sin

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.changes import Moves
from pipeline.core.documents import Chunk, DocumentKind
from pipeline.core.vectors import to_blob
from pipeline.runner.searching import Embed
from pipeline.store import library, queue
from pipeline.store.models import StoredModel, Target
from pipeline.store.queue import ExtractedContent
from pipeline.store.tables import ChunkRow
from tests.store import rows

DAY = 24 * 3600 * 10**9

Passages = Sequence[tuple[str, float]]
"""Texts with their angles in degrees."""

HARBOUR: Passages = [
    ("The hull is painted every spring, before the boats go out.", 0),
    ("Dredging of the basin costs 12 crowns a tonne.", 30),
    ("Hull paint, hull paint and more hull paint.", 60),
]
HUTS: Passages = [("Bread is carried up to the huts.", 10), ("The hull of a boat makes no hut.", 80)]
OBSERVATORY: Passages = [("Clear nights were counted.", 20), ("A comet came from outside.", 90)]
NOTE: Passages = [("A note: <b>hull</b> \x1b[31m\u202e paint", 45)]

FILES: Mapping[tuple[str, str], tuple[int, Passages]] = {
    ("/docs", "harbour.pdf"): (1 * DAY, HARBOUR),
    ("/docs", "2026/huts.docx"): (2 * DAY, HUTS),
    ("/more", "observatory.pdf"): (3 * DAY, OBSERVATORY),
    ("/more", "copy of harbour.pdf"): (4 * DAY, HARBOUR),
    ("/more", "note.text"): (5 * DAY, NOTE),
}


def direction(angle: float) -> NDArray[np.float32]:
    """A unit vector, float32[rows.DIMENSION], at an angle in degrees from the first axis."""
    return np.asarray([cos(radians(angle)), sin(radians(angle)), 0.0, 0.0], np.float32)


def embedded_as(angle: float) -> Embed:
    """A model for questions: all have the same vector."""

    async def embed(model: StoredModel, text: str) -> NDArray[np.float32]:
        return direction(angle)

    return embed


def fill_library(
    session: Session,
    target: Target | None = None,
    files: Mapping[tuple[str, str], tuple[int, Passages]] = FILES,
    turned: float = 0.0,
) -> Target:
    """Ingest the files in their order; `turned`: degrees by which the model turns all vectors."""
    if target is None:
        target = rows.add_target(session)
        rows.begin(session)
    for (root, path), (mtime_ns, passages) in files.items():
        source = library.ensure_source(session, root, rows.utc_now())
        text = "".join(text for text, _ in passages)
        file = rows.read_file(path, text, mtime_ns=mtime_ns)
        library.register(session, source, [file], Moves([]), target, rows.utc_now())
        for content in queue.claim_to_extract(session, "run", None, target, rows.utc_now(), 10):
            queue.store_extracted(session, content.content_id, _extracted(path, passages), rows.utc_now())
    angles = {text: angle + turned for _, passages in files.values() for text, angle in passages}
    for content_id in queue.claim_to_embed(session, "run", None, target, rows.utc_now(), 100):
        chunks = queue.pending_chunks(session, content_id, 0, 10_000)
        texts = [
            session.scalar(sa.select(ChunkRow.text).where(ChunkRow.id == chunk.chunk_id)) or "" for chunk in chunks
        ]
        vectors = [(chunk, to_blob(direction(angles[text]))) for chunk, text in zip(chunks, texts, strict=True)]
        queue.store_vectors(session, "run", vectors, [], rows.utc_now())
    return target


def _extracted(path: str, passages: Passages) -> ExtractedContent:
    paged = path.endswith(DocumentKind.PDF)
    chunks, start = list[Chunk](), 0
    for ordinal, (text, _) in enumerate(passages):
        page = ordinal + 1 if paged else None
        tokens = rows.tokens_of(text)
        chunks.append(Chunk(ordinal, start, start + len(text), text, page, page, ("Part",), tokens))
        start += len(text)
    last = dataclasses.replace(chunks[-1], headings=("Part", "End"), prefix="name | price\n")
    title = path.rpartition("/")[2].capitalize()
    return ExtractedContent(title, {"engine": "test"}, len(chunks) if paged else 0, start, [*chunks[:-1], last])
