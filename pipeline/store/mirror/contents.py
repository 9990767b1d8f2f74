"""What a mirror is to hold of a content: the chunks that have vectors, where search sees it; else nothing."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.vectors import from_blobs
from pipeline.store.mirror.outbox import ContentKey, Owed, due
from pipeline.store.tables import ChunkRow, ContentRow, DocumentRow, EmbeddingRow, ModelRow, SourceRow

CHUNKS = 512
"""Read, and sent, at once."""


class BrokenVector(Exception):
    """A vector that is stored is none."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is told of a content that search sees. files: (source, path in it), by their names; modified: the newest.

    ordinals: of its chunks that have vectors, in order.
    """

    model: str
    dimension: int
    title: str | None
    files: Sequence[tuple[str, str]]
    modified: dt.datetime
    ordinals: Sequence[int]


@dataclass(frozen=True, slots=True)
class MirroredChunk:
    """A chunk as a mirror holds it, see `ChunkRow`. vector: float32[d]."""

    ordinal: int
    page_first: int | None
    page_last: int | None
    headings: Sequence[str]
    prefix: str
    text: str
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A content that is owed, and what the mirror is to hold of it: nothing where there are no `facts`.

    chunks: the first of them; those of the other `facts.ordinals` are still to be read.
    problem: why it cannot be mirrored as it is stored.
    """

    owed: Owed
    facts: Facts | None
    chunks: Sequence[MirroredChunk]
    problem: str | None = None

    @property
    def points(self) -> int:
        """Ordinals are below this."""
        return self.facts.ordinals[-1] + 1 if self.facts is not None else 0


def gather(session: Session, now: dt.datetime, limit: int, chunks: int = CHUNKS) -> list[Wanted]:
    """Up to `limit` contents that are due, with what they are in this snapshot, and of `chunks` chunks at most.

    Only the last of them may come with less than all of its chunks.
    """
    found: list[Wanted] = []
    room = chunks
    for owed in due(session, now, limit):
        facts = read_facts(session, owed.key)
        try:
            some = read_chunks(session, owed.key, facts.ordinals[0], room) if facts is not None else []
        except BrokenVector as error:
            found.append(Wanted(owed, facts, [], str(error)))
            continue
        found.append(Wanted(owed, facts, some))
        room -= len(some)
        if room <= 0:
            break
    return found


def read_facts(session: Session, key: ContentKey) -> Facts | None:
    """What is to be told of a content; None where search does not see it, or no chunk of it has a vector."""
    row = session.execute(_content(key).add_columns(ContentRow.title, ModelRow.name, ModelRow.dimension)).one_or_none()
    if row is None:
        return None
    content_id, title, model, dimension = row
    files = session.execute(
        sa.select(SourceRow.root, DocumentRow.path, DocumentRow.mtime_ns, DocumentRow.found_at)
        .join(SourceRow, SourceRow.id == DocumentRow.source_id)
        .where(DocumentRow.current_id == content_id)
        .order_by(SourceRow.root, DocumentRow.path)
    ).all()
    ordinals = session.scalars(
        sa.select(ChunkRow.ordinal)
        .join(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id)
        .where(ChunkRow.content_id == content_id)
        .order_by(ChunkRow.ordinal)
    ).all()
    if not files or not ordinals:
        return None
    modified = max(_time(mtime_ns) if mtime_ns > 0 else found_at for _, _, mtime_ns, found_at in files)
    return Facts(model, dimension, title, [(root, path) for root, path, *_ in files], modified, ordinals)


def read_chunks(session: Session, key: ContentKey, first: int, limit: int) -> list[MirroredChunk]:
    """Up to `limit` chunks of a content that have vectors, from the ordinal `first` on, in order.

    Raises:
        BrokenVector: one of them is none of its model's.
    """
    rows = session.execute(
        sa.select(
            ChunkRow.ordinal,
            ChunkRow.page_first,
            ChunkRow.page_last,
            ChunkRow.headings,
            ChunkRow.prefix,
            ChunkRow.text,
            EmbeddingRow.vector,
            ModelRow.dimension,
        )
        .join(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id)
        .join(ContentRow, ContentRow.id == ChunkRow.content_id)
        .join(ModelRow, ModelRow.id == ContentRow.model_id)
        .where(ContentRow.id == _content(key).scalar_subquery(), ChunkRow.ordinal >= first)
        .order_by(ChunkRow.ordinal)
        .limit(limit)
    ).all()
    try:
        vectors = from_blobs([row.vector for row in rows], rows[0].dimension) if rows else np.empty((0, 0), np.float32)
    except ValueError as error:
        raise BrokenVector(f"a stored vector is broken ({error}): run `python -m pipeline verify`") from error
    if not np.isfinite(vectors).all():
        raise BrokenVector("a stored vector has numbers that are not finite: run `python -m pipeline verify`")
    return [MirroredChunk(*row[:6], vector=vector) for row, vector in zip(rows, vectors, strict=True)]


def _content(key: ContentKey) -> sa.Select[int]:
    return (
        sa.select(ContentRow.id)
        .join(ModelRow, ModelRow.id == ContentRow.model_id)
        .where(
            ModelRow.fingerprint == key.fingerprint,
            ContentRow.sha256 == key.sha256,
            ContentRow.kind == key.kind,
            ContentRow.recipe == key.recipe,
        )
    )


def _time(nanoseconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(nanoseconds // 10**9, dt.UTC)
