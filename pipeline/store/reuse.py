"""Vectors that are taken over: what was embedded before is not embedded again.

A vector is made of a model and of token ids, so chunks of one model with the same tokens have the same
vector. After an edit, a new recipe or OCR most chunks of a document are as they were; only the others
are queued.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.vectors import unit_vectors
from pipeline.store.tables import ChunkRow, ContentRow, DocumentRow, EmbeddingRow, ModelRow

DIGEST_BYTES = 16

BLOCK = 4096
"""Rows read at once."""

READ_AT_ONCE = 500
"""Vectors read at once."""


def token_digest(tokens: bytes) -> bytes:
    """What stands for token ids (little-endian int32) in `chunks.digest`: BLAKE2b of 16 bytes."""
    return hashlib.blake2b(tokens, digest_size=DIGEST_BYTES).digest()


def embedded_before(session: Session, content: ContentRow, digests: Collection[bytes]) -> dict[bytes, int]:
    """Chunks that have a vector of the content's model, by their digest, as far as it is among `digests`.

    Looked for in what search sees of the documents that wait for this content, and in whatever else the
    same bytes became.
    """
    if not digests:
        return {}
    replaced = sa.select(DocumentRow.current_id).where(
        DocumentRow.pending_id == content.id, DocumentRow.current_id.is_not(None)
    )
    earlier = session.scalars(
        sa.select(ContentRow.id).where(
            ContentRow.model_id == content.model_id,
            ContentRow.id != content.id,
            ContentRow.embedded_count > 0,
            sa.or_(ContentRow.id.in_(replaced), ContentRow.sha256 == content.sha256),
        )
    ).all()
    found: dict[bytes, int] = {}
    for content_id in earlier:
        rows = session.execute(
            sa.select(ChunkRow.digest, ChunkRow.id)
            .join(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id)
            .where(ChunkRow.content_id == content_id, ChunkRow.digest.is_not(None))
            .execution_options(yield_per=BLOCK)
        )
        found |= {digest: chunk_id for digest, chunk_id in rows if digest and digest in digests}
    broken = _broken(session, content, list(found.values()))
    return {digest: chunk_id for digest, chunk_id in found.items() if chunk_id not in broken}


def _broken(session: Session, content: ContentRow, chunk_ids: Sequence[int]) -> set[int]:
    """Those of these chunks whose vectors are none: what has their tokens is embedded anew."""
    dimension = session.scalar(sa.select(ModelRow.dimension).where(ModelRow.id == content.model_id)) or 0
    broken: set[int] = set()
    for start in range(0, len(chunk_ids), READ_AT_ONCE):
        some = EmbeddingRow.chunk_id.in_(chunk_ids[start : start + READ_AT_ONCE])
        rows = session.execute(sa.select(EmbeddingRow.chunk_id, EmbeddingRow.vector).where(some)).all()
        _, good = unit_vectors([row.vector for row in rows], dimension)
        broken |= {row.chunk_id for row, is_good in zip(rows, good.tolist(), strict=True) if not is_good}
    return broken


def take_over(session: Session, content: ContentRow, pairs: Sequence[tuple[int, int]]) -> None:
    """Give chunks of a content the vectors of others of its model, by (the one without, the one with)."""
    if not pairs:
        return
    vector = sa.select(
        sa.bindparam("taker", type_=sa.BigInteger),
        sa.literal(content.id, sa.BigInteger),
        EmbeddingRow.model_id,
        EmbeddingRow.vector,
    ).where(EmbeddingRow.chunk_id == sa.bindparam("giver"))
    # Through the connection: the session would take the parameters for values of rows.
    session.connection().execute(
        sa.insert(EmbeddingRow).from_select(["chunk_id", "content_id", "model_id", "vector"], vector),
        [{"taker": taker, "giver": giver} for taker, giver in pairs],
    )
