"""The vector of a question, by the model that made the vectors it is compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.embedding import EmbeddingBackend
from pipeline.backends.models import ModelFile, resolve
from pipeline.core.errors import ModelError
from pipeline.runner.target import embedding_options, identity, pooling_of, timeouts
from pipeline.settings import Settings
from pipeline.store.models import StoredModel


async def embed_question(
    settings: Settings, model: StoredModel, text: str, *, on_gpu: bool = True
) -> NDArray[np.float32]:
    """The unit vector, float32[d], of `text`; without `on_gpu` a GPU that serves another model is left alone.

    Raises:
        ModelError: the model that the index was made with is no longer there, or is another now.
    """
    file = _file_of(settings, model)
    options = replace(embedding_options(settings, str(file.path)), pooling=pooling_of(model))
    if not on_gpu:
        options = replace(options, n_gpu_layers=0)
    async with EmbeddingBackend(options, file, settings.data_dir / "logs", timeouts=timeouts(settings)) as backend:
        vectors: NDArray[np.float32] = await backend.embed([text])
        return np.asarray(vectors[0], np.float32)


def _file_of(settings: Settings, model: StoredModel) -> ModelFile:
    """Where the model lies now: where it was last, or where the settings have it."""
    for name in dict.fromkeys([model.path, settings.embedding.model]):
        if not name.startswith("hf:") and not Path(name).exists():
            continue
        file = resolve(name, settings.data_dir / "models")
        if identity(file, pooling_of(model)) == model.fingerprint:
            return file
    raise ModelError(
        f"the index was made with {model.name} ({model.path}), which is no longer there: put it back, "
        "or embed the documents with another model: `python -m pipeline run-now --model MODEL`"
    )
