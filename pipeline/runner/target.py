"""From the settings to what a run makes: which model, and cut by which recipe."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass

from pipeline.backends.client import Timeouts
from pipeline.backends.gguf import read_header
from pipeline.backends.models import ModelFile, resolve
from pipeline.backends.options import EmbeddingOptions, Pooling
from pipeline.core.errors import ModelError, SettingsError
from pipeline.ingest.work import utc_now
from pipeline.settings import Settings
from pipeline.store import models
from pipeline.store.database import Database
from pipeline.store.models import StoredModel, Target

RECIPE_VERSION = 1
"""Part of every recipe: raised when the same bytes come out as other text or other chunks."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What a run makes, and the file of the model that it makes it with."""

    model: StoredModel
    file: ModelFile
    target: Target


async def take_aim(settings: Settings, store: Database) -> Aim:
    """Find the embedding model, check that the chunk settings suit it, and note it in the database.

    Raises:
        ModelError: there is no such model, or it cannot be used.
        SettingsError: its limit is below `chunk.tokens`.
    """
    known = await store.read(models.known_fingerprints)
    file = await asyncio.to_thread(resolve, settings.embedding.model, settings.data_dir / "models", known=known)
    if file.kind != "gguf":
        raise ModelError(f"{file.path} is a model directory: llama.cpp needs a GGUF file")
    header = await asyncio.to_thread(read_header, file.path)
    if header.context_length is None or header.embedding_length is None:
        raise ModelError(f"{file.path} does not say how long its input and its vectors are: it is no embedding model")
    if settings.chunk.tokens > header.context_length:
        problem = f"{settings.chunk.tokens} is more than the {header.context_length} tokens that {file.name} can take"
        raise SettingsError("chunk.tokens", problem, "the settings; see `python -m pipeline config`")
    info = file.path.stat()
    model = await store.write(
        models.ensure_model,
        fingerprint=identity(file, settings.embedding.pooling),
        name=file.name,
        path=str(file.path),
        size=info.st_size,
        mtime_ns=info.st_mtime_ns,
        dimension=header.embedding_length,
        now=utc_now(),
    )
    return Aim(model, file, Target(model.id, recipe(settings)))


def identity(file: ModelFile, pooling: str) -> str:
    """What vectors belong to: the model's file, and the pooling where it is not the file's own.

    Vectors of two poolings cannot be compared any more than those of two models.
    """
    return f"{pooling}:{file.fingerprint}"[:64] if pooling else file.fingerprint


def pooling_of(model: StoredModel) -> Pooling:
    """The pooling that a model's vectors were made with; empty is the file's own."""
    name = model.fingerprint.partition(":")[0] if ":" in model.fingerprint else ""
    return name if name in ("mean", "cls", "last") else ""  # type: ignore[return-value]  # one of the literals


def recipe(settings: Settings) -> str:
    """A hash of every setting that changes the chunks of the same bytes. The model is not part of it."""
    parts = {
        "version": RECIPE_VERSION,
        "tokens": settings.chunk.tokens,
        "overlap": settings.chunk.overlap,
        "pdf_engine": settings.extract.pdf_engine,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def embedding_options(settings: Settings, model: str) -> EmbeddingOptions:
    """How the settings want the model loaded."""
    wanted = settings.embedding
    return EmbeddingOptions(
        model=model,
        n_gpu_layers=wanted.n_gpu_layers,
        threads=wanted.threads,
        n_batch=wanted.n_batch,
        n_ubatch=wanted.n_ubatch,
        contexts=wanted.contexts,
        flash_attn=wanted.flash_attn,
        pooling=wanted.pooling,
        mlock=wanted.mlock,
        use_extra_bufts=wanted.use_extra_bufts,
    )


def timeouts(settings: Settings) -> Timeouts:
    """How long the model server may take, in seconds."""
    wanted = settings.embedding
    return Timeouts(connect=wanted.connect_timeout, read=wanted.read_timeout, total=wanted.total_timeout)
