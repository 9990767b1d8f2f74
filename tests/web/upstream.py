"""A backend that does what a test tells it to, down to the bytes on the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
CORS = b"Access-Control-Allow-Origin: *\r\nServer: llama.cpp\r\nX-Upstream: kept\r\nSet-Cookie: a=b\r\n"


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came. headers: names in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


class Connection:
    """The backend's end of a request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Raw bytes."""
        self._writer.write(data)
        await self._writer.drain()

    async def start_stream(self) -> None:
        """The head of a stream, as llama-server sends it."""
        await self.send(HEAD + CORS + b"\r\n")

    async def chunk(self, data: bytes) -> None:
        """One HTTP chunk; an empty one ends the answer."""
        await self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def answer(self, body: bytes, *, status: str = "200 OK", headers: str = "") -> None:
        """A whole answer."""
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        await self.send(head.encode() + CORS[:0] + body)

    async def disconnected(self) -> None:
        """Wait until the other end hangs up."""
        await self._reader.read()

    def die(self) -> None:
        """End the connection as a process that was killed does."""
        self._writer.transport.abort()


Behaviour = Callable[[Received, Connection], Awaitable[None]]


async def echo(request: Received, connection: Connection) -> None:
    """Answer with what came."""
    shown = {"path": request.path, "headers": request.headers, "body": request.body.decode("latin-1")}
    await connection.answer(json.dumps(shown).encode())


@dataclass(slots=True)
class Upstream:
    """A backend on loopback. gone: set when a client hung up on a behaviour that waits for that."""

    url: str = ""
    behave: Behaviour = echo
    received: list[Received] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one connection, one after the other."""
        try:
            while request := await _read(reader):
                self.received.append(request)
                await self.behave(request, Connection(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone.set()
        finally:
            writer.close()

    async def hang(self, _: Received, connection: Connection) -> None:
        """Say nothing until the client goes."""
        await connection.disconnected()
        self.gone.set()


@asynccontextmanager
async def running() -> AsyncIterator[Upstream]:
    """A backend that listens."""
    upstream = Upstream()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await upstream.handle(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(first.split(" ")[1], headers, body)
