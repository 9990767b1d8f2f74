"""The HTTP server inside the program's own loop: no signals of its own, and an end within a bound."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI

from pipeline.core.errors import UsageError

_BACKLOG = 2048
_KEEP_ALIVE = 75.0


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that takes requests. url: where, without a path. task: ends only when asked; else it failed."""

    url: str
    task: asyncio.Task[None]


class _Server(uvicorn.Server):
    """uvicorn, minding its own business."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to whoever runs the loop."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests, and say so."""
        try:
            await super().startup(sockets)
        except SystemExit as error:
            raise RuntimeError("the application did not start") from error
        self.up.set()


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


@asynccontextmanager
async def serving(app: FastAPI, listener: socket.socket, *, grace: float = 5.0) -> AsyncIterator[Serving]:
    """Serve `app` on a bound socket until the block ends; requests under way then have `grace` seconds to end.

    Raises:
        RuntimeError: the application did not start; its log says why.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(_KEEP_ALIVE),
        timeout_graceful_shutdown=max(1, round(grace)),
        backlog=_BACKLOG,
    )
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server = _Server(config)
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
