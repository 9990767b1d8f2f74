"""The embed stage's dealing with failure: a bad chunk is found by halving, and costs only itself.

a request fails -> the rest waits -> the server is made ready again
    -> the same chunks once more, alone (the death may have had nothing to do with them)
    -> failed again: halved, and so on down to the one chunk that fails by itself
    -> a known good text must then pass, or the server is at fault and the run ends

Whole documents and stretches go the same way, but that a server's refusal is final: there is another way
to their vectors.

A server that cannot answer for the moment (429, 5xx, a connection that breaks) is another matter. Everything waits,
it is asked again with growing pauses, and nothing is counted against a document. Where it answers other texts
meanwhile, the one that it does not answer is left to a later run; where it answers nothing for long, the run ends and
says why.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from pipeline.core.batching import halve
from pipeline.core.errors import (
    BackendBusy,
    BackendDied,
    BackendError,
    BackendRefused,
    BackendStartFailed,
    BackendTimeout,
    BadAnswer,
    ModelError,
)
from pipeline.core.vectors import to_blob
from pipeline.store.queue import PendingChunk
from pipeline.store.stretches import PendingStretch

log = structlog.get_logger(__name__)

T = TypeVar("T")
V = TypeVar("V")

LONGEST_PAUSE = 60.0
"""Seconds between two tries at a server that cannot answer for the moment, at most, unless it asks for more."""

LONGEST_ASKED = 600.0
"""Seconds that a server may ask to be left alone (`Retry-After`); one that asks for more ends the run."""

TOO_MANY = 429
"""The HTTP status of a server that gets more requests than it allows."""

TRIES = 3
"""Times that a request is refused for the moment before the server is asked for a known good text."""


class Embedder(Protocol):
    """A model server that turns token ids into vectors."""

    @property
    def theirs(self) -> bool:
        """Whether somebody else runs the server, so that we can only ask it."""
        ...

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that it computes whole; None where it does not say."""
        ...

    @property
    def contexts(self) -> int:
        """Batches that it computes side by side, as far as it says."""
        ...

    @property
    def computed(self) -> float:
        """Tokens that it has computed so far, those of unanswered requests included; 0.0 where it does not say."""
        ...

    async def embed(self, inputs: Sequence[Sequence[int]] | Sequence[str], /) -> NDArray[np.float32]:
        """Unit vectors, float32[n, d], in the order of `inputs`: token ids, or texts. Raises a BackendError."""
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

    async def restart(self, why: str, /) -> None:
        """End a server that computes nothing, and start another. why: said of its end. Raises BackendStartFailed."""
        ...

    async def check(self) -> None:
        """Embed a known good text. Raises a BackendError where that fails."""
        ...


@dataclass(slots=True)
class Outcome(Generic[T, V]):
    """What came of a batch.

    vectors: what has its result. failures: what has none, with why. postponed: what the server could not answer for the
    moment, with why.
    """

    vectors: list[tuple[T, V]] = field(default_factory=list)
    failures: list[tuple[T, str]] = field(default_factory=list)
    postponed: list[tuple[T, str]] = field(default_factory=list)


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
    """Embeds batches side by side; a batch that fails is tried again alone, and halved if it fails again.

    texts: reads the texts of chunks, for a server that takes no token ids; None has it given token ids only.
    dimension: of the model's vectors; None is not checked.
    patience: seconds that a server may refuse everything for the moment before `embed` gives up.
    first_pause: seconds before the second try at a server that cannot answer for the moment; later ones double.
    on_wait: told why everything waits, and an empty text when it goes on.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        texts: Callable[[Sequence[PendingChunk]], Awaitable[Sequence[str]]] | None = None,
        dimension: int | None = None,
        patience: float = 120.0,
        first_pause: float = 1.0,
        on_wait: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._embedder = embedder
        self._texts = texts
        self._dimension = dimension
        self._patience = patience
        self._first_pause = first_pause
        self._on_wait = on_wait
        self._takes: Literal["unknown", "tokens", "text"] = "unknown"
        self._suspects = 0
        self._calm = asyncio.Event()
        self._calm.set()
        self._alone = asyncio.Lock()
        self._refused_since = 0.0
        self._refusals = 0

    async def embed(self, chunks: Sequence[PendingChunk]) -> Batch:
        """Embed a batch, whatever it takes.

        Raises:
            BackendStartFailed: the server does not come up any more.
            BackendBusy: it has answered nothing for `patience` seconds.
            BackendError: it comes up, but fails a known good text.
            ModelError: its vectors have another length than the model's.
        """
        return await self._embed(chunks, _Asking(self._chunk_vectors))

    async def embed_stretches(self, stretches: Sequence[PendingStretch]) -> Stretches:
        """Embed stretches that all have spans, or none of which has. Raises as `embed`."""
        ask = self._span_vectors if len(stretches[0].spans) else self._whole_vectors
        return await self._embed(stretches, _Asking(ask, refusal_is_final=True))

    async def _chunk_vectors(self, chunks: Sequence[PendingChunk]) -> list[bytes]:
        if self._takes == "text":
            return await self._text_vectors(chunks)
        try:
            vectors = self._checked(await self._embedder.embed([chunk.tokens for chunk in chunks]))
        except (BackendRefused, BackendBusy, BadAnswer) as error:
            if self._takes == "tokens" or not self._embedder.theirs or self._texts is None or _asks_for_rest(error):
                raise
            # Many servers take text alone, and each says so in its own way.
            try:
                found = await self._text_vectors(chunks)
            except BackendError:
                raise error from None
            log.info("the embedding server takes no token ids; it is given text", refusal=str(error))
            self._takes = "text"
            return found
        self._takes = "tokens"
        return [to_blob(vector) for vector in vectors]

    async def _text_vectors(self, chunks: Sequence[PendingChunk]) -> list[bytes]:
        assert self._texts is not None
        vectors = self._checked(await self._embedder.embed(list(await self._texts(chunks))))
        return [to_blob(vector) for vector in vectors]

    async def _whole_vectors(self, stretches: Sequence[PendingStretch]) -> list[NDArray[np.float32]]:
        vectors = await self._embedder.embed_whole([stretch.tokens.tolist() for stretch in stretches])
        return [vector[np.newaxis] for vector in self._checked(vectors)]

    async def _span_vectors(self, stretches: Sequence[PendingStretch]) -> list[NDArray[np.float32]]:
        spans = [[(int(start), int(end)) for _, start, end in stretch.spans] for stretch in stretches]
        found = await self._embedder.embed_spans([stretch.tokens.tolist() for stretch in stretches], spans)
        return [self._checked(vectors) for vectors in found]

    def _checked(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._dimension is not None and vectors.shape[1] != self._dimension:
            raise ModelError(
                f"the embedding server gives vectors of {vectors.shape[1]} numbers, and those of the model have "
                f"{self._dimension}: it serves another model than `embedding.model`. Nothing of it was stored"
            )
        return vectors

    async def _embed(self, items: Sequence[T], asking: _Asking[T, V]) -> Outcome[T, V]:
        await self._calm.wait()
        found = Outcome[T, V]()
        error = await self._attempt(items, asking, found)
        if error is None or self._is_final(items, asking, error, found):
            return found
        self._suspects += 1
        self._calm.clear()
        try:
            async with self._alone:
                if self._may_pass(error):
                    await self._outlast(items, asking, found, error)
                else:
                    log.warning("a batch failed; it is tried again by itself", inputs=len(items), error=str(error))
                    await self._restart_after(error)
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
        self._note_answer()
        return None

    def _note_answer(self) -> None:
        if self._refusals:
            self._refusals = 0
            self._on_wait("")

    def _may_pass(self, error: BackendError) -> bool:
        """Whether it says nothing about the texts. A server of somebody else's that breaks off may be starting anew."""
        return isinstance(error, BackendBusy) or (
            self._embedder.theirs and isinstance(error, (BackendDied, BackendTimeout))
        )

    async def _outlast(
        self, items: Sequence[T], asking: _Asking[T, V], found: Outcome[T, V], error: BackendError, tries: int = TRIES
    ) -> None:
        """Ask again, with growing pauses, until the server answers; postpone what alone it does not answer.

        tries: after so many it is asked for a known good text.

        Raises BackendBusy where it has answered nothing for too long.
        """
        for tried in itertools.count(1):
            if len(items) > 1 and isinstance(error, BackendTimeout):
                break  # too much for it at once
            await self._pause(error)
            problem = await self._attempt(items, asking, found)
            if problem is None or self._is_final(items, asking, problem, found):
                return
            if not self._may_pass(problem):
                await self._retry(items, asking, found)
                return
            error = problem
            if tried >= tries and await self._is_sound():
                break
        if len(items) == 1:
            log.warning("a text is left to a later run: the server answers others, and not this one", error=str(error))
            found.postponed.append((items[0], str(error)))
            return
        for half in halve(items):
            problem = await self._attempt(half, asking, found)
            if problem is None or self._is_final(half, asking, problem, found):
                continue
            if self._may_pass(problem):
                # The server answers others: one more try for each part, or a batch would hold up the run for long.
                await self._outlast(half, asking, found, problem, tries=1)
            else:
                await self._retry(half, asking, found)

    async def _is_sound(self) -> bool:
        """Whether the server answers a known good text. Raises a BackendError that will not pass."""
        try:
            await self._embedder.check()
        except BackendError as error:
            if self._may_pass(error):
                return False
            raise
        self._note_answer()
        return True

    async def _pause(self, error: BackendError) -> None:
        """Wait before the server is asked again. Raises BackendBusy where it has answered nothing for too long."""
        asked = error.retry_after if isinstance(error, BackendBusy) else None
        seconds = max(asked or 0.0, min(self._first_pause * 2.0 ** min(self._refusals, 20), LONGEST_PAUSE))
        now = asyncio.get_running_loop().time()
        if not self._refusals:
            self._refused_since = now  # the time in which nobody asked it anything does not count
        refused_for = now - self._refused_since
        if seconds > LONGEST_ASKED:
            raise BackendBusy(
                f"the embedding server asks to be left alone for {seconds:.0f} s ({error}). "
                "What waits is kept, and the next run goes on with it"
            )
        if refused_for > max(self._patience, 3 * (asked or 0.0)):
            raise BackendBusy(
                f"the embedding server has answered nothing for {refused_for:.0f} s; it said last: {error}. "
                "What waits is kept, and the next run goes on with it"
            )
        self._refusals += 1
        why = f"the embedding server cannot answer now ({error}); it is asked again in {seconds:.0f} s"
        log.warning("the embedding server cannot answer now", error=str(error), again_in_seconds=round(seconds, 1))
        self._on_wait(why)
        await asyncio.sleep(seconds)

    async def _restart_after(self, error: BackendError) -> None:
        """Have a server ended that computes nothing any more."""
        if isinstance(error, BackendTimeout):
            await self._embedder.restart(str(error))

    async def _retry(self, items: Sequence[T], asking: _Asking[T, V], found: Outcome[T, V]) -> None:
        await self._embedder.ensure_ready()
        error = await self._attempt(items, asking, found)
        if error is None or self._is_final(items, asking, error, found):
            return
        if self._may_pass(error):
            await self._outlast(items, asking, found, error)
            return
        await self._restart_after(error)
        if len(items) > 1:
            for half in halve(items):
                await self._retry(half, asking, found)
            return
        await self._embedder.ensure_ready()
        await self._embedder.check()
        # The server is sound. One last try: whoever killed it before may have been a person.
        last = await self._attempt(items, asking, found)
        if last is None:
            return
        if self._may_pass(last):
            await self._outlast(items, asking, found, last)
            return
        log.warning("a text cannot be embedded", error=str(last))
        found.failures.append((items[0], str(last)))

    def _is_final(self, items: Sequence[T], asking: _Asking[T, V], error: BackendError, found: Outcome[T, V]) -> bool:
        if not (asking.refusal_is_final and len(items) == 1 and isinstance(error, BackendRefused)):
            return False
        found.failures.append((items[0], str(error)))
        return True


def _asks_for_rest(error: BackendError) -> bool:
    """Whether the server has too much to do, so that asking for the same in another form is no help."""
    return isinstance(error, BackendBusy) and (error.status == TOO_MANY or error.retry_after is not None)
