"""The queue and its packing, over contexts that do as the test says, and the server's answers to it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.backends.llama_cpp.dispatch import Dispatcher, InputFailed, QueueFull
from pipeline.backends.llama_cpp.protocol import Limits
from pipeline.backends.llama_cpp.server import Service, make_app
from pipeline.backends.serving.sequences import Course, EngineError, Tokens
from pipeline.core.vectors import Matrix

NOT_FINITE, REFUSED, BROKEN = 13, 14, 15
"""First tokens that make the stand-in's vector not finite, the batch refused, the context raise anything."""


class StandIn:
    """A context whose vectors are [first token, length]; it waits for `gate` and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def embed(self, sequences: Sequence[Tokens], course: Course) -> tuple[Matrix, npt.NDArray[np.bool_]]:
        self.batches.append([(int(tokens[0]), len(tokens)) for tokens in sequences])
        self.entered.release()
        assert self.gate.wait(60)
        firsts = {int(tokens[0]) for tokens in sequences}
        if REFUSED in firsts:
            raise EngineError("llama.cpp could not")
        if BROKEN in firsts:
            raise RuntimeError("unheard of")
        vectors = np.array([[tokens[0], len(tokens)] for tokens in sequences], dtype=np.float32)
        return vectors, np.array([int(tokens[0]) != NOT_FINITE for tokens in sequences])


Started = Callable[..., tuple[Dispatcher, StandIn]]


@pytest.fixture
def started() -> Iterator[Started]:
    running: list[tuple[Dispatcher, StandIn]] = []

    def start(max_waiting: int = 10_000) -> tuple[Dispatcher, StandIn]:
        context = StandIn()
        dispatcher = Dispatcher([context], dimension=2, budget=100, n_seq_max=4, max_waiting=max_waiting)
        dispatcher.start()
        running.append((dispatcher, context))
        return dispatcher, context

    yield start
    for dispatcher, context in running:
        context.gate.set()
        assert dispatcher.close(10)


def sequences(*firsts_and_lengths: tuple[int, int]) -> list[Tokens]:
    return [np.full(length, first, dtype=np.int32) for first, length in firsts_and_lengths]


async def hold(dispatcher: Dispatcher, context: StandIn) -> asyncio.Task[Matrix]:
    """Keep the context busy with a request of its own until the gate opens."""
    context.gate.clear()
    while context.entered.acquire(blocking=False):  # by requests before this one
        pass
    task = asyncio.create_task(dispatcher.embed(sequences((0, 1))))
    assert await asyncio.to_thread(context.entered.acquire, timeout=5)
    return task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_answers_are_in_the_order_of_the_request(started: Started) -> None:
    dispatcher, _ = started()
    asked = [(number, 1 + number * 37 % 90) for number in range(100, 150)]
    vectors = await dispatcher.embed(sequences(*asked))
    assert [(int(first), int(length)) for first, length in vectors] == asked


async def test_requests_share_batches_and_the_oldest_goes_first(started: Started) -> None:
    dispatcher, context = started()
    held = await hold(dispatcher, context)
    first = asyncio.create_task(dispatcher.embed(sequences((1, 60), (2, 90))))
    await settle()
    second = asyncio.create_task(dispatcher.embed(sequences((3, 95), (4, 10), (5, 40))))
    await settle()
    context.gate.set()
    await asyncio.gather(held, first, second)
    assert context.batches[1:3] == [[(2, 90), (4, 10)], [(1, 60), (5, 40)]]
    assert context.batches[3] == [(3, 95)]


async def test_a_batch_keeps_the_limit_of_sequences(started: Started) -> None:
    dispatcher, context = started()
    await dispatcher.embed(sequences(*[(1, 1)] * 10))
    assert max(map(len, context.batches)) == 4


async def test_one_bad_vector_fails_its_request_and_no_other(started: Started) -> None:
    dispatcher, context = started()
    held = await hold(dispatcher, context)
    bad = asyncio.create_task(dispatcher.embed(sequences((1, 5), (NOT_FINITE, 5))))
    good = asyncio.create_task(dispatcher.embed(sequences((2, 5))))
    await settle()
    context.gate.set()
    await held
    with pytest.raises(InputFailed, match="not finite") as caught:
        await bad
    assert caught.value.index == 1
    assert (await good).tolist() == [[2, 5]]
    assert len(context.batches) == 2, "both requests were in one batch"


@pytest.mark.parametrize(("poison", "message"), [(REFUSED, "could not"), (BROKEN, "unheard of")])
async def test_a_failed_batch_is_laid_at_the_door_of_the_guilty(started: Started, poison: int, message: str) -> None:
    dispatcher, context = started()
    held = await hold(dispatcher, context)
    bad = asyncio.create_task(dispatcher.embed(sequences((poison, 5))))
    good = asyncio.create_task(dispatcher.embed(sequences((2, 5))))
    await settle()
    context.gate.set()
    await held
    with pytest.raises(InputFailed, match=message):
        await bad
    assert (await good).tolist() == [[2, 5]]
    assert (await dispatcher.embed(sequences((3, 5)))).tolist() == [[3, 5]], "the thread lives on"


async def test_cancelled_work_is_not_computed_and_frees_its_place(started: Started) -> None:
    dispatcher, context = started(max_waiting=1000)
    held = await hold(dispatcher, context)
    dropped = asyncio.create_task(dispatcher.embed(sequences(*[(7, 90)] * 10)))
    await settle()
    with pytest.raises(QueueFull):
        await dispatcher.embed(sequences(*[(8, 90)] * 10))
    dropped.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await dropped
    waiting = asyncio.create_task(dispatcher.embed(sequences(*[(8, 90)] * 10)))
    await settle()
    context.gate.set()
    await asyncio.gather(held, waiting)
    assert all(first != 7 for batch in context.batches for first, _ in batch)


async def test_inputs_of_a_failed_batch_that_nobody_waits_for_are_not_tried_alone(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher, context = started()
    turns = threading.Semaphore(0)
    monkeypatch.setattr(context, "gate", SimpleNamespace(wait=lambda timeout: turns.acquire(timeout=timeout)))
    asking = asyncio.create_task(dispatcher.embed(sequences((REFUSED, 5), (7, 5), (8, 5))))
    for _ in range(2):  # the batch, which fails, and the first of its inputs alone
        assert await asyncio.to_thread(context.entered.acquire, timeout=5)
        turns.release()
    assert await asyncio.to_thread(context.entered.acquire, timeout=5)
    asking.cancel()  # while the second is computed
    await asyncio.gather(asking, return_exceptions=True)
    turns.release(2)
    assert (await dispatcher.embed(sequences((9, 2)))).tolist() == [[9, 2]]
    assert [len(batch) for batch in context.batches] == [3, 1, 1, 1]
    assert context.batches[-1] == [(9, 2)]
    monkeypatch.undo()


async def test_no_inputs_are_answered_with_no_vectors(started: Started) -> None:
    dispatcher, _ = started()
    assert (await dispatcher.embed([])).shape == (0, 2)


async def test_one_request_larger_than_the_queue_is_taken_when_nothing_waits(started: Started) -> None:
    dispatcher, _ = started(max_waiting=50)
    assert (await dispatcher.embed(sequences(*[(8, 90)] * 3))).shape == (3, 2)


async def test_nothing_is_taken_after_closing() -> None:
    dispatcher = Dispatcher([StandIn()], dimension=2, budget=100, n_seq_max=4, max_waiting=100)
    dispatcher.start()
    assert dispatcher.close(5)
    with pytest.raises(QueueFull):
        await dispatcher.embed(sequences((1, 1)))


async def test_the_server_names_the_input_whose_vector_is_not_finite(started: Started) -> None:
    dispatcher, context = started(max_waiting=100)
    service = Service(dispatcher, Limits(2, 100, 1000, matryoshka=False), lambda _: sequences((1, 2))[0], "stand-in")
    app = make_app(service, lambda _: contextlib.nullcontext())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.post("/v1/embeddings", json={"input": [[1, 1], [NOT_FINITE], [2]]})
        assert answer.status_code == 500
        assert answer.json()["error"]["param"] == "input[1]"
        assert answer.json()["error"]["type"] == "server_error"
        held = await hold(dispatcher, context)
        waiting = asyncio.create_task(dispatcher.embed(sequences((1, 90))))
        await settle()
        assert (await client.post("/v1/embeddings", json={"input": [[1] * 90]})).status_code == 503
        context.gate.set()
        await asyncio.gather(held, waiting)
        assert (await client.post("/v1/embeddings", json={"input": "text"})).status_code == 200


async def test_what_was_computed_and_what_waits_is_counted(started: Started) -> None:
    dispatcher, context = started()
    held = await hold(dispatcher, context)
    waiting = asyncio.create_task(dispatcher.embed(sequences((1, 60), (2, 30), (3, 50))))
    await settle()
    before = dispatcher.stats()
    assert (before.budget, before.queued_tokens, before.queued_requests) == (100, 140, 1)
    assert (before.total.batches, before.total.tokens) == (0, 0), "what is at work does not count yet"
    context.gate.set()
    await asyncio.gather(held, waiting)
    after = dispatcher.stats()
    assert (after.queued_tokens, after.queued_requests) == (0, 0)
    assert (after.total.batches, after.total.sequences, after.total.tokens) == (3, 4, 141)
    assert after.total.fills == (1, 0, 1, 0, 1, 0, 0, 0)  # 1, then 60 + 30, then 50 of 100 tokens
    assert after.total.computing > before.total.computing > 0
    assert after.follows(before)
    later = dispatcher.stats()
    assert later.total.waiting >= after.total.waiting


async def test_a_batch_that_fails_is_counted_as_what_came_of_it(started: Started) -> None:
    dispatcher, _ = started()
    with pytest.raises(InputFailed):
        await dispatcher.embed(sequences((1, 5), (REFUSED, 5)))
    assert (dispatcher.stats().total.batches, dispatcher.stats().total.tokens) == (1, 5)
