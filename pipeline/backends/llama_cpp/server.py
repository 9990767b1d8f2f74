"""The HTTP edge of the embedding server: OpenAI's `/v1/embeddings`, `/v1/models`, `/health`, and `/stats`.

`/v1/embeddings/spans` is our own: the means of the token vectors in spans of the inputs, for late chunking.

Knows requests and answers; what is computed and how it is packed is the dispatcher's business.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.backends.llama_cpp.dispatch import Dispatcher, InputFailed, QueueFull
from pipeline.backends.llama_cpp.http import CLIENT_GONE, ERROR_HANDLERS, MAX_BODY, authorise, disconnected, read_body
from pipeline.backends.llama_cpp.protocol import (
    RAW,
    ApiError,
    EmbeddingRequest,
    Limits,
    encode_answer,
    inflate,
    parse_request,
    parse_span_request,
    parse_text,
)
from pipeline.backends.serving.sequences import EngineError
from pipeline.core.vectors import normalise

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from pipeline.backends.llama_cpp.lane import WholeLane
    from pipeline.backends.serving.sequences import Tokens
    from pipeline.core.vectors import Matrix


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with. An empty `api_key` asks for none. whole: None where no text is computed by itself."""

    dispatcher: Dispatcher
    limits: Limits
    tokenize: Callable[[str], Tokens]
    model: str
    api_key: str = field(default="", repr=False)
    started: float = field(default_factory=time.time)
    whole: WholeLane | None = None


def make_app(service: Service, lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]]) -> Starlette:
    """The ASGI application over `service`."""

    async def embeddings(request: Request) -> Response:
        authorise(request, service.api_key)
        try:
            body = await read_body(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        packing = request.headers.get("content-encoding", "")
        asked = await asyncio.to_thread(lambda: parse_request(_decode(body, packing), service.limits, service.tokenize))
        vectors = await _unless_gone(request, _embed(service, asked))
        if vectors is None:
            return Response(status_code=CLIENT_GONE)
        return await asyncio.to_thread(_answer, request, vectors, asked, service)

    async def spans(request: Request) -> Response:
        authorise(request, service.api_key)
        try:
            body = await read_body(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        if service.whole is None:
            raise ApiError(404, "this server has no token vectors")
        packing = request.headers.get("content-encoding", "")
        asked = await asyncio.to_thread(lambda: parse_span_request(_decode(body, packing), service.limits))
        vectors = await _unless_gone(request, service.whole.spans(asked.sequences, asked.spans))
        if vectors is None:
            return Response(status_code=CLIENT_GONE)
        return await asyncio.to_thread(_answer, request, vectors, asked, service)

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

    async def tokenize(request: Request) -> Response:
        authorise(request, service.api_key)
        try:
            body = await read_body(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        text = parse_text(_decode(body, request.headers.get("content-encoding", "")))
        tokens = await asyncio.to_thread(service.tokenize, text)
        return JSONResponse({"tokens": tokens.tolist()})

    async def stats(request: Request) -> Response:
        authorise(request, service.api_key)
        counted = service.dispatcher.stats()
        if service.whole is not None:
            whole = service.whole
            counted = replace(counted, whole=whole.stats(), partial=counted.partial + whole.partial)
        return JSONResponse(counted.as_json())

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "model": service.model})

    return Starlette(
        routes=[
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/embeddings/spans", spans, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/stats", stats, methods=["GET"]),
        ],
        exception_handlers=ERROR_HANDLERS,
        lifespan=lifespan,
    )


def _decode(body: bytes, packing: str) -> object:
    match packing.strip().lower():
        case "" | "identity":
            pass
        case "gzip" | "x-gzip":
            body = inflate(body, MAX_BODY)
        case other:
            raise ApiError(415, f"Content-Encoding {other} is not understood; gzip is")
    try:
        payload: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    return payload


async def _embed(service: Service, asked: EmbeddingRequest) -> Matrix:
    """The vectors of all inputs: those that are too long for a batch with others come from a lane of their own."""
    usual = [index for index, tokens in enumerate(asked.sequences) if len(tokens) <= service.limits.max_tokens]
    if len(usual) == len(asked.sequences) or service.whole is None:
        return await service.dispatcher.embed(asked.sequences)
    long = sorted(set(range(len(asked.sequences))) - set(usual))
    vectors = np.empty((len(asked.sequences), service.limits.dimension), np.float32)
    for places, embed in ((usual, service.dispatcher.embed), (long, service.whole.vectors)):
        if places:
            try:
                vectors[places] = await embed([asked.sequences[place] for place in places])
            except InputFailed as error:
                raise InputFailed(places[error.index], error.reason) from error
    return vectors


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Matrix]) -> Matrix | None:
    """The vectors, or None where the client hung up first; what was not computed by then is dropped."""
    embedding = asyncio.create_task(work, name="embed")
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
    except EngineError as error:
        raise ApiError(400, str(error)) from error
    finally:
        embedding.cancel()
        gone.cancel()
        await asyncio.gather(embedding, gone, return_exceptions=True)


def _answer(request: Request, vectors: Matrix, asked: EmbeddingRequest, service: Service) -> Response:
    """OpenAI's object; or the bare float32, row after row, for whoever accepts that (see `client.read_answer`)."""
    if asked.dimensions < vectors.shape[1]:
        vectors = normalise(vectors[:, : asked.dimensions])
    if RAW in request.headers.get("accept", ""):
        return Response(vectors.astype("<f4").tobytes(), media_type=RAW)
    answer = json.dumps(encode_answer(vectors, asked.tokens, service.model, asked.encoding_format)).encode()
    return Response(answer, media_type="application/json")
