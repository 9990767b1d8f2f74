"""One connection of a client: how long it may keep the server waiting.

A request's head has to be whole within a time, and a body has to come at a pace; a client has to take its answer. How
long an answer takes is the server's business, so that a stream may last as long as it likes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client is waited for, in seconds.

    head: from the connection, or the first byte of a further request, to the end of the request's head.
    body: in each stretch of so long a body has to bring `least` bytes, or to end.
    answer: until a client takes the next piece of its answer.
    idle: between an answer and the next request.
    """

    head: float = 15.0
    body: float = 20.0
    least: int = 16 * 1024
    answer: float = 300.0
    idle: float = 75.0


class Connection(H11Protocol):
    """A connection whose client is waited for with `patience`."""

    def __init__(self, config: Config, state: ServerState, app_state: dict[str, Any], patience: Patience) -> None:
        super().__init__(config, state, app_state)
        self._patience = patience
        self._awaited = ""
        self._brought = 0
        self._since = self.loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None

    @property
    def closable(self) -> tuple[bool, int, float] | None:
        """None while a request is answered; else what can be closed for others, the least loss first.

        That is a connection without a request, the one that waits longest; then a body that comes slowly.
        """
        has_request = self.cycle is not None and not self.cycle.response_complete
        if has_request and self._awaited != "body":
            return None
        return has_request, self._brought, self._since

    def close(self) -> None:
        """End it now, whatever is under way."""
        self.connections.discard(self)
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait_for("head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._wait_for("")
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._brought += len(data)
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Go on to the next request, of which a part may be here."""
        super().on_response_complete()
        self._since = self.loop.time()
        self._look()

    def pause_writing(self) -> None:
        """The client does not take its answer as fast as it is made."""
        super().pause_writing()
        self._taking = self.loop.call_later(self._patience.answer, self.close)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _look(self) -> None:
        """Say what the client still owes, as far as the parser knows."""
        theirs = self.conn.their_state
        if theirs is h11.SEND_BODY:
            self._wait_for("body")
        elif theirs is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            self._wait_for("head")
        else:
            self._wait_for("")  # uvicorn's own timer ends an idle connection

    def _wait_for(self, what: str) -> None:
        if what == self._awaited:
            return
        self._awaited, self._brought, self._since = what, 0, self.loop.time()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if what:
            seconds = self._patience.head if what == "head" else self._patience.body
            self._timer = self.loop.call_later(seconds, self._time_is_up)

    def _time_is_up(self) -> None:
        if self._awaited == "body":
            waits_for_us = self.flow.read_paused or self.cycle.waiting_for_100_continue
            if waits_for_us or self._brought >= self._patience.least:
                self._awaited = ""
                self._wait_for("body")
                return
            owes_answer = not self.cycle.response_started
        else:
            owes_answer = bool(self.conn.trailing_data[0])
        if owes_answer:
            self.transport.write(_TOO_SLOW)
        self.transport.close()
