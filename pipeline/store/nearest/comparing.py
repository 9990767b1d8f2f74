"""Compares stored vectors with a question. A vector that is none costs only itself, and is told once."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy.engine import Connection, Dialect

from pipeline.core.vectors import COMPARED, TopK, similarities, unit_vectors

log = structlog.get_logger(__name__)

REMEDY = "`python -m pipeline verify --repair` makes them anew"

_told: WeakSet[Dialect] = WeakSet()
"""The databases of which it was told: all engines of one have the same dialect, and no other has it."""


def take_in(
    connection: Connection, ids: Sequence[int], blobs: Sequence[object], question: NDArray[np.float32], best: TopK
) -> None:
    """Score rows by their vectors, and pass over those whose vector is broken."""
    vectors, good = unit_vectors(blobs, len(question), COMPARED)
    numbers = np.asarray(ids, np.int64)
    if not good.all():
        tell_broken(connection, int((~good).sum()), int(numbers[~good][0]))
        numbers, vectors = numbers[good], vectors[good]
    best.add(numbers, similarities(vectors, question))


def tell_broken(connection: Connection, count: int, first: int) -> None:
    """Say once for a database that vectors in it are broken."""
    if connection.dialect not in _told:
        _told.add(connection.dialect)
        log.warning(f"broken vectors are left out of search: {REMEDY}", found=count, first=first)
