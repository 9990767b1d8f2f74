"""Search by pgvector: exact, or by a model's index where that is faster. Scores are computed here, from the vectors."""

from __future__ import annotations

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import InstrumentedAttribute, Session

from pipeline.core.vectors import TopK, to_blob
from pipeline.store.hnsw import fitting, half, is_ready
from pipeline.store.nearest.comparing import take_in
from pipeline.store.tables import ContentEmbeddingRow, ContentRow, EmbeddingRow
from pipeline.store.vector_type import Vector
from pipeline.store.view import View, searched_contents

SLACK = 64
"""Candidates beyond those that are wanted: another order of summation, or half precision, may have put them behind."""

ROUNDING = 1e-5
"""By which a distance as the server computes it may be off, with a margin: sums of float32 in another order."""

FEW = 10_000
"""Vectors in view up to which all are looked at, even where there is an index."""

FEW_CONTENTS = 1000
"""Contents that are counted for that."""

MOST_EF = 1000
"""That pgvector takes for `hnsw.ef_search`."""


def nearest_chunks(
    session: Session, question: NDArray[np.float32], view: View, k: int, *, told: list[str] | None = None
) -> list[tuple[int, float]]:
    """As `nearest.nearest_chunks`; by the index, a few of the nearest may be missing."""
    if is_ready(session, view.model_id, view.dimension) and not is_small(*_counted(session, view)):
        found = _by_index(session, question, view, k)
        if len(found) == k:
            _tell(told, "by the HNSW index of pgvector, scores from the vectors")
            return found
    _tell(told, "exact, by pgvector")
    chunks = sa.select(EmbeddingRow.chunk_id).where(
        EmbeddingRow.model_id == view.model_id, EmbeddingRow.content_id.in_(searched_contents(view))
    )
    return _exact(session, question, chunks, EmbeddingRow.chunk_id, EmbeddingRow.vector, k)


def nearest_documents(
    session: Session, question: NDArray[np.float32], view: View, k: int, *, told: list[str] | None = None
) -> list[tuple[int, float]]:
    """As `nearest.nearest_documents`."""
    _tell(told, "exact, by pgvector")
    own, vector = ContentEmbeddingRow.content_id, ContentEmbeddingRow.vector
    return _exact(session, question, sa.select(own).where(own.in_(searched_contents(view))), own, vector, k)


def is_small(contents: int | None, vectors: int) -> bool:
    """Whether to look at all vectors in view. contents: None for all or very many; vectors: of these contents."""
    return contents is not None and contents < FEW_CONTENTS and vectors <= FEW


def _counted(session: Session, view: View) -> tuple[int | None, int]:
    """What `is_small` asks for, without counting an archive."""
    if view.filter.wants_all and view.active:
        return None, 0
    some = searched_contents(view).add_columns(ContentRow.embedded_count).limit(FEW_CONTENTS).subquery()
    contents, vectors = session.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(some.c.embedded_count), 0))
    ).one()
    return int(contents), int(vectors)


def _exact(
    session: Session,
    question: NDArray[np.float32],
    rows: sa.Select[int],
    row_id: InstrumentedAttribute[int],
    vector: InstrumentedAttribute[bytes],
    k: int,
) -> list[tuple[int, float]]:
    product = vector.op("<#>", return_type=sa.Float)(_parameter(question))
    # Vectors of another length would end the whole statement. Without a distance they come last.
    distance = sa.case((sa.func.vector_dims(vector) == len(question), product)).label("distance")
    limit = k + SLACK
    while True:
        # What sorts is narrow; the vectors of the best are fetched after that.
        best = rows.add_columns(distance).order_by(distance, row_id).limit(limit)
        found = [row for row in session.execute(best).all() if row.distance is not None]
        listed = sa.literal([row[0] for row in found], sa.ARRAY(sa.BigInteger))
        vectors = session.execute(sa.select(row_id, vector).where(row_id == sa.any_(listed))).all()
        scored = _scored(session, [(row[0], row[1]) for row in vectors], question, k)
        # Where those that were cut off may belong to the best after all: they are about equal, or take the places of
        # what was left out. Equals are in the order of their ids already.
        full = len(scored) == k and not 0 < found[-1].distance - found[k - 1].distance < ROUNDING
        if len(found) < limit or full:
            return scored
        limit *= 8


def _by_index(session: Session, question: NDArray[np.float32], view: View, k: int) -> list[tuple[int, float]]:
    limit = k + max(k, SLACK)
    # For this transaction. Relaxed: the order is made anew from the scores, and what comes late is not thrown away.
    settings = {"hnsw.ef_search": str(min(MOST_EF, 2 * limit)), "hnsw.iterative_scan": "relaxed_order", "jit": "off"}
    session.execute(sa.select(*(sa.func.set_config(name, value, True) for name, value in settings.items())))
    rows = [(row[0], row[1]) for row in session.execute(by_index(question, view, limit))]
    return _scored(session, rows, question, k)


def by_index(question: NDArray[np.float32], view: View, limit: int) -> sa.Select[int, bytes]:
    """The chunks and vectors that the index finds nearest, about in their order."""
    distance = half(EmbeddingRow.vector, view.dimension).op("<#>")(half(_parameter(question), view.dimension))
    # The model is part of the statement, so that any plan of it may use an index that is only over this model's.
    model_id = sa.literal_column(f"{view.model_id:d}", sa.Integer)
    return (
        sa.select(EmbeddingRow.chunk_id, EmbeddingRow.vector)
        .where(
            EmbeddingRow.model_id == model_id,
            EmbeddingRow.content_id.in_(searched_contents(view)),
            sa.text(fitting(view.dimension)),
        )
        .order_by(distance)
        .limit(limit)
    )


def _parameter(question: NDArray[np.float32]) -> sa.ColumnElement[bytes]:
    return sa.literal(to_blob(question), Vector)


def _scored(
    session: Session, rows: list[tuple[int, bytes]], question: NDArray[np.float32], k: int
) -> list[tuple[int, float]]:
    best = TopK(k)
    if rows:
        take_in(session.connection(), [one for one, _ in rows], [vector for _, vector in rows], question, best)
    return best.result()


def _tell(told: list[str] | None, how: str) -> None:
    if told is not None:
        told.append(how)
