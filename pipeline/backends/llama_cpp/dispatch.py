"""Packs the inputs of all requests together and feeds the engine's contexts, a thread each.

Requests come from the event loop and are answered there. Knows no HTTP. The oldest request
fills a batch first; later ones fill what room it leaves.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.backends.serving.sequences import Course, EngineError, Tokens
from pipeline.core.batching import plan_share, take_alike, take_fitting
from pipeline.core.engine_stats import ContextStats, EngineStats
from pipeline.core.errors import NightshiftError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.vectors import Matrix


class Computing(Protocol):
    """What computes one batch at a time: an engine's context."""

    def embed(self, sequences: Sequence[Tokens], course: Course) -> tuple[Matrix, npt.NDArray[np.bool_]]:
        """Unit vectors float32 [n, d], and which of them are finite, bool [n]. See `Context.embed`."""
        ...


class QueueFull(NightshiftError):
    """More tokens are waiting than the server holds; the request was not taken."""


class InputFailed(NightshiftError):
    """Input `index` of a request has no usable vector; the other requests are not affected."""

    def __init__(self, index: int, reason: str) -> None:
        self.index = index
        self.reason = reason
        super().__init__(f"input {index}: {reason}")


@dataclass(eq=False)
class _Request:
    sequences: Sequence[Tokens]
    vectors: Matrix
    answer: asyncio.Future[Matrix]
    loop: asyncio.AbstractEventLoop
    waiting: list[tuple[int, int]]
    unanswered: int
    failure: InputFailed | None = None
    dropped: bool = False


@dataclass(eq=False)
class _Batch:
    """(request, index of its input) for every sequence of one native batch."""

    members: list[tuple[_Request, int]] = field(default_factory=list)
    tokens: int = 0
    longest: int = 0
    course: Course = field(default_factory=Course)

    @property
    def unwanted(self) -> bool:
        """Whether nobody waits for any of it."""
        return all(request.dropped for request, _ in self.members)


@dataclass
class _Clocked:
    """A context's counters up to `since`, and whether it has been computing or waiting for input from then on."""

    since: float
    done: ContextStats = field(default_factory=ContextStats)
    computing: bool = False

    def at(self, now: float) -> ContextStats:
        """Up to now; a batch counts when it is done."""
        spent = max(0.0, now - self.since)
        return self.done.plus(ContextStats(computing=spent) if self.computing else ContextStats(waiting=spent))

    def turn(self, *, computing: bool) -> None:
        """It does this from now on."""
        now = time.monotonic()
        self.done, self.since, self.computing = self.at(now), now, computing


class Dispatcher:
    """A bounded queue of requests in front of the contexts of one engine.

    `start` before use and `close` after; `embed` in between, from any task of one event loop.
    padded: the contexts fill all sequences of a batch up to its longest, which then counts against the budget.
    """

    def __init__(
        self,
        contexts: Sequence[Computing],
        *,
        dimension: int,
        budget: int,
        n_seq_max: int,
        max_waiting: int,
        padded: bool = False,
    ) -> None:
        self._contexts = contexts
        self._dimension = dimension
        self._budget = budget
        self._n_seq_max = n_seq_max
        self._max_waiting = max_waiting
        self._padded = padded
        self._changed = threading.Condition()
        self._requests: deque[_Request] = deque()
        self._waiting_tokens = 0
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._under_way: list[_Batch] = []
        self._clocks: list[_Clocked] = []

    def start(self) -> None:
        """Start one thread for each context."""
        self._clocks = [_Clocked(time.monotonic()) for _ in self._contexts]
        for number, (context, clock) in enumerate(zip(self._contexts, self._clocks, strict=True)):
            thread = threading.Thread(target=self._work, args=(context, clock), name=f"context-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self, deadline: float) -> bool:
        """Take no more work and wait up to `deadline` seconds for each thread; whether all of them ended.

        Nobody waits for an answer any more when this is called, so that what is being computed is given up.
        """
        with self._changed:
            self._closing = True
            for batch in self._under_way:
                batch.course.unwanted = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(deadline)
        return not any(thread.is_alive() for thread in self._threads)

    def stats(self) -> EngineStats:
        """What the contexts did since the start, up to this moment, and what waits."""
        with self._changed:
            now = time.monotonic()
            return EngineStats(
                tuple(clock.at(now) for clock in self._clocks),
                self._budget,
                self._waiting_tokens,
                sum(bool(request.waiting) for request in self._requests),
                partial=sum(batch.tokens * batch.course.share for batch in self._under_way),
            )

    async def embed(self, sequences: Sequence[Tokens]) -> Matrix:
        """Unit vectors float32 [n, d] of `sequences`, in their order.

        Raises QueueFull, or InputFailed for the first input without a usable vector. Cancelling
        the call drops what of it has not been computed yet, and ends a batch that holds nothing else.
        """
        if not sequences:
            return np.empty((0, self._dimension), dtype=np.float32)
        loop = asyncio.get_running_loop()
        lengths = [len(tokens) for tokens in sequences]
        request = _Request(
            sequences=sequences,
            vectors=np.empty((len(sequences), self._dimension), dtype=np.float32),
            answer=loop.create_future(),
            loop=loop,
            waiting=sorted((length, -index) for index, length in enumerate(lengths)),
            unanswered=len(sequences),
        )
        self._admit(request, sum(lengths))
        try:
            return await request.answer
        finally:
            self._drop(request)

    def _admit(self, request: _Request, tokens: int) -> None:
        with self._changed:
            if self._closing or (self._waiting_tokens and self._waiting_tokens + tokens > self._max_waiting):
                raise QueueFull(f"{self._waiting_tokens} tokens are waiting already; try again later")
            self._requests.append(request)
            self._waiting_tokens += tokens
            self._changed.notify(len(self._contexts))

    def _drop(self, request: _Request) -> None:
        with self._changed:
            request.dropped = True
            self._waiting_tokens -= sum(length for length, _ in request.waiting)
            request.waiting.clear()
            for batch in self._under_way:
                batch.course.unwanted = batch.unwanted

    def _work(self, context: Computing, clock: _Clocked) -> None:
        while (batch := self._next_batch(clock)) is not None:
            self._compute(context, batch, clock)

    def _next_batch(self, clock: _Clocked) -> _Batch | None:
        with self._changed:
            clock.turn(computing=False)
            while True:
                batch = self._pack()
                if batch.members:
                    clock.turn(computing=True)
                    self._under_way.append(batch)
                    return batch
                if self._closing:
                    return None
                self._changed.wait()

    def _pack(self) -> _Batch:
        batch = _Batch()
        room = plan_share(self._waiting_tokens, len(self._contexts), self._budget)
        for request in self._requests:
            slots = self._n_seq_max - len(batch.members)
            if self._padded:
                taken = take_alike(request.waiting, room, slots, longest=batch.longest, held=len(batch.members))
            else:
                taken = take_fitting(request.waiting, room - batch.tokens, slots, force_first=not batch.members)
            batch.longest = max([batch.longest, *(length for length, _ in taken)])
            batch.members += [(request, -key) for _, key in taken]
            batch.tokens += sum(length for length, _ in taken)
            if batch.tokens >= room or len(batch.members) == self._n_seq_max:
                break
        while self._requests and not self._requests[0].waiting:
            self._requests.popleft()
        self._waiting_tokens -= batch.tokens
        return batch

    def _compute(self, context: Computing, batch: _Batch, clock: _Clocked) -> None:
        try:
            vectors, finite = context.embed([request.sequences[i] for request, i in batch.members], batch.course)
        except Exception as error:  # noqa: BLE001  whatever one batch does, the thread and its other work live on
            self._failed(context, batch, clock, error)
            return
        with self._changed:
            self._under_way.remove(batch)
            clock.done = clock.done.with_batch(batch.tokens, len(batch.members), self._budget)
        for (request, index), vector, usable in zip(batch.members, vectors, finite.tolist(), strict=True):
            self._settle(request, index, vector if usable else None, "its vector is not finite")

    def _failed(self, context: Computing, batch: _Batch, clock: _Clocked, error: Exception) -> None:
        """Compute each input of a batch that failed by itself; one that fails alone has its reason."""
        with self._changed:
            self._under_way.remove(batch)
            each = [_Batch([(request, i)], len(request.sequences[i])) for request, i in batch.members]
            each = [] if batch.unwanted else each
        if len(each) == 1:
            problem = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
            self._settle(*batch.members[0], None, problem)
            return
        for one in each:
            with self._changed:
                if one.unwanted or self._closing:  # nobody waits for it any more
                    continue
                self._under_way.append(one)
            self._compute(context, one, clock)

    def _settle(self, request: _Request, index: int, vector: npt.NDArray[np.float32] | None, problem: str) -> None:
        with self._changed:
            if vector is not None:
                request.vectors[index] = vector
            elif request.failure is None or index < request.failure.index:
                request.failure = InputFailed(index, problem)
            request.unanswered -= 1
            finished = request.unanswered == 0 and not request.dropped
        if finished:
            request.loop.call_soon_threadsafe(_answer, request)


def _answer(request: _Request) -> None:
    if request.answer.done():
        return
    if request.failure is not None:
        request.answer.set_exception(request.failure)
    else:
        request.answer.set_result(request.vectors)
