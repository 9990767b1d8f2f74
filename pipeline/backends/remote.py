"""A model server that somebody else runs: nothing to load and nothing to end, only to be asked whether it is there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import structlog

from pipeline.backends.client import GZIP_ABOVE, Timeouts
from pipeline.backends.embedder import ServerEmbedder
from pipeline.backends.served import BackendState, Served
from pipeline.core.errors import BackendBusy, BackendDied, BackendStartFailed
from pipeline.core.modes import Device, Slot

if TYPE_CHECKING:
    from collections.abc import Coroutine

log = structlog.get_logger(__name__)

T = TypeVar("T")

HEALTH_PATHS = ("/health", "/v1/models")
"""Asked in this order; OpenAI's API itself has the second only."""

RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 5.0
"""Between two questions whether it is there: the first pause, which doubles up to the second."""

REFUSALS = ("HTTP 401", "HTTP 403")
"""How it begins that a server refuses the key."""

BUSY_STATUSES = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
"""What a server answers that is there and takes nothing now: whoever embeds waits for it."""

_BUSY = tuple(f"HTTP {status.value}" for status in BUSY_STATUSES)

REQUEST_SECONDS = 10.0


class RemoteServer(Served):
    """An OpenAI-compatible server at `base_url`, without `/v1`.

    start_stall: seconds that `start` waits for it to answer. trust_env: whether proxies are taken
    from the environment. gzip: whether large request bodies are compressed.
    """

    def __init__(
        self,
        slot: Slot,
        base_url: str,
        model_name: str,
        *,
        api_key: str | None = None,
        start_stall: float = 30.0,
        trust_env: bool = True,
        gzip: bool = False,
        timeouts: Timeouts = Timeouts(),  # noqa: B008  frozen
    ) -> None:
        super().__init__(slot, Device.CPU, "remote", model_name, timeouts)
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self.api_key = api_key
        self._start_stall = start_stall
        self._trust_env = trust_env
        self.embedder = ServerEmbedder(self, timeouts, theirs=True, gzip_above=GZIP_ABOVE if gzip else None)

    @property
    def exit_story(self) -> str:
        """See `Served`."""
        return self.why_failed or f"the {self.slot.value} server at {self.base_url} is not in use"

    async def prepare(self) -> None:
        """Nothing: it is not ours."""

    async def launch(self) -> None:
        """Nothing: it is not ours."""
        if not self.alive:
            self._enter(BackendState.STARTING)

    async def start(self) -> None:
        """Wait until it answers. Raises BackendStartFailed where it does not in time, or refuses the key.

        An embedding server that is still busy then counts as ready: a run waits for it, for as long as it takes.
        """
        if self.alive:
            return
        self.why_failed = None
        self.died.clear()
        self._enter(BackendState.STARTING)
        loop = asyncio.get_running_loop()
        began, pause = loop.time(), RETRY_SECONDS
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        assert self.base_url is not None
        try:
            async with httpx.AsyncClient(
                base_url=self.base_url, headers=headers, timeout=REQUEST_SECONDS, trust_env=self._trust_env
            ) as client:
                while (problem := await _problem(client)) != "":
                    if loop.time() - began >= self._start_stall:
                        break
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_RETRY_SECONDS)
        except UNUSABLE as error:
            first = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
            problem = str(first) or type(first).__name__
        if problem and not (self.slot is Slot.EMBEDDING and problem.startswith(_BUSY)):
            key = f": set {self.slot.value}.api_key to one that it takes" if problem.startswith(REFUSALS) else ""
            self.why_failed = f"the {self.slot.value} server at {self.base_url} is not ready: {problem}{key}"
            self._enter(BackendState.FAILED)
            raise BackendStartFailed(self.why_failed)
        self.load_seconds = loop.time() - began
        self._enter(BackendState.READY)
        log.info("A remote model server is ready", slot=self.slot.value, url=self.base_url)

    async def canary(self) -> None:
        """See `Served`. An embedding server that is only busy passes."""
        try:
            await super().canary()
        except BackendBusy as error:
            if self.slot is not Slot.EMBEDDING or error.status not in BUSY_STATUSES:
                raise
            log.warning("A remote embedding server is busy; runs wait for it", url=self.base_url, error=str(error))

    async def stop(self) -> None:
        """Use it no more."""
        await self.embedder.disconnect()
        self.why_failed = None
        self._enter(BackendState.STOPPED)

    async def kill(self, why: str) -> None:
        """Nothing: a server that hangs is for its own people to end."""

    async def while_alive(self, call: Coroutine[Any, Any, T]) -> T:
        """What `call` gives: the connection says when it is gone."""
        if not self.alive:
            call.close()
            raise BackendDied(self.exit_story)
        return await call


UNUSABLE = (httpx.InvalidURL, ImportError, OSError, ValueError, OverflowError, ExceptionGroup)
"""What an address, or a proxy or certificates that the environment names, may be wrong by: no second try helps."""


async def _problem(client: httpx.AsyncClient) -> str:
    """What keeps the server from being ready; empty for nothing."""
    problem = ""
    for path in HEALTH_PATHS:
        try:
            status = (await client.get(path)).status_code
        except httpx.RequestError as error:
            return str(error) or type(error).__name__
        if status == httpx.codes.OK:
            return ""
        problem = f"HTTP {status} for {path}"
    return problem
