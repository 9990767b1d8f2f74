"""One request through the gateway: admitted, sent to a backend, and its answer passed back byte for byte.

Three things can end it early, and each ends the request to the backend at once: the client goes, a
switch cuts the reservation, or the backend dies. What the client sees is never a broken stream: as long
as nothing was sent it is an error answer, and after that an error event and the end of the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pipeline.core.errors import AdmissionError
from pipeline.core.modes import Slot
from pipeline.web.errors import CLIENT_GONE, Refusal
from pipeline.web.events import error_events, says_done, whole_events

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from pipeline.switcher.admission import Admission, Reservation
    from pipeline.web.services import Target

log = structlog.get_logger(__name__)

OUTCOME = "outcome"
"""The key of a request's state under which the metrics find how it ended."""

LARGEST_EVENT = 2**20
"""Bytes of an event that are held back until it is whole; a larger one is passed on in pieces."""

_LARGE = 2**16
"""Bytes of a body that is looked through beside the event loop."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

LAST_WORDS = 2.0
"""Seconds for a client to take the end of a stream that was cut; one that does not read loses it."""

_PASSED_UP = ("content-type", "accept", "user-agent", "traceparent", "tracestate")
# Hop-by-hop (RFC 9110, 7.6.1), what our own server says, and what is between us and the backend only.
_NOT_PASSED_DOWN = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"}
    | {"upgrade", "content-length", "server", "date", "set-cookie", "www-authenticate", "x-request-id"}
)


class BackendFailed(Exception):
    """The backend did not answer, or stopped in the middle. `refusal` is what the client is told."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.message)


@dataclass(frozen=True, slots=True)
class Way:
    """Where requests for a slot go.

    refuse: what a client is told whom admission turns away. again: seconds after which one whose
    request was cut or lost may try again.
    """

    slot: Slot
    admission: Admission
    client: httpx.AsyncClient
    target: Callable[[Slot], Target | None]
    refuse: Callable[[AdmissionError], Refusal]
    again: Callable[[Slot], float]
    max_body: int


class Relay(Response):
    """The answer to a request: whatever the backend of `way` answers to `POST path`."""

    def __init__(self, way: Way, path: str) -> None:
        super().__init__()
        self._way = way
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry the request out. Ends when the last byte is sent or the client is gone."""
        request = Request(scope, receive)
        body = await _plain_body(request, self._way.max_body)
        if len(body) > _LARGE:
            await asyncio.to_thread(refuse_nonsense, body)
        else:
            refuse_nonsense(body)
        exchange = _Exchange(self._way, self._path, request, body, send)
        work = asyncio.create_task(exchange.carry_out(), name=f"relay {self._path}")
        gone = asyncio.create_task(_client_gone(receive), name="watch the client")
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                scope["state"][OUTCOME] = work.result()
            else:
                scope["state"][OUTCOME] = "client_gone"
        finally:
            await _end(work, gone)
        if not exchange.head_sent:
            await Response(status_code=CLIENT_GONE)(scope, receive, send)


@dataclass(slots=True)
class _Exchange:
    """The way of one request. What was sent so far decides how it can end."""

    way: Way
    path: str
    request: Request
    body: bytes
    send: Send
    head_sent: bool = False
    _can_add_events: bool = False
    _done: bool = False
    _ended: bool = False
    _held: bytearray = field(default_factory=bytearray)

    async def carry_out(self) -> str:
        """Do it all; returns the outcome for the metrics."""
        try:
            async with await self.way.admission.reserve(self.way.slot) as reservation:
                try:
                    return await self._serve(reservation)
                except BackendFailed as failure:
                    # The backend is no longer used; a client that is slow to take bad news must not hold the slot.
                    reservation.release()
                    return await self._end_with(failure.refusal)
        except AdmissionError as error:
            return await self._end_with(self.way.refuse(error))

    async def _serve(self, reservation: Reservation) -> str:
        target = self.way.target(self.way.slot)
        if target is None:
            raise BackendFailed(self._unavailable(f"no backend serves {self.way.slot} now"))
        exchange = asyncio.create_task(self._exchange(target), name="exchange with the backend")
        cut = asyncio.create_task(reservation.cut.wait(), name="watch for a cut")
        try:
            await asyncio.wait({exchange, cut}, return_when=asyncio.FIRST_COMPLETED)
            if exchange.done():
                return exchange.result()
        finally:
            await _end(exchange, cut)
        if self._ended:
            return "ok"
        raise BackendFailed(
            self._unavailable(
                f"{self.way.slot} was taken out of service while the request was under way", "interrupted", "cut"
            )
        )

    async def _exchange(self, target: Target) -> str:
        try:
            async with self.way.client.stream(
                "POST",
                target.base_url.rstrip("/") + self.path,
                params=self.request.scope["query_string"].decode("latin-1") or None,
                content=renamed(self.body, target.model) if target.rewrite_model else self.body,
                headers=_headers_up(self.request, target),
            ) as answer:
                if answer.status_code in (401, 403):
                    message = (
                        f"the backend refused the gateway's key: set {self.way.slot.value}.api_key to one that it takes"
                    )
                    raise BackendFailed(Refusal(502, message, "server_error"))
                if answer.headers.get("content-type", "").startswith("text/event-stream"):
                    await self._stream(answer)
                else:
                    await self._pass_whole(answer)
                return "ok" if answer.is_success else "refused_by_backend"
        except httpx.ReadTimeout as error:
            message = "the backend took too long to answer"
            raise BackendFailed(Refusal(504, message, "timeout_error", outcome="backend_failed")) from error
        except httpx.RequestError as error:
            log.warning(
                "a backend failed during a request", slot=self.way.slot.value, path=self.path, error=repr(error)
            )
            raise BackendFailed(
                self._unavailable(f"the backend of {self.way.slot} failed during the request", "backend_failed")
            ) from error

    async def _stream(self, answer: httpx.Response) -> None:
        """Pass events on as they come; one that is not whole yet waits, so that an error can follow it."""
        async for part in answer.aiter_raw():
            if not self.head_sent:
                self._can_add_events = "content-encoding" not in answer.headers
                await self._send_head(answer.status_code, _headers_down(answer))
            self._held += part
            whole = whole_events(self._held) or (len(self._held) if len(self._held) > LARGEST_EVENT else 0)
            if whole:
                events = bytes(self._held[:whole])
                del self._held[:whole]
                self._done = says_done(events)
                await self._send_body(events, more=True)
        if not self.head_sent:
            await self._send_head(answer.status_code, _headers_down(answer))
        await self._send_body(bytes(self._held), more=False)

    async def _pass_whole(self, answer: httpx.Response) -> None:
        """Pass on an answer that is not a stream, once all of it is here: until then it can become an error."""
        body = b"".join([part async for part in answer.aiter_raw()])
        headers = _headers_down(answer)
        if answer.status_code == 503 and "retry-after" not in answer.headers:
            headers.append((b"retry-after", b"1"))
        await self._send_head(answer.status_code, [*headers, (b"content-length", str(len(body)).encode())])
        await self._send_body(body, more=False)

    async def _end_with(self, refusal: Refusal) -> str:
        """End the request with an error, in the form that fits what was sent already."""
        if not self.head_sent:
            response = refusal.response()
            await self._send_head(response.status_code, response.raw_headers)
            await self._send_body(bytes(response.body), more=False)
        elif self._can_add_events:
            last_words = b"" if self._done else error_events(refusal.body())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    await self._send_body(last_words, more=False)
        # Else the answer stays without its end: the server then closes the connection, and the client knows.
        return refusal.outcome

    def _unavailable(self, message: str, code: str = "backend_unavailable", outcome: str = "backend_failed") -> Refusal:
        again = self.way.again(self.way.slot)
        return Refusal(503, message, "service_unavailable_error", code, again, outcome)

    async def _send_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": list(headers)})
        self.head_sent = True

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more})
        self._ended = not more


def refuse_nonsense(body: bytes) -> None:
    """Let pass what a backend can read: an object in JSON, as the standard has it.

    Raises:
        HTTPException: 400, with what is wrong.
    """
    try:
        request = json.loads(body.decode(), parse_constant=_no_number, parse_float=_finite)
        if _SURROGATE.search(body):
            json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise HTTPException(400, "the body has half of a pair of surrogates") from None
    except UnicodeDecodeError:
        raise HTTPException(400, "the body is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise HTTPException(400, "the body is not a JSON object")


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def renamed(body: bytes, model: str) -> bytes:
    """A request's body with another model's name; one that is not a JSON object stays, for the backend to refuse."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return body
    return json.dumps(request | {"model": model}).encode() if isinstance(request, dict) else body


def inflated(body: bytes, limit: int) -> bytes:
    """A body that came as gzip, unpacked.

    Raises:
        HTTPException: 400 it is not gzip; 413 it is larger than `limit` bytes.
    """
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise HTTPException(400, f"the body is not gzip: {error}") from error
    if len(plain) > limit:
        raise HTTPException(413, f"the body is larger than {limit} bytes when unpacked")
    if not unpacker.eof or unpacker.unused_data:
        raise HTTPException(400, "the body is not one whole gzip stream")
    return plain


async def _plain_body(request: Request, limit: int) -> bytes:
    """The body; not every backend unpacks, so it is unpacked here."""
    body = await request.body()
    match request.headers.get("content-encoding", "").strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip":
            return await asyncio.to_thread(inflated, body, limit)
        case other:
            raise HTTPException(415, f"Content-Encoding {other} is not understood; gzip is")


def _headers_up(request: Request, target: Target) -> Mapping[bytes, bytes]:
    # As bytes: what is not ASCII is the backend's to judge.
    headers = {name: value for name, value in request.headers.raw if name.decode("latin-1") in _PASSED_UP}
    # Compressing for a loopback costs more than it saves, and an error event can only follow plain text.
    headers[b"accept-encoding"] = b"identity"
    if request_id := request.scope["state"].get("request_id"):
        headers[b"x-request-id"] = request_id.encode()
    if target.api_key:
        headers[b"authorization"] = f"Bearer {target.api_key}".encode()
    return headers


def _headers_down(answer: httpx.Response) -> list[tuple[bytes, bytes]]:
    named = {name.strip().lower() for name in answer.headers.get("connection", "").split(",")}
    return [
        (name.lower(), value)
        for name, value in answer.headers.raw
        if (plain := name.decode("latin-1").lower()) not in _NOT_PASSED_DOWN
        and plain not in named
        and not plain.startswith("access-control-")
    ]


async def _client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Task[object]) -> None:
    """Cancel what still runs, and wait until it has ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
