"""Vectors: as long as their model's are, finite, of length 1, and one for each document that has any."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.vectors import BYTES_PER_NUMBER, NORM_TOLERANCE
from pipeline.core.verifying import Disagreement, spread_sample
from pipeline.store.contents import BY_MEAN, mean_vector
from pipeline.store.tables import ChunkRow, ContentEmbeddingRow, ContentRow, EmbeddingRow, ModelRow

BLOCK = 4096

SAME_COSINE = 0.999
"""Of two vectors of one text by one model: other batches, engines' builds and devices differ by a tenth of that."""


DAMAGED = "damaged "
"""Begins the recipe of what was damaged and is shown until it is replaced: no run takes it for its own."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chunk to compute again. vector: what is stored, little-endian float32. digest: of the tokens it was made of."""

    chunk_id: int
    content_id: int
    text: str
    digest: bytes | None
    vector: bytes


def chunk_vectors(session: Session, beat: Callable[[int], None] = lambda _: None) -> Iterator[Disagreement]:
    """Every chunk's vector. beat: told how many were looked at."""
    query = (
        sa.select(EmbeddingRow.chunk_id, ChunkRow.content_id, ModelRow.dimension, EmbeddingRow.vector)
        .join(ChunkRow, ChunkRow.id == EmbeddingRow.chunk_id)
        .join(ContentRow, ContentRow.id == ChunkRow.content_id)
        .join(ModelRow, ModelRow.id == ContentRow.model_id)
        .order_by(EmbeddingRow.chunk_id)
        .execution_options(yield_per=BLOCK)
    )
    for block in session.execute(query).partitions():
        for place, code, found, expected in _judged([(row[-2], row[-1]) for row in block]):
            chunk_id, content_id, *_ = block[place]
            yield Disagreement(f"vector-{code}", found, expected, {"content": content_id, "chunk": chunk_id})
        beat(len(block))


def document_vectors(session: Session) -> Iterator[Disagreement]:
    """Every document's own vector."""
    query = (
        sa.select(ContentEmbeddingRow.content_id, ModelRow.dimension, ContentEmbeddingRow.vector)
        .join(ContentRow, ContentRow.id == ContentEmbeddingRow.content_id)
        .join(ModelRow, ModelRow.id == ContentRow.model_id)
        .order_by(ContentEmbeddingRow.content_id)
        .execution_options(yield_per=BLOCK)
    )
    for block in session.execute(query).partitions():
        for place, code, found, expected in _judged([(row[-2], row[-1]) for row in block]):
            yield Disagreement(f"document-vector-{code}", found, expected, {"content": block[place][0]})


def missing_document_vectors(session: Session) -> Iterator[Disagreement]:
    """Documents that are done and have vectors of chunks, and none of their own."""
    query = (
        sa.select(ContentRow.id)
        .where(
            ContentRow.state.in_(["embedded", "failed"]),
            sa.exists().where(ChunkRow.content_id == ContentRow.id, ChunkRow.id == EmbeddingRow.chunk_id),
            ~sa.exists().where(ContentEmbeddingRow.content_id == ContentRow.id),
        )
        .order_by(ContentRow.id)
        .execution_options(yield_per=BLOCK)
    )
    for content_id in session.scalars(query):
        yield Disagreement("document-vector-missing", "none", "one", {"content": content_id})


def means(session: Session, size: int, seed: int, passed_over: Collection[int] = ()) -> Iterator[Disagreement]:
    """Of a sample of documents whose own vector is the mean of their chunks': whether it is.

    passed_over: contents with chunks whose vectors are none.
    """
    done = sa.select(ContentEmbeddingRow.content_id).join(ContentRow, ContentRow.id == ContentEmbeddingRow.content_id)
    whole = sa.and_(ContentRow.state != "extracted", ~ContentRow.recipe.startswith(DAMAGED))
    has_model = sa.exists().where(ModelRow.id == ContentRow.model_id)
    wanted = done.where(ContentEmbeddingRow.method == BY_MEAN, whole, has_model)
    for content_id in spread_sample(list(session.scalars(wanted.order_by(ContentRow.id))), size, seed):
        if content_id in passed_over:
            continue
        stored = session.scalar(
            sa.select(ContentEmbeddingRow.vector).where(ContentEmbeddingRow.content_id == content_id)
        )
        cosine = cosine_of(stored, mean_vector(session, content_id))
        if cosine is not None and cosine < SAME_COSINE:
            yield Disagreement(
                "document-vector-other", f"cosine {cosine:.4f} with the mean", "1", {"content": content_id}
            )


def sample(session: Session, model_id: int, size: int, seed: int) -> list[Sampled]:
    """Chunks of a model that have a vector, spread over its documents; none that a stretch gave its vector."""
    mine = sa.select(ContentRow.id).where(ContentRow.model_id == model_id, ContentRow.embedded_count > 0)
    contents = list(session.scalars(mine.order_by(ContentRow.id)))
    chosen = spread_sample(contents, size, seed)
    left, found = size, list[Sampled]()
    for place, content_id in enumerate(chosen):
        wanted = -(-left // (len(chosen) - place))
        chunks = sa.select(ChunkRow.id).where(ChunkRow.content_id == content_id, ChunkRow.digest.is_not(None))
        has_vector = sa.exists().where(EmbeddingRow.chunk_id == ChunkRow.id)
        ids = list(session.scalars(chunks.where(has_vector).order_by(ChunkRow.ordinal)))
        some = _chunks(session, spread_sample(ids, wanted, seed + content_id))
        left -= len(some)
        found += some
    return found


def count_stretched(session: Session, model_id: int) -> int:
    """Chunks of a model whose vectors cannot be computed from their own tokens."""
    query = sa.select(sa.func.count()).select_from(ChunkRow).join(ContentRow, ContentRow.id == ChunkRow.content_id)
    return session.scalar(query.where(ContentRow.model_id == model_id, ChunkRow.digest.is_(None))) or 0


def _chunks(session: Session, ids: Sequence[int]) -> list[Sampled]:
    found: list[Sampled] = []
    for start in range(0, len(ids), 500):
        query = (
            sa.select(
                ChunkRow.id, ChunkRow.content_id, ChunkRow.prefix, ChunkRow.text, ChunkRow.digest, EmbeddingRow.vector
            )
            .join(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id)
            .where(ChunkRow.id.in_(ids[start : start + 500]))
            .order_by(ChunkRow.id)
        )
        found += [
            Sampled(one, of, prefix + text, digest, vector)
            for one, of, prefix, text, digest, vector in session.execute(query)
        ]
    return found


def cosine_of(one: bytes | None, other: bytes | None) -> float | None:
    """The cosine of two stored vectors; None where one is not there, or they are not of one length or not finite."""
    if one is None or other is None or len(one) != len(other) or len(one) % BYTES_PER_NUMBER:
        return None
    first, second = (np.frombuffer(vector, "<f4").astype(np.float64) for vector in (one, other))
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / lengths if np.isfinite(lengths) and lengths > 0 else None


def _judged(rows: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, str, str, str]]:
    """Of (dimension, vector) those that are not what they should be: their place, what, found and expected."""
    fitting: dict[int, list[int]] = {}
    for place, (dimension, vector) in enumerate(rows):
        if len(vector) == dimension * BYTES_PER_NUMBER:
            fitting.setdefault(dimension, []).append(place)
        else:
            yield place, "length", f"{len(vector) / BYTES_PER_NUMBER:g} numbers", f"{dimension} numbers"
    for dimension, places in fitting.items():
        matrix = np.frombuffer(b"".join(rows[place][1] for place in places), "<f4").reshape(len(places), dimension)
        lengths = _lengths(matrix)
        for number in np.flatnonzero(~(np.abs(lengths - 1.0) <= NORM_TOLERANCE)):
            wrong = int((~np.isfinite(matrix[number])).sum())
            if wrong:
                yield places[number], "not-finite", f"{wrong} numbers that are none", "none such"
            else:
                yield places[number], "norm", f"a length of {float(lengths[number]):.4g}", "a length of 1"


def _lengths(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore"):
        squares: NDArray[np.float64] = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
    return np.sqrt(squares)
