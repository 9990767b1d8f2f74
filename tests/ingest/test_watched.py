"""Work on folders that never answer: a pipe without a writer holds its reader in the kernel as a dead share does."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from pipeline.ingest.watched import Pulse, Silent, watched


async def test_what_the_work_returns_and_raises_is_passed_on() -> None:
    assert await watched(lambda beat: 7, 60) == 7
    with pytest.raises(FileNotFoundError):
        await watched(lambda beat: Path("/no/such/file").stat(), 60)


async def test_work_that_is_stuck_in_the_kernel_is_left_behind(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(Silent, match=r"no answer for 0\.05 s"):
        await watched(lambda beat: os.close(os.open(pipe, os.O_RDONLY)), 0.05)
    os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # somebody reads it: the thread was there all along


async def test_work_that_says_that_it_goes_on_may_take_longer() -> None:
    going, enough = threading.Event(), threading.Event()

    def slow(beat: Pulse) -> str:
        while not enough.wait(0.005):
            beat()
            going.set()
        return "done"

    working = asyncio.create_task(watched(slow, 1.0))
    for _ in range(3):
        await asyncio.to_thread(going.wait)
        going.clear()
    enough.set()
    assert await working == "done"


async def test_work_that_nobody_waits_for_ends_by_itself() -> None:
    began, ended = threading.Event(), threading.Event()

    def endless(beat: Pulse) -> None:
        try:
            while True:
                beat()
                began.set()
        finally:
            ended.set()

    working = asyncio.create_task(watched(endless, 60))
    assert await asyncio.to_thread(began.wait, 60)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert await asyncio.to_thread(ended.wait, 60)
