"""The HTTP edge of the embedding server: OpenAI's `/v1/embeddings`, `/v1/models`, and `/health`.

Knows requests and answers; what is computed and how it is packed is the dispatcher's business.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.backends.llama_cpp.dispatch import Dispatcher, InputFailed, QueueFull
from pipeline.backends.llama_cpp.http import CLIENT_GONE, ERROR_HANDLERS, MAX_BODY, authorise, disconnected, read_body
from pipeline.backends.llama_cpp.protocol import (
    ApiError,
    EmbeddingRequest,
    Limits,
    encode_answer,
    inflate,
    parse_request,
)
from pipeline.core.vectors import normalise

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from pipeline.backends.llama_cpp.engine import Tokens
    from pipeline.core.vectors import Matrix


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with. An empty `api_key` asks for none."""

    dispatcher: Dispatcher
    limits: Limits
    tokenize: Callable[[str], Tokens]
    model: str
    api_key: str = field(default="", repr=False)
    started: float = field(default_factory=time.time)


def make_app(service: Service, lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]]) -> Starlette:
    """The ASGI application over `service`."""

    async def embeddings(request: Request) -> Response:
        authorise(request, service.api_key)
        try:
            body = await read_body(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        asked = await asyncio.to_thread(_parse, body, request.headers.get("content-encoding", ""), service)
        vectors = await _embed_unless_gone(request, service.dispatcher, asked)
        if vectors is None:
            return Response(status_code=CLIENT_GONE)
        answer = await asyncio.to_thread(_encode, vectors, asked, service)
        return Response(answer, media_type="application/json")

    async def models(request: Request) -> Response:
        authorise(request, service.api_key)
        model = {
            "id": service.model,
            "object": "model",
            "created": int(service.started),
            "owned_by": "nightshift",
            "meta": {"n_embd": service.limits.dimension, "max_tokens": service.limits.max_tokens},
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "model": service.model})

    return Starlette(
        routes=[
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
        ],
        exception_handlers=ERROR_HANDLERS,
        lifespan=lifespan,
    )


def _parse(body: bytes, encoding: str, service: Service) -> EmbeddingRequest:
    match encoding.strip().lower():
        case "" | "identity":
            pass
        case "gzip" | "x-gzip":
            body = inflate(body, MAX_BODY)
        case other:
            raise ApiError(415, f"Content-Encoding {other} is not understood; gzip is")
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    return parse_request(payload, service.limits, service.tokenize)


async def _embed_unless_gone(request: Request, dispatcher: Dispatcher, asked: EmbeddingRequest) -> Matrix | None:
    """The vectors, or None where the client hung up first; what was not computed by then is dropped."""
    embedding = asyncio.create_task(dispatcher.embed(asked.sequences), name="embed")
    gone = asyncio.create_task(disconnected(request), name="watch the client")
    try:
        await asyncio.wait({embedding, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not embedding.done():
            return None
        return embedding.result()
    except QueueFull as error:
        raise ApiError(503, str(error), code="queue_full") from error
    except InputFailed as error:
        raise ApiError(500, str(error), param=f"input[{error.index}]", code="input_failed") from error
    finally:
        embedding.cancel()
        gone.cancel()
        await asyncio.gather(embedding, gone, return_exceptions=True)


def _encode(vectors: Matrix, asked: EmbeddingRequest, service: Service) -> bytes:
    if asked.dimensions < vectors.shape[1]:
        vectors = normalise(vectors[:, : asked.dimensions])
    return json.dumps(encode_answer(vectors, asked.tokens, service.model, asked.encoding_format)).encode()
