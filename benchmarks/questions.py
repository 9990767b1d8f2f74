"""What a question costs by day: with a server for each, and with the one that stays while there are questions.

    python -m benchmarks.questions [--questions 200] [--at-once 8] [--model FILE]

The model on the processor, as a daemon has it while the language model is loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psutil
import structlog

from benchmarks.ceiling import DEFAULT_MODEL
from pipeline.runner.question import embed_question
from pipeline.runner.questions import QuestionServer
from pipeline.runner.target import take_aim
from pipeline.settings import Settings
from pipeline.settings.fields import EmbeddingSettings
from pipeline.store.database import Database
from pipeline.store.models import StoredModel

ALONE = 5
"""Questions with a server for each."""


async def measure(folder: Path, model: Path, questions: int, at_once: int) -> None:
    settings = Settings(data_dir=folder, embedding=EmbeddingSettings(model=str(model)))
    with Database.open(settings.database_url) as store:
        stored = (await take_aim(settings, store)).model
        alone = [await _timed(embed_question(settings, stored, _text(n), on_gpu=False)) for n in range(ALONE)]
        print(f"a server for each question: {_milliseconds(alone)} each (median of {ALONE})")
        server = QuestionServer(settings, store)
        try:
            await _with(server, stored, questions, at_once)
        finally:
            await server.stop()


async def _with(server: QuestionServer, model: StoredModel, questions: int, at_once: int) -> None:
    print(f"one server, the first question: {1000 * await _timed(server.embed(model, _text(0))):.0f} ms")
    warm = [await _timed(server.embed(model, _text(n))) for n in range(questions)]
    print(f"one server, further questions: {_milliseconds(warm)} each (median of {questions})")
    began = time.perf_counter()
    for begin in range(0, questions, at_once):
        await asyncio.gather(*(server.embed(model, _text(n)) for n in range(begin, begin + at_once)))
    rate = questions / (time.perf_counter() - began)
    print(f"one server, {at_once} at once: {rate:.0f} questions/s")
    pid = server.state().pid
    assert pid is not None
    memory = psutil.Process(pid).memory_full_info()
    print(f"its memory: {memory.rss / 2**20:.0f} MiB, of which {memory.uss / 2**20:.0f} MiB are shared with nobody")


async def _timed(call: Coroutine[Any, Any, object]) -> float:
    began = time.perf_counter()
    await call
    return time.perf_counter() - began


def _text(number: int) -> str:
    return f"which lamp went out first in room {number} of the northern wing, and who saw it"


def _milliseconds(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(prefix="nightshift-questions-") as folder:
        asyncio.run(measure(Path(folder), given.model, given.questions, given.at_once))


if __name__ == "__main__":
    main()
