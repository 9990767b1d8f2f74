"""The server inside a loop that is not its own."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from pipeline.core.errors import UsageError
from pipeline.web.serve import bind, serving


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
