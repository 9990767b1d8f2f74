"""Errors as HTTP answers: the status, the form (OpenAI's under `/v1`, `detail` elsewhere), `Retry-After`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path

from pipeline.core.errors import (
    ModelIncomplete,
    NightshiftError,
    RunInProgress,
    SettingsError,
    SwitchDeferred,
    SwitchUnderWay,
    TextQueueFull,
    UsageError,
    WaitingFull,
)
from pipeline.core.redaction import redacted

log = structlog.get_logger(__name__)

CLIENT_GONE = 499
"""The status in our own log for a client that did not wait (nginx's number; nobody receives it)."""

_STATUSES: Mapping[type[NightshiftError], int] = {
    UsageError: 400,
    RunInProgress: 409,
    ModelIncomplete: 409,
    SwitchUnderWay: 409,
    SwitchDeferred: 409,
    TextQueueFull: 429,
    WaitingFull: 429,
    SettingsError: 500,
    NightshiftError: 503,
}

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


_ANY = (400, 401, 403, 413, 422, 500, 503)
_MEANINGS: Mapping[int, str] = {
    400: "The request means nothing, or asks for what there is not.",
    401: "The API key is missing or wrong.",
    403: "Without an API key: a page of elsewhere, or a name that is not this server's.",
    404: "There is none of that name.",
    409: "Something else is under way, or in the way.",
    413: "The body is too large.",
    415: "The body's Content-Encoding is not understood.",
    422: "A value is wrong; the message names it.",
    429: "Enough wait already. `Retry-After` says when to come back.",
    500: "A fault in Nightshift; its log says which.",
    502: "The backend refused the gateway's key.",
    503: "It cannot be done now. `Retry-After`, where it is known, says when to come back.",
    504: "The backend said nothing for too long.",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that says no. kind: the `type` of OpenAI's form. retry_after: seconds, None says nothing.

    outcome: what the metrics count it as.
    """

    status: int
    message: str
    kind: str
    code: str | None = None
    retry_after: float | None = None
    outcome: str = "error"

    def body(self) -> dict[str, Any]:
        """In OpenAI's form."""
        return {"error": {"message": self.message, "type": self.kind, "param": None, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, at least one, where a time is known."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}

    def response(self) -> JSONResponse:
        """The whole answer in OpenAI's form."""
        return JSONResponse(self.body(), self.status, self.headers())


def status_of(error: NightshiftError) -> int:
    """The HTTP status of an error: that of the nearest class that has one."""
    return next(_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES)


def answer(path: str, status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error answer in the form of `path`, without secrets."""
    message = redacted(message).encode(errors="backslashreplace").decode()
    if path.startswith("/v1/") or path == "/v1":
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        code = "invalid_api_key" if status == 401 else None
        return JSONResponse(Refusal(status, message, kind, code).body(), status, headers)
    return JSONResponse({"detail": message}, status, headers)


def described(form: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of errors: those that every request may be answered with, and further `statuses`."""
    return {status: {"model": form, "description": _MEANINGS[status]} for status in (*_ANY, *statuses)}


def describe_what_is_answered(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, without the errors that an operation cannot have."""
    if app.openapi_schema is None:
        for operations in FastAPI.openapi(app)["paths"].values():
            for operation in operations.values():
                has_body = "requestBody" in operation
                unheard_of = ([] if has_body else ["413"]) + ([] if has_body or "parameters" in operation else ["422"])
                for status in unheard_of:
                    operation["responses"].pop(status, None)
    assert app.openapi_schema is not None
    return app.openapi_schema


def install(app: FastAPI) -> None:
    """Let the application answer errors so."""
    app.add_exception_handler(NightshiftError, _answer_ours)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, _answer_bug)


async def _answer_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, NightshiftError)
    status = status_of(error)
    # The name and the words that clients of a queued `/embed` know.
    message = "Queue full" if isinstance(error, TextQueueFull) else str(error)
    headers = {"Retry-After": "5"} if status == 429 else None
    return answer(request.scope["path"], status, message, headers)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = _allowed(request) if error.status_code == 405 else error.headers
    return answer(request.scope["path"], error.status_code, str(error.detail), headers)


def _allowed(request: Request) -> Mapping[str, str]:
    """The methods of all routes of a path, where the framework would name those of the first."""
    methods = {
        method.upper()
        for path, operations in request.app.openapi()["paths"].items()
        if compile_path(path)[0].match(request.scope["path"])
        for method in operations
    }
    return {"Allow": ", ".join(sorted(methods))}


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [
        f"{'.'.join(str(part) for part in problem['loc'][1:]) or 'the body'}: {problem['msg']}"
        for problem in error.errors()
    ]
    return answer(request.scope["path"], 422, "; ".join(problems))


async def _answer_nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _answer_bug(request: Request, error: Exception) -> Response:
    log.error("a request failed", method=request.method, path=request.scope["path"], exc_info=error)
    return answer(request.scope["path"], 500, "the server failed; its log says why")
