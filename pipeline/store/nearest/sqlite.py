"""Search on SQLite: by a quantized copy where there is one, else exactly by numpy."""

from __future__ import annotations

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from pipeline.core.vectors import TopK
from pipeline.store.nearest import quantized, shelves
from pipeline.store.nearest.shelves import Shelf, compare
from pipeline.store.tables import ContentRow, ModelRow
from pipeline.store.view import View, searched_contents

EXACT = "exact, by numpy"

FEW = 10_000
"""Chunks in view up to which all are compared."""

LOOKED_UP = 6
"""What a vector takes to be looked up by its chunk, of what it takes to be read in passing."""


def nearest_chunks(
    session: Session, question: NDArray[np.float32], view: View, k: int, *, told: list[str] | None = None
) -> list[tuple[int, float]]:
    """As `nearest.nearest_chunks`."""
    connection = session.connection()
    narrowed = not (view.active and view.filter.wants_all)
    seen = _seen_chunks(connection, view) if narrowed else None
    if seen is None or seen > FEW:
        found = quantized.nearest(session, question, view, k)
        if found is not None:
            return _tell(told, "by quantized copies, scores from the vectors", found)
    if seen is None and _has_other_models(connection):
        seen = _seen_chunks(connection, view)
    narrow = seen is not None and is_selective(seen, _all_chunks(connection))
    shelf = shelves.chunks_by_contents(view) if narrow else shelves.chunks(view)
    return _tell(told, EXACT, by_numpy(session, question, shelf, k))


def nearest_documents(
    session: Session, question: NDArray[np.float32], view: View, k: int, *, told: list[str] | None = None
) -> list[tuple[int, float]]:
    """As `nearest.nearest_documents`."""
    return _tell(told, EXACT, by_numpy(session, question, shelves.documents(view), k))


def by_numpy(session: Session, question: NDArray[np.float32], shelf: Shelf, k: int) -> list[tuple[int, float]]:
    """The `k` rows in view nearest to `question`, by a look at each of their vectors."""
    best = TopK(k)
    compare(session.connection(), shelf.rows(), question, best)
    return best.result()


def is_selective(seen: int, everything: int) -> bool:
    """Whether to look the vectors in view up, rather than to pass over everything. Both in chunks."""
    return seen * LOOKED_UP <= everything


def _seen_chunks(connection: Connection, view: View) -> int:
    """How many chunks with vectors are in view."""
    contents = sa.select(sa.func.sum(ContentRow.embedded_count)).where(ContentRow.id.in_(searched_contents(view)))
    return connection.scalar(contents) or 0


def _all_chunks(connection: Connection) -> int:
    """How many vectors a look at every row passes, of whatever model and in view or not."""
    return connection.scalar(sa.select(sa.func.sum(ContentRow.embedded_count))) or 0


def _has_other_models(connection: Connection) -> bool:
    """Whether a look at every row may pass vectors of another model: else most that it passes are in view."""
    return (connection.scalar(sa.select(sa.func.count()).select_from(ModelRow)) or 0) > 1


def _tell(told: list[str] | None, how: str, found: list[tuple[int, float]]) -> list[tuple[int, float]]:
    if told is not None:
        told.append(how)
    return found
