"""The queue: claims of contents to extract or embed, and the record of what was done.

A claim belongs to a run, and a run lives as long as its heart beats (see `runs`): what a dead run
held is free again. Each function here is one transaction's work, and leaves the database such that
the process may die before or after it.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import Chunk, DocumentKind, DocumentState
from pipeline.store.contents import STAGE_EXTRACT, Ended, end, finish
from pipeline.store.models import Target
from pipeline.store.scopes import Scope, wanted_contents
from pipeline.store.tables import (
    ChunkRow,
    ContentRow,
    DocumentRow,
    EmbeddingRow,
    PendingChunkRow,
    RunRow,
    SourceRow,
)

TOKEN_TYPE = np.dtype("<i4")


@dataclass(frozen=True, slots=True)
class ToExtract:
    """A content to extract, and the files that hold it, as (source root, relative path)."""

    content_id: int
    kind: DocumentKind
    sha256: str
    attempts: int
    files: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class PendingChunk:
    """A chunk that waits for its vector; tokens: its token ids, special tokens included."""

    chunk_id: int
    content_id: int
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class ExtractedContent:
    """What the extract stage found out about a content."""

    title: str | None
    details: Mapping[str, Any]
    page_count: int
    characters: int
    chunks: Sequence[Chunk]


@dataclass(frozen=True, slots=True)
class Backlog:
    """Contents that wait, those of them that are extracted already, and the chunks of these without a vector."""

    contents: int
    extracted: int
    chunks: int


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """What a batch came to: vectors stored, and the contents that it ended."""

    vectors: int
    ended: Sequence[Ended]


def claim_to_extract(
    session: Session, run_id: str, scopes: Sequence[Scope] | None, target: Target, now: dt.datetime, limit: int
) -> list[ToExtract]:
    """Claim up to `limit` contents that are to be extracted now."""
    ids = _claim(session, run_id, scopes, target, DocumentState.DISCOVERED, now, limit)
    contents = session.scalars(sa.select(ContentRow).where(ContentRow.id.in_(ids)).order_by(ContentRow.id)).all()
    files: dict[int, list[tuple[str, str]]] = {content_id: [] for content_id in ids}
    rows = session.execute(
        sa.select(DocumentRow.pending_id, SourceRow.root, DocumentRow.path)
        .join(SourceRow, SourceRow.id == DocumentRow.source_id)
        .where(DocumentRow.pending_id.in_(ids), DocumentRow.problem.is_(None))
        .order_by(DocumentRow.id)
    )
    for content_id, root, path in rows:
        files[int(content_id or 0)].append((root, path))
    return [ToExtract(c.id, DocumentKind(c.kind), c.sha256, c.attempts, files[c.id]) for c in contents]


def claim_to_embed(
    session: Session, run_id: str, scopes: Sequence[Scope] | None, target: Target, now: dt.datetime, limit: int
) -> list[int]:
    """Claim up to `limit` contents whose chunks wait for vectors; returns their ids, oldest first."""
    return _claim(session, run_id, scopes, target, DocumentState.EXTRACTED, now, limit)


def store_extracted(session: Session, content_id: int, extracted: ExtractedContent, now: dt.datetime) -> None:
    """Store a content's chunks, and queue them for the embed stage."""
    content = session.get(ContentRow, content_id)
    if content is None or content.state != DocumentState.DISCOVERED:
        return  # its file went or changed while it was read, or another run did it
    # What an earlier, abandoned attempt may have left.
    session.execute(sa.delete(ChunkRow).where(ChunkRow.content_id == content_id))
    content.state, content.stage, content.reason, content.claimed_by = DocumentState.EXTRACTED, None, None, None
    content.retry_at = None
    content.title, content.details = extracted.title, dict(extracted.details)
    content.page_count, content.characters = extracted.page_count, extracted.characters
    content.chunk_count, content.embedded_count, content.failed_count = len(extracted.chunks), 0, 0
    session.flush()
    if not extracted.chunks:
        return
    ids = session.scalars(
        sa.insert(ChunkRow).returning(ChunkRow.id, sort_by_parameter_order=True),
        [
            {
                "content_id": content_id,
                "ordinal": chunk.ordinal,
                "start_char": chunk.start,
                "end_char": chunk.end,
                "page_first": chunk.page_first,
                "page_last": chunk.page_last,
                "headings": list(chunk.headings),
                "token_count": len(chunk.tokens),
                "text": chunk.text,
            }
            for chunk in extracted.chunks
        ],
    ).all()
    session.execute(
        sa.insert(PendingChunkRow),
        [
            {"chunk_id": chunk_id, "content_id": content_id, "tokens": np.asarray(chunk.tokens, TOKEN_TYPE).tobytes()}
            for chunk_id, chunk in zip(ids, extracted.chunks, strict=True)
        ],
    )


def end_extraction(session: Session, content_id: int, state: DocumentState, reason: str) -> None:
    """End a content that gives no text."""
    end(session, content_id, state, STAGE_EXTRACT, reason)


def postpone(session: Session, content_id: int, reason: str, retry_at: dt.datetime, *, tried: bool = True) -> None:
    """Leave a content for later: what came between may pass. tried: whether that counts as a try."""
    session.execute(
        sa.update(ContentRow)
        .where(ContentRow.id == content_id)
        .values(
            attempts=ContentRow.attempts + int(tried),
            reason=reason,
            stage=STAGE_EXTRACT,
            retry_at=retry_at,
            claimed_by=None,
        )
    )


def pending_chunks(session: Session, content_id: int, after: int, limit: int) -> list[PendingChunk]:
    """Up to `limit` chunks of a content that wait for a vector, with ids above `after`, in order."""
    rows = session.execute(
        sa.select(PendingChunkRow.chunk_id, PendingChunkRow.tokens)
        .where(PendingChunkRow.content_id == content_id, PendingChunkRow.chunk_id > after)
        .order_by(PendingChunkRow.chunk_id)
        .limit(limit)
    )
    return [PendingChunk(chunk_id, content_id, np.frombuffer(tokens, TOKEN_TYPE).tolist()) for chunk_id, tokens in rows]


def store_vectors(
    session: Session,
    run_id: str,
    vectors: Sequence[tuple[PendingChunk, bytes]],
    failures: Sequence[tuple[PendingChunk, str]],
    now: dt.datetime,
) -> StoredBatch:
    """Store a batch: its vectors, the progress they make, and the documents that they complete.

    A chunk that is no longer queued (its file changed meanwhile) is passed over, so that nothing is
    stored twice.
    """
    batch = [chunk for chunk, _ in vectors] + [chunk for chunk, _ in failures]
    queued: set[int] = set()
    for start in range(0, len(batch), 500):
        ids = [chunk.chunk_id for chunk in batch[start : start + 500]]
        gone = sa.delete(PendingChunkRow).where(PendingChunkRow.chunk_id.in_(ids)).returning(PendingChunkRow.chunk_id)
        queued.update(session.scalars(gone, execution_options={"synchronize_session": False}))
    rows = [{"chunk_id": c.chunk_id, "vector": vector} for c, vector in vectors if c.chunk_id in queued]
    if rows:
        session.execute(sa.insert(EmbeddingRow), rows)
    for chunk, reason in failures:
        session.execute(sa.update(ChunkRow).where(ChunkRow.id == chunk.chunk_id).values(error=reason))
    done = Counter(c.content_id for c, _ in vectors if c.chunk_id in queued)
    failed = Counter(c.content_id for c, _ in failures if c.chunk_id in queued)
    touched = sorted(done | failed)
    for content_id in touched:
        session.execute(
            sa.update(ContentRow)
            .where(ContentRow.id == content_id)
            .values(
                embedded_count=ContentRow.embedded_count + done[content_id],
                failed_count=ContentRow.failed_count + failed[content_id],
            )
        )
    session.execute(
        sa.update(RunRow)
        .where(RunRow.id == run_id)
        .values(chunks_embedded=RunRow.chunks_embedded + len(rows), heartbeat_at=now)
    )
    session.expire_all()
    return StoredBatch(len(rows), finish(session, touched, now))


def _claim(
    session: Session,
    run_id: str,
    scopes: Sequence[Scope] | None,
    target: Target,
    state: DocumentState,
    now: dt.datetime,
    limit: int,
) -> list[int]:
    free = (
        sa.select(ContentRow.id)
        .where(
            ContentRow.state == state,
            ContentRow.model_id == target.model_id,
            ContentRow.recipe == target.recipe,
            ContentRow.claimed_by.is_(None),
            sa.or_(ContentRow.retry_at.is_(None), ContentRow.retry_at <= now),
            wanted_contents(scopes),
        )
        .order_by(ContentRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = list(session.scalars(free))
    if ids:
        session.execute(sa.update(ContentRow).where(ContentRow.id.in_(ids)).values(claimed_by=run_id))
    return ids


def backlog(
    session: Session, scopes: Sequence[Scope] | None, target: Target, now: dt.datetime | None = None
) -> Backlog:
    """What waits for this target among the documents in scope; with `now`, only what may be done by then."""
    waiting = ContentRow.chunk_count - ContentRow.embedded_count - ContentRow.failed_count
    query = sa.select(
        sa.func.count(),
        sa.func.coalesce(sa.func.sum(sa.case((ContentRow.state == DocumentState.EXTRACTED, 1), else_=0)), 0),
        sa.func.coalesce(sa.func.sum(waiting), 0),
    ).where(
        ContentRow.state.in_([DocumentState.DISCOVERED, DocumentState.EXTRACTED]),
        ContentRow.model_id == target.model_id,
        ContentRow.recipe == target.recipe,
        wanted_contents(scopes),
        sa.true() if now is None else sa.or_(ContentRow.retry_at.is_(None), ContentRow.retry_at <= now),
    )
    contents, extracted, chunks = session.execute(query).one()
    return Backlog(contents, int(extracted), int(chunks))
