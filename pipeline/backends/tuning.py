"""Measures one combination of options: a server of its own, fed as a run feeds it, and ended afterwards.

Whatever becomes of it is a result: a crash, a start that fails, an answer that does not come.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.backends.client import Timeouts
from pipeline.backends.server import ModelServer
from pipeline.core.errors import BackendError, BackendTimeout, ModelError
from pipeline.core.modes import Device, Slot

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.backends.launch import BackendKind, Gpu, Programs
    from pipeline.backends.models import ModelFile
    from pipeline.backends.options import EmbeddingOptions
    from pipeline.core.engine_stats import EngineStats

Chunks: TypeAlias = Sequence[Sequence[int]]

SMALLEST_REQUEST, LARGEST_REQUEST = 2048, 16_384
"""Tokens. Small, so that a short measurement sees many answers; large, so that a GPU is not kept waiting by each."""

LEAST_IN_FLIGHT = 4
LEAST_ANSWERS = 4
"""After the first: a rate over fewer is not one."""

PATIENCE = 6.0
"""Times the seconds of a measurement that a slow combination may take to give those answers."""

START_STALL = 60.0
LOG_LINES = 5


@dataclass(frozen=True, slots=True)
class Bench:
    """What is the same for all combinations of one engine.

    model: for the engine. seconds: of measuring, after the first answer.
    """

    kind: BackendKind
    device: Device
    model: ModelFile
    chunks: Chunks
    seconds: float
    log_dir: Path
    programs: Programs
    gpu: Gpu = None


@dataclass(frozen=True, slots=True)
class Measured:
    """rate: tokens a second; None where it failed, and `problem` says how. told: what the server said of itself.

    stats: its counters at the end; None where it has none. seconds: from the start to the end of the process.
    """

    rate: float | None
    problem: str
    seconds: float
    told: Mapping[str, Any] = field(default_factory=dict)
    stats: EngineStats | None = None


async def measure(bench: Bench, options: EmbeddingOptions) -> Measured:
    """Start a server with these options, feed it, and end it. Raises nothing but a cancellation."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    server = _server(bench, options)
    rate, problem, stats = None, "", None
    try:
        await server.start()
        await server.canary()
        rate = await _rate(server, bench)
        stats = await server.embedder.stats()
    except (BackendError, ModelError) as error:
        rate, problem = None, shortened(str(error) or type(error).__name__)
    finally:
        await server.stop()
    return Measured(rate, problem, loop.time() - began, dict(server.told), stats)


async def tokenized(bench: Bench, options: EmbeddingOptions, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of `texts`, by a server of the engine. Raises BackendError or ModelError."""
    server = _server(bench, options)
    try:
        await server.start()
        return [await server.embedder.tokenize(text) for text in texts]
    finally:
        await server.stop()


def shortened(problem: str) -> str:
    """A failure without the middle of its log: how it ended, and the log's last lines."""
    first, *log = problem.splitlines()
    return "\n".join([first, *log[-LOG_LINES:]])


def plan_requests(chunks: Chunks, tokens_each: int) -> list[list[Sequence[int]]]:
    """Requests of about so many tokens.

    Chunks of one request are alike in length, as in a run. The order of the requests is mixed, so that any part of
    it is like the whole.
    """
    requests: list[list[Sequence[int]]] = []
    size = 0
    for chunk in sorted(chunks, key=len, reverse=True):
        if not requests or size + len(chunk) > tokens_each:
            requests.append([])
            size = 0
        requests[-1].append(chunk)
        size += len(chunk)
    random.Random(0).shuffle(requests)  # noqa: S311  the same order for every combination
    return requests


def _server(bench: Bench, options: EmbeddingOptions) -> ModelServer:
    patience = PATIENCE * bench.seconds + START_STALL
    return ModelServer(
        Slot.EMBEDDING,
        bench.device,
        bench.kind,
        options,
        bench.model,
        bench.log_dir,
        gpu=bench.gpu,
        programs=bench.programs,
        start_stall=START_STALL,
        stop_grace=0.0,
        second_chance=False,
        timeouts=Timeouts(read=patience, total=patience),
    )


async def _rate(server: ModelServer, bench: Bench) -> float:
    """Tokens a second between the first answer and the last one in time."""
    told = server.told
    computed_at_once = int(told.get("contexts") or 1) * int(told.get("n_batch") or LARGEST_REQUEST)
    each = min(max(computed_at_once, SMALLEST_REQUEST), LARGEST_REQUEST)
    requests = plan_requests(bench.chunks, each)
    in_flight = max(LEAST_IN_FLIGHT, -(-4 * computed_at_once // each))
    loop = asyncio.get_running_loop()
    answers: list[tuple[float, int]] = []
    enough = asyncio.Event()
    number = 0

    async def feed() -> None:
        nonlocal number
        while not enough.is_set():
            request = requests[number % len(requests)]
            number += 1
            await server.embedder.embed(request)
            answers.append((loop.time(), sum(map(len, request))))
            if len(answers) > LEAST_ANSWERS and loop.time() - answers[0][0] >= bench.seconds:
                enough.set()

    feeders = [asyncio.create_task(feed(), name="feed") for _ in range(in_flight)]
    done = asyncio.create_task(enough.wait(), name="enough")
    try:
        await asyncio.wait(
            [done, *feeders], timeout=PATIENCE * bench.seconds + START_STALL, return_when=asyncio.FIRST_COMPLETED
        )
        for feeder in feeders:
            if feeder.done():
                feeder.result()
    finally:
        for task in (done, *feeders):
            task.cancel()
        await asyncio.gather(done, *feeders, return_exceptions=True)
    if len(answers) < 2:
        raise BackendTimeout(f"it computed fewer than two requests of {each} tokens in time")
    (first, _), (last, _) = answers[0], answers[-1]
    return sum(tokens for _, tokens in answers[1:]) / max(last - first, 1e-9)
