"""Exact cosine search over the vectors that are stored.

Vectors and the question are unit vectors, so the cosine is their dot product. Vectors are read in
blocks, so that memory does not grow with the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.vectors import TopK, from_blobs
from pipeline.store.tables import ChunkRow, ContentRow, DocumentRow, EmbeddingRow, SourceRow

BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found. also: other files that hold the same document."""

    file: str
    also: Sequence[str]
    title: str | None
    page_first: int | None
    page_last: int | None
    headings: Sequence[str]
    score: float
    text: str


def search(session: Session, question: NDArray[np.float32], model_id: int, k: int) -> list[Hit]:
    """The `k` chunks nearest to `question` (float32[d], unit length), best first.

    Only what documents now have is searched, of the model given.
    """
    seen = sa.select(DocumentRow.current_id).where(DocumentRow.current_id.is_not(None))
    rows = session.execute(
        sa.select(EmbeddingRow.chunk_id, EmbeddingRow.vector)
        .join(ChunkRow, ChunkRow.id == EmbeddingRow.chunk_id)
        .join(ContentRow, ContentRow.id == ChunkRow.content_id)
        .where(ContentRow.model_id == model_id, ContentRow.id.in_(seen))
        .execution_options(yield_per=BLOCK)
    )
    best = TopK(k)
    for block in rows.partitions():
        vectors = from_blobs([vector for _, vector in block], len(question))
        best.add(np.asarray([chunk_id for chunk_id, _ in block], np.int64), vectors @ question)
    return [_hit(session, chunk_id, score) for chunk_id, score in best.result()]


def _hit(session: Session, chunk_id: int, score: float) -> Hit:
    chunk, content = session.execute(
        sa.select(ChunkRow, ContentRow)
        .join(ContentRow, ContentRow.id == ChunkRow.content_id)
        .where(ChunkRow.id == chunk_id)
    ).one()
    files = [
        f"{root.rstrip('/')}/{path}"
        for root, path in session.execute(
            sa.select(SourceRow.root, DocumentRow.path)
            .join(DocumentRow, DocumentRow.source_id == SourceRow.id)
            .where(DocumentRow.current_id == content.id)
            .order_by(SourceRow.root, DocumentRow.path)
        )
    ]
    return Hit(
        file=files[0],
        also=files[1:],
        title=content.title,
        page_first=chunk.page_first,
        page_last=chunk.page_last,
        headings=chunk.headings,
        score=float(score),
        text=chunk.text,
    )
