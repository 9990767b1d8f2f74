"""The HTTP server inside the program's own loop: no signals of its own, and an end within a bound.

Connections are taken here and not by asyncio, whose own loop writes a line for each that fails and tries the next at
once: where file descriptors are used up, that is thousands of lines a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import uvicorn
from fastapi import FastAPI

from pipeline.core.errors import UsageError
from pipeline.web.connection import Connection, Patience
from pipeline.web.errors import answer

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

log = structlog.get_logger(__name__)

MOST_CONNECTIONS = 1000
"""Open at the same time. Fewer where a quarter of the file descriptors is less: a run, the database, the connections
to model servers and their processes need some too."""

FOR_USE = ("/v1", "/embed", "/api/search", "/api/documents")
"""What is refused where all connections are at work; the rest manages the host, and is answered by the reserve."""

_BACKLOG = 128
_PAUSE = 1.0
_SAY_AGAIN = 60.0


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that takes requests. url: where, without a path. task: ends only when asked; else it failed."""

    url: str
    task: asyncio.Task[None]


class _Server(uvicorn.Server):
    """uvicorn, minding its own business. most: connections at the same time, besides a reserve."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, most: int, patience: Patience) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.most = most
        self._listener = listener
        self._reserve = max(2, most // 16)
        self._patience = patience
        self._connections: set[Connection] = self.server_state.connections  # type: ignore[assignment]  # all are ours
        self._said = float("-inf")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to whoever runs the loop."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests, and say so."""
        try:
            await super().startup([])
        except SystemExit as error:
            raise RuntimeError("the application did not start") from error
        self.up.set()

    async def main_loop(self) -> None:
        """Take connections until it is time to stop."""
        accepting = asyncio.create_task(self._accept(), name="take connections")
        accepting.add_done_callback(lambda _: setattr(self, "should_exit", True))
        try:
            await super().main_loop()
        finally:
            accepting.cancel()
            await asyncio.wait({accepting})
        if not accepting.cancelled():
            accepting.result()

    @property
    def crowded(self) -> bool:
        """Whether more connections are at work than may be."""
        return len(self._connections) > self.most

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                taken, _ = await loop.sock_accept(self._listener)
                _, newest = await loop.connect_accepted_socket(self._connection, taken)
            except OSError as error:
                self._say("no connection can be taken; it is tried again", error.strerror or str(error))
                self._close_one(None)
                await asyncio.sleep(_PAUSE)
                continue
            while self.crowded and self._close_one(newest):
                pass
            while len(self._connections) >= self.most + self._reserve and not self._close_one(None):
                self._say("all connections are at work; others wait", f"{len(self._connections)} are open")
                await asyncio.sleep(_PAUSE / 10)

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state, self._patience)

    def _close_one(self, newest: Connection | None) -> bool:
        """Close the connection that is missed least, not `newest`; returns whether there is one."""
        found = [(key, one) for one in self._connections if one is not newest and (key := one.closable) is not None]
        if found:
            min(found, key=lambda pair: pair[0])[1].close()
        return bool(found)

    def _say(self, what: str, why: str) -> None:
        now = time.monotonic()
        if now - self._said >= _SAY_AGAIN:
            self._said = now
            log.warning(what, why=why, connections=len(self._connections))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket at a name or address; port 0 is a free one.

    Raises:
        UsageError: the address is none of this machine's, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"{host} is no address to listen on: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def most_connections() -> int:
    """How many connections may be open at the same time, by the limit on file descriptors as it is now."""
    return max(8, min(MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


@asynccontextmanager
async def serving(
    app: FastAPI,
    listener: socket.socket,
    *,
    grace: float = 5.0,
    most: int | None = None,
    patience: Patience = Patience(),  # noqa: B008  frozen
) -> AsyncIterator[Serving]:
    """Serve `app` on a bound socket until the block ends; requests under way then have `grace` seconds to end.

    most: connections at the same time, as the file descriptors allow where left out.

    Raises:
        RuntimeError: the application did not start; its log says why.
    """

    async def with_a_limit(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and server.crowded and scope["path"].startswith(FOR_USE):
            headers = {"Retry-After": "1", "Connection": "close"}
            message = f"{server.most} connections are at work, and there may be no more; try again"
            await answer(scope["path"], 503, message, headers)(scope, receive, send)
            return
        await app(scope, receive, send)

    # Requests that are none would fill the disk with its lines; and what fails in the application is logged there.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        with_a_limit,
        http="h11",
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, round(patience.idle)),
        timeout_graceful_shutdown=max(1, round(grace)),
    )
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server = _Server(config, listener, most or most_connections(), patience)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http server")
    up = asyncio.create_task(server.up.wait(), name="wait for the http server")
    try:
        await asyncio.wait({task, up}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            raise RuntimeError("the HTTP server ended before it began")
        yield Serving(url, task)
    finally:
        up.cancel()
        server.should_exit = True
        # Whatever goes wrong in the end must not keep the port, nor hide the reason for the end.
        await asyncio.wait({task}, timeout=grace + 5.0)
        task.cancel()
        await asyncio.gather(task, up, return_exceptions=True)
        listener.close()
