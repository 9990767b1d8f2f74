"""Exact search in the plainest way: the reference that every way of the program is compared with."""

from __future__ import annotations

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.vectors import TopK
from pipeline.store.nearest.comparing import take_in
from pipeline.store.tables import ChunkRow, ContentEmbeddingRow, EmbeddingRow
from pipeline.store.view import View, searched_contents

BLOCK = 4096


def nearest_chunks(session: Session, question: NDArray[np.float32], view: View, k: int) -> list[tuple[int, float]]:
    """As `nearest.nearest_chunks`."""
    rows = session.execute(
        sa.select(EmbeddingRow.chunk_id, EmbeddingRow.vector)
        .join(ChunkRow, ChunkRow.id == EmbeddingRow.chunk_id)
        .where(ChunkRow.content_id.in_(searched_contents(view)))
        .execution_options(yield_per=BLOCK)
    )
    return _nearest(session, rows, question, k)


def nearest_documents(session: Session, question: NDArray[np.float32], view: View, k: int) -> list[tuple[int, float]]:
    """As `nearest.nearest_documents`."""
    rows = session.execute(
        sa.select(ContentEmbeddingRow.content_id, ContentEmbeddingRow.vector)
        .where(ContentEmbeddingRow.content_id.in_(searched_contents(view)))
        .execution_options(yield_per=BLOCK)
    )
    return _nearest(session, rows, question, k)


def _nearest(
    session: Session, rows: sa.Result[int, bytes], question: NDArray[np.float32], k: int
) -> list[tuple[int, float]]:
    best = TopK(k)
    for block in rows.partitions():
        take_in(session.connection(), [one for one, _ in block], [vector for _, vector in block], question, best)
    return best.result()
