"""Exact search by sqlite-vec: SQLite computes the distances as it reads, on several connections at a time.

What it says is nearest is compared once more by the vectors themselves: its sums of float32 are in another order than
ours, so what is almost equal may be in another order, too. How far the two may be apart is known, and with it whether
anything that was not compared could belong to the best.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from pipeline.core.vectors import TopK, to_blob
from pipeline.store.nearest.shelves import BLOCK, Conditions, Shelf, bounds, compare, listed, raw, seen_chunks
from pipeline.store.view import View, searched_contents

SLACK = 32
"""Candidates that are compared beyond those that are wanted, at least."""

ROWS_A_CONNECTION = 20_000
"""Below, another connection is not worth its beginning."""

MOST_CONNECTIONS = 4

PIECES_EACH = 4
"""Of the rows for a connection, where a piece costs next to nothing: so none waits for long for the slowest."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Ids and distances [n], nearest first. cut: no row that is missing here is nearer than that."""

    ids: NDArray[np.int64]
    distances: NDArray[np.float64]
    cut: float


def nearest(
    session: Session, question: NDArray[np.float32], shelf: Shelf, view: View, k: int
) -> list[tuple[int, float]]:
    """The `k` rows in view nearest to `question`, as `portable` finds them."""
    connection, asked, least = session.connection(), to_blob(question), -np.inf
    # To ask of every row whether it is in view takes a tenth of the time. Where most are, the best are asked about.
    for wanted in (shelf.in_view,) if shelf.about is None else (shelf.about, shelf.in_view):
        found = _candidates(session, asked, shelf, wanted, view, k + max(k, SLACK))
        ids = found.ids if wanted is shelf.in_view else _visible(connection, view, found.ids)
        best = TopK(k)
        _compare(connection, question, shelf, ids, best)
        scored = best.result()
        least = scored[-1][1] if len(scored) == k else -np.inf
        if np.isinf(found.cut) or least > _similarity(found.cut) + rounding(shelf.dimension):
            return scored
        if len(ids) == len(found.ids):
            break
    # So many are about equal that more must be compared: all that are no farther than the last one may be.
    best, farthest = TopK(k), np.sqrt(2.0 * (1.0 - least + rounding(shelf.dimension)))
    distance = _distance(shelf, asked)
    near = sa.select(shelf.row_id).where(*shelf.in_view, distance <= float(farthest))
    for some in raw(connection, near):
        _compare(connection, question, shelf, np.fromiter((row[0] for row in some), np.int64, len(some)), best)
    return best.result()


def rounding(dimension: int) -> float:
    """How far the product of two unit vectors and one computed from their distance may be apart.

    The error of a sum of d products of float32 is at most d * 2**-24 of the sum of their sizes, which is 4 at most for
    the distance's square, of which the product has half, and 1 for the product itself; and unit vectors are not quite.
    Source: Higham, "Accuracy and Stability of Numerical Algorithms", 2002, chapter 3.
    """
    return 4.0 * dimension * 2.0**-24 + 4e-6


def _similarity(distance: float | NDArray[np.float64]) -> float | NDArray[np.float64]:
    return 1.0 - distance * distance / 2.0


def _candidates(session: Session, asked: bytes, shelf: Shelf, wanted: Conditions, view: View, limit: int) -> Candidates:
    """The `limit` nearest ones of those that are wanted, by sqlite-vec."""
    connection = session.connection()
    first, last = bounds(connection, shelf.row_id)
    others = max(1, min(MOST_CONNECTIONS, _cores(), (last + 1 - first) // ROWS_A_CONNECTION)) - 1
    # With each piece it is found out anew what is in view, if that is asked.
    each = 1 if wanted is shelf.in_view or not others else PIECES_EACH
    pieces = deque(_pieces(first, last, (1 + others) * each))
    if not others or connection.get_execution_options().get("nightshift_immediate"):
        # What this transaction has written is seen by nobody else.
        return _merged(list(_work(connection, pieces, shelf, wanted, asked, limit)), limit)
    seen, engine = _seen(connection, view), connection.engine

    def help_out() -> list[Candidates]:
        with engine.connect() as other:
            # A transaction of its own: it helps only where it sees what this one sees.
            return list(_work(other, pieces, shelf, wanted, asked, limit)) if _seen(other, view) == seen else []

    with ThreadPoolExecutor(others, thread_name_prefix="scan") as pool:
        helpers = [pool.submit(help_out) for _ in range(others)]
        found = list(_work(connection, pieces, shelf, wanted, asked, limit))
        return _merged([*found, *(candidates for helper in helpers for candidates in helper.result())], limit)


def _pieces(first: int, last: int, count: int) -> list[tuple[int, int]]:
    """Ranges of ids, first and last, that together are all."""
    edges = [first + (last + 1 - first) * number // count for number in range(count + 1)]
    return [(begin, end - 1) for begin, end in itertools.pairwise(edges)]


def _work(
    connection: Connection,
    pieces: deque[tuple[int, int]],
    shelf: Shelf,
    wanted: Conditions,
    asked: bytes,
    limit: int,
) -> Iterator[Candidates]:
    """Take pieces for as long as there are any."""
    while True:
        try:
            first, last = pieces.popleft()
        except IndexError:
            return
        distance = _distance(shelf, asked).label("distance")
        statement = sa.select(shelf.row_id, distance).where(*wanted, shelf.row_id.between(first, last))
        nearest_first = statement.order_by(distance.nulls_last()).limit(limit)
        rows = [row for some in raw(connection, nearest_first) for row in some]
        ids = np.asarray([row[0] for row in rows], np.int64)
        distances = np.asarray([np.inf if row[1] is None else row[1] for row in rows], np.float64)
        yield Candidates(ids, distances, distances[-1] if len(rows) == limit else np.inf)


def _merged(found: list[Candidates], limit: int) -> Candidates:
    if not found:
        return Candidates(np.empty(0, np.int64), np.empty(0, np.float64), np.inf)
    ids = np.concatenate([some.ids for some in found])
    distances = np.concatenate([some.distances for some in found])
    order = np.lexsort((ids, distances))
    cut = min(some.cut for some in found)
    if len(order) > limit:
        cut = min(cut, float(distances[order[limit]]))
    return Candidates(ids[order[:limit]], distances[order[:limit]], cut)


def _distance(shelf: Shelf, asked: bytes) -> sa.ColumnElement[float]:
    """None for what is no vector of this length, on which sqlite-vec would end the whole statement."""
    fits = sa.and_(sa.func.typeof(shelf.vector) == "blob", sa.func.length(shelf.vector) == len(asked))
    distance = sa.func.vec_distance_L2(shelf.vector, sa.literal(asked, sa.LargeBinary), type_=sa.Float)
    return sa.case((fits, distance))


def _visible(connection: Connection, view: View, chunk_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of these chunks that are in view."""
    rows = raw(connection, seen_chunks(view, chunk_ids))
    return np.asarray([row[0] for some in rows for row in some], np.int64)


def _seen(connection: Connection, view: View) -> tuple[int, ...]:
    """What tells whether two transactions have the same in view: contents never change, they come and go."""
    content_id = searched_contents(view).subquery().c.id
    digest = sa.func.sum((content_id % 1_000_003) * (content_id % 10_007))
    return tuple(connection.execute(sa.select(sa.func.count(), sa.func.sum(content_id), digest)).one())


def _compare(
    connection: Connection, question: NDArray[np.float32], shelf: Shelf, ids: NDArray[np.int64], best: TopK
) -> None:
    """Take the rows with these ids in, by their vectors."""
    for begin in range(0, len(ids), BLOCK):
        some = sa.select(shelf.row_id, shelf.vector).where(shelf.row_id.in_(listed(ids[begin : begin + BLOCK])))
        compare(connection, some, question, best)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
