"""Chunks to measure with: those of the database, else of the documents in the inbox, else made up."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.backends.options import EmbeddingOptions
from pipeline.backends.tuning import Bench, tokenized
from pipeline.core.errors import NightshiftError
from pipeline.core.kinds import kind_of_name
from pipeline.ingest.pool import ExtractionPool
from pipeline.runner.target import Aim
from pipeline.settings import Settings
from pipeline.store import tunings
from pipeline.store.database import Database

CHUNKS = 512
"""In the sample: more than a slow device computes in one measurement."""

LEAST_CHUNKS = 16
"""Fewer of one source are not like a corpus; the next source is asked."""

DOCUMENTS_READ = 24
Source = Literal["database", "inbox", "made up"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Chunks as token ids, and where they are from."""

    chunks: Sequence[Sequence[int]]
    source: Source

    @property
    def tokens(self) -> int:
        """Of all chunks together."""
        return sum(map(len, self.chunks))


async def take_sample(settings: Settings, store: Database, aim: Aim, bench: Bench, options: EmbeddingOptions) -> Sample:
    """Chunks of this host. options: with which a server of the engine starts for sure; it tokenizes.

    Raises BackendError or ModelError where it does not.
    """
    texts = await store.read(tunings.sample_texts, aim.model.id, CHUNKS)
    if len(texts) >= LEAST_CHUNKS:
        found = [chunk for chunk in await tokenized(bench, options, texts) if chunk]
        return Sample([chunk[: settings.chunk.tokens] for chunk in found], "database")
    read = await _read_inbox(settings, aim)
    if len(read) >= LEAST_CHUNKS:
        return Sample(read, "inbox")
    return Sample(made_up(settings.chunk.tokens), "made up")


async def _read_inbox(settings: Settings, aim: Aim) -> list[list[int]]:
    chunks: list[list[int]] = []
    async with ExtractionPool(
        settings.extract.workers,
        model_path=aim.file.path,
        limit=settings.chunk.tokens,
        overlap=settings.chunk.overlap,
        pdf_engine=settings.extract.pdf_engine,
        timeout_s=settings.extract.timeout,
        memory_limit_bytes=settings.extract.memory_mib << 20,
        nice=settings.extract.nice,
    ) as pool:
        for path in await asyncio.to_thread(_documents, settings.inbox):
            kind = kind_of_name(path.name)
            if kind is None:
                continue
            try:
                extracted = await pool.extract(path, kind, await asyncio.to_thread(_digest, path))
            except (NightshiftError, OSError):
                continue  # another document will do
            chunks += [list(chunk.tokens) for chunk in extracted.chunks]
            if len(chunks) >= CHUNKS:
                break
    return chunks[:CHUNKS]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _documents(inbox: Path) -> list[Path]:
    if not inbox.is_dir():
        return []
    found = sorted(path for path in inbox.rglob("*") if path.is_file() and not path.name.startswith("."))
    return found[:DOCUMENTS_READ]


def made_up(limit: int) -> list[list[int]]:
    """Random token ids, three in four chunks as long as they may be: speed does not depend on what they mean."""
    chance = random.Random(0)  # noqa: S311
    lengths = [limit if chance.random() < 0.75 else chance.randint(max(4, limit // 8), limit) for _ in range(CHUNKS)]
    return [[chance.randint(1, 1000) for _ in range(length)] for length in lengths]
