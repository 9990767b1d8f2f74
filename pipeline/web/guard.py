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
from urllib.parse import unquote_to_bytes

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
        if (problem := framing_problem(scope["http_version"], headers)) is not None:
            # What follows on this connection may be meant as the rest of this request.
            await answer(path, 400, problem, {"Connection": "close"})(scope, receive, send)
            return
        refusal = None if path in OPEN_PATHS else plan_entry(scope["method"], headers, self._options)
        if refusal is None and (problem := address_problem(scope["raw_path"] or b"", scope["query_string"])):
            refusal = 400, problem
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


def framing_problem(version: str, headers: Headers) -> str | None:
    """Why nobody can be sure where a request ends: another server on its way may see another end."""
    length = headers.get("content-length", "")
    if "transfer-encoding" in headers and length:
        return "a request has Content-Length or Transfer-Encoding, not both"
    if "transfer-encoding" in headers and version == "1.0":
        return "HTTP/1.0 has no Transfer-Encoding"
    if length and not re.fullmatch(r"[0-9]{1,18}", length):
        return "Content-Length is no number"
    return None


def address_problem(path: bytes, query: bytes) -> str | None:
    """Why a path or a query can mean nothing here."""
    try:
        names = unquote_to_bytes(path).decode()
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        return "the address is not UTF-8"
    if re.search(r"[\x00-\x1f\x7f]", names) or b"\0" in unquote_to_bytes(query):
        return "the address has control characters"
    return None


def plan_entry(method: str, headers: Headers, options: WebOptions) -> tuple[int, str] | None:
    """Status and message for a request that may not come in; None for one that may.

    With a key, the key decides: a page in a browser cannot know it. Without one, whoever reaches the port may do
    anything, so a browser must not be made to. The page of a stranger reaches a loopback port by a name that resolves
    to it (then `Host` is that name), or by sending a form, as any page of another server on this machine does (then
    `Origin` is not ours, or `Sec-Fetch-Site` says so). Programs send neither.
    """
    if options.api_key:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), options.api_key.encode()):
            return None
        return 401, "the API key is missing or wrong"
    host = headers.get("host", "")
    here = _origin(f"http://{host}")
    name = here[1] if here else ""
    allowed = {each.lower() for each in options.allowed_hosts}
    known = is_loopback(name) or any(each == name or each.startswith(f"{name}:") for each in allowed)
    if options.check_host and is_loopback(options.host) and not known:
        return 403, f"this server is not {host or 'without a name'}; add the name to gateway.allowed_hosts if it is"
    if method in _HARMLESS:
        return None
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if origin is None and site not in ("none", "same-origin"):
        return 403, f"requests from pages of elsewhere ({site}) are not taken without an API key"
    if origin is not None and not _is_ours(_origin(origin), here, allowed):
        return 403, f"requests from pages of {origin} are not taken without an API key"
    return None


Origin = tuple[str, str, int]
"""Scheme, name and port."""

_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[^\s:/?#@\\\[\]]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
_SELF = frozenset({"localhost", "127.0.0.1", "[::1]"})


def _origin(url: str) -> Origin | None:
    """The parts of an origin; None for `null` and what is none."""
    found = _ORIGIN.fullmatch(url)
    if found is None:
        return None
    scheme = found[1].lower()
    return scheme, found[2].lower(), int(found[3]) if found[3] else _PORTS[scheme]


def _is_ours(origin: Origin | None, here: Origin | None, allowed: set[str]) -> bool:
    """Whether a page is one that this server gave out, itself or through a proxy with an allowed name.

    here: what the request calls this server. The proxy may speak HTTPS and has the usual port, or one that the allowed
    name says.
    """
    if origin is None:
        return False
    scheme, name, port = origin
    if name in _SELF and here is not None and here[1] in _SELF:
        return (scheme, port) == (here[0], here[2])
    return origin == here or f"{name}:{port}" in allowed or (name in allowed and port == _PORTS[scheme])


def _outcome(status: int) -> str:
    if status < 400:
        return "ok"
    return {401: "unauthorised", 404: "not_found", 429: "queue_full"}.get(
        status, "refused" if status < 500 else "error"
    )
