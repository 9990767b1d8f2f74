"""The application on a real socket, before a backend on another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from pipeline.core.modes import Mode
from pipeline.web.app import create_app
from pipeline.web.metrics import Metrics
from pipeline.web.options import WebOptions
from pipeline.web.serve import bind, serving
from tests.web.upstream import Upstream, running
from tests.web.world import World


@dataclass(frozen=True, slots=True)
class Gateway:
    """The running application and what is around it. http: a client of its own, without a key."""

    url: str
    http: httpx.AsyncClient
    world: World
    upstream: Upstream
    metrics: Metrics
    app: FastAPI


Start = Callable[[WebOptions], Awaitable[Gateway]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts the application with the options of a test."""
    async with AsyncExitStack() as opened:

        async def begin(options: WebOptions) -> Gateway:
            upstream = await opened.enter_async_context(running())
            world = World(upstream.url, tmp_path)
            world.enter(Mode.MIXED)
            metrics = Metrics()
            app = create_app(world.services(), options, metrics)
            served = await opened.enter_async_context(serving(app, bind("127.0.0.1", 0), grace=1.0))
            http = await opened.enter_async_context(httpx.AsyncClient(base_url=served.url, timeout=10, trust_env=False))
            return Gateway(served.url, http, world, upstream, metrics, app)

        yield begin


@dataclass(frozen=True, slots=True)
class Api:
    """The application without a socket, for what needs none. http: a client of it."""

    http: httpx.AsyncClient
    world: World
    metrics: Metrics
    app: FastAPI


Build = Callable[[WebOptions], Api]


@pytest.fixture
async def build(tmp_path: Path) -> AsyncIterator[Build]:
    """Makes the application with the options of a test."""
    async with AsyncExitStack() as opened:

        def begin(options: WebOptions) -> Api:
            world = World("http://127.0.0.1:9", tmp_path)
            world.enter(Mode.MIXED)
            metrics = Metrics()
            app = create_app(world.services(), options, metrics)
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080")
            opened.push_async_callback(http.aclose)
            return Api(http, world, metrics, app)

        yield begin


@pytest.fixture
def api(build: Build) -> Api:
    """The same, as it comes: bound to loopback, without a key."""
    return build(WebOptions())


@pytest.fixture
async def gateway(start: Start) -> Gateway:
    """The application as it comes: bound to loopback, without a key."""
    return await start(WebOptions(connect_timeout=1.0, read_timeout=5.0))
