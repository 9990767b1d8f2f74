"""Blocking calls on folders that may never answer: a share whose server is gone holds its caller in the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Silent(Exception):
    """Nothing was heard for so many `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"no answer for {seconds:g} s")


class _Abandoned(Exception):
    """Nobody waits for the work any more."""


class Pulse:
    """Called by the work, now and then, to say that it goes on. It raises where nobody waits any more."""

    def __init__(self) -> None:
        self.beats = 0
        self.abandoned = False

    def __call__(self) -> None:
        """The work goes on."""
        if self.abandoned:
            raise _Abandoned
        self.beats += 1


async def watched(work: Callable[[Pulse], T], silence: float) -> T:
    """What `work` returns or raises, run on a thread of its own.

    A thread that is stuck is left behind: it holds up neither the event loop nor the end of the process.
    Raises Silent where the work gave no sign of life for `silence` seconds.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    pulse = Pulse()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]  # None only where T is

    def run() -> None:
        result: T | None = None
        problem: BaseException | None = None
        try:
            result = work(pulse)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to whoever waits
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=run, name="watched", daemon=True).start()
    try:
        while True:
            heard = pulse.beats
            await asyncio.wait([answer], timeout=silence)
            if answer.done():
                return answer.result()
            if pulse.beats == heard:
                raise Silent(silence)
    finally:
        pulse.abandoned = True
        answer.cancel()  # so that what comes too late is not told to anybody
