"""Search by a quantized copy: two quick passes over all vectors, then the vectors themselves of what they leave.

Scores are exact; which chunks are found is not certain, only very likely to be right. What the copy does not cover yet
is looked at exactly.
"""

from __future__ import annotations

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from pipeline.core.quantized import Rounded, differences, first_candidates, least, products, rounded, signs, worthwhile
from pipeline.core.vectors import COMPARED, TopK, unit_vectors
from pipeline.store.bulk import last_chunk_number
from pipeline.store.nearest import shelves
from pipeline.store.nearest.copies import Copy, folder_of, open_copy, path_of
from pipeline.store.nearest.shelves import compare, listed, raw
from pipeline.store.tables import ContentRow, EmbeddingRow
from pipeline.store.view import View, searched_contents

LOOKED_INTO = 300
"""Candidates of which it is first asked whether search sees them, at least."""

CHECKED = 16
"""Vectors of a copy, newest and others, that are compared with those in the database before it is relied on."""


def nearest(session: Session, question: NDArray[np.float32], view: View, k: int) -> list[tuple[int, float]] | None:
    """The `k` chunks in view nearest to `question`, most likely; None where there is no copy to go by."""
    connection = session.connection()
    copy = usable_copy(connection, view.model_id, view.fingerprint, view.dimension)
    if copy is None:
        return None
    ids = None
    if view.active and view.filter.wants_all:
        # Most that is there is in view, so only the best are asked about.
        ids = _seen_of_the_best(connection, copy, question, view, k)
    if ids is None:
        ids = _best_of_the_seen(connection, copy, question, view, k)
    best = TopK(k)
    known = sa.select(EmbeddingRow.chunk_id, EmbeddingRow.vector).where(EmbeddingRow.chunk_id.in_(listed(ids)))
    newer = shelves.chunks(view).rows().where(EmbeddingRow.chunk_id > copy.heading.upto)
    for rows in (known, newer):
        compare(connection, rows, question, best)
    return best.result()


def usable_copy(connection: Connection, model_id: int, fingerprint: str, dimension: int) -> Copy | None:
    """The copy of a model's vectors, where there is one and it is of this database as it is."""
    folder = folder_of(database_file(connection))
    copy = open_copy(path_of(folder, fingerprint), fingerprint, dimension)
    # A database that was taken from a backup gives numbers again that the copy knows for others.
    if copy is None or last_chunk_number(connection) < copy.heading.last or not _agrees(connection, copy, model_id):
        return None
    return copy


def database_file(connection: Connection) -> str:
    """The file of a SQLite database, as SQLite has it."""
    # Whatever needed a temporary table, on this connection, left a second one in the list.
    return str(connection.exec_driver_sql("SELECT file FROM pragma_database_list WHERE name = 'main'").scalar_one())


def _agrees(connection: Connection, copy: Copy, model_id: int) -> bool:
    rows = copy.heading.rows
    places = np.unique(np.r_[np.linspace(0, rows - 1, CHECKED // 2), np.arange(max(0, rows - CHECKED // 2), rows)])
    places = places.astype(np.int64)
    mine = sa.select(EmbeddingRow.chunk_id, EmbeddingRow.vector, EmbeddingRow.content_id, EmbeddingRow.model_id)
    found = mine.where(EmbeddingRow.chunk_id.in_(listed(copy.chunk_ids[places])))
    for some in raw(connection, found):
        at = np.searchsorted(copy.chunk_ids, [row[0] for row in some])
        if [(row[2], row[3]) for row in some] != [(content, model_id) for content in copy.content_ids[at].tolist()]:
            return False
        vectors, _ = unit_vectors([row[1] for row in some], copy.heading.dimension, COMPARED)
        if (np.abs(rounded(vectors).numbers.astype(np.int16) - copy.rounded.numbers[at]) > 1).any():
            return False
    return True


def _seen_of_the_best(
    connection: Connection, copy: Copy, question: NDArray[np.float32], view: View, k: int
) -> NDArray[np.int64] | None:
    """Chunks that may be among the best, all in view; None where so much is out of view that others may be missing."""
    places, values, errors = _second_pass(copy, question, _first_pass(copy, question, k, None))
    order = np.argsort(-values, kind="stable")[: max(LOOKED_INTO, 8 * k)]
    contents = np.unique(copy.content_ids[places[order]])
    asked = searched_contents(view).where(ContentRow.id.in_(listed(contents)))
    seen = np.fromiter({row[0] for some in raw(connection, asked) for row in some}, np.int64)
    visible = order[np.isin(copy.content_ids[places[order]], seen)]
    kept = visible[worthwhile(values[visible], errors[visible], k)]
    if len(order) < copy.heading.rows and (2 * len(visible) < len(order) or len(kept) == len(visible)):
        return None
    return copy.chunk_ids[places[kept]]


def _best_of_the_seen(
    connection: Connection, copy: Copy, question: NDArray[np.float32], view: View, k: int
) -> NDArray[np.int64]:
    """Chunks in view that may be among the best."""
    seen = np.fromiter((row[0] for some in raw(connection, searched_contents(view)) for row in some), np.int64)
    first = _first_pass(copy, question, k, np.isin(copy.content_ids, seen))
    places, values, errors = _second_pass(copy, question, first)
    return copy.chunk_ids[places[worthwhile(values, errors, k)]]


def _first_pass(
    copy: Copy, question: NDArray[np.float32], k: int, visible: NDArray[np.bool_] | None
) -> NDArray[np.intp]:
    """Where those are that differ in the fewest signs."""
    found = differences(copy.bits, signs(question[None, :], copy.middle)[:, 0])
    if visible is None:
        return least(found, first_candidates(copy.heading.rows, k))
    places = np.flatnonzero(visible)
    return places[least(found[places], first_candidates(len(places), k))]


def _second_pass(
    copy: Copy, question: NDArray[np.float32], places: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
    return places, *products(Rounded(copy.rounded.numbers[places], copy.rounded.scales[places]), question)
