"""The embed stage's dealing with failure: a bad chunk is found by halving, and costs only itself.

a request fails -> the rest waits -> the server is made ready again
    -> the same chunks once more, alone (the death may have had nothing to do with them)
    -> failed again: halved, and so on down to the one chunk that fails by itself
    -> a known good text must then pass, or the server is at fault and the run ends

Whole documents and stretches go the same way, but that a server's refusal is final: there is another way
to their vectors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from pipeline.core.batching import halve
from pipeline.core.errors import BackendError, BackendRefused, BackendStartFailed, BackendTimeout
from pipeline.core.vectors import to_blob
from pipeline.store.queue import PendingChunk
from pipeline.store.stretches import PendingStretch

log = structlog.get_logger(__name__)

T = TypeVar("T")
V = TypeVar("V")


class Embedder(Protocol):
    """A model server that turns token ids into vectors."""

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that it computes whole; None where it does not say."""
        ...

    async def embed(self, inputs: Sequence[Sequence[int]], /) -> NDArray[np.float32]:
        """Unit vectors, float32[n, d], in the order of `inputs`. Raises a BackendError."""
        ...

    async def embed_whole(self, inputs: Sequence[Sequence[int]], /) -> NDArray[np.float32]:
        """As `embed`, of texts that may be far longer than a chunk and may take as long as that needs."""
        ...

    async def embed_spans(
        self, inputs: Sequence[Sequence[int]], spans: Sequence[Sequence[tuple[int, int]]], /
    ) -> list[NDArray[np.float32]]:
        """For each input the unit vectors, float32[n, d], of the means of its token vectors in each of its spans.

        May take its time, as `embed_whole`. Raises a BackendError.
        """
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
class Outcome(Generic[T, V]):
    """What came of a batch: what has its result, and what has none, with why."""

    vectors: list[tuple[T, V]] = field(default_factory=list)
    failures: list[tuple[T, str]] = field(default_factory=list)


Batch: TypeAlias = Outcome[PendingChunk, bytes]
"""Of chunks: vectors as little-endian float32."""

Stretches: TypeAlias = Outcome[PendingStretch, NDArray[np.float32]]
"""Of stretches: unit vectors float32[n, d] of its spans; of one without spans, n is 1."""


@dataclass(frozen=True, slots=True)
class _Asking(Generic[T, V]):
    """How a kind of thing is asked for. refusal_is_final: a server that says no to one alone is not asked again."""

    ask: Callable[[Sequence[T]], Awaitable[Sequence[V]]]
    refusal_is_final: bool = False


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
        return await self._embed(chunks, _Asking(self._chunk_vectors))

    async def embed_stretches(self, stretches: Sequence[PendingStretch]) -> Stretches:
        """Embed stretches that all have spans, or none of which has. Raises as `embed`."""
        ask = self._span_vectors if len(stretches[0].spans) else self._whole_vectors
        return await self._embed(stretches, _Asking(ask, refusal_is_final=True))

    async def _chunk_vectors(self, chunks: Sequence[PendingChunk]) -> list[bytes]:
        return [to_blob(vector) for vector in await self._embedder.embed([chunk.tokens for chunk in chunks])]

    async def _whole_vectors(self, stretches: Sequence[PendingStretch]) -> list[NDArray[np.float32]]:
        vectors = await self._embedder.embed_whole([stretch.tokens.tolist() for stretch in stretches])
        return [vector[np.newaxis] for vector in vectors]

    async def _span_vectors(self, stretches: Sequence[PendingStretch]) -> list[NDArray[np.float32]]:
        spans = [[(int(start), int(end)) for _, start, end in stretch.spans] for stretch in stretches]
        return await self._embedder.embed_spans([stretch.tokens.tolist() for stretch in stretches], spans)

    async def _embed(self, items: Sequence[T], asking: _Asking[T, V]) -> Outcome[T, V]:
        await self._calm.wait()
        found = Outcome[T, V]()
        error = await self._attempt(items, asking, found)
        if error is None or self._is_final(items, asking, error, found):
            return found
        log.warning("a batch failed; it is tried again by itself", inputs=len(items), error=str(error))
        self._suspects += 1
        self._calm.clear()
        try:
            async with self._alone:
                if isinstance(error, BackendTimeout):
                    await self._embedder.restart()
                await self._retry(items, asking, found)
        finally:
            self._suspects -= 1
            if not self._suspects:
                self._calm.set()
        return found

    async def _attempt(self, items: Sequence[T], asking: _Asking[T, V], found: Outcome[T, V]) -> BackendError | None:
        try:
            vectors = await asking.ask(items)
        except BackendStartFailed:
            raise
        except BackendError as error:
            return error
        found.vectors += zip(items, vectors, strict=True)
        return None

    async def _retry(self, items: Sequence[T], asking: _Asking[T, V], found: Outcome[T, V]) -> None:
        await self._embedder.ensure_ready()
        error = await self._attempt(items, asking, found)
        if error is None or self._is_final(items, asking, error, found):
            return
        if isinstance(error, BackendTimeout):
            await self._embedder.restart()
        if len(items) > 1:
            for half in halve(items):
                await self._retry(half, asking, found)
            return
        await self._embedder.ensure_ready()
        await self._embedder.check()
        # The server is sound. One last try: whoever killed it before may have been a person.
        last = await self._attempt(items, asking, found)
        if last is not None:
            log.warning("a text cannot be embedded", error=str(last))
            found.failures.append((items[0], str(last)))

    def _is_final(self, items: Sequence[T], asking: _Asking[T, V], error: BackendError, found: Outcome[T, V]) -> bool:
        if not (asking.refusal_is_final and len(items) == 1 and isinstance(error, BackendRefused)):
            return False
        found.failures.append((items[0], str(error)))
        return True
