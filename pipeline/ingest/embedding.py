"""The embed stage's dealing with failure: a bad chunk is found by halving, and costs only itself.

a request fails -> the rest waits -> the server is made ready again
    -> the same chunks once more, alone (the death may have had nothing to do with them)
    -> failed again: halved, and so on down to the one chunk that fails by itself
    -> a known good text must then pass, or the server is at fault and the run ends
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from pipeline.core.batching import halve
from pipeline.core.errors import BackendError, BackendStartFailed, BackendTimeout
from pipeline.core.vectors import to_blob
from pipeline.store.queue import PendingChunk

log = structlog.get_logger(__name__)


class Embedder(Protocol):
    """A model server that turns token ids into vectors."""

    async def embed(self, inputs: Sequence[Sequence[int]], /) -> NDArray[np.float32]:
        """Unit vectors, float32[n, d], in the order of `inputs`. Raises a BackendError."""
        ...

    async def ensure_ready(self) -> None:
        """Start the server, or start it again if it died or hangs. Raises BackendStartFailed."""
        ...

    async def restart(self) -> None:
        """End a server that does not answer, and start another. Raises BackendStartFailed."""
        ...

    async def check(self) -> None:
        """Embed a known good text. Raises a BackendError where that fails."""
        ...


@dataclass(slots=True)
class Batch:
    """What came of a batch: vectors as little-endian float32, and chunks that have none, with why."""

    vectors: list[tuple[PendingChunk, bytes]] = field(default_factory=list)
    failures: list[tuple[PendingChunk, str]] = field(default_factory=list)


class CarefulEmbedder:
    """Embeds batches side by side; a batch that fails is tried again alone, and halved if it fails again."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._suspects = 0
        self._calm = asyncio.Event()
        self._calm.set()
        self._alone = asyncio.Lock()

    async def embed(self, chunks: Sequence[PendingChunk]) -> Batch:
        """Embed a batch, whatever it takes.

        Raises:
            BackendStartFailed: the server does not come up any more.
            BackendError: it comes up, but fails a known good text.
        """
        await self._calm.wait()
        batch = Batch()
        error = await self._attempt(chunks, batch)
        if error is None:
            return batch
        log.warning("a batch failed; it is tried again by itself", chunks=len(chunks), error=str(error))
        self._suspects += 1
        self._calm.clear()
        try:
            async with self._alone:
                if isinstance(error, BackendTimeout):
                    await self._embedder.restart()
                await self._retry(chunks, batch)
        finally:
            self._suspects -= 1
            if not self._suspects:
                self._calm.set()
        return batch

    async def _attempt(self, chunks: Sequence[PendingChunk], batch: Batch) -> BackendError | None:
        try:
            vectors = await self._embedder.embed([chunk.tokens for chunk in chunks])
        except BackendStartFailed:
            raise
        except BackendError as error:
            return error
        batch.vectors += [(chunk, to_blob(vector)) for chunk, vector in zip(chunks, vectors, strict=True)]
        return None

    async def _retry(self, chunks: Sequence[PendingChunk], batch: Batch) -> None:
        await self._embedder.ensure_ready()
        error = await self._attempt(chunks, batch)
        if error is None:
            return
        if isinstance(error, BackendTimeout):
            await self._embedder.restart()
        if len(chunks) > 1:
            for half in halve(chunks):
                await self._retry(half, batch)
            return
        await self._embedder.ensure_ready()
        await self._embedder.check()
        # The server is sound. One last try: whoever killed it before may have been a person.
        last = await self._attempt(chunks, batch)
        if last is not None:
            log.warning("a chunk cannot be embedded", chunk=chunks[0].chunk_id, error=str(last))
            batch.failures.append((chunks[0], str(last)))
