"""The vectors of questions, by the model that made the vectors they are compared with."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.embedding import EmbeddingBackend
from pipeline.backends.models import ModelFile, resolve
from pipeline.backends.options import EmbeddingOptions
from pipeline.core.errors import BackendRefused, ModelError, UsageError
from pipeline.runner.target import embedding_options, identity, pooling_of, timeouts
from pipeline.settings import Settings
from pipeline.store.models import StoredModel

LONGEST = 2048
"""Tokens of a question at most, where the model takes so many: buffers grow with the square of it."""

MOST_THREADS = 4
"""A question is a few tokens, and the processor is needed by others."""

AT_ONCE = 64
"""Questions in one request."""


async def embed_question(
    settings: Settings, model: StoredModel, text: str, *, on_gpu: bool = True
) -> NDArray[np.float32]:
    """The unit vector, float32[d], of `text`; without `on_gpu` a GPU that serves another model is left alone.

    Raises:
        ModelError: the model that the index was made with is no longer there, or is another now.
        UsageError: it is too long for the model.
    """
    vectors: NDArray[np.float32] = (await embed_questions(settings, model, [text], on_gpu=on_gpu))[0]
    return vectors


async def embed_questions(
    settings: Settings, model: StoredModel, texts: Sequence[str], *, on_gpu: bool = True
) -> NDArray[np.float32]:
    """As `embed_question`, of many: unit vectors float32[n, d], by one server."""
    file = await asyncio.to_thread(file_of, settings, model)
    options = replace(embedding_options(settings, str(file.path)), pooling=pooling_of(model))
    if not on_gpu:
        options = small(options)
    logs = settings.data_dir / "logs"
    async with EmbeddingBackend(options, file, logs, name="search", timeouts=timeouts(settings)) as backend:
        with too_long_explained():
            parts = [await backend.embed(texts[begin : begin + AT_ONCE]) for begin in range(0, len(texts), AT_ONCE)]
        return np.concatenate(parts) if parts else np.empty((0, model.dimension), np.float32)


@contextmanager
def too_long_explained() -> Iterator[None]:
    """Turn a server's refusal of a question that is too long into a UsageError."""
    try:
        yield
    except BackendRefused as error:
        if error.status != HTTPStatus.BAD_REQUEST:
            raise
        tokens = re.search(r"(\d+) tokens.* the (\d+) that", str(error))
        size = f": {int(tokens[1]):,} tokens, and {int(tokens[2]):,} are the most" if tokens else ""
        raise UsageError(f"the text is too long for the model{size}; ask for less at once") from error


def small(options: EmbeddingOptions) -> EmbeddingOptions:
    """The options of a server for nothing but questions: on the processor, with little memory and few threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, min(MOST_THREADS, cores // 2, options.threads or MOST_THREADS))
    return replace(
        options,
        n_gpu_layers=0,
        threads=threads,
        contexts=1,
        n_batch=None,
        n_ubatch=LONGEST,
        document_tokens=0,
        mlock=False,
        tuned=(),
    )


def file_of(
    settings: Settings, model: StoredModel, known: Mapping[tuple[str, int, int], str] | None = None
) -> ModelFile:
    """Where the model lies now: where it was last, or where the settings have it. known: as `resolve` takes it.

    Raises:
        ModelError: in neither place.
    """
    for name in dict.fromkeys([model.path, settings.embedding.model]):
        if not name.startswith("hf:") and not Path(name).exists():
            continue
        file = resolve(name, settings.data_dir / "models", known=known)
        if identity(file, pooling_of(model)) == model.fingerprint:
            return file
    raise ModelError(
        f"the index was made with {model.name} ({model.path}), which is no longer there: put it back, "
        "or embed the documents with another model: `python -m pipeline run-now --model MODEL`"
    )
