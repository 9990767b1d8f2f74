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
from pipeline.store.tables import (
    ChunkRow,
    ContentEmbeddingRow,
    ContentRow,
    DocumentRow,
    EmbeddingRow,
    ModelRow,
    SourceRow,
)

BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found. kind: what its file holds. also: other files that hold the same document.

    prefix: the header of the table that its text begins inside of.
    """

    file: str
    also: Sequence[str]
    title: str | None
    page_first: int | None
    page_last: int | None
    headings: Sequence[str]
    score: float
    text: str
    kind: str
    prefix: str = ""


def search_active(session: Session, question: NDArray[np.float32], model_id: int, k: int) -> list[Hit] | None:
    """As `search`; None where search has moved to another model since the question was embedded."""
    active = session.scalar(sa.select(ModelRow.active).where(ModelRow.id == model_id))
    return search(session, question, model_id, k) if active else None


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
    return [_hit(session, chunk_id, score) for chunk_id, score in _nearest(rows, question, k)]


def _nearest(rows: sa.Result[int, bytes], question: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
    """Ids and scores of the `k` vectors with the largest scalar product, best first; rows of (id, vector) in blocks."""
    best = TopK(k)
    for block in rows.partitions():
        vectors = from_blobs([vector for _, vector in block], len(question))
        best.add(np.asarray([row_id for row_id, _ in block], np.int64), vectors @ question)
    return best.result()


@dataclass(frozen=True, slots=True)
class DocumentHit:
    """A document that was found by its own vector. method: how that was made, `model` or `mean`."""

    file: str
    also: Sequence[str]
    kind: str
    title: str | None
    page_count: int
    method: str
    score: float


def search_documents(
    session: Session, question: NDArray[np.float32], model_id: int, k: int
) -> list[DocumentHit] | None:
    """The `k` documents whose own vectors are nearest to `question`, best first; None as `search_active`."""
    if not session.scalar(sa.select(ModelRow.active).where(ModelRow.id == model_id)):
        return None
    seen = sa.select(DocumentRow.current_id).where(DocumentRow.current_id.is_not(None))
    rows = session.execute(
        sa.select(ContentEmbeddingRow.content_id, ContentEmbeddingRow.vector)
        .join(ContentRow, ContentRow.id == ContentEmbeddingRow.content_id)
        .where(ContentRow.model_id == model_id, ContentRow.id.in_(seen))
        .execution_options(yield_per=BLOCK)
    )
    return [_document_hit(session, content_id, score) for content_id, score in _nearest(rows, question, k)]


def _document_hit(session: Session, content_id: int, score: float) -> DocumentHit:
    content = session.get_one(ContentRow, content_id)
    files = _files(session, content_id)
    return DocumentHit(
        file=files[0],
        also=files[1:],
        kind=content.kind,
        title=content.title,
        page_count=content.page_count,
        method=session.get_one(ContentEmbeddingRow, content_id).method,
        score=float(score),
    )


def _files(session: Session, content_id: int) -> list[str]:
    """The files that hold a content, by their paths."""
    rows = session.execute(
        sa.select(SourceRow.root, DocumentRow.path)
        .join(DocumentRow, DocumentRow.source_id == SourceRow.id)
        .where(DocumentRow.current_id == content_id)
        .order_by(SourceRow.root, DocumentRow.path)
    )
    return [f"{root.rstrip('/')}/{path}" for root, path in rows]


def _hit(session: Session, chunk_id: int, score: float) -> Hit:
    chunk, content = session.execute(
        sa.select(ChunkRow, ContentRow)
        .join(ContentRow, ContentRow.id == ChunkRow.content_id)
        .where(ChunkRow.id == chunk_id)
    ).one()
    files = _files(session, content.id)
    return Hit(
        file=files[0],
        also=files[1:],
        title=content.title,
        page_first=chunk.page_first,
        page_last=chunk.page_last,
        headings=chunk.headings,
        score=float(score),
        text=chunk.text,
        kind=content.kind,
        prefix=chunk.prefix,
    )
