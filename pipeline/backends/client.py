"""Talks to an embedding server in OpenAI's form, ours or another: texts or token ids in, vectors out.

Vectors travel as float32: bare from our own servers, as base64 from others. Every answer is checked: its count, its
indices, its sizes, that each number is finite, and that no vector is all zeros.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime as dt
import json
import re
import zlib
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self

import httpx
import numpy as np
import stamina
import structlog

from pipeline.core.errors import BackendBusy, BackendDied, BackendRefused, BackendTimeout, BadAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from pipeline.core.vectors import Matrix

log = structlog.get_logger(__name__)

ATTEMPTS = 4
GZIP_ABOVE = 65_536
RAW = "application/octet-stream"
"""Vectors as they are, which our own servers give to whoever accepts it; others answer in JSON all the same."""
UNPACKING_REFUSALS = frozenset({400, 415, 422})
"""What servers answer that take a compressed body for a broken one."""
PASSING_REFUSALS = frozenset({408, 425, 429})
"""What servers answer that took too long to read a request, or want it later."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to connect, without a sign of the server, and for a whole call with its retries.

    A server that tells how far it has come is not timed: `read` is then how long it may compute nothing
    (see `ServerEmbedder`), and a call lasts as long as it works.
    """

    connect: float = 10.0
    read: float = 60.0
    total: float = 120.0


class EmbeddingClient:
    """One pooled session with the server at `base_url` (without `/v1`).

    gzip_above: bodies of more bytes are compressed; None for none. It pays on a network and not
    on loopback, where packing costs more time than sending; a server that cannot read it is
    noticed and spoken to plainly from then on.
    backoff: seconds before the first retry; each further one waits twice as long.
    may_retry: asked before each retry; False ends the call at once.
    trust_env: whether proxies are taken from the environment.
    timed: False has a call last for as long as it takes; somebody else watches over the server.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        model: str = "",
        timeouts: Timeouts = Timeouts(),
        gzip_above: int | None = GZIP_ABOVE,
        backoff: float = 1.0,
        may_retry: Callable[[], bool] | None = None,
        trust_env: bool = True,
        timed: bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._base_url = base_url
        self._model = model
        self._timeouts = timeouts
        self._gzip_above = gzip_above
        self._backoff = backoff
        self._may_retry = may_retry or (lambda: True)
        self._trust_env = trust_env
        self._timed = timed
        self._transport = transport
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: _Session | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the session. May be called twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.client.aclose()

    async def embed(self, inputs: Sequence[Sequence[int]] | Sequence[str]) -> Matrix:
        """Vectors float32 [n, d] of texts or of token ids, in their order, as the server gave them.

        Raises BackendTimeout, BackendDied (no connection), BackendRefused, BackendBusy, or BadAnswer.
        """
        if not inputs:
            raise ValueError("there is nothing to embed")
        given = [item if isinstance(item, str) else list(map(int, item)) for item in inputs]
        return await self._ask("/v1/embeddings", {"input": given}, len(inputs))

    async def embed_spans(
        self, inputs: Sequence[Sequence[int]], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> list[Matrix]:
        """For each input the vectors float32 [n, d] of its spans: of our own server, see its `/v1/embeddings/spans`.

        Raises as `embed`.
        """
        payload = {"input": [list(map(int, item)) for item in inputs], "spans": [list(inside) for inside in spans]}
        counts = [len(inside) for inside in spans]
        vectors = await self._ask("/v1/embeddings/spans", payload, sum(counts))
        return np.split(vectors, np.cumsum(counts)[:-1])

    async def _ask(self, path: str, payload: dict[str, Any], count: int) -> Matrix:
        body = json.dumps(payload | {"model": self._model, "encoding_format": "base64"}).encode()
        try:
            async with asyncio.timeout(self._timeouts.total if self._timed else None):
                response = await self._post_with_retries(path, body)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise BackendTimeout(f"{self._base_url} gave no answer in time for {count} vectors") from error
        except httpx.TransportError as error:
            raise BackendDied(f"{self._base_url} cannot be reached: {error or type(error).__name__}") from error
        except httpx.DecodingError as error:
            raise BackendBusy(f"the server's answer cannot be unpacked, or broke off: {error}") from error
        vectors = read_answer(response, count)
        log.debug("A batch was embedded", vectors=count, seconds=round(response.elapsed.total_seconds(), 3))
        return vectors

    async def fetch(self, path: str, body: Any = None) -> Any:
        """The JSON of another of the server's routes; asked with POST where there is a body. No retries.

        Raises BackendTimeout, BackendDied, BackendRefused, or BadAnswer where it is no JSON.
        """
        session = self._current_session()
        session.users += 1
        try:
            async with asyncio.timeout(self._timeouts.read):
                response = await session.client.request("GET" if body is None else "POST", path, json=body)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise BackendTimeout(f"{self._base_url} gave no answer in time for {path}") from error
        except httpx.TransportError as error:
            raise BackendDied(f"{self._base_url} cannot be reached: {error or type(error).__name__}") from error
        except httpx.DecodingError as error:
            raise BadAnswer(f"the answer to {path} cannot be unpacked: {error}") from error
        finally:
            await self._leave(session)
        if not response.is_success:
            message, param = _error(response)
            raise BackendRefused(response.status_code, message, param=param)
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise BadAnswer(f"the answer to {path} is no JSON: {error}") from error

    async def _post_with_retries(self, path: str, body: bytes) -> httpx.Response:
        attempts = stamina.retry_context(
            on=self._worth_a_retry,
            attempts=ATTEMPTS,
            timeout=None,
            wait_initial=self._backoff,
            wait_max=4 * self._backoff,
            wait_jitter=0.0,
        )
        async for attempt in attempts:
            with attempt:
                return await self._post(path, body)
        raise AssertionError("stamina raises the last error")

    def _worth_a_retry(self, error: Exception) -> bool:
        if not isinstance(error, httpx.TransportError) or not self._may_retry():
            return False
        log.warning("The embedding server did not answer and is asked again", url=self._base_url, error=repr(error))
        return True

    async def _post(self, path: str, body: bytes) -> httpx.Response:
        if self._gzip_above is not None and len(body) > self._gzip_above:
            packed = zlib.compress(body, level=1, wbits=31)
            response = await self._send(path, packed, {"Content-Encoding": "gzip"})
            if response.status_code not in UNPACKING_REFUSALS:
                return response
            plain = await self._send(path, body, {})
            if plain.is_success:
                log.info("The embedding server reads no gzip; bodies are sent plainly", url=self._base_url)
                self._gzip_above = None
            return plain
        return await self._send(path, body, {})

    async def _send(self, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        session = self._current_session()
        session.users += 1
        try:
            wanted = {"Content-Type": "application/json", "Accept": f"{RAW}, application/json"}
            return await session.client.post(path, content=body, headers=wanted | headers)
        except httpx.TransportError:
            if self._session is session:
                self._session = None
            raise
        finally:
            await self._leave(session)

    async def _leave(self, session: _Session) -> None:
        session.users -= 1
        if session.users == 0 and session is not self._session:
            await session.client.aclose()

    def _current_session(self) -> _Session:
        if self._session is None:
            log.info("A session with the embedding server begins", url=self._base_url)
            self._session = _Session(
                httpx.AsyncClient(
                    base_url=self._base_url,
                    headers=self._headers,
                    timeout=httpx.Timeout(self._timeouts.read if self._timed else None, connect=self._timeouts.connect),
                    limits=httpx.Limits(max_connections=100, max_keepalive_connections=30),
                    trust_env=self._trust_env,
                    transport=self._transport,
                )
            )
        return self._session


@dataclass
class _Session:
    """A pool of connections and the calls that use it; after an error the next call gets a new one."""

    client: httpx.AsyncClient
    users: int = 0


def read_answer(response: httpx.Response, count: int) -> Matrix:
    """The vectors float32 [count, d] of an answer, in the order of the inputs.

    Raises BackendRefused for an error status, BackendBusy for one that may pass (408, 425, 429, or 5xx that names no
    input) and for an answer that broke off, and BadAnswer unless there is exactly one vector for each input, all of one
    size, all finite, and none of them all zeros.
    """
    if not response.is_success:
        message, param = _error(response)
        if response.status_code in PASSING_REFUSALS or (response.is_server_error and param is None):
            status = f"HTTP {response.status_code}"
            told = message if message.startswith(status) else f"{status}: {message}"
            raise BackendBusy(told, response.status_code, retry_after=_retry_after(response))
        raise BackendRefused(response.status_code, message, param=param)
    if response.headers.get("content-type", "").startswith(RAW):
        return _usable(_raw(response.content, count))
    try:
        data = response.json()["data"]
        places = [entry["index"] for entry in data]
        vectors = [_vector(entry["embedding"]) for entry in data]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        said = _error(response)[0] if b'"error"' in response.content else repr(error)
        raise BackendBusy(f"the server's answer is not a list of embeddings, or broke off: {said}") from error
    if len(vectors) < count:
        raise BackendBusy(f"{count} inputs were sent and only {len(vectors)} vectors came back")
    if len(vectors) > count:
        raise BadAnswer(f"{count} inputs were sent and {len(vectors)} vectors came back")
    if any(type(place) is not int for place in places) or sorted(places) != list(range(count)):
        raise BadAnswer(f"the answer's indices are not 0 to {count - 1}, each once")
    sizes = {vector.size for vector in vectors}
    if len(sizes) != 1 or 0 in sizes:
        raise BadAnswer(f"the vectors of one answer have different sizes: {sorted(sizes)}")
    matrix: Matrix = np.empty((count, sizes.pop()), dtype=np.float32)
    for place, vector in zip(places, vectors, strict=True):
        matrix[place] = vector
    return _usable(matrix)


def _raw(content: bytes, count: int) -> Matrix:
    if not content or len(content) % (4 * count):
        raise BackendBusy(f"{len(content)} bytes are not {count} vectors of float32")
    matrix: Matrix = np.frombuffer(content, dtype="<f4").reshape(count, -1).astype(np.float32)
    return matrix


def _usable(matrix: Matrix) -> Matrix:
    broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if broken.size:
        raise BadAnswer(f"the vector of input {broken[0]} is not finite")
    empty = np.flatnonzero(~matrix.any(axis=1))
    if empty.size:
        raise BadAnswer(f"the vector of input {empty[0]} is all zeros")
    return matrix


def _retry_after(response: httpx.Response) -> float | None:
    """The seconds that `Retry-After` asks for, as a number or as a date by the server's own clock."""
    asked = response.headers.get("retry-after", "").strip()
    if asked.isascii() and asked.isdigit() and len(asked) < 10:
        return float(asked)
    try:
        until = parsedate_to_datetime(asked)
        told = response.headers.get("date")
        since = parsedate_to_datetime(told) if told else dt.datetime.now(dt.UTC)
        return max(0.0, (until - since).total_seconds())
    except (TypeError, ValueError, IndexError):
        return None


def _vector(embedding: object) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    if isinstance(embedding, str):
        try:
            return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
        except binascii.Error as error:
            raise ValueError(f"not base64: {error}") from error
    with np.errstate(over="ignore"):  # a number that is too large is not finite then, and that is said
        vector = np.asarray(embedding, dtype=np.float32)
    if vector.ndim != 1:
        raise ValueError(f"a vector has the shape {vector.shape}")
    return vector


def _error(response: httpx.Response) -> tuple[str, str | None]:
    """What an error answer says, and which input it is about, as `input[3]`; None where it names none."""
    try:
        error: Any = response.json()["error"]
        param = error.get("param")
        names_input = isinstance(param, str) and re.fullmatch(r"input\[\d+\]", param)
        return str(error["message"]), param if names_input else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"HTTP {response.status_code}: {response.text[:200]}".rstrip(": "), None
