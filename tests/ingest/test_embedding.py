"""One bad chunk among many, with the real server: found by halving, and the only one lost."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import structlog
from numpy.typing import NDArray

from pipeline.backends.client import Timeouts
from pipeline.backends.embedding import EmbeddingBackend
from pipeline.backends.models import resolve
from pipeline.backends.options import EmbeddingOptions
from pipeline.core.errors import BackendDied, BackendError, BackendRefused, BackendStartFailed, BackendTimeout
from pipeline.core.vectors import from_blobs
from pipeline.ingest.embedding import Batch, CarefulEmbedder
from pipeline.store.queue import PendingChunk
from pipeline.store.stretches import PendingStretch
from tests.conftest import DEFAULT_MODEL
from tests.ingest.crashing_server import DEADLY, NOT_FINITE, ONCE, ONCE_VARIABLE, SLOW, STUCK

CRASHING = (sys.executable, "-m", "tests.ingest.crashing_server")


def chunks(count: int, bad: dict[int, int]) -> list[PendingChunk]:
    """Chunks of a few words, of which those in `bad` hold a token that does something to the server."""
    words = [[101, 2000 + number, 3000 + number, bad.get(number, 1000), 102] for number in range(count)]
    return [PendingChunk(number, 1, tokens) for number, tokens in enumerate(words)]


@pytest.fixture
async def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EmbeddingBackend]:
    monkeypatch.setenv(ONCE_VARIABLE, str(tmp_path / "died once"))
    model = resolve(str(DEFAULT_MODEL), tmp_path)
    options = EmbeddingOptions(str(DEFAULT_MODEL))
    async with EmbeddingBackend(options, model, tmp_path, command=CRASHING, start_backoff=0.05) as started:
        yield started


def ordinals(batch: Batch) -> tuple[list[int], list[int]]:
    return sorted(chunk.chunk_id for chunk, _ in batch.vectors), [chunk.chunk_id for chunk, _ in batch.failures]


@pytest.mark.parametrize(("token", "reason"), [(DEADLY, "SIGSEGV"), (NOT_FINITE, "finite")])
async def test_the_one_bad_chunk_is_found_and_the_rest_goes_on(
    backend: EmbeddingBackend, token: int, reason: str
) -> None:
    batch = await CarefulEmbedder(backend).embed(chunks(12, {7: token}))
    good, bad = ordinals(batch)
    assert bad == [7]
    assert good == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert reason in batch.failures[0][1]
    vectors = from_blobs([vector for _, vector in batch.vectors], backend.info.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-4)


async def test_a_death_that_does_not_come_again_costs_nothing(backend: EmbeddingBackend) -> None:
    batch = await CarefulEmbedder(backend).embed(chunks(6, {2: ONCE}))
    assert ordinals(batch) == ([0, 1, 2, 3, 4, 5], [])


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[EmbeddingBackend]:
    """The same server, given up when it computes nothing for a second and a half."""
    options = EmbeddingOptions(str(DEFAULT_MODEL), contexts=1)
    model = resolve(str(DEFAULT_MODEL), tmp_path)
    backend = EmbeddingBackend(options, model, tmp_path, command=CRASHING, timeouts=Timeouts(read=1.5))
    yield backend
    await backend.stop()


async def test_a_slow_server_is_waited_for_as_long_as_it_computes(impatient: EmbeddingBackend) -> None:
    await impatient.start()
    pid, before = impatient.info.pid, impatient.computed
    asking = asyncio.create_task(CarefulEmbedder(impatient).embed(chunks(3, {1: SLOW})))
    seen = []
    while not asking.done():
        await asyncio.sleep(0.2)
        seen.append(impatient.computed)
    batch = await asking
    assert ordinals(batch) == ([0, 1, 2], [])
    assert impatient.info.pid == pid
    assert len({computed for computed in seen if computed > before}) >= 3, "the count moves while a batch is computed"


async def test_a_server_that_computes_nothing_is_ended_and_it_is_said_who_ended_it(
    impatient: EmbeddingBackend, tmp_path: Path
) -> None:
    await impatient.start()
    pid = impatient.info.pid
    careful = CarefulEmbedder(impatient)
    beside = asyncio.create_task(impatient.embed([[101, STUCK, 102]]))
    with structlog.testing.capture_logs() as logs:
        batch = await careful.embed(chunks(2, {1: STUCK}))
    good, bad = ordinals(batch)
    assert (good, bad) == ([0], [1])
    assert batch.failures[0][1] == "the embedding server computed nothing for 1.5 s"
    assert impatient.info.pid != pid
    errors = [str(entry.get("error")) for entry in logs if entry["event"].startswith("a batch failed")]
    assert errors == ["the embedding server computed nothing for 1.5 s"]
    with pytest.raises((BackendDied, BackendTimeout)) as told:
        await beside
    assert "the embedding server computed nothing for 1.5 s" in str(told.value)
    assert "SIGKILL" not in str(told.value)


async def test_batches_in_flight_beside_a_bad_one_are_not_lost(backend: EmbeddingBackend) -> None:
    careful = CarefulEmbedder(backend)
    batches = await asyncio.gather(*(careful.embed(chunks(4, {1: DEADLY} if n == 1 else {})) for n in range(4)))
    assert [ordinals(batch) for batch in batches] == [
        ([0, 2, 3], [1]) if n == 1 else ([0, 1, 2, 3], []) for n in range(4)
    ]


def stretches(tokens: Sequence[Sequence[int]], spans: Sequence[Sequence[int]] = ()) -> list[PendingStretch]:
    places = np.asarray(spans, np.int64).reshape(-1, 3)
    return [PendingStretch(number, number, np.asarray(ids, np.int32), places) for number, ids in enumerate(tokens)]


async def test_the_one_bad_document_is_found_and_the_others_are_computed_whole(backend: EmbeddingBackend) -> None:
    whole = stretches([[101, 2000 + n, NOT_FINITE if n == 2 else 1000, 102] for n in range(5)])
    found = await CarefulEmbedder(backend).embed_stretches(whole)
    assert sorted(stretch.id for stretch, _ in found.vectors) == [0, 1, 3, 4]
    assert {matrix.shape for _, matrix in found.vectors} == {(1, 384)}
    assert [(stretch.id, "finite" in reason) for stretch, reason in found.failures] == [(2, True)]


async def test_a_death_while_documents_are_computed_costs_nothing(backend: EmbeddingBackend) -> None:
    whole = stretches([[101, 2000 + n, ONCE if n == 2 else 1000, 102] for n in range(5)])
    found = await CarefulEmbedder(backend).embed_stretches(whole)
    assert (len(found.vectors), found.failures) == (5, [])


async def test_a_stretch_whose_spans_are_too_long_is_refused_once_and_the_others_are_not(
    backend: EmbeddingBackend,
) -> None:
    some = stretches([[101, *range(2000, 2000 + n), 102] for n in (20, 600, 30)], [(7, 0, 10), (8, 10, 20)])
    found = await CarefulEmbedder(backend).embed_stretches(some)
    assert sorted(stretch.id for stretch, _ in found.vectors) == [0, 2]
    assert {matrix.shape for _, matrix in found.vectors} == {(2, 384)}
    assert [(stretch.id, "602 tokens" in reason) for stretch, reason in found.failures] == [(1, True)]


async def test_what_is_refused_for_one_document_is_not_asked_again() -> None:
    server = Scripted(error=BackendRefused(400, "too long"))
    found = await CarefulEmbedder(server).embed_stretches(stretches([[1, 2], [3, 4]]))
    assert server.asked == [2, 2, 1, 1]
    assert [reason for _, reason in found.failures] == [str(BackendRefused(400, "too long"))] * 2
    alone = await CarefulEmbedder(server).embed_stretches(stretches([[1, 2]]))
    assert (len(server.asked), len(alone.failures)) == (5, 1)


class Scripted:
    """A server whose every answer is prescribed; it records what it is asked."""

    def __init__(self, *, healthy: bool = True, error: BackendError | None = None, starts: bool = True) -> None:
        self.healthy = healthy
        self.error = error
        self.starts = starts
        self.asked: list[int] = []
        self.restarts = 0

    async def embed(self, inputs: Sequence[Sequence[int]] | Sequence[str]) -> NDArray[np.float32]:
        self.asked.append(len(inputs))
        if self.error is not None:
            raise self.error
        return np.eye(len(inputs), 4, dtype=np.float32)

    theirs = False
    contexts = 1
    computed = 0.0
    longest: int | None = None

    async def embed_whole(self, inputs: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        return await self.embed(inputs)

    async def embed_spans(
        self, inputs: Sequence[Sequence[int]], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> list[NDArray[np.float32]]:
        return [await self.embed(inputs) for _ in spans]

    async def ensure_ready(self) -> None:
        if not self.starts:
            raise BackendStartFailed("it does not come up")

    async def restart(self, why: str) -> None:
        self.restarts += 1
        self.error = None

    async def check(self) -> None:
        if not self.healthy:
            raise BackendDied("died on a known good text")


async def test_a_server_that_fails_a_known_good_text_ends_the_run_and_blames_no_chunk() -> None:
    server = Scripted(healthy=False, error=BackendDied("died"))
    with pytest.raises(BackendDied, match="known good text"):
        await CarefulEmbedder(server).embed(chunks(4, {}))
    assert server.asked == [4, 4, 2, 1]


async def test_a_server_that_does_not_come_up_ends_the_run() -> None:
    with pytest.raises(BackendStartFailed):
        await CarefulEmbedder(Scripted(error=BackendDied("died"), starts=False)).embed(chunks(4, {}))


async def test_a_server_that_hangs_is_started_again_and_the_batch_is_kept_whole() -> None:
    server = Scripted(error=BackendTimeout("no answer"))
    batch = await CarefulEmbedder(server).embed(chunks(4, {}))
    assert (server.restarts, server.asked, ordinals(batch)) == (1, [4, 4], ([0, 1, 2, 3], []))
