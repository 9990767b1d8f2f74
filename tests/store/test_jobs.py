"""What became of each job, and what a run knows of the job that it is of."""

from __future__ import annotations

import datetime as dt

from pipeline.core.windows import Window
from pipeline.store import reports, runs
from pipeline.store.database import Database
from pipeline.store.jobs import StoredJobState, job_states, note_finished, note_known, note_started, noted_ahead
from tests.store import rows

NOW = dt.datetime(2026, 6, 2, 2, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
NIGHT = Window(NOW, NOW + 6 * HOUR, NOW)


def test_a_job_is_known_since_it_was_first_seen(store: Database) -> None:
    with store.begin() as session:
        assert note_known(session, ["night", "day", "night"], NOW) == ["day", "night"]
    with store.begin() as session:
        assert note_known(session, ["night", "new"], NOW + HOUR) == ["new"]
        assert note_known(session, [], NOW + HOUR) == []
    with store.snapshot() as session:
        assert {name: state.known_since for name, state in job_states(session).items()} == {
            "day": NOW,  # its file is gone or broken, which is no reason to forget what it owes
            "new": NOW + HOUR,
            "night": NOW,
        }


def test_a_run_of_a_job_leaves_its_times_and_its_outcome(store: Database) -> None:
    with store.begin() as session:
        note_known(session, ["night"], NOW)
        note_started(session, "night", NOW + HOUR, window_start=NOW)
    with store.begin() as session:
        assert job_states(session)["night"] == StoredJobState("night", NOW, NOW + HOUR, None, None, 0)
        note_finished(session, "night", "complete", NOW + 2 * HOUR, done=True)
    with store.snapshot() as session:
        assert job_states(session) == {"night": StoredJobState("night", NOW, NOW + HOUR, NOW + 2 * HOUR, "complete", 0)}


def test_a_run_that_is_to_go_on_has_not_finished_its_job(store: Database) -> None:
    with store.begin() as session:
        note_started(session, "night", NOW, window_start=NOW)
        note_finished(session, "night", "stopped", NOW + HOUR, done=False)
        state = job_states(session)["night"]
        assert (state.last_finished, state.last_outcome, state.failures) == (None, "stopped", 0)


def test_failures_count_within_a_window(store: Database) -> None:
    with store.begin() as session:
        for number in range(2):
            note_started(session, "night", NOW + number * HOUR, window_start=NOW)
            note_finished(session, "night", "failed", NOW + number * HOUR, done=False)
        state = job_states(session)["night"]
        assert (state.failures, state.failures_in(NOW), state.last_finished) == (2, 2, None)
        tomorrow = NOW + 24 * HOUR
        assert state.failures_in(tomorrow) == 0
        note_started(session, "night", NOW + 5 * HOUR)  # by hand, between windows
        assert job_states(session)["night"].failures == 2
        note_started(session, "night", tomorrow, window_start=tomorrow)
        assert job_states(session)["night"].failures == 0
        note_finished(session, "night", "failed", tomorrow + HOUR, done=True)
        state = job_states(session)["night"]
        assert (state.failures_in(tomorrow), state.last_finished) == (1, tomorrow + HOUR)


def test_a_job_that_was_never_declared_is_known_from_its_first_run(store: Database) -> None:
    with store.begin() as session:
        note_finished(session, "night", "complete", NOW, done=True)
        assert job_states(session)["night"].known_since == NOW


def test_a_run_knows_its_job_and_its_window(store: Database) -> None:
    stop_at = NIGHT.end - dt.timedelta(minutes=2)
    with store.begin() as session:
        runs.start_run(session, "a", rows.ME, [], NOW, lambda process: False)
        runs.finish_run(session, "a", "complete", None, NOW)
        runs.start_run(
            session, "b", rows.ME, [], NOW + HOUR, lambda process: False, job="night", window=NIGHT, stop_at=stop_at
        )
    with store.snapshot() as session:
        of_job, by_hand = runs.latest_runs(session, 2)
    assert (of_job.job, of_job.window_start, of_job.window_end, of_job.stop_at) == (
        "night", NIGHT.start, NIGHT.end, stop_at,
    )  # fmt: skip
    assert (by_hand.job, by_hand.window_start, by_hand.window_end, by_hand.stop_at) == (None, None, None, None)


def test_what_a_clock_noted_that_was_ahead_is_said_and_forgotten_by_the_next_run(store: Database) -> None:
    month = dt.timedelta(days=30)
    with store.begin() as session:
        note_known(session, ["night", "day"], NOW)
        note_started(session, "night", NOW + month, window_start=NOW)
        for _ in range(3):
            note_finished(session, "night", "failed", NOW + month + HOUR, done=True)
    with store.begin() as session:
        (said,) = noted_ahead(session, NOW + HOUR)
        assert said.startswith("job night is noted to have run at 2026-07-02 03:00 UTC, which is to come")
        assert noted_ahead(session, NOW + month + HOUR) == []
        note_started(session, "night", NOW + HOUR, window_start=NOW)
        state = job_states(session)["night"]
        assert (state.last_started, state.last_finished, state.failures) == (NOW + HOUR, None, 0)
        assert noted_ahead(session, NOW + HOUR) == []


def test_runs_that_began_in_the_future_come_last(store: Database) -> None:
    now = rows.utc_now()
    begun = {"old": now - HOUR, "new": now - HOUR / 2, "ahead": now + 10 * HOUR}
    with store.begin() as session:
        for run_id, started_at in begun.items():
            runs.start_run(session, run_id, rows.ME, [], started_at, lambda process: False)
            runs.finish_run(session, run_id, "complete", None, started_at)
            reports.save_report(session, run_id, {"run_id": run_id})
    with store.snapshot() as session:
        assert [run.id for run in runs.latest_runs(session, 3)] == ["new", "old", "ahead"]
        assert reports.find_report(session, None) == {"run_id": "new"}
        assert reports.list_reports(session, 3) == ["new", "old", "ahead"]
        (said,) = noted_ahead(session, now)
        assert said.startswith(f"run ahead is noted to have begun at {begun['ahead']:%Y-%m-%d %H:%M} UTC, which is to ")
        assert noted_ahead(session, begun["ahead"]) == []


def test_a_job_that_a_clock_which_was_ahead_noted_is_known_from_now_on(store: Database) -> None:
    with store.begin() as session:
        note_known(session, ["day", "night"], NOW + 10 * HOUR)
        assert note_known(session, ["night"], NOW) == []
        assert {state.known_since for state in job_states(session).values()} == {NOW}
        assert note_known(session, ["night"], NOW + HOUR) == []
        assert {state.known_since for state in job_states(session).values()} == {NOW}
