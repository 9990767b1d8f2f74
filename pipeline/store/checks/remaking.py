"""Gives single documents back what they should have: their counters and state, a vector, or a new start.

What the repairs of rows and those by the model are made of; each function belongs to a transaction.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.core.vectors import flaw_of
from pipeline.core.verifying import expected_state
from pipeline.store.checks.vectors import DAMAGED, Sampled
from pipeline.store.contents import BY_MEAN, BY_MODEL, IN_CLAUSE, finish, mean_vector, start_over
from pipeline.store.nearest.copying import delete_copies
from pipeline.store.scopes import folder_of_source
from pipeline.store.tables import (
    ChunkRow,
    ContentEmbeddingRow,
    ContentRow,
    DocumentRow,
    EmbeddingRow,
    ModelRow,
    PendingChunkRow,
    PendingStretchRow,
    SourceRow,
)

LOST = "its vector was damaged"
"""Why a chunk of a document that is being made anew has no vector until then."""


def texts_of(session: Session, chunk_ids: Collection[int], *, whole: bool = False) -> list[tuple[int, Sampled]]:
    """Chunks to compute again, with their model. whole: all those too that are of the same contents."""
    found: dict[int, tuple[int, Sampled]] = {}
    for some in parts(chunk_ids):
        these: sa.ColumnElement[bool] = ChunkRow.id.in_(some)
        if whole:
            these = ChunkRow.content_id.in_(sa.select(ChunkRow.content_id).where(ChunkRow.id.in_(some)))
        query = (
            sa.select(ContentRow.model_id, ChunkRow.id, ContentRow.id, ChunkRow.prefix, ChunkRow.text, ChunkRow.digest)
            .join(ContentRow, ContentRow.id == ChunkRow.content_id)
            .where(these)
            .order_by(ChunkRow.id)
        )
        found |= {
            chunk_id: (model_id, Sampled(chunk_id, content_id, prefix + text, digest, b""))
            for model_id, chunk_id, content_id, prefix, text, digest in session.execute(query)
        }
    return list(found.values())


def put_vectors(session: Session, vectors: Mapping[int, bytes], now: dt.datetime) -> dict[int, str]:
    """Give chunks these vectors (little-endian float32), whatever they have or wait for.

    Returns the flaws of those that are no unit vectors of their model, by chunk. These chunks stay as they are.
    """
    delete_copies(session.connection())
    found = session.execute(
        sa.select(ChunkRow.id, ChunkRow.content_id, ContentRow.model_id, ModelRow.dimension)
        .join(ContentRow, ContentRow.id == ChunkRow.content_id)
        .join(ModelRow, ModelRow.id == ContentRow.model_id)
        .where(ChunkRow.id.in_(vectors))
    ).all()
    flaws = {row.id: flaw for row in found if (flaw := flaw_of(vectors[row.id], row.dimension))}
    rows = [(row.id, row.content_id, row.model_id) for row in found if row.id not in flaws]
    ids = [chunk_id for chunk_id, _, _ in rows]
    session.execute(sa.delete(PendingChunkRow).where(PendingChunkRow.chunk_id.in_(ids)))
    session.execute(sa.update(ChunkRow).where(ChunkRow.id.in_(ids)).values(error=None))
    there = set(session.scalars(sa.select(EmbeddingRow.chunk_id).where(EmbeddingRow.chunk_id.in_(ids))))
    for chunk_id, content_id, model_id in rows:
        values: dict[str, Any] = {"content_id": content_id, "model_id": model_id, "vector": vectors[chunk_id]}
        if chunk_id in there:
            session.execute(sa.update(EmbeddingRow).where(EmbeddingRow.chunk_id == chunk_id).values(**values))
        else:
            session.execute(sa.insert(EmbeddingRow).values(chunk_id=chunk_id, **values))
    settle(session, {content_id for _, content_id, _ in rows}, now)
    return flaws


def settle(session: Session, content_ids: Iterable[int], now: dt.datetime) -> None:
    """Count what contents have, and give them the state that follows from it."""
    for content_id in sorted(set(content_ids)):
        row = session.get(ContentRow, content_id, populate_existing=True)
        if row is None:
            continue
        chunks, embedded, failed, waiting, tokens = _counted(session, content_id)
        if not chunks or row.state in (DocumentState.DISCOVERED, DocumentState.EMPTY, DocumentState.ENCRYPTED):
            _without_chunks(session, row)
            continue
        row.chunk_count, row.embedded_count, row.failed_count, row.token_count = chunks, embedded, failed, tokens
        expected = expected_state(errors=failed, waiting=waiting)
        if row.state == expected or chunks != embedded + failed + waiting:
            session.flush()
            continue
        row.state, row.stage, row.reason = DocumentState.EXTRACTED, None, None
        session.flush()
        if expected == DocumentState.EXTRACTED:
            await_again(session, content_id)
        else:
            finish(session, [content_id], row.embedded_at or now)
    session.flush()


def await_again(session: Session, content_id: int) -> None:
    """Let the documents that show a content wait for it too, so that a run goes on with it."""
    shows = (DocumentRow.current_id == content_id, DocumentRow.pending_id.is_(None))
    session.execute(sa.update(DocumentRow).where(*shows).values(pending_id=content_id))


def own_vector(session: Session, content_id: int) -> bool:
    """Replace a document's own vector by the mean of its chunks'; whether the model has to make it once more."""
    method = session.scalar(sa.select(ContentEmbeddingRow.method).where(ContentEmbeddingRow.content_id == content_id))
    row = session.get(ContentRow, content_id)
    mean = mean_vector(session, content_id)
    session.execute(sa.delete(ContentEmbeddingRow).where(ContentEmbeddingRow.content_id == content_id))
    if row is None or mean is None or not row.embedded_count:
        return row is not None
    alone = row.chunk_count == 1  # one chunk is all of the text
    session.add(ContentEmbeddingRow(content_id=content_id, method=BY_MODEL if alone else BY_MEAN, vector=mean))
    session.flush()
    return not alone and method != BY_MEAN


def remake(session: Session, content_id: int, lost: Collection[int], now: dt.datetime) -> None:
    """Let the next run make a content anew. What search sees of it stays until then, but the vectors of `lost` chunks.

    What is shown gets another recipe, and what is to come has its place: so both are there, and the documents wait.
    """
    old = session.get(ContentRow, content_id)
    if old is None:
        return
    if not session.scalar(sa.select(sa.exists().where(DocumentRow.current_id == content_id))):
        start_over(session, [content_id])
        return
    for some in parts(lost):
        session.execute(sa.delete(EmbeddingRow).where(EmbeddingRow.chunk_id.in_(some)))
        session.execute(sa.delete(PendingChunkRow).where(PendingChunkRow.chunk_id.in_(some)))
        session.execute(sa.update(ChunkRow).where(ChunkRow.id.in_(some)).values(error=LOST))
    if not old.recipe.startswith(DAMAGED):
        recipe, old.recipe = old.recipe, f"{DAMAGED}{old.id}"
        session.flush()
        new = ContentRow(
            sha256=old.sha256,
            kind=old.kind,
            model_id=old.model_id,
            recipe=recipe,
            state=DocumentState.DISCOVERED,
            priority=old.priority,
            modified_ns=old.modified_ns,
            created_at=now,
        )
        session.add(new)
        session.flush()
        waits_for_it = sa.or_(DocumentRow.pending_id.is_(None), DocumentRow.pending_id == content_id)
        shows = (DocumentRow.current_id == content_id, waits_for_it)
        session.execute(sa.update(DocumentRow).where(*shows).values(pending_id=new.id))
    if lost:
        settle(session, [content_id], now)


def files_of(session: Session, content_id: int) -> list[tuple[int, str, str, int, str]]:
    """The documents of a content whose bytes it was made of: id, source root, path, size, SHA-256."""
    rows = session.execute(
        sa.select(DocumentRow.id, folder_of_source(), DocumentRow.path, DocumentRow.size, DocumentRow.sha256)
        .join(SourceRow, SourceRow.id == DocumentRow.source_id)
        .join(ContentRow, sa.or_(DocumentRow.current_id == ContentRow.id, DocumentRow.pending_id == ContentRow.id))
        .where(ContentRow.id == content_id, DocumentRow.sha256 == ContentRow.sha256, DocumentRow.problem.is_(None))
        .order_by(DocumentRow.id)
    )
    return [(number, root, path, size, sha256) for number, root, path, size, sha256 in rows if sha256]


def _counted(session: Session, content_id: int) -> tuple[int, int, int, int, int]:
    """Chunks, those with a vector, those that failed, what waits, and the tokens of all."""
    one = sa.case((EmbeddingRow.chunk_id.is_not(None), 1), else_=0)
    waits = sa.case((PendingChunkRow.chunk_id.is_not(None), 1), else_=0)
    failed = sa.case((ChunkRow.error.is_not(None), 1), else_=0)
    sums = [sa.func.coalesce(sa.func.sum(column), 0) for column in (one, failed, waits, ChunkRow.token_count)]
    chunks, embedded, errors, waiting, tokens = session.execute(
        sa.select(sa.func.count(), *sums)
        .select_from(ChunkRow)
        .outerjoin(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id)
        .outerjoin(PendingChunkRow, PendingChunkRow.chunk_id == ChunkRow.id)
        .where(ChunkRow.content_id == content_id)
    ).one()
    stretches = sa.select(sa.func.count()).where(PendingStretchRow.content_id == content_id)
    return chunks, int(embedded), int(errors), int(waiting) + (session.scalar(stretches) or 0), int(tokens)


def _without_chunks(session: Session, row: ContentRow) -> None:
    """Of a content that has no chunks, or should have none: it keeps its end, or waits to be read."""
    state, stage, reason = row.state, row.stage, row.reason
    start_over(session, [row.id])
    session.refresh(row)
    if state in (DocumentState.EMPTY, DocumentState.ENCRYPTED, DocumentState.FAILED):
        row.state, row.stage, row.reason = state, stage, reason
    else:
        await_again(session, row.id)
    session.flush()


def parts(ids: Collection[int]) -> list[list[int]]:
    """Numbers, as many at once as may be named in a statement."""
    listed = list(ids)
    return [listed[start : start + IN_CLAUSE] for start in range(0, len(listed), IN_CLAUSE)]
