"""The stages together, with the real store and pool, and a model server that is told what to do."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.corpus import write_corpus
from pipeline.core.errors import BackendStartFailed
from pipeline.ingest.flow import ingest
from pipeline.ingest.pool import ExtractionPool
from pipeline.ingest.progress import Progress
from pipeline.ingest.work import Limits, Place, Work, utc_now
from pipeline.store import library, models, overview, queue, runs
from pipeline.store.database import Database
from pipeline.store.models import Target
from pipeline.store.runs import Process
from pipeline.store.scopes import Scope
from tests.conftest import DEFAULT_MODEL

DIMENSION = 4


class Instant:
    """A model server that answers at once.

    refuses: it does not come up. loads_for_ever: it neither comes up nor fails. pause: seconds before each answer.
    """

    def __init__(self, *, refuses: bool = False, loads_for_ever: bool = False, pause: float = 0.0) -> None:
        self.refuses = refuses
        self.loads_for_ever = loads_for_ever
        self.pause = pause
        self.starts = 0
        self.requests: list[int] = []

    async def embed(self, inputs: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.requests.append(len(inputs))
        await asyncio.sleep(self.pause)
        return np.tile(np.eye(1, DIMENSION, dtype=np.float32), (len(inputs), 1))

    async def ensure_ready(self) -> None:
        self.starts += 1
        if self.refuses:
            raise BackendStartFailed("it does not come up")
        if self.loads_for_ever:
            await asyncio.Event().wait()

    async def restart(self) -> None:
        raise AssertionError("nobody hangs here")

    async def check(self) -> None:
        return


@pytest.fixture
async def pool() -> AsyncIterator[ExtractionPool]:
    async with ExtractionPool(1, model_path=DEFAULT_MODEL, limit=64, overlap=8, pdf_engine="auto") as opened:
        yield opened


def begin(store: Database, root: Path, run_id: str, recipe: str = "r") -> tuple[Target, Place]:
    with store.begin() as session:
        runs.start_run(session, run_id, Process("here", 1, 0.0), [], utc_now(), lambda process: False)
        model = models.ensure_model(
            session, fingerprint="f", name="m", path="/m", size=1, mtime_ns=1, dimension=DIMENSION, now=utc_now()
        )
        source_id = library.ensure_source(session, str(root), utc_now())
    return Target(model.id, recipe), Place(source_id, str(root))


def make_work(
    store: Database, pool: ExtractionPool, embedder: Instant, root: Path, run_id: str, limits: Limits, recipe: str = "r"
) -> Work:
    target, place = begin(store, root, run_id, recipe)
    scopes = [Scope(place.source_id)]
    progress = Progress(started_monotonic=time.monotonic())
    return Work(run_id, store, [place], scopes, target, pool, embedder, progress, asyncio.Event(), limits)


@pytest.fixture
def store(tmp_path: Path) -> Database:
    return Database.open(f"sqlite:///{tmp_path / 'x.db'}")


async def test_chunks_of_others_in_the_queue_hold_nobody_up(
    store: Database, pool: ExtractionPool, tmp_path: Path
) -> None:
    """A backlog that this run may not touch, of another folder and of another recipe, beyond the limit."""
    for folder in ("left", "mine"):
        write_corpus(tmp_path / folder, pages=3, pages_per_document=3)
    limits = Limits(queued_chunks=5)
    for recipe in ("r", "other"):
        left = make_work(store, pool, Instant(), tmp_path / "left", f"left-{recipe}", Limits(), recipe)
        left.stop.set()
        with store.begin() as session:
            source = left.places[0].source_id
            while library.retarget(session, [Scope(source)], left.target, utc_now()):
                pass
    other = make_work(store, pool, Instant(loads_for_ever=True), tmp_path / "left", "reads", Limits())
    reading = asyncio.create_task(ingest(other))
    while (await store.read(queue.backlog, None, other.target)).chunks == 0 and not reading.done():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    other.stop.set()
    await reading
    with store.begin() as session:
        runs.finish_run(session, "reads", "stopped", None, utc_now())
    assert (await store.read(queue.backlog, None, other.target)).chunks > limits.queued_chunks
    async with asyncio.timeout(60):
        await ingest(make_work(store, pool, Instant(), tmp_path / "mine", "mine", limits))
    counts = await store.read(overview.count_documents, [Scope(2)])
    assert counts["embedded"] == counts["total"] == 1


async def test_reading_pauses_while_enough_waits_and_goes_on_after(
    store: Database, pool: ExtractionPool, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "docs", pages=40, pages_per_document=1)
    limits = Limits(look_ahead=64, request_chunks=16, queued_chunks=40)
    work = make_work(store, pool, Instant(pause=0.02), tmp_path / "docs", "run", limits)
    highest = 0

    async def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, (await store.read(queue.backlog, None, work.target)).chunks)
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(120):
        await ingest(work)
    watching.cancel()
    assert (await store.read(overview.count_documents))["embedded"] == 40
    # One claim of documents may be read beyond the limit.
    assert 0 < highest < 40 + 16 * 15


async def test_a_server_that_does_not_come_up_ends_the_run_and_loses_no_text(
    store: Database, pool: ExtractionPool, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "docs", pages=3, pages_per_document=3)
    with pytest.raises(ExceptionGroup) as caught:
        await ingest(make_work(store, pool, Instant(refuses=True), tmp_path / "docs", "run", Limits()))
    assert caught.group_contains(BackendStartFailed, depth=1)


async def test_a_file_that_is_away_is_not_counted_against(
    store: Database, pool: ExtractionPool, tmp_path: Path
) -> None:
    docs = tmp_path / "docs"
    write_corpus(docs, pages=1, pages_per_document=1)
    (path,) = docs.iterdir()
    work = make_work(store, pool, Instant(), docs, "run", Limits())
    # Known and waiting, and then its disk is away when it is to be read.
    target, place = work.target, work.places[0]
    from pipeline.core.changes import Moves
    from pipeline.ingest.files import read_files, scan
    from pipeline.store.library import ReadFile

    (read,) = read_files(place.root, scan(place.root).found)
    assert isinstance(read, ReadFile)
    await store.write(library.register, place.source_id, [read], Moves([]), target, utc_now())
    shutil.move(path, tmp_path / "away.pdf")
    work.places = []
    embedder = Instant()
    work.embedder = embedder
    await ingest(work)
    (content,) = await store.read(queue.claim_to_extract, "run", None, target, utc_now().replace(year=2100), 9)
    assert content.attempts == 0
    assert embedder.starts <= 1
