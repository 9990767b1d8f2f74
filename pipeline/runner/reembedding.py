"""Vectors computed again: to be compared with those that are stored, and to take their place where they are bad."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np

from pipeline.backends.embedding import EmbeddingBackend
from pipeline.core.vectors import to_blob
from pipeline.core.verifying import Disagreement
from pipeline.runner.question import file_of
from pipeline.runner.target import embedding_options, pooling_of, timeouts
from pipeline.settings import Settings
from pipeline.store.checks.vectors import SAME_COSINE, Sampled, cosine_of
from pipeline.store.models import StoredModel
from pipeline.store.queue import TOKEN_TYPE
from pipeline.store.reuse import token_digest

AT_ONCE = 32
"""Chunks in one request."""


@asynccontextmanager
async def model_server(settings: Settings, model: StoredModel, *, on_gpu: bool) -> AsyncIterator[EmbeddingBackend]:
    """A server of a model that made vectors. Without `on_gpu` a GPU that others use is left alone.

    Raises ModelError where its file is no longer there, BackendError where it does not start.
    """
    options = replace(embedding_options(settings, model.path), pooling=pooling_of(model))
    file = file_of(settings, model)
    options = replace(options, model=str(file.path))
    if not on_gpu:
        options = replace(options, n_gpu_layers=0)
    log_dir = settings.data_dir / "logs"
    async with EmbeddingBackend(options, file, log_dir, timeouts=timeouts(settings), stop_grace=0.0) as backend:
        yield backend


async def compare_vectors(
    backend: EmbeddingBackend, chunks: Sequence[Sampled], tell: Callable[[int], None]
) -> list[Disagreement]:
    """Where the model gives chunks other vectors than are stored, or their texts give other tokens. tell: how far."""
    found: list[Disagreement] = []
    for some in _parts(chunks):
        good, bad = await computed(backend, some)
        found += [Disagreement("chunk-tokens", "other tokens", "those of its digest", _ids(chunk)) for chunk in bad]
        for chunk, vector in good:
            cosine = cosine_of(chunk.vector, vector)
            # What has no cosine was told of as such.
            if cosine is not None and cosine < SAME_COSINE:
                what = f"a cosine of {cosine:.4f} with the model's"
                found.append(Disagreement("vector-other", what, f"{SAME_COSINE} or more", _ids(chunk)))
        tell(len(some))
    return found


async def computed(
    backend: EmbeddingBackend, chunks: Sequence[Sampled]
) -> tuple[list[tuple[Sampled, bytes]], list[Sampled]]:
    """Chunks with their vectors (little-endian float32), and those whose texts do not give the tokens they had."""
    tokens = [await backend.tokenize(chunk.text) for chunk in chunks]
    same = [
        chunk.digest is not None and token_digest(np.asarray(ids, TOKEN_TYPE).tobytes()) == chunk.digest
        for chunk, ids in zip(chunks, tokens, strict=True)
    ]
    good = [(chunk, ids) for chunk, ids, is_same in zip(chunks, tokens, same, strict=True) if is_same]
    bad = [chunk for chunk, is_same in zip(chunks, same, strict=True) if not is_same]
    if not good:
        return [], bad
    vectors = await backend.embed([ids for _, ids in good])
    return [(chunk, to_blob(vector)) for (chunk, _), vector in zip(good, vectors, strict=True)], bad


def _ids(chunk: Sampled) -> dict[str, int | str]:
    return {"content": chunk.content_id, "chunk": chunk.chunk_id}


def _parts(chunks: Sequence[Sampled]) -> Iterator[Sequence[Sampled]]:
    for start in range(0, len(chunks), AT_ONCE):
        yield chunks[start : start + AT_ONCE]
