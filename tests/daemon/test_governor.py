"""The governor over a host in memory, with a real database and a clock that is set by hand."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from benchmarks.corpus import write_corpus
from pipeline.core.cron import parse_cron
from pipeline.core.errors import NotServing, SwitchFailed
from pipeline.core.modes import Mode, Slot
from pipeline.core.schedule import Hold, Job
from pipeline.core.shift import Margins, Task
from pipeline.core.windows import Window
from pipeline.daemon.governor import Governor
from pipeline.daemon.runs import Runs
from pipeline.scheduler.jobs import LoadedJobs
from pipeline.settings import Settings
from pipeline.settings.fields import EmbeddingSettings, SourcesSettings
from pipeline.store import holds, jobs
from pipeline.store.database import Database
from tests.conftest import DEFAULT_MODEL
from tests.ingest.test_flow import Instant
from tests.switcher.fakes import FakeHost

G, E = Slot.GENERATION, Slot.EMBEDDING
NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)


def always(mode: Mode) -> LoadedJobs:
    job = Job("always", parse_cron("0 0 * * *"), dt.time(0), ZoneInfo("UTC"), mode)
    return LoadedJobs((job,), (), {"always": Path("always.toml")})


class World:
    """A governor and what it governs. `now` is its clock."""

    def __init__(self, folder: Path, mode: Mode) -> None:
        self.now = NOON
        self.host = FakeHost()
        self.store = Database.open(f"sqlite:///{folder / 'x.db'}")
        self.runs = Runs(Settings(), self.store, lambda: self.governor.wake())
        self.jobs = always(mode)
        self.governor = Governor(
            store=self.store,
            switcher=self.host.switcher,
            runs=self.runs,
            read_jobs=lambda: self.jobs,
            load_seconds=lambda mode: 1.0,
            clock=lambda: self.now,
            margins=Margins(prepare=0.0),
            cut_grace=0.05,
            restarts=(0.0, 0.0),
            backoff=(2.0, 30.0),
        )

    @asynccontextmanager
    async def governed(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.governor.govern())
        try:
            yield
            assert not task.done(), task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ExceptionGroup):
                await task
            self.store.close()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    @property
    def mode(self) -> Mode:
        return self.host.switcher.mode


async def test_a_switch_that_fails_is_tried_again_after_a_while_and_is_visible(tmp_path: Path) -> None:
    world = World(tmp_path, Mode.EMBEDDING)
    world.host.failing[E, "ready"] = 1
    async with world.governed():
        await world.until(lambda: world.governor.problem)
        for _ in range(10):  # whatever wakes it, the next try waits for its time, and the problem stays visible
            world.governor.wake()
            await asyncio.sleep(0.01)
        assert world.governor.problem is not None
        assert "does not load" in world.governor.problem
        assert world.host.log.count("start embedding on gpu") == 1
        await world.until(lambda: world.mode is Mode.EMBEDDING)
        await world.until(lambda: world.governor.problem is None)
        assert world.host.log.count("start embedding on gpu") == 2


async def test_a_server_that_dies_again_and_again_costs_its_slot_and_says_why(tmp_path: Path) -> None:
    world = World(tmp_path, Mode.GENERATION)
    async with world.governed():
        for deaths in range(3):
            await world.until(lambda: world.host.running)
            await world.until(lambda: world.host.switcher.under_way is None)
            assert not world.governor.failed, deaths
            world.host.running[0].die()
            await world.until(lambda: not world.host.running or world.governor.failed)
        await world.until(lambda: G in world.governor.failed)
        assert "died 3 times" in world.governor.failed[G]
        await world.until(lambda: G not in world.host.switcher.servers)
        with pytest.raises(NotServing):
            await world.host.admission.reserve(G)
        await asyncio.sleep(0.1)
        assert not world.host.running, "it is not started again by itself"
        # A person who has looked may try again.
        await world.governor.switch_now(Hold(Mode.GENERATION, NOON + dt.timedelta(hours=1)), "operator", "by hand")
        assert G not in world.governor.failed
        (await world.host.admission.reserve(G)).release()


async def test_a_hold_outlives_the_daemon_and_ends_by_the_clock(tmp_path: Path) -> None:
    world = World(tmp_path, Mode.GENERATION)
    async with world.governed():
        await world.until(lambda: world.mode is Mode.GENERATION)
        await world.governor.switch_now(Hold(Mode.IDLE, NOON + dt.timedelta(hours=2)), "operator", "by hand")
        assert world.mode is Mode.IDLE
    again = World(tmp_path, Mode.GENERATION)
    again.now = NOON + dt.timedelta(hours=1)
    async with again.governed():
        await again.until(lambda: again.governor.hold is not None)
        await asyncio.sleep(0.05)
        assert again.mode is Mode.IDLE
        again.now = NOON + dt.timedelta(hours=2)
        again.governor.wake()
        await again.until(lambda: again.mode is Mode.GENERATION)


async def test_a_night_that_a_clock_that_was_ahead_noted_as_done_goes_on_and_it_is_said(tmp_path: Path) -> None:
    world = World(tmp_path, Mode.GENERATION)
    night = Job("night", parse_cron("0 2 * * *"), dt.time(20), ZoneInfo("UTC"), Mode.EMBEDDING, task="ingest")
    world.jobs = LoadedJobs((*world.jobs.jobs, night), (), {"always": Path("always.toml"), "night": Path("night.toml")})
    month = dt.timedelta(days=30)
    with world.store.begin() as session:
        jobs.note_known(session, ["always", "night"], NOON - month)
        jobs.note_finished(session, "night", "complete", NOON + month, done=True)
        holds.set_hold(session, Hold(Mode.IDLE, NOON + month + dt.timedelta(hours=1)), "operator", NOON + month)
    async with world.governed():
        await world.until(lambda: world.governor.hold)
        assert world.governor.hold == Hold(Mode.IDLE, NOON + dt.timedelta(hours=1)), "as long as it was to last"
        world.now = NOON + dt.timedelta(hours=2)
        world.governor.wake()
        await world.until(lambda: world.mode is Mode.EMBEDDING)
        (said,) = world.governor.ahead
        assert "job night is noted to have run at 2026-07-01 12:00 UTC" in said
        world.now = NOON + month + dt.timedelta(minutes=1)
        world.governor.wake()
        await world.until(lambda: not world.governor.ahead)


async def test_a_run_that_a_leap_of_the_clock_stopped_has_not_had_its_window(tmp_path: Path) -> None:
    """The clock leaps past the end of the window, the run is told to stop, and the clock is right again."""
    world = World(tmp_path, Mode.EMBEDDING)
    world.runs.clock = lambda: world.now
    night = Job("night", parse_cron("0 2 * * *"), dt.time(20), ZoneInfo("UTC"), Mode.EMBEDDING, task="ingest")
    window = Window(NOON - dt.timedelta(hours=10), NOON + dt.timedelta(hours=8), NOON)
    task = Task(night, window, window.end)
    for ended, done in ((NOON, None), (NOON + dt.timedelta(days=30), NOON + dt.timedelta(days=30)), (NOON, None)):
        with world.store.begin() as session:
            jobs.note_started(session, "night", NOON, window_start=window.start)
        world.now = ended
        await world.runs._note_finished(task, "stopped", out_of_time=False)
        with world.store.snapshot() as session:
            assert jobs.job_states(session)["night"].last_finished == done
    world.store.close()


async def test_a_run_that_is_cut_off_has_not_failed_and_costs_its_job_no_retry(tmp_path: Path) -> None:
    world = World(tmp_path, Mode.EMBEDDING)
    write_corpus(tmp_path / "docs", pages=1)
    night = Job(
        "night", parse_cron("0 2 * * *"), dt.time(20), ZoneInfo("UTC"), Mode.EMBEDDING, "ingest", (tmp_path / "docs",)
    )
    window = Window(NOON - dt.timedelta(hours=10), NOON + dt.timedelta(hours=8), NOON)
    (tmp_path / "data" / "inbox").mkdir(parents=True)
    settings = Settings(
        data_dir=tmp_path / "data",
        embedding=EmbeddingSettings(model=str(DEFAULT_MODEL)),
        sources=SourcesSettings(settle=0.0),
    )
    runs = Runs(settings, world.store, lambda: None, clock=lambda: world.now)
    hangs = Instant(loads_for_ever=True)
    runs.start(hangs, Task(night, window, window.end))
    await world.until(lambda: hangs.starts)
    await runs.ended_within(0)
    assert runs.active is None
    with world.store.snapshot() as session:
        state = jobs.job_states(session)["night"]
    assert (state.last_outcome, state.failures, state.last_finished) == ("stopped", 0, None)
    world.store.close()


async def test_a_persons_switch_that_fails_holds_what_was_held_before(tmp_path: Path) -> None:
    world = World(tmp_path, Mode.GENERATION)
    async with world.governed():
        await world.until(lambda: world.mode is Mode.GENERATION)
        world.host.failing[E, "canary"] = 1
        with pytest.raises(SwitchFailed):
            await world.governor.switch_now(Hold(Mode.EMBEDDING), "operator", "by hand")
        assert world.governor.hold is None
        await asyncio.sleep(0.1)
        assert world.mode is Mode.GENERATION
        assert world.host.log.count("start embedding on gpu") == 1, "nobody tries again what a person gave up"


async def test_a_run_that_nothing_can_do_is_answered(tmp_path: Path) -> None:
    world = World(tmp_path, Mode.GENERATION)
    async with world.governed():
        await world.until(lambda: world.mode is Mode.GENERATION)
        world.host.failing[E, "start"] = 99
        run_id = world.runs.ask([tmp_path])
        await world.until(lambda: run_id in world.runs.failed)
        assert "does not start" in world.runs.failed[run_id].error
        await world.until(lambda: world.mode is Mode.GENERATION)


async def test_a_host_that_nobody_can_look_after_is_called_broken(tmp_path: Path) -> None:
    world = World(tmp_path, Mode.GENERATION)
    world.governor.blind = 0.2
    async with world.governed():
        await world.until(lambda: world.mode is Mode.GENERATION)
        assert world.governor.broken is None
        with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as spoiler:
            spoiler.execute("DROP TABLE job_states")
        world.governor._look_due = 0.0  # its next look was due long ago
        world.governor.wake()
        await world.until(lambda: world.governor.problem)
        assert "has not been looked after" in (world.governor.broken or "")
        assert world.governor.problem is not None
        assert world.governor.problem in (world.governor.broken or "")
