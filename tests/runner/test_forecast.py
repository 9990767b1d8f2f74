"""The times ahead as the schedule has them, and the plan made of what a database holds."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path

from pipeline.core.plan import WorkTime
from pipeline.core.schedule import Job
from pipeline.runner.forecast import UNKNOWN_LOAD, Timing, make_plan, work_times
from pipeline.scheduler.job_file import Surroundings, local_zone, read_job
from pipeline.store import jobs as job_rows
from pipeline.store import library, loads
from pipeline.store.database import Database
from tests.store import rows

NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
LOAD = 60.0
DAY_SHIFT = 'cron = "0 8 * * *"\nuntil = "02:00"\nmode = "generation"\n'
NIGHT_SHIFT = 'cron = "0 2 * * *"\nuntil = "08:00"\nmode = "embedding"\ntask = "ingest"\n'


def job(name: str, text: str) -> Job:
    read, faults = read_job(f'timezone = "UTC"\n{text}', name, Surroundings(Path("/jobs"), NOON, local_zone))
    assert read is not None, faults
    return read


def ahead(
    jobs: list[Job], count: int, now: dt.datetime = NOON, finished: Mapping[str, dt.datetime] | None = None
) -> list[WorkTime]:
    times = work_times(jobs, now, LOAD, Timing(drain=5, reserve=10, finished=finished or {}))
    return [time for _, time in zip(range(count), times, strict=False)]


def at(day: int, hour: int, minute: int = 0, second: int = 0) -> dt.datetime:
    return dt.datetime(2026, 6, day, hour, minute, second, tzinfo=dt.UTC)


DAY, NIGHT = job("day", DAY_SHIFT), job("night", NIGHT_SHIFT)


def test_a_night_ends_early_enough_for_the_language_model_to_serve() -> None:
    early = dt.timedelta(seconds=LOAD + 5 + 10)
    assert ahead([DAY, NIGHT], 2) == [
        WorkTime(at(day, 2), at(day, 8) - early, "night") for day in (2, 3)
    ]  # fmt: skip
    assert ahead([NIGHT], 1) == [WorkTime(at(2, 2), at(2, 8), "night")]  # nothing is to serve after it


def test_a_window_that_is_open_has_what_is_left_of_it_and_one_that_is_done_has_nothing() -> None:
    now = at(2, 3)
    assert ahead([NIGHT], 1, now) == [WorkTime(now, at(2, 8), "night")]
    assert ahead([NIGHT], 1, now, {"night": at(2, 2, 30)}) == [WorkTime(at(3, 2), at(3, 8), "night")]
    assert ahead([NIGHT], 1, now, {"night": at(1, 2, 30)}) == [WorkTime(now, at(2, 8), "night")]


def test_an_embedding_model_that_is_always_on_has_a_window_each_day() -> None:
    always = job("always", 'cron = "0 0 * * *"\nuntil = "24:00"\nmode = "mixed"\ntask = "ingest"\n')
    assert ahead([always], 3) == [
        WorkTime(NOON, at(2, 0), "always"),
        WorkTime(at(2, 0), at(3, 0), "always"),
        WorkTime(at(3, 0), at(4, 0), "always"),
    ]
    minutes = job("minutes", 'cron = "* * * * *"\nuntil = "1m"\nmode = "embedding"\ntask = "ingest"\n')
    assert [time.seconds for time in ahead([minutes], 3)] == [60, 60, 60]
    far = list(work_times([always], NOON, LOAD, Timing()))
    assert len(far) > 300


def test_reading_ahead_has_its_windows_but_not_those_of_the_night() -> None:
    reads = job("reads", 'cron = "0 18 * * *"\nuntil = "04:00"\ntask = "extract"\n')
    times = ahead([NIGHT, reads], 3)
    assert times == [
        WorkTime(at(1, 18), at(2, 2), "reads", reads_only=True),
        WorkTime(at(2, 2), at(2, 8), "night"),
        WorkTime(at(2, 18), at(3, 2), "reads", reads_only=True),
    ]
    done = ahead([NIGHT, reads], 2, at(1, 20), {"reads": at(1, 19)})
    assert [time.job for time in done] == ["night", "reads"]
    assert [time.reads_only for time in ahead([reads], 2)] == [True, True]  # with no night in sight at all


def test_a_plan_reserves_what_the_model_that_serves_by_day_takes_to_load(store: Database) -> None:
    def night_ends() -> dt.datetime:
        with store.snapshot() as session:
            plan = make_plan(session, [DAY, NIGHT], NOON, Timing(drain=0, reserve=0))
        assert plan.next_time is not None
        return plan.next_time.end

    assert night_ends() == at(2, 8) - dt.timedelta(seconds=UNKNOWN_LOAD)
    with store.begin() as session:
        rows.add_target(session, "embedder")
        loads.note_load(session, "a big one of last year", "llama-server", "gpu", 600.0, at(1, 1))
        loads.note_load(session, "of now", "llama-server", "gpu", 40.0, at(1, 8))
        loads.note_load(session, rows.digest("embedder"), "llama-cpp", "gpu", 99.0, at(1, 9))
    assert night_ends() == at(2, 8) - dt.timedelta(seconds=40)


def test_a_plan_knows_which_windows_are_used_up(store: Database) -> None:
    with store.begin() as session:
        target = rows.add_target(session)
        rows.register(session, library.ensure_source(session, "/docs", NOON), target, a="a")
        job_rows.note_known(session, ["night"], NOON)
        job_rows.note_finished(session, "night", "complete", at(2, 3), done=True)
        plan = make_plan(session, [NIGHT], at(2, 4), Timing())
        again = make_plan(session, [NIGHT], at(2, 4), Timing(finished={"night": at(1, 3)}))
    assert plan.next_time == WorkTime(at(3, 2), at(3, 8), "night")
    assert again.next_time == WorkTime(at(2, 4), at(2, 8), "night")
    assert plan.backlog.documents == 1
    assert not plan.forecast.known
