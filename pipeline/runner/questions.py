"""A server for questions, by day: small, on the processor, and there only while somebody asks.

The first question starts it and all share it; whoever owns it has it ended when nobody asks any more (`review`).
One that dies is started again by the next question. Knows no mode and no slot: whether the embedding slot could
answer is its owner's to see, before it asks here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from pipeline.backends.embedding import EmbeddingBackend
from pipeline.backends.orphans import ChildRegistry
from pipeline.core.errors import BackendDied, BackendStartFailed, BackendTimeout, NightshiftError, WaitingFull
from pipeline.core.modes import Slot
from pipeline.runner.question import file_of, small, too_long_explained
from pipeline.runner.target import embedding_options, pooling_of, timeouts
from pipeline.settings import Settings
from pipeline.store import models
from pipeline.store.database import Database
from pipeline.store.models import StoredModel

log = structlog.get_logger(__name__)

MOST_QUESTIONS = 64
"""Questions that may be under way; more are turned away rather than kept waiting."""

ATTEMPTS = 3
"""Times that a question is asked whose server dies: another one's may be to blame."""

PAUSES = (5.0, 15.0, 60.0, 300.0)
"""Seconds after each start in a row that failed in which no other is tried."""

DRAIN = 5.0
"""Seconds that questions under way have when the server is ended."""


@dataclass(frozen=True, slots=True)
class QuestionState:
    """How the server stands. model: the name of its model. asking: questions under way. starts, answered: so far."""

    state: Literal["stopped", "starting", "ready", "stopping", "failed"]
    model: str | None
    pid: int | None
    asking: int
    starts: int
    answered: int
    why_failed: str | None


@dataclass(frozen=True, slots=True)
class _Serving:
    model: StoredModel
    backend: EmbeddingBackend


@dataclass(frozen=True, slots=True)
class _Failed:
    """Starts in a row that failed. until: by the monotonic clock, when the next may be tried."""

    model: StoredModel
    why: str
    starts: int
    until: float


class QuestionServer:
    """Vectors of questions, by a server that comes and goes.

    registry: notes its process, so that a later daemon finds one that this one left. idle: seconds without a
    question after which `review` ends it.
    """

    def __init__(self, settings: Settings, store: Database, registry: ChildRegistry | None = None) -> None:
        self._settings = settings
        self._store = store
        self._registry = registry
        self._serving: _Serving | None = None
        self._starting: StoredModel | None = None
        self._failed: _Failed | None = None
        self._hanging: EmbeddingBackend | None = None
        self._coming: EmbeddingBackend | None = None
        self._closed = self._ending = False
        self._changing = asyncio.Lock()
        self._asking = self._using = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._last_asked = time.monotonic()
        self._starts = self._answered = 0

    def state(self) -> QuestionState:
        """As it is now, from memory."""
        serving, failed = self._serving, self._failed
        alive = serving is not None and serving.backend.alive
        model = self._starting or (serving.model if serving and alive else failed.model if failed else None)
        return QuestionState(
            state=self._state_name(alive=alive),
            model=model.name if model else None,
            pid=serving.backend.info.pid if serving and alive else None,
            asking=self._asking,
            starts=self._starts,
            answered=self._answered,
            why_failed=failed.why if failed else None,
        )

    def _state_name(self, *, alive: bool) -> Literal["stopped", "starting", "ready", "stopping", "failed"]:
        if self._starting:
            return "starting"
        if self._ending:
            return "stopping"
        return "ready" if alive else "failed" if self._failed else "stopped"

    @property
    def running(self) -> bool:
        """Whether there is a process to look after."""
        return self._serving is not None

    async def embed(self, model: StoredModel, text: str) -> NDArray[np.float32]:
        """The unit vector, float32[d], of `text`.

        Raises:
            WaitingFull: enough questions are under way.
            ModelError: the model's file is no longer there, or is another now.
            BackendStartFailed: its server does not start, or did not a moment ago.
            UsageError: the question is too long for the model.
            BackendError: it gave no vector.
        """
        if self._asking >= MOST_QUESTIONS:
            raise WaitingFull(Slot.EMBEDDING.value, MOST_QUESTIONS)
        self._asking += 1
        try:
            vector = await self._embed(model, text)
        finally:
            self._asking -= 1
            self._last_asked = time.monotonic()
        self._answered += 1
        return vector

    async def review(self, wanted: str | None) -> None:
        """End the server where nobody asks any more.

        wanted: the fingerprint of the model that questions will be put to here; None where they are put elsewhere.
        """
        if self._why_end(wanted) is None:
            return
        async with self._changing:
            why = self._why_end(wanted)  # somebody may have asked while the lock was waited for
            if why is not None:
                await self._end(why)

    async def stop(self) -> None:
        """End the server, also one that starts, and wait until it is gone. There will be no other."""
        self._closed = True
        if self._coming is not None:
            await self._coming.stop()
        async with self._changing:
            await self._end("the daemon stops")

    def _why_end(self, wanted: str | None) -> str | None:
        serving = self._serving
        if serving is None:
            return None
        if not serving.backend.alive:
            return "it died"
        if serving.backend is self._hanging:
            return "it does not answer"
        if serving.model.fingerprint != wanted:
            return "questions are answered elsewhere"
        silent = not self._asking and time.monotonic() - self._last_asked >= self._settings.search.idle
        return "nobody asks any more" if silent else None

    async def _embed(self, model: StoredModel, text: str) -> NDArray[np.float32]:
        for attempt in range(1, ATTEMPTS + 1):
            async with self._server(model) as backend:
                try:
                    with too_long_explained():
                        vectors: NDArray[np.float32] = await backend.embed([text])
                except BackendDied:
                    if attempt == ATTEMPTS:
                        raise
                    continue
                except BackendTimeout:
                    self._hanging = backend
                    raise
                return np.asarray(vectors[0], np.float32)
        raise AssertionError("the last attempt answers or raises")

    @asynccontextmanager
    async def _server(self, model: StoredModel) -> AsyncIterator[EmbeddingBackend]:
        """The server of a model, started if need be; it is not ended while it is used, but for DRAIN seconds."""
        async with self._changing:
            backend = await self._ready(model)
            self._using += 1
            self._quiet.clear()
        try:
            yield backend
        finally:
            self._using -= 1
            if not self._using:
                self._quiet.set()

    async def _ready(self, model: StoredModel) -> EmbeddingBackend:
        """Under the lock."""
        serving = self._serving
        if serving is not None and (serving.model.fingerprint != model.fingerprint or serving.backend is self._hanging):
            await self._end("another model is asked for, or it does not answer")
            serving = None
        if serving is not None and serving.backend.alive:
            return serving.backend
        if self._closed:
            raise BackendStartFailed("the daemon stops: questions are not embedded any more")
        failed = self._failed if self._failed and self._failed.model.fingerprint == model.fingerprint else None
        left = failed.until - time.monotonic() if failed else 0.0
        if failed is not None and left > 0:
            raise BackendStartFailed(f"questions cannot be embedded; that is tried again in {left:.0f} s: {failed.why}")
        self._starting = model
        try:
            # One that died is started anew as it is: it knows of what it died.
            backend = self._coming = serving.backend if serving is not None else await self._make(model)
            await self._start(model, backend, failed)
        finally:
            self._starting = self._coming = None
        return backend

    async def _make(self, model: StoredModel) -> EmbeddingBackend:
        settings = self._settings
        known = await self._store.read(models.known_fingerprints)
        file = await asyncio.to_thread(file_of, settings, model, known)
        return EmbeddingBackend(
            small(replace(embedding_options(settings, str(file.path)), pooling=pooling_of(model))),
            file,
            settings.data_dir / "logs",
            name="questions",
            registry=self._registry,
            timeouts=timeouts(settings),
        )

    async def _start(self, model: StoredModel, backend: EmbeddingBackend, failed: _Failed | None) -> None:
        try:
            await backend.start()
        except NightshiftError as error:
            starts = failed.starts + 1 if failed else 1
            pause = PAUSES[min(starts, len(PAUSES)) - 1]
            self._serving = None
            self._failed = _Failed(model, str(error), starts, time.monotonic() + pause)
            log.warning("the server for questions did not start", model=model.name, pause=pause, error=str(error))
            raise
        self._starts += 1
        self._failed = None
        self._serving = _Serving(model, backend)

    async def _end(self, why: str) -> None:
        """Under the lock."""
        serving = self._serving
        if serving is None:
            return
        if serving.backend.alive:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), DRAIN)
        self._ending = True
        try:
            await serving.backend.stop()
        finally:
            self._ending = False
        self._serving = self._hanging = None
        log.info("the server for questions was ended", model=serving.model.name, why=why)
