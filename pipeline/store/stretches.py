"""The queue of what is computed in one go: whole documents, and stretches of them that give their chunks vectors.

A document is done when none of it waits here any more. The transaction that stores what a stretch gave
deletes its row, so that a run that dies repeats it and nothing is stored twice.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.vectors import flaw_of
from pipeline.store.contents import BY_MODEL, dimensions_of
from pipeline.store.queue import DOCUMENT, SPAN_TYPE, TOKEN_TYPE, PendingChunk, StoredBatch, store_vectors
from pipeline.store.tables import ContentEmbeddingRow, PendingChunkRow, PendingStretchRow


@dataclass(frozen=True, slots=True)
class PendingStretch:
    """A stretch that waits: tokens int32 [n], and spans int64 [m, 3] of chunk id (or DOCUMENT), start, end.

    Without spans, the vector of all of it is the document's own.
    """

    id: int
    content_id: int
    tokens: NDArray[np.int32]
    spans: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Own:
    """A document's own vector, as the model computed it: little-endian float32."""

    content_id: int
    vector: bytes


def pending_stretches(session: Session, content_id: int, after: int, limit: int) -> list[PendingStretch]:
    """Up to `limit` stretches of a content that wait, with ids above `after`, in order."""
    rows = session.execute(
        sa.select(PendingStretchRow.id, PendingStretchRow.tokens, PendingStretchRow.spans)
        .where(PendingStretchRow.content_id == content_id, PendingStretchRow.id > after)
        .order_by(PendingStretchRow.id)
        .limit(limit)
    )
    return [
        PendingStretch(
            number, content_id, np.frombuffer(tokens, TOKEN_TYPE), np.frombuffer(spans, SPAN_TYPE).reshape(-1, 3)
        )
        for number, tokens, spans in rows
    ]


def chunks_of(session: Session, stretch: PendingStretch) -> list[PendingChunk]:
    """The chunks of a stretch that still wait, with tokens of their own."""
    ids = [int(chunk_id) for chunk_id in stretch.spans[:, 0] if chunk_id != DOCUMENT]
    found: list[PendingChunk] = []
    for start in range(0, len(ids), 500):
        rows = session.execute(
            sa.select(PendingChunkRow.chunk_id, PendingChunkRow.tokens)
            .where(PendingChunkRow.chunk_id.in_(ids[start : start + 500]))
            .order_by(PendingChunkRow.chunk_id)
        )
        found += [
            PendingChunk(chunk_id, stretch.content_id, np.frombuffer(tokens, TOKEN_TYPE).tolist())
            for chunk_id, tokens in rows
        ]
    return found


def store_stretches(
    session: Session,
    run_id: str,
    stretches: Sequence[PendingStretch],
    vectors: Sequence[tuple[PendingChunk, bytes]],
    failures: Sequence[tuple[PendingChunk, str]],
    own: Sequence[Own],
    now: dt.datetime,
) -> StoredBatch:
    """Store what stretches gave: the vectors of their chunks, those of documents, and what is done by that.

    A document without one in `own` gets the mean of its chunks when they are all there. Stretches that are
    no longer queued (their file changed meanwhile) are passed over.
    """
    ids = [stretch.id for stretch in stretches]
    gone = sa.delete(PendingStretchRow).where(PendingStretchRow.id.in_(ids)).returning(PendingStretchRow.content_id)
    queued = set(session.scalars(gone, execution_options={"synchronize_session": False}))
    there = dimensions_of(session, queued)
    for one in own:
        # One that is no unit vector of its model leaves the document to the mean of its chunks.
        if one.content_id in there and flaw_of(one.vector, there[one.content_id]) is None:
            session.merge(ContentEmbeddingRow(content_id=one.content_id, method=BY_MODEL, vector=one.vector))
    session.flush()
    return store_vectors(session, run_id, vectors, failures, now, also=there)
