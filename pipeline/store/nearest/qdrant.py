"""Search in Qdrant, which proposes; what is in view, and the scores, are the database's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import sqlalchemy as sa
import structlog
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.errors import MirrorError
from pipeline.core.vectors import TopK
from pipeline.store.mirror.outbox import ContentKey, find_mirror, owed_contents
from pipeline.store.nearest.comparing import take_in
from pipeline.store.tables import ChunkRow, ContentRow, EmbeddingRow
from pipeline.store.view import View, as_json, listed_ids, searched_contents

log = structlog.get_logger(__name__)

HOME = "vector home"
"""In what a session carries: a `VectorHome`, where the nearest vectors are looked up there."""

SLACK = 64
"""Candidates beyond those that are wanted: some may not be in view."""

MOST = 10_000
"""Candidates, after which the database is asked instead."""

MOST_OWED = 1000
"""Contents that Qdrant is owed, and that are looked at in the database; above that all are."""

MOST_OWED_CHUNKS = 20_000
"""In these, because their vectors are held at once."""

FEW_CONTENTS = 200
"""In view, of which Qdrant is told to look at no others."""

ROUNDING = 1e-5
"""By which a score may be off where it is computed in another order."""

Row = tuple[int, bytes]


class VectorHome(Protocol):
    """Where vectors are beside the database."""

    @property
    def location(self) -> str:
        """As it is registered."""
        ...

    def nearest(
        self,
        fingerprint: str,
        question: NDArray[np.float32],
        limit: int,
        contents: Sequence[ContentKey] | None = None,
    ) -> list[tuple[ContentKey, int]]:
        """The contents and ordinals of the chunks nearest to `question`, best first. Raises MirrorError."""
        ...


def nearest_chunks(
    session: Session,
    question: NDArray[np.float32],
    view: View,
    k: int,
    home: VectorHome,
    *,
    told: list[str] | None = None,
) -> list[tuple[int, float]] | None:
    """As `nearest.nearest_chunks`; None where the database has to be asked instead."""
    mirror = find_mirror(session)
    if mirror is None or mirror.looked_at is None or mirror.location != home.location or not view.active:
        return None
    owed = owed_contents(session, view.model_id, MOST_OWED + 1)
    if len(owed) > MOST_OWED or _count_chunks(session, owed) > MOST_OWED_CHUNKS:
        return None
    # What Qdrant does not hold yet is looked at here.
    rows = dict(_chunks(session, view, owed))
    try:
        found = _proposed(session, question, view, k, home, rows)
    except MirrorError as error:
        log.warning("Qdrant cannot be asked, and the database is", error=str(error))
        return None
    if found is not None and told is not None:
        told.append("by Qdrant, scores from the vectors")
    return found


def _proposed(
    session: Session, question: NDArray[np.float32], view: View, k: int, home: VectorHome, rows: dict[int, bytes]
) -> list[tuple[int, float]] | None:
    contents = _few_contents(session, view)
    if contents is not None and not contents:
        return []
    limit = k + max(k, SLACK)
    while limit <= MOST:
        points = home.nearest(view.fingerprint, question, limit, contents)
        rows |= _in_view(session, view, points)
        scored = _scored(session, rows.items(), question)
        if len(points) < limit:  # it has no more
            return scored[:k]
        # Of those that it has besides, some may be as near as the last one that is wanted.
        if len(scored) >= k and scored[-1][1] < scored[k - 1][1] - ROUNDING:
            return scored[:k]
        limit *= 4
    return None


def _few_contents(session: Session, view: View) -> list[ContentKey] | None:
    """The contents in view, where a filter leaves few."""
    if view.filter.wants_all:
        return None
    query = sa.select(ContentRow.sha256, ContentRow.kind, ContentRow.recipe)
    some = query.where(ContentRow.id.in_(searched_contents(view))).limit(FEW_CONTENTS + 1)
    rows = session.execute(some).all()
    return None if len(rows) > FEW_CONTENTS else [ContentKey(view.fingerprint, *row) for row in rows]


def _in_view(session: Session, view: View, points: Sequence[tuple[ContentKey, int]]) -> dict[int, bytes]:
    """The chunks of these points that are in view, with their vectors."""
    keys = {key for key, _ in points}
    hashes = sorted({key.sha256 for key in keys})
    rows = session.execute(
        sa.select(ContentRow.id, ContentRow.sha256, ContentRow.kind, ContentRow.recipe).where(
            ContentRow.model_id == view.model_id, ContentRow.sha256.in_(hashes)
        )
    )
    numbers = {ContentKey(view.fingerprint, *key): number for number, *key in rows}
    wanted = {(numbers[key], ordinal) for key, ordinal in points if key in numbers}
    ordinals = listed_ids(as_json({ordinal for _, ordinal in wanted}))
    chunks = _query(view, {number for number, _ in wanted}).where(ChunkRow.ordinal.in_(ordinals))
    return {
        chunk_id: vector
        for chunk_id, vector, content_id, ordinal in session.execute(chunks)
        if (content_id, ordinal) in wanted
    }


def _count_chunks(session: Session, contents: Iterable[int]) -> int:
    query = sa.select(sa.func.coalesce(sa.func.sum(ContentRow.embedded_count), 0))
    return session.scalar(query.where(ContentRow.id.in_(listed_ids(as_json(contents))))) or 0


def _chunks(session: Session, view: View, contents: Iterable[int]) -> Iterable[Row]:
    """All chunks of these contents that are in view."""
    return [(chunk_id, vector) for chunk_id, vector, *_ in session.execute(_query(view, contents))]


def _query(view: View, contents: Iterable[int]) -> sa.Select[int, bytes, int, int]:
    return (
        sa.select(EmbeddingRow.chunk_id, EmbeddingRow.vector, ChunkRow.content_id, ChunkRow.ordinal)
        .join(ChunkRow, ChunkRow.id == EmbeddingRow.chunk_id)
        .where(ChunkRow.content_id.in_(listed_ids(as_json(contents))), ChunkRow.content_id.in_(searched_contents(view)))
    )


def _scored(session: Session, rows: Iterable[Row], question: NDArray[np.float32]) -> list[tuple[int, float]]:
    """All of them, best first."""
    listed = list(rows)
    if not listed:
        return []
    best = TopK(len(listed))
    take_in(session.connection(), [one for one, _ in listed], [vector for _, vector in listed], question, best)
    return best.result()
