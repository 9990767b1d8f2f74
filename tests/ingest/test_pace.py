"""What a run begins before it has to be over: nothing that it cannot finish."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.corpus import write_corpus
from pipeline.core.documents import DocumentKind
from pipeline.core.rates import Sample
from pipeline.ingest.flow import ingest
from pipeline.ingest.meter import Busy, Meter
from pipeline.ingest.pace import Pace
from pipeline.ingest.pool import ExtractionPool
from pipeline.ingest.work import Limits, Work
from pipeline.store import overview, queue
from pipeline.store.database import Database
from tests.conftest import DEFAULT_MODEL
from tests.ingest.test_flow import Instant, make_work

NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
STEADY = [Sample(pages=1000, read_seconds=1000, tokens=100_000, embed_seconds=1000, request_seconds=4.0)]
PDF = DocumentKind.PDF


def pace(seconds: float, **more: object) -> Pace:
    return Pace(NOON + dt.timedelta(seconds=seconds), lambda: NOON, STEADY, {"pdf": 1000.0}, **more)  # type: ignore[arg-type]


def test_a_request_is_sent_only_where_its_answer_can_still_be_stored() -> None:
    meter = Meter()  # 90 tokens a second at the low end
    assert pace(10).may_send(900, meter)
    assert not pace(10).may_send(901, meter)
    assert not pace(3.9).may_send(1, meter)  # the slowest took four seconds
    assert not pace(-1).may_send(1, meter)
    assert Pace(None, lambda: NOON, STEADY).may_send(10**12, meter)


def test_a_document_is_begun_only_where_it_can_be_read_to_its_end() -> None:
    meter = Meter()  # 0.9 pages a second at the low end, by all workers together
    assert pace(10).may_read(PDF, 9_000, meter)
    assert not pace(10).may_read(PDF, 9_020, meter)
    assert pace(10, workers=3).may_read(PDF, 3_000, meter)
    assert not pace(10, workers=3).may_read(PDF, 3_020, meter)
    assert Pace(None, lambda: NOON, STEADY).may_read(PDF, 10**12, meter)


def test_where_nothing_is_known_anything_may_be_tried_until_time_is_up() -> None:
    for seconds, may in ((1, True), (0, False)):
        unknown = Pace(NOON + dt.timedelta(seconds=seconds), lambda: NOON)
        assert unknown.may_send(10**9, Meter()) is may
        assert unknown.may_read(PDF, 10**9, Meter()) is may
        assert pace(seconds).may_read(DocumentKind.DOCX, 10**9, Meter()) is may


def test_what_this_run_measures_itself_counts_most() -> None:
    meter = Meter()
    meter.embedding._total = 1000.0
    meter.request_done(1_000_000, 0.5)
    fast = Pace(NOON + dt.timedelta(seconds=10), lambda: NOON, [Sample(tokens=1000, embed_seconds=0.1)])
    assert fast.may_send(5_000, meter)


def test_time_counts_once_however_much_is_under_way() -> None:
    busy = Busy()
    began = time.monotonic()
    with busy, busy, busy:
        pass
    with busy:
        assert busy.seconds <= time.monotonic() - began
    assert 0 < busy.seconds <= time.monotonic() - began


def test_what_was_left_because_the_clock_leapt_is_not_out_of_time_once_it_is_back() -> None:
    now = NOON
    pace = Pace(NOON + dt.timedelta(hours=6), lambda: now)
    assert not pace.passed_over
    assert not pace.out_of_time
    now = NOON + dt.timedelta(days=30)
    pace.pass_over()
    assert pace.passed_over
    assert pace.out_of_time
    now = NOON + dt.timedelta(minutes=1)
    assert pace.passed_over
    assert not pace.out_of_time


@pytest.fixture
async def work(tmp_path: Path, sqlite_url: str) -> Work:
    write_corpus(tmp_path / "documents", pages=12, pages_per_document=3)
    store = Database.open(sqlite_url)
    pool = ExtractionPool(1, model_path=DEFAULT_MODEL, limit=64, overlap=8, pdf_engine="auto")
    return make_work(store, pool, Instant(), tmp_path / "documents", "run", Limits(request_chunks=8, look_ahead=8))


async def test_a_run_without_an_embedder_reads_everything_and_embeds_nothing(work: Work) -> None:
    work.embedder = None
    work.limits = Limits(queued_chunks=1)  # which holds up only a run that embeds
    async with work.pool:
        await ingest(work)
    waiting = await work.store.read(queue.backlog, None, work.target)
    assert waiting.contents == waiting.extracted == work.progress.documents_read
    assert waiting.chunks == work.progress.chunks_total > 0
    assert work.progress.meter.pages == 12
    assert (await work.store.read(overview.count_chunks))["embedded"] == 0


async def test_a_run_that_only_reads_makes_room_within_a_document(work: Work) -> None:
    work.embedder = None
    async with work.pool:
        running = asyncio.create_task(ingest(work))
        async with asyncio.timeout(60):
            while not work.progress.current:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            work.stop.set()
            await running
    waiting = await work.store.read(queue.backlog, None, work.target)
    assert waiting.contents >= waiting.extracted
    assert not work.pace.passed_over


class Slowing(Instant):
    """A server by whose answers the clock of the test moves on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOON

    async def embed(self, inputs: object) -> NDArray[np.float32]:
        answer = await super().embed(inputs)  # type: ignore[arg-type]
        self.now += dt.timedelta(seconds=3)
        return answer


async def test_no_request_is_sent_that_could_not_be_stored_in_time_and_what_was_sent_is_stored(work: Work) -> None:
    server = Slowing()
    work.embedder = server
    work.limits = Limits(request_chunks=8, look_ahead=8, requests_in_flight=1)
    work.pace = Pace(NOON + dt.timedelta(seconds=10), lambda: server.now, [Sample(0, 0, 10**9, 1.0, 3.5)])
    async with work.pool:
        await ingest(work)
    # At 0, 3 and 6 seconds there are 3.5 left for an answer; at 9 there are not.
    assert len(server.requests) == 3
    assert work.pace.passed_over
    stored = (await work.store.read(overview.count_chunks))["embedded"]
    assert stored == sum(server.requests) == work.progress.chunks_done


async def test_what_does_not_fit_beside_others_waits_for_them_and_does_not_end_the_run(work: Work) -> None:
    """One request at a time fits into what is left, two do not."""
    work.limits = Limits(request_chunks=8, look_ahead=8, requests_in_flight=4)
    work.pace = Pace(NOON + dt.timedelta(seconds=100), lambda: NOON, [Sample(0, 0, 650, 100.0, 0.0)])
    async with work.pool:
        await ingest(work)
    assert not work.pace.passed_over
    assert (await work.store.read(queue.backlog, None, work.target)).contents == 0


async def test_documents_that_take_too_long_are_left_and_shorter_ones_still_read(work: Work, tmp_path: Path) -> None:
    write_corpus(tmp_path / "documents" / "long", pages=60, pages_per_document=60)
    (long,) = (tmp_path / "documents" / "long").rglob("*.pdf")
    short = max(path.stat().st_size for path in (tmp_path / "documents").glob("*.pdf"))
    assert long.stat().st_size > 2 * short
    work.embedder = None
    # One page a second, of which there are as many as the longest of the short ones needs.
    a_page = 100.0
    work.pace = Pace(
        NOON + dt.timedelta(seconds=2 * short / a_page),
        lambda: NOON,
        [Sample(pages=10**9, read_seconds=10**9)],
        {"pdf": a_page, "docx": a_page},
    )
    async with work.pool:
        await ingest(work)
    assert work.pace.passed_over
    left = await work.store.read(queue.backlog, None, work.target)
    assert left.contents - left.extracted >= 1
    assert left.extracted >= 1
