"""The client against small real servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import numpy as np
import pytest
import structlog

from pipeline.backends.client import EmbeddingClient, Timeouts, read_answer
from pipeline.core.errors import BackendBusy, BackendDied, BackendRefused, BackendTimeout, BadAnswer
from tests.backends.scripted_server import Received, entry, fine, hang, no_gzip, reset, says, scripted, send


def client(url: str, **options: Any) -> EmbeddingClient:
    return EmbeddingClient(url, **({"backoff": 0.02, "trust_env": False} | options))


async def test_vectors_go_to_their_inputs_by_index() -> None:
    async with scripted(fine) as server, client(server.url, api_key="k", model="m") as ours:
        vectors = await ours.embed(["a", "b", "c"])
        assert vectors.dtype == np.float32
        assert vectors.tolist() == [[0, 1], [1, 1], [2, 1]]
        tokens: Any = [np.array([1, 2]), (3,)]
        await ours.embed(tokens)
    assert server.received[0].headers["authorization"] == "Bearer k"
    assert server.received[0].json() == {"input": ["a", "b", "c"], "model": "m", "encoding_format": "base64"}
    assert server.received[1].json()["input"] == [[1, 2], [3]]
    assert server.connections == 1


async def test_vectors_as_numbers_are_read_too() -> None:
    async with scripted(says({"data": [{"index": 0, "embedding": [0.5, 1]}]})) as server, client(server.url) as ours:
        assert (await ours.embed(["a"])).tolist() == [[0.5, 1.0]]


WRONG = [
    ({"data": [entry(index, 1.0) for index in range(3)]}, "3 vectors came back"),
    ({"data": [entry(0, 1.0), entry(0, 2.0)]}, "indices"),
    ({"data": [entry(0, 1.0), entry(2, 2.0)]}, "indices"),
    ({"data": [entry(0, 1.0), entry(True, 2.0)]}, "indices"),
    ({"data": [entry(0, 1.0), {"index": "1", "embedding": [1.0]}]}, "indices"),
    ({"data": [entry(0, 1.0), entry(1, float("nan"))]}, "input 1 is not finite"),
    ({"data": [entry(0, float("inf")), entry(1, 1.0)]}, "input 0 is not finite"),
    ({"data": [entry(0, 1.0, 1.0), entry(1, 0.0, -0.0)]}, "input 1 is all zeros"),
    ({"data": [entry(0, 1.0), entry(1, 1.0, 2.0)]}, "different sizes"),
    ({"data": [entry(0), entry(1)]}, "different sizes"),
]
BROKEN_OFF = [
    ({"data": [entry(0, 1.0)]}, "2 inputs were sent and only 1 vectors came back"),
    ({"data": [{"index": 0, "embedding": "***"}, entry(1, 1.0)]}, "not a list of embeddings"),
    ({"data": [{"index": 0, "embedding": "AAA="}, entry(1, 1.0)]}, "not a list of embeddings"),
    ({"data": [{"index": 0, "embedding": {"a": 1}}, entry(1, 1.0)]}, "not a list of embeddings"),
    ({"data": [{"embedding": [1.0]}, entry(1, 1.0)]}, "not a list of embeddings"),
    ({"data": None}, "not a list of embeddings"),
    ([], "not a list of embeddings"),
    (b"<html>", "not a list of embeddings"),
    (b"", "not a list of embeddings"),
    (b'{"data": [{"index": 0, "embed', "not a list of embeddings"),
]


@pytest.mark.parametrize(
    ("kind", "answer", "message"),
    [(BadAnswer, *each) for each in WRONG] + [(BackendBusy, *each) for each in BROKEN_OFF],
)
async def test_an_answer_that_was_not_asked_for_is_refused_without_a_retry(
    kind: type[Exception], answer: object, message: str
) -> None:
    async with scripted(says(answer)) as server, client(server.url) as ours:
        with pytest.raises(kind, match=message):
            await ours.embed(["a", "b"])
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("status", "answer", "message", "param"),
    [
        (400, {"error": {"message": "too long", "param": "input[3]"}}, "too long", "input[3]"),
        (500, {"error": {"message": "not finite", "param": "input[0]"}}, "not finite", "input[0]"),
        (401, ["?"], "HTTP 401", None),
    ],
)
async def test_an_error_status_is_told_without_a_retry(
    status: int, answer: object, message: str, param: str | None
) -> None:
    async with scripted(says(answer, status)) as server, client(server.url) as ours:
        with pytest.raises(BackendRefused, match=message) as refused:
            await ours.embed(["a"])
    assert (refused.value.status, refused.value.param) == (status, param)
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("status", "answer", "headers", "message", "retry_after"),
    [
        (500, b"oops", {}, "HTTP 500: oops", None),
        (503, {"error": "busy"}, {}, "HTTP 503", None),
        (502, b"", {}, "HTTP 502", None),
        (408, b"", {}, "HTTP 408", None),
        (429, {"error": {"message": "slow down"}}, {"Retry-After": "7"}, "HTTP 429: slow down", 7.0),
        (
            429,
            b"",
            {"Date": "Tue, 01 Dec 2026 00:00:00 GMT", "Retry-After": "Tue, 01 Dec 2026 00:01:30 GMT"},
            "HTTP 429",
            90.0,
        ),
        (429, b"", {"Retry-After": "-1"}, "HTTP 429", None),
        (429, b"", {"Retry-After": "9" * 400}, "HTTP 429", None),
    ],
)
def test_a_refusal_for_the_moment_says_when_to_ask_again(
    status: int, answer: object, headers: dict[str, str], message: str, retry_after: float | None
) -> None:
    content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    with pytest.raises(BackendBusy, match=message) as busy:
        read_answer(httpx.Response(status, content=content, headers=headers), 1)
    assert busy.value.retry_after == retry_after


async def test_a_broken_connection_is_tried_again_with_a_new_session() -> None:
    async with scripted(fine, reset, reset, fine) as server, client(server.url) as ours:
        await ours.embed(["a"])
        with structlog.testing.capture_logs() as logs:
            began = time.monotonic()
            assert (await ours.embed(["a"])).shape == (1, 2)
            assert time.monotonic() - began > 0.02 + 0.04, "each wait is twice the one before"
    events = [entry["event"] for entry in logs]
    assert events.count("The embedding server did not answer and is asked again") == 2
    assert events.count("A session with the embedding server begins") == 2
    assert server.connections == 3


async def test_retries_end_after_three() -> None:
    async with scripted(reset) as server, client(server.url) as ours:
        with pytest.raises(BackendDied, match="cannot be reached"):
            await ours.embed(["a"])
    assert len(server.received) == 4


async def test_no_retry_where_the_server_is_known_to_be_gone() -> None:
    async with scripted(reset) as server, client(server.url, may_retry=lambda: False) as ours:
        with pytest.raises(BackendDied):
            await ours.embed(["a"])
    assert len(server.received) == 1


async def test_nobody_listening_is_a_dead_server() -> None:
    async with scripted(fine) as server:
        url = server.url
    async with client(url) as ours:
        with pytest.raises(BackendDied, match="cannot be reached"):
            await ours.embed(["a"])


async def test_a_slow_answer_is_tried_again_and_then_a_time_out() -> None:
    async with scripted(hang, fine) as server, client(server.url, timeouts=Timeouts(read=0.2)) as ours:
        assert (await ours.embed(["a"])).shape == (1, 2)
    async with scripted(hang) as server, client(server.url, timeouts=Timeouts(read=0.05)) as ours:
        with pytest.raises(BackendTimeout):
            await ours.embed(["a"])
        assert len(server.received) == 4
    async with scripted(hang) as server, client(server.url, timeouts=Timeouts(total=0.2)) as ours:
        with pytest.raises(BackendTimeout):
            await ours.embed(["a"])
        assert len(server.received) == 1


async def test_a_lost_session_does_not_break_the_calls_of_others() -> None:
    async def slow(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1.5)
        await fine(request, writer)

    async with scripted(slow, reset, fine) as server, client(server.url) as ours:
        first = asyncio.create_task(ours.embed(["a"]))
        await asyncio.sleep(0.05)
        assert (await ours.embed(["b"])).shape == (1, 2)
        assert not first.done()
        assert (await first).shape == (1, 2)
    assert len(server.received) == 3


async def test_large_bodies_are_packed_unless_the_server_cannot_read_them() -> None:
    async with scripted(no_gzip) as server, client(server.url, gzip_above=100) as ours:
        await ours.embed(["small"])
        await ours.embed(["large " * 50])
        await ours.embed(["large " * 50])
    assert ["content-encoding" in request.headers for request in server.received] == [False, True, False, False]
    async with scripted(fine) as server, client(server.url, gzip_above=100) as ours:
        await ours.embed(["large " * 50])
    assert server.received[0].headers["content-encoding"] == "gzip"
    assert server.received[0].json()["input"] == ["large " * 50]
    async with scripted(says({"error": {"message": "bad"}}, 400)) as server, client(server.url, gzip_above=100) as ours:
        with pytest.raises(BackendRefused, match="bad"):
            await ours.embed(["large " * 50])
        with pytest.raises(BackendRefused, match="bad"):
            await ours.embed(["large " * 50])
    assert len(server.received) == 4, "a body that is refused either way proves nothing about gzip"


async def test_nothing_is_no_question() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    async with EmbeddingClient("http://test", transport=transport) as ours:
        with pytest.raises(ValueError, match="nothing to embed"):
            await ours.embed([])


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (BackendBusy, b'{"data": [{"index": 0, "embedding": [1%s]}]}' % (b"0" * 400)),
        (BackendBusy, b"[" * 100_000),
        (BadAnswer, b'{"data": [{"index": 0, "embedding": [1e39, 1]}]}'),
    ],
)
def test_numbers_and_lists_beyond_all_bounds_are_no_embeddings(kind: type[Exception], content: bytes) -> None:
    with pytest.raises(kind):
        read_answer(httpx.Response(200, content=content), 1)
    with pytest.raises(BackendBusy, match="HTTP 500"):
        read_answer(httpx.Response(500, content=content), 1)


async def test_an_answer_that_cannot_be_unpacked_broke_off() -> None:
    async def unpackable(_: Received, writer: asyncio.StreamWriter) -> None:
        await send(writer, b"hello", headers="Content-Encoding: gzip\r\n")

    async with scripted(unpackable) as server, client(server.url) as ours:
        with pytest.raises(BackendBusy, match="cannot be unpacked"):
            await ours.embed(["a"])
        with pytest.raises(BadAnswer, match="cannot be unpacked"):
            await ours.fetch("/stats")


@pytest.mark.parametrize(
    ("kind", "content", "problem"),
    [
        (BackendBusy, b"", "0 bytes are not 2 vectors"),
        (BackendBusy, b"\0" * 12, "12 bytes are not 2 vectors"),
        (BadAnswer, np.array([1, 2, 3, np.nan], "<f4").tobytes(), "input 1 is not finite"),
        (BadAnswer, np.array([0, 0, 3, 4], "<f4").tobytes(), "input 0 is all zeros"),
    ],
)
def test_bare_numbers_are_checked_as_well(kind: type[Exception], content: bytes, problem: str) -> None:
    with pytest.raises(kind, match=problem):
        read_answer(httpx.Response(200, content=content, headers={"Content-Type": "application/octet-stream"}), 2)


def test_bare_numbers_are_rows_of_float32() -> None:
    content = np.arange(6, dtype="<f4").tobytes()
    response = httpx.Response(200, content=content, headers={"Content-Type": "application/octet-stream"})
    assert read_answer(response, 3).tolist() == [[0, 1], [2, 3], [4, 5]]
