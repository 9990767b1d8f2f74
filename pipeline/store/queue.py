"""The queue: claims of contents to extract or embed, and the record of what was done.

A claim belongs to a run, and a run lives as long as its heart beats (see `runs`): what a dead run
held is free again. Each function here is one transaction's work, and leaves the database such that
the process may die before or after it.
"""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import Chunk, DocumentKind, DocumentState
from pipeline.core.retrying import LONGEST, retry_delay
from pipeline.core.stretches import WHOLE, Stretch
from pipeline.core.vectors import BYTES_PER_NUMBER, flaw_of
from pipeline.store.bulk import delete_returning, insert_rows, new_ids, table_of
from pipeline.store.contents import STAGE_EMBED, STAGE_EXTRACT, Ended, dimensions_of, end, finish, paths_of
from pipeline.store.models import Target
from pipeline.store.reuse import embedded_before, take_over, token_digest
from pipeline.store.runs import check_lease, server_time
from pipeline.store.scopes import Scope, folder_of_source, in_scope, in_sources, wanted_contents
from pipeline.store.tables import (
    ChunkRow,
    ContentEmbeddingRow,
    ContentRow,
    DocumentRow,
    EmbeddingRow,
    PendingChunkRow,
    PendingStretchRow,
    RunRow,
    SourceRow,
    may_be_tried,
)
from pipeline.store.words import store_words

TOKEN_TYPE = np.dtype("<i4")
SPAN_TYPE = np.dtype("<i8")
DOCUMENT = 0
"""In the place of a chunk's id in a span: the document itself."""


Order = Literal["newest", "oldest"]
"""Of contents that wait with the same priority, those whose files were changed last go first, or last."""


@dataclass(frozen=True, slots=True)
class ToExtract:
    """A content to extract, and the files that hold it, as (source root, relative path). size: in bytes."""

    content_id: int
    kind: DocumentKind
    sha256: str
    attempts: int
    files: Sequence[tuple[str, str]]
    size: int = 0


@dataclass(frozen=True, slots=True)
class PendingChunk:
    """A chunk that waits for its vector; tokens: its token ids, special tokens included."""

    chunk_id: int
    content_id: int
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class ExtractedContent:
    """What the extract stage found out about a content. stretches: what of it is to be computed in one go."""

    title: str | None
    details: Mapping[str, Any]
    page_count: int
    characters: int
    chunks: Sequence[Chunk]
    stretches: Sequence[Stretch] = ()


@dataclass(frozen=True, slots=True)
class Backlog:
    """Contents that wait, those of them that are extracted already, and the chunks of these without a vector."""

    contents: int
    extracted: int
    chunks: int


@dataclass(frozen=True, slots=True)
class StoredExtraction:
    """What an extraction came to: chunks, those that had a vector from before, and the content if it is done by that.

    No chunks where nobody wanted them any more.
    """

    chunks: int = 0
    reused: int = 0
    ended: Sequence[Ended] = ()


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """What a batch came to: vectors stored, the contents that it ended, and those that wait for another try."""

    vectors: int
    ended: Sequence[Ended]
    postponed: Sequence[Ended] = ()


def claim_to_extract(
    session: Session,
    run_id: str,
    scopes: Sequence[Scope] | None,
    target: Target,
    now: dt.datetime,
    limit: int,
    order: Order = "newest",
    *,
    within: Collection[int] | None = None,
) -> list[ToExtract]:
    """Claim up to `limit` contents that are to be extracted now, by their priority, then in this order.

    within: ids of the sources whose files this host can read; None for all.

    Raises LeaseLost.
    """
    ids = _claim(session, run_id, scopes, target, DocumentState.DISCOVERED, now, limit, order, within)
    contents = {row.id: row for row in session.scalars(sa.select(ContentRow).where(ContentRow.id.in_(ids)))}
    files: dict[int, list[tuple[str, str]]] = {content_id: [] for content_id in ids}
    sizes: dict[int, int] = {}
    rows = session.execute(
        sa.select(DocumentRow.pending_id, folder_of_source(), DocumentRow.path, DocumentRow.size)
        .join(SourceRow, SourceRow.id == DocumentRow.source_id)
        .where(DocumentRow.pending_id.in_(ids), DocumentRow.problem.is_(None), in_sources(within))
        .order_by(DocumentRow.id)
    )
    for content_id, root, path, size in rows:
        files[int(content_id or 0)].append((root, path))
        sizes[int(content_id or 0)] = size
    return [
        ToExtract(c.id, DocumentKind(c.kind), c.sha256, c.attempts, files[c.id], sizes.get(c.id, 0))
        for c in (contents[content_id] for content_id in ids)
    ]


def claim_to_embed(
    session: Session,
    run_id: str,
    scopes: Sequence[Scope] | None,
    target: Target,
    now: dt.datetime,
    limit: int,
    order: Order = "newest",
) -> list[int]:
    """Claim up to `limit` contents whose chunks wait for vectors; returns their ids, as `claim_to_extract`."""
    return _claim(session, run_id, scopes, target, DocumentState.EXTRACTED, now, limit, order)


def prioritise(session: Session, scopes: Sequence[Scope]) -> int:
    """Let what waits in the first scope go before what waits in the second, and so on; returns how many were moved.

    A content that waits in several counts for the first. What waits elsewhere stays where it was.
    """
    waiting = (ContentRow.state.in_([DocumentState.DISCOVERED, DocumentState.EXTRACTED]),)
    moved = 0
    for priority, scope in reversed(list(enumerate(scopes))):
        wanted: sa.ColumnElement[bool] = sa.exists().where(DocumentRow.pending_id == ContentRow.id, in_scope([scope]))
        better = [in_scope([other]) for other in scopes[:priority]]
        if better:
            wanted = sa.and_(wanted, ~sa.exists().where(DocumentRow.pending_id == ContentRow.id, sa.or_(*better)))
        changed = session.execute(
            sa.update(ContentRow).where(*waiting, ContentRow.priority != priority, wanted).values(priority=priority),
            execution_options={"synchronize_session": False},
        )
        moved += changed.rowcount  # type: ignore[attr-defined]  # a CursorResult
    return moved


def still_claimed(session: Session, content_id: int, run_id: str | None) -> bool:
    """Whether a content is claimed by this run, to the end of this transaction; None: whoever has it.

    It is not where the run was taken for dead meanwhile.
    """
    if run_id is None:
        return True
    claimed = sa.select(ContentRow.claimed_by).where(ContentRow.id == content_id).with_for_update()
    return session.scalar(claimed) == run_id


def store_extracted(
    session: Session, content_id: int, extracted: ExtractedContent, now: dt.datetime, *, run_id: str | None = None
) -> StoredExtraction:
    """Store a content's chunks, and queue those for the embed stage that have no vector from before.

    Where that is none, the content is done. run_id: the run that read it, as `still_claimed` asks; nothing is stored
    where it is not.
    """
    if not still_claimed(session, content_id, run_id):
        return StoredExtraction()
    content = session.get(ContentRow, content_id)
    if content is None or content.state != DocumentState.DISCOVERED:
        return StoredExtraction()  # its file went or changed while it was read, or another run did it
    # What an earlier, abandoned attempt may have left.
    for table in (table_of(ChunkRow), table_of(PendingStretchRow), table_of(ContentEmbeddingRow)):
        session.connection().execute(sa.delete(table).where(table.c.content_id == content_id))
    content.state, content.stage, content.reason, content.claimed_by = DocumentState.EXTRACTED, None, None, None
    content.retry_at, content.attempts = None, 0
    content.title, content.details = extracted.title, dict(extracted.details)
    content.page_count, content.characters = extracted.page_count, extracted.characters
    content.chunk_count, content.embedded_count, content.failed_count = len(extracted.chunks), 0, 0
    content.token_count = sum(len(chunk.tokens) for chunk in extracted.chunks)
    session.flush()
    if not extracted.chunks:
        return StoredExtraction()
    tokens = [np.asarray(chunk.tokens, TOKEN_TYPE).tobytes() for chunk in extracted.chunks]
    in_stretch = {span.ordinal for stretch in extracted.stretches for span in stretch.spans}
    # What a stretch gives is made of more than a chunk's own tokens, and is no other chunk's vector.
    digests = [
        None if chunk.ordinal in in_stretch else token_digest(ids)
        for chunk, ids in zip(extracted.chunks, tokens, strict=True)
    ]
    chunk_ids = _insert_chunks(session, content_id, extracted.chunks, digests)
    known = embedded_before(session, content, frozenset(digest for digest in digests if digest))
    rows = list(zip(chunk_ids, digests, tokens, strict=True))
    _enqueue(
        session, content_id, [(chunk_id, ids, digest is None) for chunk_id, digest, ids in rows if digest not in known]
    )
    _enqueue_stretches(session, content_id, chunk_ids, extracted.stretches)
    reused = [(chunk_id, known[digest]) for chunk_id, digest, _ in rows if digest in known]
    take_over(session, content, reused)
    content.embedded_count = len(reused)
    session.flush()
    ended = finish(session, [content_id], now) if len(reused) == len(rows) else []
    return StoredExtraction(len(rows), len(reused), ended)


def _insert_chunks(
    session: Session, content_id: int, chunks: Sequence[Chunk], digests: Sequence[bytes | None]
) -> Sequence[int]:
    """Their ids, in the same order."""
    ids = new_ids(session, ChunkRow.id, len(chunks))
    rows = [
        {
            "id": chunk_id,
            "content_id": content_id,
            "ordinal": chunk.ordinal,
            "start_char": chunk.start,
            "end_char": chunk.end,
            "page_first": chunk.page_first,
            "page_last": chunk.page_last,
            "headings": list(chunk.headings),
            "token_count": len(chunk.tokens),
            "text": chunk.text,
            "prefix": chunk.prefix,
            "digest": digest,
        }
        for chunk_id, chunk, digest in zip(ids, chunks, digests, strict=True)
    ]
    insert_rows(session, ChunkRow, rows)
    store_words(
        session,
        {chunk_id: [*chunk.headings, chunk.prefix, chunk.text] for chunk_id, chunk in zip(ids, chunks, strict=True)},
    )
    return ids


def _enqueue(session: Session, content_id: int, chunks: Sequence[tuple[int, bytes, bool]]) -> None:
    """Queue chunks, each with its tokens, and whether its vector comes from a stretch."""
    rows = [
        {"chunk_id": chunk_id, "content_id": content_id, "tokens": tokens, "in_stretch": in_stretch}
        for chunk_id, tokens, in_stretch in chunks
    ]
    insert_rows(session, PendingChunkRow, rows)


def _enqueue_stretches(
    session: Session, content_id: int, chunk_ids: Sequence[int], stretches: Sequence[Stretch]
) -> None:
    """Queue stretches; `chunk_ids` are those of the content's chunks, by their ordinals."""
    rows = []
    for stretch in stretches:
        spans = [(DOCUMENT if span.ordinal == WHOLE else chunk_ids[span.ordinal], *span[1:]) for span in stretch.spans]
        tokens, places = np.asarray(stretch.tokens, TOKEN_TYPE), np.asarray(spans, SPAN_TYPE)
        rows.append({"content_id": content_id, "tokens": tokens.tobytes(), "spans": places.tobytes()})
    insert_rows(session, PendingStretchRow, rows)


def end_extraction(
    session: Session,
    content_id: int,
    state: DocumentState,
    reason: str,
    *,
    pages: int = 0,
    run_id: str | None = None,
) -> None:
    """End a content that gives no text. pages: those that OCR may find some on. run_id: as in `store_extracted`."""
    if not still_claimed(session, content_id, run_id):
        return
    content = session.get(ContentRow, content_id)
    if content is not None:
        content.page_count = pages
    end(session, content_id, state, STAGE_EXTRACT, reason)


def postpone(
    session: Session,
    content_id: int,
    reason: str,
    retry_at: dt.datetime,
    *,
    tried: bool = True,
    run_id: str | None = None,
) -> None:
    """Leave a content for later: what came between may pass. tried: whether that counts as a try.

    run_id: as in `store_extracted`.
    """
    if not still_claimed(session, content_id, run_id):
        return
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


def postpone_vectors(session: Session, reasons: Mapping[int, str], now: dt.datetime) -> list[Ended]:
    """Leave contents for later of which a chunk could not be embedded for the moment, with growing pauses.

    reasons: why, by the content's id. Their chunks stay queued. Returns those that still wait. Several chunks of a
    content that fail before its next try count once.
    """
    rows = session.scalars(
        sa.select(ContentRow).where(ContentRow.id.in_(list(reasons)), ContentRow.state == DocumentState.EXTRACTED)
    ).all()
    for row in rows:
        if row.claimed_by is None and row.retry_at is not None and row.retry_at > now:
            continue
        luck = random.random()  # noqa: S311 - spreads load, hides nothing
        row.retry_at = now + retry_delay(row.attempts, luck)
        row.attempts, row.stage, row.reason, row.claimed_by = row.attempts + 1, STAGE_EMBED, reasons[row.id], None
    session.flush()
    paths = paths_of(session, [row.id for row in rows])
    return [Ended(paths.get(row.id, ""), DocumentState.EXTRACTED, row.reason, row.id) for row in rows]


def pending_chunks(session: Session, content_id: int, after: int, limit: int) -> list[PendingChunk]:
    """Up to `limit` chunks of a content that wait, and in no stretch, with ids above `after`, in order."""
    rows = session.execute(
        sa.select(PendingChunkRow.chunk_id, PendingChunkRow.tokens)
        .where(
            PendingChunkRow.content_id == content_id,
            PendingChunkRow.chunk_id > after,
            PendingChunkRow.in_stretch.is_(False),
        )
        .order_by(PendingChunkRow.chunk_id)
        .limit(limit)
    )
    return [PendingChunk(chunk_id, content_id, np.frombuffer(tokens, TOKEN_TYPE).tolist()) for chunk_id, tokens in rows]


def texts_of(session: Session, chunk_ids: Sequence[int]) -> list[str]:
    """The texts of chunks as the model is to see them, in the order of their ids; empty for one that is gone."""
    rows = session.execute(sa.select(ChunkRow.id, ChunkRow.prefix, ChunkRow.text).where(ChunkRow.id.in_(chunk_ids)))
    found = {chunk_id: prefix + text for chunk_id, prefix, text in rows}
    return [found.get(chunk_id, "") for chunk_id in chunk_ids]


def store_vectors(
    session: Session,
    run_id: str,
    vectors: Sequence[tuple[PendingChunk, bytes]],
    failures: Sequence[tuple[PendingChunk, str]],
    now: dt.datetime,
    also: Collection[int] = (),
) -> StoredBatch:
    """Store a batch: its vectors, the progress they make, and the documents that they complete.

    also: contents that may be complete as well, for what else was stored of them.
    A chunk that is no longer queued (its file changed meanwhile) is passed over, so that nothing is
    stored twice. One whose vector is no unit vector of its model fails, and no other with it.
    """
    vectors, failures = _checked(session, vectors, failures)
    batch = [chunk for chunk, _ in vectors] + [chunk for chunk, _ in failures]
    queued = delete_returning(session, PendingChunkRow.chunk_id, [chunk.chunk_id for chunk in batch])
    models = _models_of(session, {chunk.content_id for chunk in batch})
    rows = [
        {"chunk_id": c.chunk_id, "content_id": c.content_id, "model_id": models[c.content_id], "vector": vector}
        for c, vector in vectors
        if c.chunk_id in queued
    ]
    insert_rows(session, EmbeddingRow, rows)
    for chunk, reason in failures:
        session.execute(sa.update(ChunkRow).where(ChunkRow.id == chunk.chunk_id).values(error=reason))
    done = Counter(c.content_id for c, _ in vectors if c.chunk_id in queued)
    failed = Counter(c.content_id for c, _ in failures if c.chunk_id in queued)
    touched = sorted(done | failed)
    if touched:
        session.connection().execute(
            _PROGRESS, [{"one": number, "more": done[number], "bad": failed[number]} for number in touched]
        )
    session.execute(
        sa.update(RunRow)
        .where(RunRow.id == run_id)
        .values(chunks_embedded=RunRow.chunks_embedded + len(rows), heartbeat_at=server_time(session, now))
    )
    session.expire_all()
    return StoredBatch(len(rows), finish(session, {*touched, *also}, now))


def _checked(
    session: Session, vectors: Sequence[tuple[PendingChunk, bytes]], failures: Sequence[tuple[PendingChunk, str]]
) -> tuple[list[tuple[PendingChunk, bytes]], list[tuple[PendingChunk, str]]]:
    """The vectors that can be stored, and what failed: also what has none."""
    dimensions = dimensions_of(session, {chunk.content_id for chunk, _ in vectors})
    good, bad = list[tuple[PendingChunk, bytes]](), list(failures)
    for chunk, vector in vectors:
        flaw = flaw_of(vector, dimensions.get(chunk.content_id, len(vector) // BYTES_PER_NUMBER))
        if flaw is None:
            good.append((chunk, vector))
        else:
            bad.append((chunk, f"the model server gave a vector with {flaw}"))
    return good, bad


def _models_of(session: Session, content_ids: Collection[int]) -> dict[int, int]:
    """The models of contents that there are."""
    found = session.execute(sa.select(ContentRow.id, ContentRow.model_id).where(ContentRow.id.in_(content_ids)))
    return {row.id: row.model_id for row in found}


_contents = table_of(ContentRow).c
_PROGRESS = (
    sa.update(table_of(ContentRow))
    .where(_contents.id == sa.bindparam("one"))
    .values(
        embedded_count=_contents.embedded_count + sa.bindparam("more"),
        failed_count=_contents.failed_count + sa.bindparam("bad"),
    )
)
"""Through the connection: the session would take the parameters for values of rows."""


def _claim(
    session: Session,
    run_id: str,
    scopes: Sequence[Scope] | None,
    target: Target,
    state: DocumentState,
    now: dt.datetime,
    limit: int,
    order: Order,
    within: Collection[int] | None = None,
) -> list[int]:
    check_lease(session, run_id)
    free = _free(scopes, target, state, now, order, within).limit(limit).with_for_update(skip_locked=True)
    ids = list(session.scalars(free))
    if ids:
        session.execute(sa.update(ContentRow).where(ContentRow.id.in_(ids)).values(claimed_by=run_id))
    return ids


def _free(
    scopes: Sequence[Scope] | None,
    target: Target,
    state: DocumentState,
    now: dt.datetime,
    order: Order,
    within: Collection[int] | None = None,
) -> sa.Select[int]:
    """The contents that may be claimed, in their order."""
    age = ContentRow.modified_ns.desc() if order == "newest" else ContentRow.modified_ns
    return (
        sa.select(ContentRow.id)
        .where(
            ContentRow.state == state,
            ContentRow.model_id == target.model_id,
            ContentRow.recipe == target.recipe,
            ContentRow.claimed_by.is_(None),
            may_be_tried(ContentRow.retry_at, now, LONGEST),
            wanted_contents(scopes, within),
        )
        .order_by(ContentRow.priority, age, ContentRow.id)
    )


def is_free(
    session: Session,
    scopes: Sequence[Scope] | None,
    target: Target,
    state: DocumentState,
    now: dt.datetime,
    within: Collection[int] | None = None,
) -> bool:
    """Whether a content in this state could be claimed now."""
    return session.scalar(_free(scopes, target, state, now, "oldest", within).limit(1)) is not None


def unread_goes_first(
    session: Session,
    scopes: Sequence[Scope] | None,
    target: Target,
    now: dt.datetime,
    order: Order,
    *,
    within: Collection[int] | None = None,
) -> bool:
    """Whether the next content to read comes before the next one to embed; not where either is missing."""
    found = []
    for state in (DocumentState.DISCOVERED, DocumentState.EXTRACTED):
        readable = within if state is DocumentState.DISCOVERED else None
        free = _free(scopes, target, state, now, order, readable).limit(1)
        first = session.get(ContentRow, session.scalar(free) or 0)
        if first is None:
            return False
        age = -first.modified_ns if order == "newest" else first.modified_ns
        found.append((first.priority, age, first.id))
    return found[0] < found[1]


def any_extracted(session: Session, scopes: Sequence[Scope] | None, target: Target, now: dt.datetime) -> bool:
    """Whether a content is read and waits for vectors that may be made by now, claimed or not."""
    query = sa.select(ContentRow.id).where(
        ContentRow.state == DocumentState.EXTRACTED,
        ContentRow.model_id == target.model_id,
        ContentRow.recipe == target.recipe,
        may_be_tried(ContentRow.retry_at, now, LONGEST),
        wanted_contents(scopes),
    )
    return session.scalar(query.limit(1)) is not None


def chunks_waiting(session: Session, scopes: Sequence[Scope] | None, target: Target) -> int:
    """Chunks for this target among the documents in scope that wait for a vector. However many are yet to be read."""
    waiting = ContentRow.chunk_count - ContentRow.embedded_count - ContentRow.failed_count
    query = sa.select(sa.func.coalesce(sa.func.sum(waiting), 0)).where(
        ContentRow.state == DocumentState.EXTRACTED,
        ContentRow.model_id == target.model_id,
        ContentRow.recipe == target.recipe,
        wanted_contents(scopes),
    )
    return int(session.scalar(query) or 0)


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
        sa.true() if now is None else may_be_tried(ContentRow.retry_at, now, LONGEST),
    )
    contents, extracted, chunks = session.execute(query).one()
    return Backlog(contents, int(extracted), int(chunks))
