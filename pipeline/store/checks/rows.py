"""Chunks, their contents and the documents: whether each row says what the others say."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.core.verifying import Disagreement, expected_state
from pipeline.store.contents import not_shown, unwanted
from pipeline.store.queue import TOKEN_TYPE
from pipeline.store.reuse import token_digest
from pipeline.store.runs import REPAIR, newest_first
from pipeline.store.tables import (
    ChunkRow,
    ContentRow,
    DocumentRow,
    EmbeddingRow,
    ModelRow,
    PendingChunkRow,
    PendingStretchRow,
    RunRow,
)

BLOCK = 4096
"""Rows read at once."""

_READ = (DocumentState.EXTRACTED, DocumentState.EMBEDDED, DocumentState.FAILED)


def one_active_model(session: Session) -> Iterator[Disagreement]:
    """Search uses one model, as soon as there is any."""
    models, active = session.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(sa.case((ModelRow.active, 1), else_=0)), 0))
    ).one()
    if models and active != 1:
        yield Disagreement("model-active", f"{active} of {models} models are active", "1 is")


def chunks_in_one_place(session: Session) -> Iterator[Disagreement]:
    """Each chunk waits, or has a vector, or has an error."""
    waits, done = PendingChunkRow.chunk_id.is_not(None), EmbeddingRow.chunk_id.is_not(None)
    failed = ChunkRow.error.is_not(None)
    places = _one_if(waits) + _one_if(done) + _one_if(failed)
    query = (
        sa.select(ChunkRow.id, ChunkRow.content_id, waits, done, failed)
        .outerjoin(PendingChunkRow, PendingChunkRow.chunk_id == ChunkRow.id)
        .outerjoin(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id)
        .where(places != 1)
        .order_by(ChunkRow.id)
        .execution_options(yield_per=BLOCK)
    )
    for chunk_id, content_id, *where in session.execute(query):
        names = [name for name, there in zip(("waits", "has a vector", "has an error"), where, strict=True) if there]
        ids = {"content": content_id, "chunk": chunk_id}
        if names:
            yield Disagreement("chunk-places", " and ".join(names), "just one of these", ids)
        else:
            yield Disagreement("chunk-nowhere", "neither waits nor has a vector nor an error", "a vector", ids)


def contents_as_counted(session: Session) -> Iterator[Disagreement]:
    """Each content has the chunks that it says, all of them from the first to the last, and their state."""
    counted = (
        sa.select(
            ChunkRow.content_id.label("content_id"),
            sa.func.count().label("chunks"),
            sa.func.sum(_one_if(EmbeddingRow.chunk_id.is_not(None))).label("embedded"),
            sa.func.sum(_one_if(ChunkRow.error.is_not(None))).label("failed"),
            sa.func.sum(_one_if(PendingChunkRow.chunk_id.is_not(None))).label("waiting"),
            sa.func.sum(ChunkRow.token_count).label("tokens"),
            sa.func.min(ChunkRow.ordinal).label("first"),
            sa.func.max(ChunkRow.ordinal).label("last"),
        )
        .outerjoin(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id)
        .outerjoin(PendingChunkRow, PendingChunkRow.chunk_id == ChunkRow.id)
        .group_by(ChunkRow.content_id)
        .subquery()
    )
    zero = [sa.func.coalesce(column, 0).label(column.key) for column in counted.c if column.key != "content_id"]
    stretches = sa.exists().where(PendingStretchRow.content_id == ContentRow.id)
    query = (
        sa.select(
            ContentRow.id,
            ContentRow.state,
            ContentRow.stage,
            ContentRow.chunk_count,
            ContentRow.embedded_count,
            ContentRow.failed_count,
            ContentRow.token_count,
            stretches.label("stretches"),
            *zero,
        )
        .outerjoin(counted, counted.c.content_id == ContentRow.id)
        .order_by(ContentRow.id)
        .execution_options(yield_per=BLOCK)
    )
    for row in session.execute(query):
        yield from _content(row)


def _content(row: sa.Row[int]) -> Iterator[Disagreement]:
    ids = {"content": row.id}
    if row.state not in _READ or (row.state == DocumentState.FAILED and not row.chunk_count and not row.chunks):
        if row.chunks or row.chunk_count:
            has = f"{row.state}, with {max(row.chunks, row.chunk_count)} chunks"
            yield Disagreement("content-state", has, f"{row.state} documents have none", ids)
        return
    whole = row.chunks == 0 or (row.first, row.last) == (0, row.chunks - 1)
    if not whole or row.chunks < row.chunk_count:
        most = max(row.chunk_count, row.last + 1 if row.chunks else 0)
        yield Disagreement("chunk-missing", f"{row.chunks} chunks", f"{most} chunks, from the first on", ids)
        return
    says = (row.chunk_count, row.embedded_count, row.failed_count)
    counted = (row.chunks, int(row.embedded), int(row.failed))
    # Before it was counted it is 0.
    tokens_differ = row.token_count not in (0, row.tokens)
    if says != counted or tokens_differ:
        yield Disagreement(
            "content-counters", _counters(*says, row.token_count), _counters(*counted, int(row.tokens)), ids
        )
    if not row.chunks:
        return
    state = expected_state(errors=int(row.failed), waiting=int(row.waiting) + bool(row.stretches))
    # A chunk that is nowhere is told of as such, and its document has no state until it is found.
    if row.state != state and row.chunks == row.embedded + row.failed + row.waiting:
        yield Disagreement("content-state", row.state, state, ids)


def _counters(chunks: int, embedded: int, failed: int, tokens: int) -> str:
    return f"{chunks} chunks, {embedded} embedded, {failed} failed, {tokens} tokens"


def texts_of_chunks(session: Session) -> Iterator[Disagreement]:
    """Each chunk's text is as long as its place says."""
    length = sa.func.length(ChunkRow.text)
    query = (
        sa.select(ChunkRow.id, ChunkRow.content_id, length, ChunkRow.end_char - ChunkRow.start_char)
        .where(length != ChunkRow.end_char - ChunkRow.start_char)
        .order_by(ChunkRow.id)
        .execution_options(yield_per=BLOCK)
    )
    for chunk_id, content_id, found, expected in session.execute(query):
        ids = {"content": content_id, "chunk": chunk_id}
        yield Disagreement("chunk-text", f"{found} characters", f"{expected} characters", ids)


def queued_tokens(session: Session) -> Iterator[Disagreement]:
    """What waits has the tokens of its chunk, and the stretch that it waits for."""
    stretches = sa.exists().where(PendingStretchRow.content_id == PendingChunkRow.content_id)
    query = (
        sa.select(
            ChunkRow.id,
            ChunkRow.content_id,
            ChunkRow.token_count,
            ChunkRow.digest,
            PendingChunkRow.tokens,
            PendingChunkRow.in_stretch,
            stretches,
        )
        .join(ChunkRow, ChunkRow.id == PendingChunkRow.chunk_id)
        .order_by(ChunkRow.id)
        .execution_options(yield_per=BLOCK)
    )
    for chunk_id, content_id, count, digest, tokens, in_stretch, has_stretch in session.execute(query):
        ids = {"content": content_id, "chunk": chunk_id}
        if len(tokens) != count * TOKEN_TYPE.itemsize:
            yield Disagreement("queue-tokens", f"{len(tokens)} bytes of tokens", f"{count} tokens", ids)
        elif digest is not None and token_digest(tokens) != digest:
            yield Disagreement("queue-tokens", "other tokens", "those of the chunk's digest", ids)
        elif in_stretch and not has_stretch:
            yield Disagreement("queue-tokens", "waits for a stretch that is not there", "a stretch", ids)


def copied_columns(session: Session) -> Iterator[Disagreement]:
    """What rows copy of the chunk that they are of is what the chunk says."""
    waiting = (
        sa.select(ChunkRow.id, PendingChunkRow.content_id, ChunkRow.content_id)
        .join(ChunkRow, ChunkRow.id == PendingChunkRow.chunk_id)
        .where(PendingChunkRow.content_id != ChunkRow.content_id)
    )
    for chunk_id, copied, content_id in session.execute(waiting.execution_options(yield_per=BLOCK)):
        ids = {"content": content_id, "chunk": chunk_id}
        yield Disagreement("copy-content", f"content {copied} in the queue", f"content {content_id}", ids)
    done = (
        sa.select(ChunkRow.id, EmbeddingRow.content_id, EmbeddingRow.model_id, ContentRow.id, ContentRow.model_id)
        .join(ChunkRow, ChunkRow.id == EmbeddingRow.chunk_id)
        .join(ContentRow, ContentRow.id == ChunkRow.content_id)
        .where(sa.or_(EmbeddingRow.content_id != ChunkRow.content_id, EmbeddingRow.model_id != ContentRow.model_id))
    )
    for chunk_id, copied, of_model, content_id, model_id in session.execute(done.execution_options(yield_per=BLOCK)):
        found, expected = f"content {copied} of model {of_model}", f"content {content_id} of model {model_id}"
        ids = {"content": content_id, "chunk": chunk_id}
        yield Disagreement("copy-content", f"{found} beside the vector", expected, ids)


def claims(session: Session) -> Iterator[Disagreement]:
    """No run that has ended holds a content."""
    query = (
        sa.select(ContentRow.id, RunRow.id, RunRow.state)
        .join(RunRow, RunRow.id == ContentRow.claimed_by)
        .where(RunRow.state != "running")
        .order_by(ContentRow.id)
        .execution_options(yield_per=BLOCK)
    )
    for content_id, run_id, state in session.execute(query):
        yield Disagreement("content-claim", f"held by run {run_id}, which is {state}", "free", {"content": content_id})


def unwanted_contents(session: Session) -> Iterator[Disagreement]:
    """Every content is shown or awaited by a document, or made by another model of bytes that are still there.

    Not while a run is at work, or after one that died: a run clears away at its end, the next one for one that died.
    """
    reads = RunRow.task != REPAIR
    latest = sa.select(RunRow.state).where(reads).order_by(*newest_first()).limit(1)
    at_work = session.scalar(sa.select(sa.exists().where(RunRow.state == "running", reads)))
    if at_work or session.scalar(latest) == "interrupted":
        return
    for content_id in session.scalars(unwanted().order_by(ContentRow.id).execution_options(yield_per=BLOCK)):
        yield Disagreement("content-unwanted", "no document refers to it", "deleted", {"content": content_id})


def bytes_of_documents(session: Session) -> Iterator[Disagreement]:
    """What a document waits for, or else shows, was made of the bytes that it has."""
    query = (
        sa.select(DocumentRow.id, DocumentRow.sha256, ContentRow.id, ContentRow.sha256)
        .outerjoin(ContentRow, ContentRow.id == sa.func.coalesce(DocumentRow.pending_id, DocumentRow.current_id))
        .where(
            DocumentRow.problem.is_(None),
            DocumentRow.sha256.is_not(None),
            sa.or_(ContentRow.id.is_(None), ContentRow.sha256 != DocumentRow.sha256),
        )
        .order_by(DocumentRow.id)
        .execution_options(yield_per=BLOCK)
    )
    for document_id, sha256, content_id, of_content in session.execute(query):
        found = (
            "nothing is made or awaited of it" if content_id is None else f"made of bytes {(of_content or '')[:12]}..."
        )
        yield Disagreement(
            "document-content", found, f"made of bytes {(sha256 or '')[:12]}...", {"document": document_id}
        )


def shown_when_done(session: Session) -> Iterator[Disagreement]:
    """What the active model has done of a document is what search sees."""
    for document_id, content_id in session.execute(not_shown().execution_options(yield_per=BLOCK)):
        ids = {"document": document_id, "content": content_id}
        yield Disagreement("document-not-shown", "done, and awaited still", "seen by search", ids)


def _one_if(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.case((condition, 1), else_=0)
