"""Arithmetic on embeddings: unit vectors, exact search, bytes. Knows no model and no store."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

Matrix: TypeAlias = npt.NDArray[np.float32]

BYTES_PER_NUMBER = 4

NORM_TOLERANCE = 1e-3
"""How far from 1 a vector's length may be: float32 leaves 1e-6, half precision on the way 1e-3."""

COMPARED = 0.1
"""How far from 1 a vector's length may be in a search, which passes over what would outrank all others."""


def normalise(matrix: npt.ArrayLike) -> Matrix:
    """Rows of `matrix` [n, d] divided by their Euclidean length, as float32; rows of zeros stay zero.

    The lengths are summed in float64, so that large numbers do not overflow.
    """
    rows = np.asarray(matrix, dtype=np.float32)
    if rows.ndim != 2:
        raise ValueError(f"expected a matrix [n, d], not the shape {rows.shape}")
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    lengths[lengths == 0.0] = 1.0
    unit: Matrix = (rows / lengths[:, None]).astype(np.float32)
    return unit


def similarities(vectors: Matrix, vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The scalar products of `vectors` [n, d] with `vector` [d]: each the same wherever its row lies among others.

    A product of matrices is not so: it adds up the last rows of a block in another order.
    """
    found: npt.NDArray[np.float32] = np.vecdot(vectors, vector)
    return found


class TopK:
    """The best `k` of a stream of (id, score) blocks, in bounded memory.

    The order is by score, best first, and among equals by id, smallest first, so that the result
    does not depend on how the stream was cut into blocks.
    """

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        self._k = k
        self._ids = np.empty(0, dtype=np.int64)
        self._scores = np.empty(0, dtype=np.float32)

    def add(self, ids: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]) -> None:
        """Take a block in: `ids` int64 [n], `scores` float32 [n]. A score that is NaN is a ValueError."""
        if ids.ndim != 1 or ids.shape != scores.shape:
            raise ValueError(f"expected ids [n] and scores [n], not {ids.shape} and {scores.shape}")
        if np.isnan(scores).any():
            raise ValueError("a score is not a number")
        if len(self._scores) == self._k:
            hopeful = scores >= self._scores[-1]
            ids, scores = ids[hopeful], scores[hopeful]
        elif len(scores) > 4 * self._k:
            hopeful = scores >= np.partition(scores, -self._k)[-self._k]
            ids, scores = ids[hopeful], scores[hopeful]
        all_ids = np.concatenate([self._ids, ids]).astype(np.int64)
        all_scores = np.concatenate([self._scores, scores]).astype(np.float32)
        best = np.lexsort((all_ids, -all_scores))[: self._k]
        self._ids, self._scores = all_ids[best], all_scores[best]

    def result(self) -> list[tuple[int, float]]:
        """(id, score), best first; fewer than `k` where fewer were seen."""
        return list(zip(self._ids.tolist(), self._scores.tolist(), strict=True))


def to_blob(vector: npt.ArrayLike) -> bytes:
    """A vector [d] as little-endian float32, 4 * d bytes."""
    row = np.asarray(vector)
    if row.ndim != 1:
        raise ValueError(f"expected a vector [d], not the shape {row.shape}")
    return row.astype("<f4").tobytes()


def from_blobs(blobs: Sequence[bytes], dim: int) -> Matrix:
    """The vectors [n, dim] that `to_blob` made. A blob of another size is a ValueError."""
    for position, blob in enumerate(blobs):
        if len(blob) != dim * BYTES_PER_NUMBER:
            raise ValueError(f"vector {position} has {len(blob)} bytes, not {dim * BYTES_PER_NUMBER}")
    return np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), dim).astype(np.float32)


def unit_vectors(
    blobs: Sequence[object], dim: int, tolerance: float = NORM_TOLERANCE
) -> tuple[Matrix, npt.NDArray[np.bool_]]:
    """The unit vectors [n, dim] that `blobs` hold, and which of [n] are such. The others are rows of zeros."""
    size = dim * BYTES_PER_NUMBER
    nothing = bytes(size)
    kept = [blob if isinstance(blob, bytes) and len(blob) == size else nothing for blob in blobs]
    matrix = np.frombuffer(b"".join(kept), dtype="<f4").reshape(len(kept), dim).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        good: npt.NDArray[np.bool_] = np.abs(np.sqrt(np.vecdot(matrix, matrix)) - 1.0) <= tolerance
    if not good.all():
        matrix[~good] = 0.0
    return matrix, good


def flaw_of(blob: bytes, dim: int) -> str | None:
    """What keeps `blob` from being a unit vector [dim], for a person; None where it is one."""
    if len(blob) != dim * BYTES_PER_NUMBER:
        return f"{len(blob) / BYTES_PER_NUMBER:g} numbers instead of {dim}"
    row = np.frombuffer(blob, "<f4").astype(np.float64)
    if not np.isfinite(row).all():
        return "numbers that are not finite"
    length = float(np.linalg.norm(row))
    if length == 0.0:
        return "nothing but zeros"
    return None if abs(length - 1.0) <= NORM_TOLERANCE else f"the length {length:.4g} instead of 1"
