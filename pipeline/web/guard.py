"""What every request passes before a route sees it: is it for us, is it allowed, is it small enough.

Plain ASGI, so that streams and disconnects go through untouched.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException

from pipeline.web.errors import answer
from pipeline.web.options import WebOptions, is_loopback
from pipeline.web.relay import OUTCOME

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger(__name__)

OPEN_PATHS = frozenset({"/health"})
UPLOADS = "/api/documents/"

Observer = Callable[[str, str, float], None]
"""Hears of each request that ended: its route, its outcome, its seconds."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})


class Observe:
    """Gives each request an id, says at DEBUG how it ended, and tells the metrics."""

    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        self._app = app
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        began = time.monotonic()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                seconds = time.monotonic() - began
                outcome = state.get(OUTCOME) or _outcome(status)
                log.debug(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    outcome=outcome,
                    ms=round(seconds * 1000, 1),
                )
                # The path of the route and not of the request: a label must not have as many values as clients invent.
                self._observer(getattr(scope.get("route"), "path", "other"), outcome, seconds)


class Guard:
    """Refuses what may not come in."""

    def __init__(self, app: ASGIApp, options: WebOptions) -> None:
        self._app = app
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with what is wrong."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path = scope["path"]
        limit = self._limit(scope["method"], path)
        refusal = None if path in OPEN_PATHS else plan_entry(scope["method"], headers, self._options)
        if refusal is None and int(headers.get("content-length") or 0) > limit:
            refusal = 413, f"the body is larger than {limit} bytes"
        if refusal is not None:
            status, message = refusal
            extra = {"WWW-Authenticate": "Bearer"} if status == 401 else None
            await answer(path, status, message, extra)(scope, receive, send)
            return
        size = 0

        async def receive_within_limit() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise HTTPException(413, f"the body is larger than {limit} bytes")
            return message

        await self._app(scope, receive_within_limit, send)

    def _limit(self, method: str, path: str) -> int:
        return self._options.max_upload if method == "PUT" and path.startswith(UPLOADS) else self._options.max_body


def plan_entry(method: str, headers: Headers, options: WebOptions) -> tuple[int, str] | None:
    """Status and message for a request that may not come in; None for one that may.

    With a key, the key decides: a page in a browser cannot know it. Without one, whoever reaches the
    port may do anything, so a browser must not be made to: the page of a stranger reaches a loopback
    port by a name that resolves to it (then `Host` is that name), or by sending a form (`Origin`).
    """
    if options.api_key:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), options.api_key.encode()):
            return None
        return 401, "the API key is missing or wrong"
    host = _name(f"//{headers.get('host', '')}")
    if options.check_host and is_loopback(options.host) and not _known(host, options):
        return 403, f"this server is not {host or 'without a name'}; add the name to gateway.allowed_hosts if it is"
    origin = headers.get("origin")
    if origin is not None and method not in _HARMLESS:
        name = _name(origin)
        if name != host and not _known(name, options):
            return 403, f"requests from pages of {origin} are not taken without an API key"
    return None


def _known(name: str, options: WebOptions) -> bool:
    return is_loopback(name) or name in {allowed.lower() for allowed in options.allowed_hosts}


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _outcome(status: int) -> str:
    if status < 400:
        return "ok"
    return {401: "unauthorised", 404: "not_found", 429: "queue_full"}.get(
        status, "refused" if status < 500 else "error"
    )
