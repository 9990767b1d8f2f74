"""The stages together, with the real store and pool, and a model server that is told what to do."""

from __future__ import annotations

import asyncio
import datetime as dt
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray

from benchmarks.corpus import write_corpus
from pipeline.core.errors import BackendBusy, BackendRefused, BackendStartFailed
from pipeline.ingest.flow import ingest
from pipeline.ingest.pool import ExtractionPool
from pipeline.ingest.progress import Progress
from pipeline.ingest.work import Limits, Place, Work, utc_now
from pipeline.store import library, models, overview, queue, runs
from pipeline.store.database import Database
from pipeline.store.models import Target
from pipeline.store.runs import Process
from pipeline.store.scopes import Scope
from pipeline.store.tables import ContentEmbeddingRow, ContentRow, PendingChunkRow, PendingStretchRow
from tests.conftest import DEFAULT_MODEL
from tests.extract.sample_documents import docx, p

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

    async def embed(self, inputs: Sequence[Sequence[int]] | Sequence[str]) -> NDArray[np.float32]:
        self.requests.append(len(inputs))
        await asyncio.sleep(self.pause)
        return np.tile(np.eye(1, DIMENSION, dtype=np.float32), (len(inputs), 1))

    theirs = False
    contexts = 1
    computed = 0.0
    longest: int | None = None

    async def embed_whole(self, inputs: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        return await self.embed(inputs)

    async def embed_spans(
        self, inputs: Sequence[Sequence[int]], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> list[NDArray[np.float32]]:
        return [await self.embed([inputs[0]] * len(inside)) for inside in spans]

    async def ensure_ready(self) -> None:
        self.starts += 1
        if self.refuses:
            raise BackendStartFailed("it does not come up")
        if self.loads_for_ever:
            await asyncio.Event().wait()

    async def restart(self, why: str) -> None:
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
def store(sqlite_url: str) -> Database:
    return Database.open(sqlite_url)


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


async def test_a_run_that_needs_no_vector_starts_no_server(
    store: Database, pool: ExtractionPool, tmp_path: Path
) -> None:
    docs = tmp_path / "docs"
    write_corpus(docs, pages=4, pages_per_document=2)
    first, again = Instant(), Instant()
    await ingest(make_work(store, pool, first, docs, "first", Limits()))
    assert first.starts == 1
    (docs / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    (docs / "empty.docx").write_bytes(docx(p("")))
    work = make_work(store, pool, again, docs, "again", Limits(), recipe="another")  # that cuts the same chunks
    await ingest(work)
    assert (again.starts, again.requests) == (0, [])
    assert work.progress.chunks_reused == sum(first.requests)
    with store.snapshot() as session:
        states = overview.count_documents(session)
    assert (states["embedded"], states["failed"], states["empty"]) == (2, 1, 1)


async def test_a_server_that_does_not_come_up_ends_the_run_and_loses_no_text(
    store: Database, pool: ExtractionPool, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "docs", pages=3, pages_per_document=3)
    with pytest.raises(ExceptionGroup) as caught:
        await ingest(make_work(store, pool, Instant(refuses=True), tmp_path / "docs", "run", Limits()))
    assert caught.group_contains(BackendStartFailed, depth=1)


class DiesSoon(Instant):
    """Answers once, and then does not come up any more."""

    async def embed(self, inputs: Sequence[Sequence[int]] | Sequence[str]) -> NDArray[np.float32]:
        if self.requests:
            raise BackendStartFailed("it does not come up")
        return await super().embed(inputs)


async def test_what_was_computed_is_stored_though_the_server_does_not_come_back(
    store: Database, pool: ExtractionPool, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "docs", pages=12, pages_per_document=3)
    limits = Limits(look_ahead=8, request_chunks=8, requests_in_flight=1)
    with pytest.RaisesGroup(BackendStartFailed, flatten_subgroups=True):
        await ingest(make_work(store, pool, DiesSoon(), tmp_path / "docs", "run", limits))
    assert (await store.read(overview.count_chunks))["embedded"] == 1


class Picky(Instant):
    """Somebody else's server that cannot answer for one document for the moment, and says so."""

    theirs = True

    def __init__(self, refused: Sequence[int]) -> None:
        super().__init__()
        self.refused = list(refused)

    async def embed(self, inputs: Sequence[Sequence[int]] | Sequence[str]) -> NDArray[np.float32]:
        if any(list(tokens) == self.refused for tokens in inputs):
            raise BackendBusy("HTTP 500: out of memory")
        return await super().embed(inputs)


async def test_what_a_server_cannot_answer_for_the_moment_is_left_to_a_later_run(
    store: Database, pool: ExtractionPool, tmp_path: Path
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("one", "two", "three"):
        (docs / f"{name}.docx").write_bytes(docx(p(f"The {name} document.")))
    first = make_work(store, pool, Instant(loads_for_ever=True), docs, "reads", Limits())
    first.embedder = None
    await ingest(first)
    with store.begin() as session:
        runs.finish_run(session, "reads", "complete", None, utc_now())
    tokens = await store.read(
        lambda session: [list(np.frombuffer(row.tokens, "<i4")) for row in session.scalars(sa.select(PendingChunkRow))]
    )
    work = make_work(store, pool, Picky(tokens[1]), docs, "run", Limits(first_pause=0.01))
    await ingest(work)
    counts = await store.read(overview.count_documents)
    assert (counts["embedded"], counts["failed"], counts["extracted"]) == (2, 0, 1)
    (failure,) = work.progress.failures
    assert failure.reason == "HTTP 500: out of memory; a later run tries it again"
    with store.begin() as session:
        runs.finish_run(session, "run", "complete", None, utc_now())
        assert not queue.any_extracted(session, None, work.target, utc_now())
        later = utc_now() + dt.timedelta(minutes=1)
        assert queue.any_extracted(session, None, work.target, later)
        session.execute(sa.update(ContentRow).values(retry_at=None))
    again = make_work(store, pool, Instant(), docs, "again", Limits())
    await ingest(again)
    assert (await store.read(overview.count_documents))["embedded"] == 3


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
    from pipeline.ingest.files import scan
    from pipeline.ingest.hashing import read_files
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


class Short(Instant):
    """A server that computes no whole documents and no stretches."""

    refused = 0

    async def embed_whole(self, inputs: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.refused += len(inputs)
        raise BackendRefused(400, f"{len(inputs[0])} tokens are too many")

    async def embed_spans(
        self, inputs: Sequence[Sequence[int]], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> list[NDArray[np.float32]]:
        self.refused += len(inputs)
        raise BackendRefused(404, "no such route")


@pytest.mark.parametrize("late", [True, False])
async def test_what_cannot_be_computed_whole_is_made_of_the_chunks(
    store: Database, tmp_path: Path, *, late: bool
) -> None:
    (tmp_path / "docs").mkdir()
    for keeper in ("Ada", "Ines"):
        text = " ".join(f"In {1900 + n} {keeper} wrote that {n} ships had passed her lamp." for n in range(20))
        (tmp_path / "docs" / f"{keeper}.docx").write_bytes(docx(p(text)))
    async with ExtractionPool(
        1, model_path=DEFAULT_MODEL, limit=64, overlap=8, pdf_engine="auto", document_tokens=2048, late_chunking=late
    ) as pool:
        server = Short()
        work = make_work(store, pool, server, tmp_path / "docs", "run", Limits(request_chunks=4))
        async with asyncio.timeout(60):
            await ingest(work)
    with store.snapshot() as session:
        assert session.scalars(sa.select(ContentEmbeddingRow.method)).all() == ["mean", "mean"]
        assert session.scalars(sa.select(PendingStretchRow.id)).all() == []
        chunks = overview.count_chunks(session)
    assert chunks["embedded"] == chunks["total"] > 8
    assert server.refused >= 2
    assert sum(server.requests) == chunks["total"]
    assert max(server.requests) <= 4
