"""How a content ends, becomes what search sees, and goes when nobody wants it any more."""

from __future__ import annotations

import datetime as dt
import functools
import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from pipeline.core.documents import DocumentState
from pipeline.core.vectors import normalise, to_blob, unit_vectors
from pipeline.store.tables import (
    ChunkRow,
    ContentEmbeddingRow,
    ContentRow,
    DocumentRow,
    EmbeddingRow,
    ModelRow,
    PendingStretchRow,
)

IN_CLAUSE = 500
"""Values named in one statement; a database refuses more than some ten thousand, and older ones 999."""

TRIED = "passwords_tried"
"""Among the details of an encrypted content: a mark of the passwords that did not open it. For no eyes."""

BY_MODEL, BY_MEAN = "model", "mean"
"""How a document's own vector was made: from all of its text at once, or from the vectors of its chunks."""

STAGE_EXTRACT = "extract"
STAGE_EMBED = "embed"


def promotable() -> sa.ColumnElement[bool]:
    """A condition on `contents`: what it holds may replace what search sees.

    A file that can no longer be read keeps its last good text; one that is now empty or locked does not, unless its
    bytes are the same (see `promote`).
    """
    return sa.or_(
        ContentRow.state.in_([DocumentState.EMBEDDED, DocumentState.EMPTY, DocumentState.ENCRYPTED]),
        sa.and_(ContentRow.state == DocumentState.FAILED, ContentRow.embedded_count > 0),
    )


@dataclass(frozen=True, slots=True)
class Ended:
    """A content that reached its last state, or waits for another try, and one of the documents that have it."""

    path: str
    state: DocumentState
    reason: str | None
    content_id: int = 0


def finish(session: Session, content_ids: Iterable[int], now: dt.datetime) -> list[Ended]:
    """End every content of these whose last chunk has its vector or its error, and no stretch waits; returns them.

    Its own vector is made where the model made none, it becomes what search sees, and what it replaces goes: all in
    this transaction.
    """
    rows = session.scalars(
        sa.select(ContentRow).where(
            ContentRow.id.in_(list(content_ids)),
            ContentRow.state == DocumentState.EXTRACTED,
            ContentRow.embedded_count + ContentRow.failed_count >= ContentRow.chunk_count,
            ~sa.exists().where(PendingStretchRow.content_id == ContentRow.id),
        )
    ).all()
    ids = [row.id for row in rows]
    own = set(session.scalars(sa.select(ContentEmbeddingRow.content_id).where(ContentEmbeddingRow.content_id.in_(ids))))
    means = _mean_vectors(session, [row for row in rows if row.embedded_count and row.id not in own])
    for row in rows:
        row.claimed_by = None
        row.embedded_at = now
        if row.failed_count:
            row.state, row.stage = DocumentState.FAILED, STAGE_EMBED
            row.reason = _chunks_failed(session, row)
        else:
            row.state, row.stage, row.reason = DocumentState.EMBEDDED, None, None
        if row.id in means:
            # One chunk is all of the text, and its vector that of the whole.
            method = BY_MODEL if row.chunk_count == 1 else BY_MEAN
            session.add(ContentEmbeddingRow(content_id=row.id, method=method, vector=means[row.id]))
    session.flush()
    promote(session, ids)
    paths = paths_of(session, ids)
    return [Ended(paths.get(row.id, ""), DocumentState(row.state), row.reason, row.id) for row in rows]


def end(session: Session, content_id: int, state: DocumentState, stage: str, reason: str) -> None:
    """End a content without text: it is empty, encrypted or failed."""
    row = session.get(ContentRow, content_id)
    if row is None:  # its file went while it was read
        return
    row.state, row.stage, row.reason, row.claimed_by = state, stage, reason, None
    session.flush()
    promote(session, [content_id])


def start_over(session: Session, content_ids: Sequence[int]) -> None:
    """Take back all that was made of some contents: they wait to be extracted, as if nobody had tried."""
    session.execute(sa.delete(ChunkRow).where(ChunkRow.content_id.in_(content_ids)))
    session.execute(sa.delete(ContentEmbeddingRow).where(ContentEmbeddingRow.content_id.in_(content_ids)))
    session.execute(sa.delete(PendingStretchRow).where(PendingStretchRow.content_id.in_(content_ids)))
    session.execute(
        sa.update(ContentRow)
        .where(ContentRow.id.in_(content_ids))
        .values(
            state=DocumentState.DISCOVERED,
            stage=None,
            reason=None,
            attempts=0,
            retry_at=None,
            claimed_by=None,
            chunk_count=0,
            embedded_count=0,
            failed_count=0,
            embedded_at=None,
        )
    )


def promote(session: Session, content_ids: Sequence[int], *, drop: bool = True) -> None:
    """Let search see these contents, where they may be seen, and drop what they replace.

    A document stays searchable with what was made of the very same bytes, where its new content has no vectors:
    other settings (no OCR, no password) find less in a file, but nobody took anything out of it. It goes on waiting
    for that content, whose state is then the document's.

    drop: not while a scan is under way, in which another file may yet turn out to hold the same bytes.
    """
    if not content_ids:
        return
    ready = session.scalars(
        sa.select(ContentRow.id)
        .join(ModelRow, ModelRow.id == ContentRow.model_id)
        .where(ContentRow.id.in_(content_ids), ModelRow.active, promotable())
        # On PostgreSQL search could move to another model between this and what follows.
        .with_for_update(read=True, of=ModelRow)
    ).all()
    if not ready:
        return
    replaced = session.scalars(
        sa.select(DocumentRow.current_id)
        .where(DocumentRow.pending_id.in_(ready), DocumentRow.current_id.is_not(None), ~_loses_text())
        .distinct()
    ).all()
    session.execute(
        sa.update(DocumentRow)
        .where(DocumentRow.pending_id.in_(ready), ~_loses_text())
        .values(current_id=DocumentRow.pending_id, pending_id=None)
    )
    if drop:
        drop_unused(session, [content_id for content_id in replaced if content_id is not None])


def drop_unused(session: Session, among: Sequence[int] | None = None) -> int:
    """Delete contents that no document refers to, with their chunks and vectors; returns how many.

    What a model that is not the active one made of bytes that are still here is kept: to go back to it costs nothing.
    """
    if among is not None and not among:
        return 0
    unused = unwanted()
    if among is not None:
        unused = unused.where(ContentRow.id.in_(among))
    ids = list(session.scalars(unused))
    for start in range(0, len(ids), IN_CLAUSE):
        session.execute(sa.delete(ContentRow).where(ContentRow.id.in_(ids[start : start + IN_CLAUSE])))
    return len(ids)


def unwanted() -> sa.Select[int]:
    """The ids of contents that nobody refers to, as `drop_unused` understands it."""
    active = sa.select(ModelRow.id).where(ModelRow.active)
    return sa.select(ContentRow.id).where(
        ~sa.exists().where(DocumentRow.current_id == ContentRow.id),
        ~sa.exists().where(DocumentRow.pending_id == ContentRow.id),
        sa.or_(~sa.exists().where(DocumentRow.sha256 == ContentRow.sha256), ContentRow.model_id.in_(active)),
    )


def not_shown() -> sa.Select[int, int]:
    """Documents that wait for a content which is done, and which `promote` would show, with that content."""
    return (
        sa.select(DocumentRow.id, ContentRow.id)
        .join(ContentRow, ContentRow.id == DocumentRow.pending_id)
        .join(ModelRow, ModelRow.id == ContentRow.model_id)
        .where(ModelRow.active, promotable(), ~_loses_text())
        .order_by(DocumentRow.id)
    )


@functools.cache  # to put it together takes a quarter of what a batch of vectors takes
def _loses_text() -> sa.ColumnElement[bool]:
    """A condition on `documents`: search sees vectors of the bytes for which the pending content has none."""
    seen, new = aliased(ContentRow), aliased(ContentRow)
    return sa.exists().where(
        seen.id == DocumentRow.current_id,
        new.id == DocumentRow.pending_id,
        seen.sha256 == new.sha256,
        seen.model_id == new.model_id,
        seen.embedded_count > 0,
        new.embedded_count == 0,
    )


def paths_of(session: Session, content_ids: Sequence[int]) -> dict[int, str]:
    """One of the documents of each content that there is one of."""
    found: dict[int, str] = {}
    for column in (DocumentRow.current_id, DocumentRow.pending_id):
        query = sa.select(column, sa.func.min(DocumentRow.path)).where(column.in_(content_ids)).group_by(column)
        found |= {content_id: path for content_id, path in session.execute(query) if content_id is not None}
    return found


def dimensions_of(session: Session, content_ids: Collection[int]) -> dict[int, int]:
    """How many numbers the vectors of contents have, as far as these are there."""
    query = sa.select(ContentRow.id, ModelRow.dimension).join(ModelRow, ModelRow.id == ContentRow.model_id)
    return dict(session.execute(query.where(ContentRow.id.in_(content_ids))).all())


def _mean_vectors(session: Session, contents: Sequence[ContentRow]) -> dict[int, bytes]:
    """The token-weighted means of the vectors of these contents' chunks. Vectors that are none do not count."""
    dimensions = dimensions_of(session, [row.id for row in contents])
    totals = {content_id: np.zeros(dimension, np.float64) for content_id, dimension in dimensions.items()}
    rows = session.execute(
        sa.select(ChunkRow.content_id, ChunkRow.token_count, EmbeddingRow.vector)
        .join(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id)
        .where(ChunkRow.content_id.in_(dimensions))
        .order_by(ChunkRow.content_id, ChunkRow.ordinal)
        .execution_options(yield_per=1024)
    )
    for part in rows.partitions():
        for content_id, group in itertools.groupby(part, lambda row: row[0]):
            counts, vectors = zip(*((count, vector) for _, count, vector in group), strict=True)
            totals[content_id] += np.asarray(counts, np.float64) @ unit_vectors(vectors, dimensions[content_id])[0]
    return {
        content_id: to_blob(normalise(total[np.newaxis].astype(np.float32))[0])
        for content_id, total in totals.items()
        if total.any()
    }


def mean_vector(session: Session, content_id: int) -> bytes | None:
    """What a document's own vector is that is the mean of its chunks'; None where these give none."""
    row = session.get(ContentRow, content_id)
    if row is None:
        return None
    return _mean_vectors(session, [row]).get(content_id)


def _chunks_failed(session: Session, content: ContentRow) -> str:
    first = session.scalar(
        sa.select(ChunkRow.error)
        .where(ChunkRow.content_id == content.id, ChunkRow.error.is_not(None))
        .order_by(ChunkRow.ordinal)
        .limit(1)
    )
    rest = "the others can be searched" if content.embedded_count else "none could"
    return f"{content.failed_count} of {content.chunk_count} chunks could not be embedded ({first}); {rest}"
