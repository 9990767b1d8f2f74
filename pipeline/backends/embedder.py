"""Vectors from a model server that somebody else starts and stops.

A server that dies is restarted by whoever watches over it; `ensure_ready` waits for that, and
gives up at once where the server was stopped on purpose.

A server of our own tells how much it has computed. It is asked once a second while a request is under way, and may
take as long as it needs while that number moves. Only one whose number stands still is given up.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from pipeline.backends.client import EmbeddingClient, Timeouts
from pipeline.core.engine_stats import EngineStats, RunningTotal
from pipeline.core.errors import (
    BackendDied,
    BackendError,
    BackendRefused,
    BackendStartFailed,
    BackendTimeout,
    BadAnswer,
)
from pipeline.core.vectors import normalise

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from pipeline.core.vectors import Matrix

T = TypeVar("T")

PATIENCE = 10
"""How many times as long as others a request for whole documents may take, at a server that tells no progress."""

LOOK_SECONDS = 1.0
"""Between two looks at how much a server has computed."""

IDLE = 0.05
"""Processor seconds a second that a server may use though it computes nothing."""

REFUSED_KEY = (401, 403)

CANARY = "The night shift begins when the last lamp in the office goes out."
RESTART_SECONDS = 300.0
"""How long a server that died may take until it serves again: its load, and the pauses between attempts."""


class VectorServer(Protocol):
    """The server's side: see `pipeline.backends.server.ModelServer`."""

    model_name: str
    base_url: str | None
    api_key: str | None

    @property
    def told(self) -> Mapping[str, Any]:
        """What it said about itself; `dimension`, where it did."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it serves."""
        ...

    @property
    def exit_story(self) -> str:
        """How its process stands or ended."""
        ...

    @property
    def recovers(self) -> bool:
        """Whether it may come to serve without being asked by us: it starts, or it failed and is watched over."""
        ...

    @property
    def shows_work(self) -> bool:
        """Whether `worked` says that it computes: it is ours, and on the processor."""
        ...

    def worked(self) -> float:
        """Processor seconds that it has used. Scans all processes."""
        ...

    async def while_alive(self, call: Coroutine[Any, Any, T]) -> T:
        """What `call` gives, or BackendDied as soon as the process is gone."""
        ...

    async def moved(self) -> None:
        """Wait until its state changes."""
        ...

    async def kill(self, why: str) -> None:
        """End it as if it had died. why: what is said of its end: "it computed nothing for 60 s"."""
        ...


class ServerEmbedder:
    """Texts or token ids in, vectors out; satisfies `pipeline.ingest.embedding.Embedder`.

    theirs: somebody else runs the server, and we can only ask it.
    restart_seconds: how long `ensure_ready` waits for a server that died to be brought back.
    gzip_above: bodies of more bytes are compressed; None for none, as on loopback it costs more than it saves.
    backoff: seconds before a request is sent again whose connection broke; doubled for each further one.
    """

    def __init__(
        self,
        server: VectorServer,
        timeouts: Timeouts = Timeouts(),  # noqa: B008  frozen
        *,
        theirs: bool = False,
        restart_seconds: float = RESTART_SECONDS,
        gzip_above: int | None = None,
        backoff: float = 1.0,
    ) -> None:
        self._server = server
        self._backoff = backoff
        self.theirs = theirs
        self._gzip_above = gzip_above
        self._timeouts = timeouts
        self._restart_seconds = restart_seconds
        self._clients: dict[bool, EmbeddingClient] = {}
        self._connected_to: tuple[str | None, str | None] = (None, None)
        self._seen = RunningTotal()
        self._asking = 0
        self._looking: asyncio.Task[None] | None = None

    @property
    def told(self) -> Mapping[str, Any]:
        """What the server said about itself when it became ready, such as its `device` and its `build`."""
        return self._server.told

    async def embed(self, inputs: Sequence[Sequence[int]] | Sequence[str]) -> Matrix:
        """Unit vectors float32 [n, dimension] of texts or token ids, in their order.

        Raises BackendDied at once when the server dies, BackendTimeout where it computes nothing any more,
        BackendRefused (an input that is too long, or has no finite vector), BackendBusy, or BadAnswer.
        """
        client = await self._connected()
        return self._checked(await self._answer(client.embed(inputs)))

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that the server computes whole; None where it did not say."""
        told = self._server.told.get("longest")
        return told if isinstance(told, int) else None

    @property
    def contexts(self) -> int:
        """Batches that the server computes side by side; 1 where it did not say."""
        told = self._server.told.get("contexts")
        return told if isinstance(told, int) and told > 0 else 1

    @property
    def computed(self) -> float:
        """Tokens computed by this server and those before it, at the last look. It moves while a request is answered.

        0.0 for a server that does not tell.
        """
        return self._seen.total.computed

    async def embed_whole(self, inputs: Sequence[Sequence[int]]) -> Matrix:
        """Unit vectors float32 [n, dimension] of texts that may be long, which may take longer. Raises as `embed`."""
        client = await self._connected(patient=True)
        return self._checked(await self._answer(client.embed(inputs)))

    async def embed_spans(
        self, inputs: Sequence[Sequence[int]], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> list[Matrix]:
        """For each input the unit vectors float32 [n, dimension] of the token vectors' means in its spans.

        As patient as `embed_whole`. Raises as `embed`; BackendRefused by a server that is not our own.
        """
        client = await self._connected(patient=True)
        found = await self._answer(client.embed_spans(inputs, spans))
        return [self._checked(vectors) for vectors in found]

    async def _answer(self, call: Coroutine[Any, Any, T]) -> T:
        """What `call` gives; it is given up when the server dies, or computes nothing for `Timeouts.read` seconds."""
        if not self._shows_progress:
            return await self._server.while_alive(call)
        calling = asyncio.create_task(self._server.while_alive(call), name="ask for vectors")
        self._asking += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_on(), name="look at the model server")
        looking = self._looking
        try:
            await asyncio.wait({calling, looking}, return_when=asyncio.FIRST_COMPLETED)
            if calling.done():
                return calling.result()
            looking.result()
            raise BackendTimeout(f"the embedding server computed nothing for {self._timeouts.read:g} s")
        finally:
            self._asking -= 1
            if (looking.done() or not self._asking) and self._looking is looking:
                self._looking = None
                looking.cancel()
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)

    async def _look_on(self) -> None:
        """Look at what the server has computed, again and again; returns when that has stood still for too long."""
        if not self._server.told.get("counts"):
            await self._look_at_its_work()
            return
        loop = asyncio.get_running_loop()
        since, before = loop.time(), self.computed
        while loop.time() - since < self._timeouts.read:
            await asyncio.sleep(min(LOOK_SECONDS, self._timeouts.read / 4))
            try:
                async with asyncio.timeout(max(LOOK_SECONDS, self._timeouts.read / 4)):
                    stats = await self.stats()
            except (BackendError, TimeoutError):
                continue  # it does not even answer that, or is gone, which whoever waits hears by itself
            if stats is not None:
                self._seen = self._seen.seen(self._connected_to, stats)
            if self.computed != before:
                since, before = loop.time(), self.computed

    async def _look_at_its_work(self) -> None:
        """The same of a server that does not count: it computes as long as it uses the processor."""
        loop = asyncio.get_running_loop()
        since = looked = loop.time()
        before = await asyncio.to_thread(self._server.worked)
        while loop.time() - since < self._timeouts.read:
            await asyncio.sleep(min(LOOK_SECONDS, self._timeouts.read / 4))
            worked, now = await asyncio.to_thread(self._server.worked), loop.time()
            if worked - before > IDLE * (now - looked):
                since = now
            before, looked = worked, now

    @property
    def _shows_progress(self) -> bool:
        """Whether it can be seen that the server computes: then no time limits a request."""
        return bool(self._server.told.get("counts")) or self._server.shows_work

    def _checked(self, vectors: Matrix) -> Matrix:
        dimension = self._server.told.get("dimension")
        if dimension is not None and vectors.shape[1] != dimension:
            raise BadAnswer(f"vectors have {vectors.shape[1]} numbers, not {dimension}")
        return normalise(vectors)

    async def check(self) -> None:
        """Embed a known good text. Raises a BackendError where that fails."""
        try:
            vector = (await self.embed([CANARY]))[0]
        except BackendRefused as error:
            if not self.theirs:
                raise
            key = ": set embedding.api_key to one that it takes" if error.status in REFUSED_KEY else ""
            raise BackendRefused(
                error.status,
                f"the embedding server at {self._server.base_url} refuses any text: HTTP {error.status}: {error}{key}",
            ) from error
        if not np.isclose(float(np.linalg.norm(vector)), 1.0, atol=1e-3):
            raise BadAnswer("the reference vector has the wrong length")

    async def stats(self) -> EngineStats | None:
        """What the engine counted since its server started; None where it does not live, or counts nothing.

        Raises BackendDied, BackendTimeout, BackendRefused or BadAnswer.
        """
        if not self._server.alive or not self._server.told.get("counts"):
            return None
        client = await self._connected()
        told = await self._server.while_alive(client.fetch("/stats"))
        try:
            return EngineStats.from_json(told)
        except (KeyError, TypeError, ValueError) as error:
            raise BadAnswer(f"the server's counters make no sense: {error!r}") from error

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, by a server that has `/tokenize`. Raises as `stats`."""
        client = await self._connected()
        told = await self._server.while_alive(client.fetch("/tokenize", {"content": text, "add_special": True}))
        try:
            return [int(token) for token in told["tokens"]]
        except (KeyError, TypeError, ValueError) as error:
            raise BadAnswer(f"the answer is no list of tokens: {error!r}") from error

    async def ensure_ready(self) -> None:
        """Wait until the server serves. Raises BackendStartFailed where it was stopped, or does not come back."""
        try:
            async with asyncio.timeout(self._restart_seconds):
                while not self._server.alive:
                    if not self._server.recovers:
                        raise BackendStartFailed("the embedding server was stopped")
                    await self._server.moved()
        except TimeoutError as error:
            raise BackendStartFailed(
                f"the embedding server did not come back in {self._restart_seconds:g} s"
            ) from error

    async def restart(self, why: str) -> None:
        """Have a server that lives but computes nothing ended, and wait for the next. Raises as `ensure_ready`.

        why: what is said of its end.
        """
        if self._server.alive:
            await self._server.kill(why)
        await self.ensure_ready()

    async def disconnect(self) -> None:
        """Close the connections. A later call opens new ones."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.aclose()

    async def _connected(self, *, patient: bool = False) -> EmbeddingClient:
        server = self._server
        if not server.alive or server.base_url is None:
            raise BackendDied(server.exit_story)
        address = (server.base_url, server.api_key)
        if self._connected_to != address:
            await self.disconnect()
            self._connected_to = address
        timed = not self._shows_progress
        patient = patient and timed
        if patient not in self._clients:
            most = PATIENCE * self._timeouts.total
            self._clients[patient] = EmbeddingClient(
                server.base_url,
                api_key=server.api_key,
                model=server.model_name,
                timeouts=Timeouts(self._timeouts.connect, most, most) if patient else self._timeouts,
                gzip_above=self._gzip_above,
                backoff=self._backoff,
                may_retry=lambda: server.alive,
                trust_env=False,
                timed=timed,
            )
        return self._clients[patient]
