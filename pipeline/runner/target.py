"""From the settings to what a run makes: which model, and cut by which recipe."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pipeline.backends.client import Timeouts
from pipeline.backends.directory import read_directory
from pipeline.backends.gguf import read_header
from pipeline.backends.launch import sentence_transformers_installed
from pipeline.backends.models import ModelFile, parse_hub_name, resolve, stamp
from pipeline.backends.options import EmbeddingOptions, Pooling
from pipeline.core.errors import ModelError, SettingsError, UsageError
from pipeline.core.stretches import LONGEST, USUAL
from pipeline.ingest.tesseract import Ocr, find_tesseract
from pipeline.ingest.work import utc_now
from pipeline.settings import Settings
from pipeline.store import models
from pipeline.store.database import Database
from pipeline.store.models import StoredModel, Target
from pipeline.store.pending import Aimed

RECIPE_VERSION = 2
"""Part of every recipe: raised when the same bytes come out as other text or other chunks."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What a run makes, and the file of the model that it makes it with."""

    model: StoredModel
    file: ModelFile
    target: Target


@dataclass(frozen=True, slots=True)
class Checked:
    """The file of a model that the settings suit, and the length of its vectors."""

    file: ModelFile
    dimension: int


NameT = TypeVar("NameT", str, str | None)


def unaliased(settings: Settings, name: NameT) -> NameT:
    """The embedding model of the settings where a name is an alias of it; any other name as it is.

    A path that is relative is made absolute, as the database has it.
    """
    if name is None:
        return name
    if name.startswith(("./", "../")):
        return os.path.abspath(name)  # noqa: PTH100 - links stay as they are: a model has the path that it was given
    return settings.embedding.model if name.casefold() in map(str.casefold, settings.embedding.alias) else name


@contextmanager
def named_by(key: str) -> Iterator[None]:
    """Say of a model that cannot be used which setting names it. key: dotted."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{key}: {error}") from error


async def check_model(settings: Settings, store: Database) -> Checked:
    """Find the embedding model and check that the settings suit it. Writes nothing.

    Raises:
        ModelError: there is no such model, or it cannot be used.
        SettingsError: its limit is below `chunk.tokens`, or it cannot do what the settings want.
    """
    known = await store.read(models.known_fingerprints)
    with named_by("embedding.model"):
        file = await asyncio.to_thread(resolve, settings.embedding.model, settings.data_dir / "models", known=known)
        shape = await asyncio.to_thread(_read_shape, file)
    if settings.chunk.tokens > shape.max_tokens:
        problem = f"{settings.chunk.tokens} is more than the {shape.max_tokens} tokens that {file.name} can take"
        raise SettingsError("chunk.tokens", problem, "the settings; see `python -m pipeline config`")
    _check_late_chunking(settings, file, shape)
    return Checked(file, shape.dimension)


async def take_aim(settings: Settings, store: Database, checked: Checked | None = None) -> Aim:
    """Note the embedding model in the database. checked: by `check_model`, if it was; else it is now, which raises."""
    checked = checked or await check_model(settings, store)
    file = checked.file
    _, size, mtime_ns = await asyncio.to_thread(stamp, file.path)
    model = await store.write(
        models.ensure_model,
        fingerprint=identity(file, settings.embedding.pooling),
        name=file.name,
        path=str(file.path),
        size=size,
        mtime_ns=mtime_ns,
        dimension=checked.dimension,
        now=utc_now(),
    )
    return Aim(model, file, Target(model.id, recipe(settings)))


def aimed_at(settings: Settings, known: Mapping[tuple[str, int, int], str]) -> Aimed:
    """What the next run aims at, as far as it can be told without a download. known: as `resolve` takes it."""
    name, folder = settings.embedding.model, settings.data_dir / "models"
    try:
        if name.startswith("hf:"):
            parts = parse_hub_name(name)
            if not parts.file or not (parts.folder(folder) / parts.file).is_file():
                return Aimed(recipe(settings))
        file = resolve(name, folder, known=known)
    except (ModelError, OSError):
        return Aimed(recipe(settings))
    return Aimed(recipe(settings), identity(file, settings.embedding.pooling))


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a model takes and gives. pooling: how a GGUF says that its token vectors become one, if it does."""

    max_tokens: int
    dimension: int
    pooling: str | None


def _read_shape(file: ModelFile) -> _Shape:
    if file.kind == "directory":
        if not sentence_transformers_installed():
            raise ModelError(
                f"{file.path} is a Hugging Face model directory: `.venv/bin/pip install -e '.[torch]'` to use it,"
                " or give a GGUF file of the model"
            )
        facts = read_directory(file.path)
        return _Shape(facts.max_tokens, facts.dimension, None)
    header = read_header(file.path)
    if header.context_length is None or header.embedding_length is None:
        raise ModelError(f"{file.path} does not say how long its input and its vectors are: it is no embedding model")
    return _Shape(header.context_length, header.embedding_length, header.pooling)


def longest_document(settings: Settings) -> int:
    """Tokens of the longest text to be computed whole; 0 for none. The model may take less."""
    wanted = settings.embedding
    if wanted.document_tokens is not None:
        return wanted.document_tokens
    return USUAL if wanted.late_chunking else LONGEST


def _check_late_chunking(settings: Settings, file: ModelFile, shape: _Shape) -> None:
    """Raises SettingsError where there are no token vectors, or the model's own are not the mean of them."""
    if settings.embedding.late_chunking and file.kind == "directory":
        problem = f"needs a GGUF file, and {file.name} is a model directory"
        raise SettingsError("embedding.late_chunking", problem, "the settings; see `python -m pipeline config`")
    pooling = settings.embedding.pooling or shape.pooling
    if settings.embedding.late_chunking and pooling != "mean":
        says = f"pools by {pooling}" if pooling else "does not say how it pools"
        problem = f"needs a model whose vectors are the mean of its tokens', and {file.name} {says}"
        raise SettingsError("embedding.late_chunking", problem, "the settings; see `python -m pipeline config`")


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
    parts: dict[str, object] = {
        "version": RECIPE_VERSION,
        "tokens": settings.chunk.tokens,
        "overlap": settings.chunk.overlap,
        "pdf_engine": settings.extract.pdf_engine,
    }
    if settings.extract.ocr:
        parts["ocr"] = [settings.extract.ocr, settings.extract.ocr_dpi]
    if settings.embedding.late_chunking:
        parts["late_chunking"] = longest_document(settings)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


async def ocr_wanted(settings: Settings) -> Ocr | None:
    """How pages without text are to be read; None: not at all. Raises SettingsError where this host cannot."""
    wanted = settings.extract
    if not wanted.ocr:
        return None
    try:
        return await asyncio.to_thread(find_tesseract, wanted.ocr, dpi=wanted.ocr_dpi, timeout_s=wanted.ocr_timeout)
    except UsageError as error:
        raise SettingsError("extract.ocr", str(error), "the settings; see `python -m pipeline config`") from error


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
        document_tokens=wanted.document_tokens,
        mlock=wanted.mlock,
        use_extra_bufts=wanted.use_extra_bufts,
        dtype=wanted.dtype,
    )


def timeouts(settings: Settings) -> Timeouts:
    """How long the model server may take, in seconds."""
    wanted = settings.embedding
    return Timeouts(connect=wanted.connect_timeout, read=wanted.read_timeout, total=wanted.total_timeout)
