"""Many documents with vectors at once, for the tests of search and of its indexes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.core.vectors import normalise, to_blob
from pipeline.store import library, models
from pipeline.store.bulk import insert_rows, new_ids
from pipeline.store.models import Target
from pipeline.store.tables import ChunkRow, ContentEmbeddingRow, ContentRow, DocumentRow, EmbeddingRow
from tests.store.rows import digest, utc_now

CHUNKS = 10
"""Of each document."""


def clustered(count: int, dimension: int, seed: int = 7) -> NDArray[np.float32]:
    """Unit vectors [count, dimension] around a few dozen centres, as texts lie around topics."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((48, dimension))
    members = centres[random.integers(48, size=count)]
    return normalise(members + 0.5 * random.standard_normal((count, dimension)))


def add_model(session: Session, name: str, dimension: int) -> Target:
    model = models.ensure_model(
        session, fingerprint=digest(name), name=name, path=f"/models/{name}.gguf", size=1, mtime_ns=1,
        dimension=dimension, now=utc_now(),
    )  # fmt: skip
    return Target(model.id, "r")


def add_documents(
    session: Session, target: Target, vectors: NDArray[np.float32], root: str = "/docs", folder: str = "all"
) -> list[int]:
    """Documents that search sees, whose chunks have these vectors; returns the ids of the chunks, in their order.

    Every hundredth vector is another's twin, so that there are equals.
    """
    source_id, now = library.ensure_source(session, root, utc_now()), utc_now()
    documents = -(-len(vectors) // CHUNKS)
    content_ids = new_ids(session, ContentRow.id, documents)
    hashes = [digest(f"{root}/{folder}/{content_id}") for content_id in content_ids]
    counts = [len(vectors[number * CHUNKS : (number + 1) * CHUNKS]) for number in range(documents)]
    insert_rows(session, ContentRow, [
        {"id": content_id, "sha256": sha256, "kind": "pdf", "model_id": target.model_id, "recipe": target.recipe,
         "state": DocumentState.EMBEDDED.value, "attempts": 0, "details": {}, "page_count": 1, "characters": 10,
         "chunk_count": count, "embedded_count": count, "failed_count": 0, "token_count": 40, "priority": 0,
         "modified_ns": 1, "created_at": now}
        for content_id, sha256, count in zip(content_ids, hashes, counts, strict=True)
    ])  # fmt: skip
    document_ids = new_ids(session, DocumentRow.id, documents)
    insert_rows(session, DocumentRow, [
        {"id": document_id, "source_id": source_id, "path": f"{folder}/{content_id}.pdf", "size": 1, "mtime_ns": 1,
         "sha256": sha256, "current_id": content_id, "found_at": now}
        for document_id, content_id, sha256 in zip(document_ids, content_ids, hashes, strict=True)
    ])  # fmt: skip
    chunk_ids = new_ids(session, ChunkRow.id, len(vectors))
    owners = [content_ids[number // CHUNKS] for number in range(len(vectors))]
    insert_rows(session, ChunkRow, [
        {"id": chunk_id, "content_id": content_id, "ordinal": number % CHUNKS, "start_char": number, "end_char": number,
         "headings": [], "token_count": 4, "text": f"chunk {number}", "prefix": ""}
        for number, (chunk_id, content_id) in enumerate(zip(chunk_ids, owners, strict=True))
    ])  # fmt: skip
    twins = [vectors[number - 1 if number % 100 == 99 else number] for number in range(len(vectors))]
    insert_rows(session, EmbeddingRow, [
        {"chunk_id": chunk_id, "content_id": content_id, "model_id": target.model_id, "vector": to_blob(vector)}
        for chunk_id, content_id, vector in zip(chunk_ids, owners, twins, strict=True)
    ])  # fmt: skip
    insert_rows(session, ContentEmbeddingRow, [
        {"content_id": content_id, "method": "mean", "vector": to_blob(vectors[number * CHUNKS])}
        for number, content_id in enumerate(content_ids)
    ])  # fmt: skip
    return chunk_ids
