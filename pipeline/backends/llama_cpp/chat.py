"""The HTTP edge of the generation server: OpenAI's completions, by chat and plain, streamed or whole.

One answer is computed at a time, in a thread of its own; the others wait for their turn. A client
that hangs up is not computed for any longer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeline.backends.llama_cpp.http import CLIENT_GONE, ERROR_HANDLERS, authorise, disconnected, read_body
from pipeline.backends.llama_cpp.protocol import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager

MAX_WAITING = 64
"""Requests that wait for their turn; whoever has more of them is in front of this server."""

log = logging.getLogger(__name__)


class Answering(Protocol):
    """What computes answers: see `pipeline.backends.llama_cpp.generator.Generator`."""

    def answer(self, request: Mapping[str, Any], *, chat: bool, given_up: threading.Event) -> dict[str, Any]:
        """The whole answer."""
        ...

    def stream(self, request: Mapping[str, Any], *, chat: bool, given_up: threading.Event) -> Iterator[dict[str, Any]]:
        """Its pieces."""
        ...


@dataclass(frozen=True, slots=True)
class ChatService:
    """What the routes work with. An empty `api_key` asks for none."""

    generator: Answering
    model: str
    api_key: str = field(default="", repr=False)
    started: float = field(default_factory=time.time)


class _Turns:
    """The one thread that computes, and how many requests want it."""

    def __init__(self, generator: Answering) -> None:
        self._generator = generator
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generate")
        self._waiting = 0

    async def pieces(self, request: dict[str, Any], *, chat: bool) -> AsyncGenerator[dict[str, Any]]:
        """The answer: its pieces where the request asks for a stream, or the whole of it as one."""
        if self._waiting >= MAX_WAITING:
            raise ApiError(503, f"{self._waiting} requests are waiting already; try again later", code="queue_full")
        loop = asyncio.get_running_loop()
        found: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        given_up = threading.Event()

        def compute() -> None:
            try:
                if given_up.is_set():
                    return
                if request.get("stream"):
                    for piece in self._generator.stream(request, chat=chat, given_up=given_up):
                        loop.call_soon_threadsafe(found.put_nowait, piece)
                else:
                    answer = self._generator.answer(request, chat=chat, given_up=given_up)
                    loop.call_soon_threadsafe(found.put_nowait, answer)
            finally:
                loop.call_soon_threadsafe(found.put_nowait, None)

        self._waiting += 1
        computing = loop.run_in_executor(self._thread, compute)
        computing.add_done_callback(_look_at)  # a client that hung up reads no error
        try:
            while (piece := await found.get()) is not None:
                yield piece
            await computing
        finally:
            given_up.set()
            self._waiting -= 1
            await asyncio.gather(computing, return_exceptions=True)


def make_chat_app(
    service: ChatService, lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]]
) -> Starlette:
    """The ASGI application over `service`."""
    turns = _Turns(service.generator)

    async def chat(request: Request) -> Response:
        return await _complete(request, service, turns, chat=True)

    async def completions(request: Request) -> Response:
        return await _complete(request, service, turns, chat=False)

    async def models(request: Request) -> Response:
        authorise(request, service.api_key)
        model = {"id": service.model, "object": "model", "created": int(service.started), "owned_by": "nightshift"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "model": service.model})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
        ],
        exception_handlers=ERROR_HANDLERS,
        lifespan=lifespan,
    )


async def _complete(request: Request, service: ChatService, turns: _Turns, *, chat: bool) -> Response:
    authorise(request, service.api_key)
    try:
        body = await read_body(request)
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    asked = _object(body)
    pieces = turns.pieces(asked, chat=chat)
    gone = asyncio.create_task(disconnected(request), name="watch the client")
    first = asyncio.create_task(anext(pieces), name="compute the first piece")
    try:
        await asyncio.wait({first, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await pieces.aclose()
            return Response(status_code=CLIENT_GONE)
        piece = first.result()
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
    if asked.get("stream"):
        return StreamingResponse(_events(piece, pieces), media_type="text/event-stream")
    await pieces.aclose()
    return JSONResponse(piece)


async def _events(first: dict[str, Any], rest: AsyncGenerator[dict[str, Any]]) -> AsyncIterator[bytes]:
    """The pieces as server-sent events. What fails after the first byte is an event, for it cannot be a status."""
    try:
        yield _event(first)
        async for piece in rest:
            yield _event(piece)
        yield b"data: [DONE]\n\n"
    except Exception as error:
        log.exception("An answer broke off")
        problem = error if isinstance(error, ApiError) else ApiError(500, "the server failed; its log says why")
        yield _event(problem.body())
    finally:
        await rest.aclose()


def _look_at(computing: asyncio.Future[None]) -> None:
    if not computing.cancelled():
        computing.exception()


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"


def _object(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ApiError(400, "the body must be a JSON object")
    return content
