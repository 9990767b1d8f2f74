"""Quantized copies of vectors beside a SQLite database: whether they hold just what they are of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.quantized import rounded
from pipeline.core.vectors import BYTES_PER_NUMBER, NORM_TOLERANCE
from pipeline.core.verifying import Disagreement
from pipeline.store.nearest.copies import Copy, folder_of, open_copy, path_of
from pipeline.store.nearest.quantized import database_file
from pipeline.store.tables import EmbeddingRow, ModelRow

BLOCK = 4096
MOST_OFF = 1
"""Steps by which a rounded number may differ: it was rounded by another machine."""


def stale_copies(session: Session) -> Iterator[Disagreement]:
    """Every copy has the vectors that it is of, as they are; what is newer than it is searched beside it."""
    connection = session.connection()
    if connection.dialect.name != "sqlite":
        return
    folder = folder_of(database_file(connection))
    for model in session.scalars(sa.select(ModelRow).order_by(ModelRow.id)).all():
        path = path_of(folder, model.fingerprint)
        if not path.exists():
            continue
        copy = open_copy(path, model.fingerprint, model.dimension)
        problem = "no copy that can be read" if copy is None else _difference(session, copy, model.id)
        if problem is not None:
            yield Disagreement("copy-stale", problem, "a copy of the vectors", {"model": model.id}, str(path))


def _difference(session: Session, copy: Copy, model_id: int) -> str | None:
    """What is wrong with a copy. A vector that is none is told of elsewhere, and what is gone falls out of a search."""
    query = (
        sa.select(EmbeddingRow.chunk_id, EmbeddingRow.content_id, EmbeddingRow.vector)
        .where(EmbeddingRow.model_id == model_id, EmbeddingRow.chunk_id <= copy.heading.upto)
        .order_by(EmbeddingRow.chunk_id)
        .execution_options(yield_per=BLOCK)
    )
    size = copy.heading.dimension * BYTES_PER_NUMBER
    for block in session.execute(query).partitions():
        rows = [row for row in block if len(row[2]) == size]
        if not rows:
            continue
        vectors = np.frombuffer(b"".join(row[2] for row in rows), "<f4").reshape(len(rows), -1)
        with np.errstate(invalid="ignore", over="ignore"):
            good = np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1.0) <= NORM_TOLERANCE
        ids = np.asarray([row[0] for row in rows], np.int64)[good]
        at = np.minimum(np.searchsorted(copy.chunk_ids, ids), len(copy.chunk_ids) - 1)
        missing = ids[copy.chunk_ids[at] != ids]
        if len(missing):
            return f"it lacks chunk number {missing[0]}"
        if (copy.content_ids[at] != np.asarray([row[1] for row in rows], np.int64)[good]).any():
            return "chunks are of other documents in it"
        off = np.abs(rounded(vectors[good]).numbers.astype(np.int16) - copy.rounded.numbers[at])
        if (off > MOST_OFF).any():
            return f"chunk number {ids[(off > MOST_OFF).any(axis=1)][0]} has another vector in it"
    return None
