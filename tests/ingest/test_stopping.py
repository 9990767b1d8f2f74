"""A stop while requests are at the model server: what was sent is stored, and nothing more is sent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from benchmarks.corpus import write_corpus
from pipeline.ingest.flow import ingest
from pipeline.ingest.pool import ExtractionPool
from pipeline.ingest.work import Limits
from pipeline.store import overview, queue
from pipeline.store.database import Database
from tests.conftest import DEFAULT_MODEL
from tests.ingest.test_flow import Instant, make_work

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

IN_FLIGHT = 2


class Gated(Instant):
    """Answers the first request, which is one chunk, and then nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.all_in_flight = asyncio.Event()
        self.gate = asyncio.Event()

    async def embed(self, inputs: Sequence[Sequence[int]] | Sequence[str]) -> NDArray[np.float32]:
        vectors = await super().embed(inputs)
        if len(self.requests) == 1:
            return vectors
        if len(self.requests) == 1 + IN_FLIGHT:
            self.all_in_flight.set()
        await self.gate.wait()
        return vectors


async def test_what_was_in_flight_when_it_was_stopped_is_stored_and_the_rest_is_left(
    store: Database, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "docs", pages=12, pages_per_document=3)
    server = Gated()
    limits = Limits(request_chunks=4, requests_in_flight=IN_FLIGHT)
    async with ExtractionPool(1, model_path=DEFAULT_MODEL, limit=64, overlap=8, pdf_engine="auto") as pool:
        work = make_work(store, pool, server, tmp_path / "docs", "stopped", limits)
        running = asyncio.create_task(ingest(work))
        async with asyncio.timeout(120):
            await server.all_in_flight.wait()
            work.stop.set()
            while not work.to_embed.closed:  # noqa: ASYNC110 - by the stage that heard of the stop
                await asyncio.sleep(0)
            assert not running.done()
            server.gate.set()
            await running
        chunks = await store.read(overview.count_chunks)
        assert server.requests == [1, 4, 4]
        assert chunks["embedded"] == work.progress.chunks_done == 9
        assert chunks["total"] > chunks["embedded"]


async def test_what_is_not_answered_soon_after_a_stop_is_given_up_and_stays_queued(
    tmp_path: Path, sqlite_url: str
) -> None:
    write_corpus(tmp_path / "docs", pages=6, pages_per_document=3)
    store, server = Database.open(sqlite_url), Gated()
    limits = Limits(request_chunks=4, requests_in_flight=IN_FLIGHT, stop_seconds=0.1)
    async with ExtractionPool(1, model_path=DEFAULT_MODEL, limit=64, overlap=8, pdf_engine="auto") as pool:
        work = make_work(store, pool, server, tmp_path / "docs", "stopped", limits)
        running = asyncio.create_task(ingest(work))
        async with asyncio.timeout(120):
            await server.all_in_flight.wait()
            work.stop.set()
            await running
        chunks = await store.read(overview.count_chunks)
        assert chunks["embedded"] == 1
        assert await store.read(queue.chunks_waiting, None, work.target) == chunks["total"] - 1
