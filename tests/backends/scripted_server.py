"""A real HTTP server that does one scripted thing for each request it gets, the last one for ever."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Received:
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        packed = self.headers.get("content-encoding") == "gzip"
        payload: dict[str, Any] = json.loads(gzip.decompress(self.body) if packed else self.body)
        return payload


Act = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Scripted:
    url: str = ""
    received: list[Received] = field(default_factory=list)
    connections: int = 0


@contextlib.asynccontextmanager
async def scripted(*acts: Act) -> AsyncIterator[Scripted]:
    """Serve `acts` on loopback, one for each request."""
    seen = Scripted()
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
                request = Received(headers, await reader.readexactly(int(headers.get("content-length", 0))))
                seen.received.append(request)
                await acts[min(len(seen.received), len(acts)) - 1](request, writer)
                if writer.is_closing():
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    seen.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield seen
    finally:
        server.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await server.wait_closed()


async def send(writer: asyncio.StreamWriter, body: object, status: int = 200, headers: str = "") -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    writer.write(f"HTTP/1.1 {status} Status\r\n{headers}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    await writer.drain()


def entry(index: int, *numbers: float) -> dict[str, object]:
    return {"index": index, "embedding": base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()}


async def fine(request: Received, writer: asyncio.StreamWriter) -> None:
    """For input i the vector [i, 1], the entries in reverse order."""
    count = len(request.json()["input"])
    await send(writer, {"data": [entry(index, index, 1.0) for index in reversed(range(count))]})


def says(body: object, status: int = 200) -> Act:
    """Answer `body`, whatever was asked."""

    async def act(_: Received, writer: asyncio.StreamWriter) -> None:
        await send(writer, body, status)

    return act


async def reset(_: Received, writer: asyncio.StreamWriter) -> None:
    """Break the connection off."""
    writer.transport.abort()


async def hang(_: Received, __: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.sleep(60)


async def no_gzip(request: Received, writer: asyncio.StreamWriter) -> None:
    """As `fine`, but a compressed body is a broken one."""
    if "content-encoding" in request.headers:
        await send(writer, {"error": {"message": "cannot parse"}}, 400)
    else:
        await fine(request, writer)
