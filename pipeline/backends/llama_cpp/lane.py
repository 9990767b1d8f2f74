"""The lane for long texts beside the dispatcher: each is computed by itself, a few side by side.

Requests come from the event loop and are answered there. Knows no HTTP, and packs nothing: a long text
fills a batch alone.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from pipeline.backends.llama_cpp.dispatch import InputFailed, QueueFull
from pipeline.backends.serving.sequences import Course, EngineError, Tokens
from pipeline.core.engine_stats import ContextStats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.backends.llama_cpp.whole import WholeTexts
    from pipeline.core.vectors import Matrix

    Spans = Sequence[tuple[int, int]]


class WholeLane:
    """Long texts, and stretches of them, over one engine.

    workers: texts of usual length that are computed side by side. usual: tokens up to which a text is that;
    of longer ones, which have all the cores, there is one at a time. max_waiting: tokens not computed yet.
    """

    def __init__(self, texts: WholeTexts, *, workers: int, usual: int, max_waiting: int) -> None:
        self._texts = texts
        self._usual = usual
        self._max_waiting = max_waiting
        self._waiting = 0
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="whole")
        self._alone = asyncio.Lock()
        self._agreeing = Course()
        self._under_way: dict[int, tuple[int, Course]] = {}
        self._agrees: asyncio.Task[bool] | None = None
        self._done = ContextStats()

    def stats(self) -> ContextStats:
        """What was computed since the start; a text counts when it is done, and each as a batch."""
        return self._done

    @property
    def partial(self) -> float:
        """Tokens of the texts under way that are computed already."""
        return sum(tokens * course.share for tokens, course in list(self._under_way.values()))

    async def vectors(self, texts: Sequence[Tokens]) -> Matrix:
        """Unit vectors float32 [n, d] of texts, in their order.

        Raises QueueFull, or InputFailed for the first that has none. Cancelling it ends what is being computed.
        """
        return await self._all([(text, _vector(self._texts, text)) for text in texts])

    async def spans(self, texts: Sequence[Tokens], spans: Sequence[Spans]) -> Matrix:
        """Unit vectors float32 [n, d] of the spans of the first text, then of the second, and so on. Raises as above.

        Raises EngineError where the mean of token vectors is not what the model's vectors are.
        """
        if self._agrees is None:
            self._agrees = asyncio.ensure_future(asyncio.to_thread(self._texts.spans_agree, self._agreeing))
        if not await asyncio.shield(self._agrees):
            raise EngineError(
                "this model's vectors are not the mean of its tokens': late chunking needs one that is so"
            )
        work = [(text, _spans(self._texts, text, inside)) for text, inside in zip(texts, spans, strict=True)]
        return await self._all(work)

    def close(self) -> bool:
        """Take no more work; whether nothing was being computed any more."""
        for _, course in [(0, self._agreeing), *self._under_way.values()]:
            course.unwanted = True
        self._threads.shutdown(wait=not self._waiting, cancel_futures=True)
        return not self._waiting

    async def _all(self, work: Sequence[tuple[Tokens, Callable[[Course], Matrix]]]) -> Matrix:
        tokens = sum(len(text) for text, _ in work)
        if self._waiting and self._waiting + tokens > self._max_waiting:
            raise QueueFull(f"{self._waiting} tokens are waiting already; try again later")
        self._waiting += tokens
        try:
            async with asyncio.TaskGroup() as group:
                found = [group.create_task(self._one(*one, index)) for index, one in enumerate(work)]
        except* InputFailed as failed:
            raise _first(failed) from None
        finally:
            self._waiting -= tokens
        return np.concatenate([task.result() for task in found])

    async def _one(self, text: Tokens, compute: Callable[[Course], Matrix], index: int) -> Matrix:
        if len(text) <= self._usual:
            return await self._computed(text, compute, index)
        async with self._alone:
            return await self._computed(text, compute, index)

    async def _computed(self, text: Tokens, compute: Callable[[Course], Matrix], index: int) -> Matrix:
        course = Course()

        def timed() -> tuple[Matrix, float]:
            began = time.monotonic()
            return compute(course), time.monotonic() - began

        self._under_way[id(course)] = (len(text), course)
        try:
            vectors, seconds = await asyncio.get_running_loop().run_in_executor(self._threads, timed)
        except (EngineError, ValueError, MemoryError) as error:
            raise InputFailed(index, str(error)) from error
        finally:
            course.unwanted = True
            del self._under_way[id(course)]
        self._done = self._done.plus(ContextStats(batches=1, sequences=1, tokens=len(text), computing=seconds))
        if not vectors.any(axis=1).all():
            raise InputFailed(index, "a vector of it is not finite")
        return vectors


def _vector(texts: WholeTexts, text: Tokens) -> Callable[[Course], Matrix]:
    return lambda course: texts.vector(text, course)


def _spans(texts: WholeTexts, text: Tokens, inside: Spans) -> Callable[[Course], Matrix]:
    return lambda course: texts.spans(text, inside, course)


def _first(group: BaseExceptionGroup[InputFailed]) -> InputFailed:
    failures = [error for error in group.exceptions if isinstance(error, InputFailed)]
    return min(failures, key=lambda failure: failure.index)
