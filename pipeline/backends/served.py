"""What a model server of any kind has in common: its state, its address, its canary, and who may ask for vectors.

Knows no process; see `ModelServer` for one of ours and `RemoteServer` for somebody else's.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.backends.canary import generate_one_token
from pipeline.backends.embedder import ServerEmbedder
from pipeline.core.modes import Device, Slot

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from pipeline.backends.client import Timeouts
    from pipeline.backends.launch import BackendKind

T = TypeVar("T")


class BackendState(StrEnum):
    """How a server stands. failed: it did not start, or it died; `why_failed` says which."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"


class Served(ABC):
    """One model in one slot, over OpenAI's API.

    base_url: without `/v1`; None before the first start. load_seconds: of the last start. told: what
    the server said about itself. died: set when it is gone without being asked while it served; a
    start clears it. embedder: for whoever wants vectors of it while somebody else starts and stops it.
    """

    def __init__(self, slot: Slot, device: Device, kind: BackendKind, model_name: str, timeouts: Timeouts) -> None:
        self.slot = slot
        self.device = device
        self.kind = kind
        self.model_name = model_name
        self.state = BackendState.STOPPED
        self.died = asyncio.Event()
        self.why_failed: str | None = None
        self.base_url: str | None = None
        self.api_key: str | None = None
        self.load_seconds: float | None = None
        self.told: dict[str, Any] = {}
        self.embedder = ServerEmbedder(self, timeouts)
        self._moved = asyncio.Event()

    @property
    def alive(self) -> bool:
        """Whether it serves: ready, or draining."""
        return self.state in (BackendState.READY, BackendState.DRAINING)

    @property
    def recovers(self) -> bool:
        """Whether it may serve again without being asked here: it starts, or died and was not stopped."""
        return self.state not in (BackendState.STOPPED, BackendState.STOPPING)

    @property
    def pid(self) -> int | None:
        """Of the server's process; None where there is none of ours."""
        return None

    @property
    @abstractmethod
    def exit_story(self) -> str:
        """One sentence on how it stands or ended."""

    def pids(self) -> set[int]:
        """Of the server and all that it started, for as long as `stop` has not ended."""
        return set()

    @property
    def shows_work(self) -> bool:
        """Whether `worked` says that it computes."""
        return False

    def worked(self) -> float:
        """Processor seconds that it has used. Scans all processes."""
        return 0.0

    @abstractmethod
    async def prepare(self) -> None:
        """Make the next `start` short. What fails here is logged and costs nothing."""

    @abstractmethod
    async def launch(self) -> None:
        """Start its process, or let a prepared one go on; `start` then waits until it is ready. Raises as that."""

    @abstractmethod
    async def start(self) -> None:
        """Start it unless it runs, and wait until it is ready. Raises BackendStartFailed or ModelError."""

    @abstractmethod
    async def stop(self) -> None:
        """End it and all that it started, and wait until they are gone."""

    @abstractmethod
    async def kill(self, why: str) -> None:
        """End a server that hangs, as if it had died. why: what is said of its end: "it computed nothing for 60 s"."""

    @abstractmethod
    async def while_alive(self, call: Coroutine[Any, Any, T]) -> T:
        """What `call` gives; it is given up as soon as the server is gone. Raises BackendDied then."""

    async def canary(self) -> None:
        """Have it compute something small: one token, or the vector of a known good text.

        Raises a BackendError where that fails.
        """
        if self.slot is Slot.EMBEDDING:
            await self.embedder.check()
            return
        assert self.base_url is not None
        await self.while_alive(generate_one_token(self.base_url, self.api_key, self.model_name))

    def begin_drain(self) -> None:
        """Note that what is in flight ends and nothing new comes; `end_drain` takes it back."""
        if self.state is BackendState.READY:
            self._enter(BackendState.DRAINING)

    def end_drain(self) -> None:
        """Note that new requests come again."""
        if self.state is BackendState.DRAINING:
            self._enter(BackendState.READY)

    async def moved(self) -> None:
        """Wait until its state changes."""
        await self._moved.wait()

    def _enter(self, state: BackendState) -> None:
        self.state = state
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
