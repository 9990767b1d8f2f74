"""The server inside a loop that is not its own."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import structlog
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from pipeline.core.errors import UsageError
from pipeline.web.connection import Patience
from pipeline.web.serve import bind, most_connections, serving
from tests.web.waiting import until


def an_app(*, seconds: float = 0.0, breaks: bool = False) -> FastAPI:
    """An application that takes its time, or does not come up."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if breaks:
            raise ValueError("it does not come up")
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def slow() -> str:
        await asyncio.sleep(seconds)
        return "done"

    return app


async def test_signals_stay_with_whoever_has_them() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    async with serving(an_app(), bind("127.0.0.1", 0)):
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_requests_under_way_may_end_but_not_for_ever() -> None:
    async with httpx.AsyncClient() as client:
        async with serving(an_app(seconds=0.3), bind("127.0.0.1", 0), grace=3) as served:
            asked = asyncio.create_task(client.get(served.url))
            await asyncio.sleep(0.1)
        assert (await asked).text == '"done"'

        async with serving(an_app(seconds=60), bind("127.0.0.1", 0), grace=1) as served:
            asked = asyncio.create_task(client.get(served.url))
            await asyncio.sleep(0.1)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 2.5
        assert served.task.done()
        await asyncio.gather(asked, return_exceptions=True)


async def test_the_port_is_free_afterwards() -> None:
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with pytest.raises(UsageError, match=f"port {port}"):
        bind("127.0.0.1", port)
    async with serving(an_app(), listener) as served:
        assert served.url == f"http://127.0.0.1:{port}"
    bind("127.0.0.1", port).close()


async def test_an_application_that_does_not_come_up_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        async with serving(an_app(breaks=True), bind("127.0.0.1", 0)):
            pytest.fail("it came up")


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"192\.0\.2\.1"):
        bind("192.0.2.1", 0)


HEAD = b"POST /body HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n"
SHORT = Patience(head=0.3, body=0.3, least=1000, answer=60.0, idle=1.0)


def a_reader(disconnected: list[str]) -> FastAPI:
    """An application that reads a body, and one that answers for longer than anybody is waited for."""
    app = FastAPI()

    @app.post("/body")
    async def read(request: Request) -> int:
        try:
            return len(await request.body())
        finally:
            disconnected.append("ended")

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(5):
                await asyncio.sleep(0.3)
                yield b"data: x\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @app.get("/health")
    @app.get("/v1/models")
    async def health() -> str:
        return "well"

    return app


async def _talk(url: str, *parts: bytes, pause: float = 0.0) -> bytes:
    """All that the server sends until it closes the connection, which gets these parts."""
    reader, writer = await asyncio.open_connection(*_address(url))
    answered = asyncio.create_task(reader.read())
    try:
        for part in parts:
            writer.write(part)
            await asyncio.wait({answered}, timeout=pause)
            if answered.done():
                break
        return await answered
    except ConnectionError:
        return b""
    finally:
        writer.close()


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


@pytest.mark.parametrize(
    ("parts", "answer"),
    [
        ((), b""),
        ((b"GET / HT",), b"HTTP/1.1 408 "),
        ((*(b"GET / HTTP/1.1\r\nHost: h\r\n", *[b"X: y\r\n"] * 1000),), b"HTTP/1.1 408 "),
        ((HEAD,), b"HTTP/1.1 408 "),
        ((HEAD, *[b"x"] * 1000), b"HTTP/1.1 408 "),
        ((b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n",), b"HTTP/1.1 200 OK"),
        ((b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n", *[b"GET /"] * 2), b"HTTP/1.1 200 OK"),
    ],
    ids=["nothing", "half a head", "a trickled head", "no body", "a trickled body", "idle", "half a second head"],
)
async def test_who_keeps_the_server_waiting_is_closed(parts: tuple[bytes, ...], answer: bytes) -> None:
    ended: list[str] = []
    async with serving(a_reader(ended), bind("127.0.0.1", 0), patience=SHORT) as served:
        said = await _talk(served.url, *parts, pause=0.05)
        assert said.startswith(answer)
        assert said.count(b"HTTP/1.1 200") <= 1
        if HEAD in parts:
            await until(lambda: ended == ["ended"])


async def test_a_body_that_comes_at_a_pace_and_a_long_answer_are_not_cut() -> None:
    async with serving(a_reader([]), bind("127.0.0.1", 0), patience=SHORT) as served:

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(12):
                await asyncio.sleep(0.05)
                yield b"x" * 20_000

        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            read, streamed = await asyncio.gather(
                client.post(f"{served.url}/body", content=pieces()), client.get(f"{served.url}/stream")
            )
        assert read.json() == 240_000
        assert streamed.content.count(b"data: x") == 5


async def test_an_answer_that_nobody_takes_ends() -> None:
    gone = asyncio.Event()
    app = FastAPI()

    @app.get("/")
    async def endless() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                while True:
                    await asyncio.sleep(0)
                    yield b"x" * 1_000_000
            finally:
                gone.set()

        return StreamingResponse(pieces())

    patience = Patience(answer=0.3)
    async with serving(app, bind("127.0.0.1", 0), patience=patience) as served:
        _, writer = await asyncio.open_connection(*_address(served.url), limit=1)
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await gone.wait()
        writer.close()


async def test_who_waits_longest_without_a_request_makes_room() -> None:
    async with serving(a_reader([]), bind("127.0.0.1", 0), most=4) as served:
        hogs = [await asyncio.open_connection(*_address(served.url)) for _ in range(20)]
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            assert (await client.get(f"{served.url}/v1/models")).status_code == 200
        await asyncio.gather(*(reader.read() for reader, _ in hogs[:16]))
        for _, writer in hogs:
            writer.close()


async def test_the_host_can_be_managed_while_all_connections_are_at_work() -> None:
    held = asyncio.Event()
    app = a_reader([])

    @app.get("/v1/long")
    async def long() -> str:
        await held.wait()
        return "done"

    async with (
        serving(app, bind("127.0.0.1", 0), most=3) as served,
        httpx.AsyncClient(base_url=served.url, timeout=60, trust_env=False) as client,
    ):
        at_work = [asyncio.create_task(client.get("/v1/long")) for _ in range(3)]
        await asyncio.sleep(0.2)
        refused = await client.get("/v1/models")
        assert (refused.status_code, refused.headers["retry-after"], refused.headers["connection"]) == (
            503,
            "1",
            "close",
        )
        assert "3 connections are at work" in refused.json()["error"]["message"]
        assert (await client.get("/health")).status_code == 200
        held.set()
        assert [answer.json() for answer in await asyncio.gather(*at_work)] == ["done"] * 3


async def test_without_file_descriptors_it_waits_and_says_so_once() -> None:
    listener = bind("127.0.0.1", 0)
    clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = socket.socket()
    used = lowest.fileno()
    lowest.close()
    loop = asyncio.get_running_loop()
    with structlog.testing.capture_logs() as logged:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, limits[1]))
        try:
            async with serving(a_reader([]), listener, most=100):
                await until(lambda: bool(logged))
                began = time.process_time()
                await asyncio.sleep(2)
                assert time.process_time() - began < 1
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                for client in clients:
                    client.setblocking(False)
                    await loop.sock_sendall(client, b"GET /health HTTP/1.0\r\nHost: h\r\n\r\n")
                    assert (await loop.sock_recv(client, 1000)).startswith(b"HTTP/1.1 200")
                    client.close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [line["event"] for line in logged] == ["no connection can be taken; it is tried again"]


def test_connections_leave_file_descriptors_for_others() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, limits[1]))
        assert most_connections() == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert 8 <= most_connections() <= 1000
