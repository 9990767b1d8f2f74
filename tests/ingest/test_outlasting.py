"""Somebody else's embedding server that cannot answer for the moment, takes text alone, or serves another model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pipeline.backends.client import Timeouts
from pipeline.backends.embedder import ServerEmbedder
from pipeline.backends.remote import RemoteServer
from pipeline.core.errors import BackendBusy, BackendRefused, ModelError
from pipeline.core.modes import Slot
from pipeline.ingest.embedding import Batch, CarefulEmbedder
from pipeline.store.queue import PendingChunk
from tests.backends.scripted_server import Act, Received, Scripted, fine, hang, reset, says, scripted, send

READY = says({})
POISON = 666


def chunks(count: int, poisoned: int | None = None) -> list[PendingChunk]:
    return [PendingChunk(n, n, [101, POISON if n == poisoned else 2000 + n, 102]) for n in range(count)]


async def texts_of(some: Sequence[PendingChunk]) -> list[str]:
    return [f"text {chunk.chunk_id}" for chunk in some]


def busy(status: int, retry_after: str | None = None) -> Act:
    async def act(_: Received, writer: asyncio.StreamWriter) -> None:
        headers = "" if retry_after is None else f"Retry-After: {retry_after}\r\n"
        await send(writer, {"error": {"message": "not now"}}, status, headers)

    return act


async def half(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"data": [{"index": 0, "embed')
    await writer.drain()
    writer.close()


Careful = Callable[..., CarefulEmbedder]


@asynccontextmanager
async def remote(*acts: Act, **how: Any) -> AsyncIterator[tuple[CarefulEmbedder, Scripted, list[str]]]:
    """A server that is ready and then does these acts, and what is said while it is waited for."""
    said: list[str] = []
    async with scripted(READY, *acts) as server:
        model = RemoteServer(Slot.EMBEDDING, server.url, "m")
        await model.start()
        embedder = ServerEmbedder(model, Timeouts(read=how.pop("read", 5.0)), theirs=True, backoff=0.01)
        careful = CarefulEmbedder(embedder, on_wait=said.append, **{"first_pause": 0.01, **how})
        try:
            yield careful, server, said
        finally:
            await embedder.disconnect()
            await model.stop()


def ids(batch: Batch) -> tuple[list[int], list[int], list[int]]:
    return (
        sorted(chunk.chunk_id for chunk, _ in batch.vectors),
        [chunk.chunk_id for chunk, _ in batch.failures],
        [chunk.chunk_id for chunk, _ in batch.postponed],
    )


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (busy(429), "HTTP 429: not now"),
        (busy(503), "HTTP 503: not now"),
        (busy(500), "HTTP 500: not now"),
        *(
            (says({"error": {"message": "full", "param": each}}, 503), "HTTP 503: full")
            for each in ("None", "model", 7)
        ),
        (says({"error": {"message": "the model is not loaded"}}), "the model is not loaded"),
        (says(b"", 502), "HTTP 502"),
        (says(b""), "broke off"),
        (half, "cannot be reached"),
    ],
)
async def test_a_refusal_for_the_moment_is_said_and_outlasted(act: Act, why: str) -> None:
    async with remote(act, act, act, act, act, act, fine) as (careful, _, said):
        assert ids(await careful.embed(chunks(2))) == ([0, 1], [], [])
    assert said[0].startswith(f"the embedding server cannot answer now ({'http' if act is half else ''}")
    assert why in said[0]
    assert said[-1] == ""


async def test_as_long_as_the_server_asks_for_it_is_left_alone() -> None:
    async with remote(busy(429, "1"), fine) as (careful, server, said):
        began = asyncio.get_running_loop().time()
        assert ids(await careful.embed(chunks(1))) == ([0], [], [])
        assert asyncio.get_running_loop().time() - began >= 1.0
    assert len(server.received) == 3
    assert "asked again in 1 s" in said[0]


async def test_other_requests_wait_meanwhile_and_are_answered_after() -> None:
    async with remote(busy(503), fine) as (careful, _server, _):
        batches = await asyncio.gather(*(careful.embed(chunks(2)) for _ in range(4)))
        assert [ids(batch) for batch in batches] == [([0, 1], [], [])] * 4


async def test_a_server_that_answers_nothing_for_long_ends_it_with_the_reason() -> None:
    async with remote(busy(503), patience=0.2) as (careful, server, _):
        with pytest.raises(BackendBusy, match=r"answered nothing for \d+ s; it said last: HTTP 503: not now"):
            await careful.embed(chunks(8))
    assert len(server.received) < 30


async def test_time_in_which_nobody_asked_is_no_time_without_an_answer() -> None:
    async with remote(busy(503), fine, patience=0.2) as (careful, _, _):
        await asyncio.sleep(0.3)
        assert ids(await careful.embed(chunks(1))) == ([0], [], [])


@pytest.mark.parametrize("retry_after", ["86400", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_a_server_that_asks_for_a_day_is_not_waited_for(retry_after: str) -> None:
    async with remote(busy(429, retry_after)) as (careful, _, _):
        with pytest.raises(BackendBusy, match="asks to be left alone"):
            await careful.embed(chunks(1))


async def test_what_alone_is_not_answered_is_postponed_and_the_rest_goes_on() -> None:
    async def poisoned(request: Received, writer: asyncio.StreamWriter) -> None:
        if any(POISON in tokens for tokens in request.json()["input"] if isinstance(tokens, list)):
            await send(writer, {"error": {"message": "cannot"}}, 500)
        else:
            await fine(request, writer)

    async with remote(poisoned) as (careful, _, _):
        batch = await careful.embed(chunks(5, poisoned=3))
        assert ids(batch) == ([0, 1, 2, 4], [], [3])
        assert "HTTP 500: cannot" in batch.postponed[0][1]


async def test_a_request_that_is_too_much_for_it_is_halved() -> None:
    async def small_only(request: Received, writer: asyncio.StreamWriter) -> None:
        await (fine if len(request.json()["input"]) <= 2 else hang)(request, writer)

    async with remote(small_only, read=0.1) as (careful, _, _):
        assert ids(await careful.embed(chunks(4))) == ([0, 1, 2, 3], [], [])


@pytest.mark.parametrize("refusal", [400, 415, 422, 500])
async def test_a_server_that_takes_no_token_ids_is_given_text(refusal: int) -> None:
    async def text_only(request: Received, writer: asyncio.StreamWriter) -> None:
        if isinstance(request.json()["input"][0], list):
            await send(writer, {"error": {"message": "input must be a string"}}, refusal)
        else:
            await fine(request, writer)

    async with remote(text_only, texts=texts_of) as (careful, server, said):
        for _ in range(2):
            assert ids(await careful.embed(chunks(2))) == ([0, 1], [], [])
    asked = [request.json()["input"] for request in server.received[1:]]
    assert asked == [[list(chunk.tokens) for chunk in chunks(2)], ["text 0", "text 1"], ["text 0", "text 1"]]
    assert said == []


async def test_a_refused_key_ends_it_and_is_no_document_s_fault() -> None:
    async with remote(busy(401), texts=texts_of) as (careful, server, _):
        with pytest.raises(BackendRefused, match="not now") as refused:
            await careful.embed(chunks(3))
    assert refused.value.status == 401
    assert str(refused.value).startswith(f"the embedding server at {server.url} refuses any text: HTTP 401")
    assert "embedding.api_key" in str(refused.value)


async def test_vectors_of_another_length_end_it() -> None:
    async with remote(fine, dimension=384) as (careful, _, _):
        with pytest.raises(ModelError, match=r"vectors of 2 numbers, and those of the model have 384"):
            await careful.embed(chunks(3))


async def test_zeros_for_one_text_cost_that_text_alone() -> None:
    async def zeros(request: Received, writer: asyncio.StreamWriter) -> None:
        rows = [tokens[1:2] == [POISON] for tokens in request.json()["input"]]
        data = [{"index": n, "embedding": [0.0, 0.0] if zero else [1.0, 0.0]} for n, zero in enumerate(rows)]
        await send(writer, {"data": data})

    async with remote(zeros) as (careful, _, _):
        batch = await careful.embed(chunks(5, poisoned=2))
        assert ids(batch) == ([0, 1, 3, 4], [2], [])
        assert "all zeros" in batch.failures[0][1]


async def test_a_connection_that_breaks_is_outlasted() -> None:
    async with remote(*[reset] * 5, fine) as (careful, _, said):
        assert ids(await careful.embed(chunks(1))) == ([0], [], [])
    assert "cannot be reached" in said[0]


async def test_a_server_that_asks_for_rest_is_sent_no_text_instead() -> None:
    async with remote(busy(429), fine, texts=texts_of) as (careful, server, _):
        assert ids(await careful.embed(chunks(1))) == ([0], [], [])
    assert [request.json()["input"] for request in server.received[1:]] == [[[101, 2000, 102]]] * 2


async def test_a_server_that_takes_token_ids_for_many_texts_is_given_text() -> None:
    async def text_only(request: Received, writer: asyncio.StreamWriter) -> None:
        given = request.json()["input"]
        count = len(given) if isinstance(given[0], str) else sum(map(len, given))
        await send(writer, {"data": [{"index": n, "embedding": [1.0, 0.0]} for n in range(count)]})

    async with remote(text_only, texts=texts_of) as (careful, server, _):
        assert ids(await careful.embed(chunks(2))) == ([0, 1], [], [])
    assert server.received[-1].json()["input"] == ["text 0", "text 1"]


async def test_a_sound_server_is_not_asked_three_times_for_each_half() -> None:
    async def refuses(request: Received, writer: asyncio.StreamWriter) -> None:
        known_good = isinstance(request.json()["input"][0], str)
        await (fine if known_good else busy(500))(request, writer)

    async with remote(refuses, first_pause=0.001) as (careful, _, said):
        assert ids(await careful.embed(chunks(8)))[2] == list(range(8))
    assert sum("asked again" in why for why in said) <= 3 + 14  # the whole three times, each of its 14 parts once
