"""What our servers of every kind do with a request before and after their own work.

OpenAI's error object for whatever goes wrong, the API key, bodies of bounded size, clients that hang up.
"""

from __future__ import annotations

import hmac
import logging
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipeline.backends.llama_cpp.protocol import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BODY = 32 * 2**20
"""Bytes, packed and unpacked: 2,048 inputs of 2,000 token ids."""

CLIENT_GONE = 499
"""The status in our own log for a client that did not wait (nginx's number; nobody receives it)."""

log = logging.getLogger(__name__)


def authorise(request: Request, api_key: str) -> None:
    """Raises ApiError unless the request bears `api_key`, or that is empty."""
    if not api_key:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), api_key.encode()):
        raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")


async def read_body(request: Request) -> bytes:
    """The body. Raises ApiError where it is too large, ClientDisconnect where it ends early."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise ApiError(413, f"the body is larger than {MAX_BODY} bytes", code="request_too_large")
        parts.append(part)
    return b"".join(parts)


async def disconnected(request: Request) -> None:
    """Wait until the client has hung up; after its body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _answer_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(ApiError(error.status_code, error.detail).body(), error.status_code, error.headers)


async def _answer_bug(request: Request, error: Exception) -> Response:
    log.error("A request failed: %s %s", request.method, request.url.path, exc_info=error)
    return JSONResponse(ApiError(500, "the server failed; its log says why").body(), status_code=500)


ERROR_HANDLERS: Mapping[Any, Any] = {ApiError: _answer_error, HTTPException: _answer_http, Exception: _answer_bug}
"""For Starlette: an error object for every error."""
