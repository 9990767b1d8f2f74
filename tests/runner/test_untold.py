"""Runs that could not report themselves: the power went, or they were cut off."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.backends.family import birth
from pipeline.core.errors import RunInProgress
from pipeline.ingest.progress import Progress
from pipeline.ingest.work import utc_now
from pipeline.runner.ending import Ending
from pipeline.runner.forecast import Timing
from pipeline.runner.lease import hold_lease
from pipeline.runner.untold import report_untold, this_process
from pipeline.settings import Settings
from pipeline.store import reports, runs
from pipeline.store.database import Database
from pipeline.store.runs import Measured, Process
from pipeline.store.tables import RunRow

LONG_GONE = Process(this_process().host, 2**22 + 1, 1.0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def begin_dead(store: Database, run_id: str, at: dt.datetime) -> None:
    with store.begin() as session:
        runs.start_run(session, run_id, LONG_GONE, ["/docs"], at, lambda process: process != LONG_GONE, job="night")
        measured = Measured(documents_read=3, pages_read=40, tokens_embedded=5000, extract_seconds=2.0, device="gpu")
        runs.heartbeat(session, run_id, at, measured)
        last_heard_of(session, run_id, at + dt.timedelta(minutes=5))


def last_heard_of(session: Session, run_id: str, at: dt.datetime) -> None:
    """A server's clock does not go back, and its heartbeats go by that."""
    session.execute(sa.update(RunRow).where(RunRow.id == run_id).values(heartbeat_at=at))


async def test_a_run_that_died_is_reported_once_by_whoever_comes_next(store: Database, settings: Settings) -> None:
    now = utc_now()
    begin_dead(store, "dead", now - dt.timedelta(hours=3))
    begin_dead(store, "older than news", now - dt.timedelta(days=30))
    assert await report_untold(store, settings, [], Timing(), now) == ["dead"]
    assert await report_untold(store, settings, [], Timing(), now) == []
    with store.snapshot() as session:
        report = reports.find_report(session, "dead")
    assert report is not None
    assert (report["outcome"], report["job"], report["device"], report["seconds"]) == (
        "interrupted",
        "night",
        "gpu",
        300,
    )
    assert (report["done"]["pages"], report["done"]["pages_per_second"], report["done"]["tokens"]) == (40, 20.0, 5000)
    assert report["next"] is not None
    folder = settings.data_dir / "reports"
    assert json.loads((folder / "dead.json").read_text()) == report
    assert "# Interrupted: run job night" in (folder / "dead.md").read_text()


async def test_a_run_that_is_cut_off_is_reported_when_there_is_time(store: Database, settings: Settings) -> None:
    ending = Ending("mine", settings, Progress(started_monotonic=0.0))
    ending.progress.meter.document_read(7, 0)

    async def work() -> None:
        async with hold_lease(store, "mine", [Path("/docs")], None, ending, asyncio.Event()):
            held.set()
            await asyncio.Event().wait()

    held = asyncio.Event()
    run = asyncio.create_task(work())
    await asyncio.wait([run, asyncio.create_task(held.wait())], return_when=asyncio.FIRST_COMPLETED)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    with store.snapshot() as session:
        assert reports.find_report(session, "mine") is None
    assert await report_untold(store, settings, None, Timing(), utc_now()) == ["mine"]
    text = (settings.data_dir / "reports" / "mine.md").read_text()
    assert "# Stopped: run by hand" in text
    assert "it was cut off: it did not end in time" in text
    assert "1 document, 7 pages" in text


async def test_the_next_run_tells_of_those_before_it_whoever_found_them_dead(
    store: Database, settings: Settings
) -> None:
    now = utc_now()
    begin_dead(store, "first", now - dt.timedelta(hours=3))
    begin_dead(store, "second", now - dt.timedelta(hours=2))
    assert await report_untold(store, settings, None, Timing(), now) == ["first", "second"]
    for run_id, told in (("third", ["first", "second"]), ("fourth", [])):
        ending = Ending(run_id, settings, Progress(started_monotonic=0.0))
        async with hold_lease(store, run_id, [Path("/docs")], None, ending, asyncio.Event()):
            assert [earlier for earlier, _ in ending.interrupted] == told
            await ending.end(store, "complete", [])


async def test_a_run_does_not_take_itself_for_dead(store: Database, settings: Settings) -> None:
    """What its row says of its process is no longer what the system says, as after a step of the clock."""
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"lease": 1.0})})
    ending = Ending("mine", settings, Progress(started_monotonic=0.0))
    beats: set[dt.datetime] = set()
    async with hold_lease(store, "mine", [Path("/docs")], None, ending, asyncio.Event()):
        with store.begin() as session:
            session.execute(sa.update(RunRow).values(process_started=12345.0))
        while len(beats) < 4:
            await asyncio.sleep(0.05)
            with store.snapshot() as session:
                (run,) = runs.latest_runs(session)
            assert run.state == "running"
            beats.add(run.heartbeat_at)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def make_a_zombie(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


async def test_the_run_of_another_process_is_over_as_soon_as_that_is_a_zombie(
    store: Database, settings: Settings, process: subprocess.Popen[bytes]
) -> None:
    born = birth(process.pid)
    assert born is not None
    other = Process(this_process().host, process.pid, born)
    with store.begin() as session:
        runs.start_run(session, "theirs", other, ["/docs"], utc_now(), lambda process: True)
    assert await report_untold(store, settings, None, Timing(), utc_now()) == []
    make_a_zombie(process)
    assert await report_untold(store, settings, None, Timing(), utc_now()) == ["theirs"]


@pytest.mark.parametrize("alive", [True, False])
async def test_a_run_that_an_earlier_version_noted_is_judged_by_its_time_of_creation(
    store: Database, settings: Settings, process: subprocess.Popen[bytes], alive: bool
) -> None:
    """That is seconds since 1970. The process may still be at work while a newer version looks."""
    created = psutil.Process(process.pid).create_time()
    other = Process(this_process().host, process.pid, created if alive else created - 86_400)
    with store.begin() as session:
        runs.start_run(session, "theirs", other, ["/docs"], utc_now(), lambda process: True)
    assert await report_untold(store, settings, None, Timing(), utc_now()) == ([] if alive else ["theirs"])


async def test_reading_makes_room_for_a_run_that_embeds_wherever_that_is(store: Database, settings: Settings) -> None:
    """By a word in the database alone, as between two hosts."""
    stop, held = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        ending = Ending("reads", settings, Progress(started_monotonic=0.0), task="extract")
        async with hold_lease(store, "reads", [Path("/docs")], None, ending, stop):
            held.set()
            await stop.wait()
            await ending.end(store, "stopped", [])

    reading = asyncio.create_task(read())
    await held.wait()
    ahead = Ending("reads too", settings, Progress(started_monotonic=0.0), task="extract")
    with pytest.raises(RunInProgress, match="reads"):
        async with hold_lease(store, "reads too", [Path("/docs")], None, ahead, asyncio.Event()):
            pass
    assert not stop.is_set()
    ending = Ending("embeds", settings, Progress(started_monotonic=0.0))
    async with hold_lease(store, "embeds", [Path("/docs")], None, ending, asyncio.Event()):
        await reading
        with store.snapshot() as session:
            assert [(run.id, run.state) for run in runs.latest_runs(session, 2)] == [
                ("embeds", "running"),
                ("reads", "stopped"),
            ]
        late = Ending("late", settings, Progress(started_monotonic=0.0))
        with pytest.raises(RunInProgress, match="embeds"):
            async with hold_lease(store, "late", [Path("/docs")], None, late, asyncio.Event()):
                pass
        await ending.end(store, "complete", [])


async def test_a_run_that_could_not_note_its_end_does_not_keep_its_process_from_the_next(
    store: Database, settings: Settings
) -> None:
    """The daemon lives on when the database was away at the end of its run."""
    now = utc_now()
    with store.begin() as session:
        runs.start_run(session, "lost", this_process(), [], now - dt.timedelta(minutes=2), lambda process: True)
        last_heard_of(session, "lost", now - dt.timedelta(minutes=2))
    ending = Ending("next", settings, Progress(started_monotonic=0.0))
    async with hold_lease(store, "next", [Path("/docs")], None, ending, asyncio.Event()):
        assert [run_id for run_id, _ in ending.interrupted] == ["lost"]
        with pytest.raises(RunInProgress), store.begin() as session:  # this one is at work
            runs.start_run(session, "third", this_process(), [], utc_now(), lambda process: True)
        await ending.end(store, "complete", [])
    with store.snapshot() as session:
        report = reports.find_report(session, "lost")
    assert report is not None
    assert "how it ended could not be noted" in report["errors"][0]
