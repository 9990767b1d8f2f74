"""Whether a run lives: whatever the clocks show, one that beats is alive, and one that does not is found out."""

from __future__ import annotations

import datetime as dt

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import RunInProgress
from pipeline.store import runs
from pipeline.store.database import Database
from pipeline.store.runs import LEASE, Hearts, Process, watch_hearts
from pipeline.store.tables import RunRow
from tests.store import rows
from tests.store.rows import utc_now

BEAT = 5.0
MONTH = dt.timedelta(days=30)


def run_of(run_id: str, beat: dt.datetime) -> runs.StoredRun:
    process = Process("elsewhere", 1, 0.0)
    return runs.StoredRun(run_id, "running", process, beat, beat, None, [], 0, None, None, None, None, None)


@given(st.lists(st.timedeltas(min_value=-MONTH, max_value=MONTH), min_size=40, max_size=60))
def test_steps_of_the_servers_clock_neither_kill_a_run_nor_keep_one_alive(steps: list[dt.timedelta]) -> None:
    """steps: by how much the server's clock is wrong at each heartbeat; a run dies at the tenth."""
    seen: Hearts = {}
    start, last = utc_now(), utc_now()
    for number, wrong in enumerate(steps):
        clock = start + dt.timedelta(seconds=number * BEAT)
        if number <= 10:
            last = clock + wrong
        living = run_of("lives", clock + wrong + dt.timedelta(microseconds=number))
        unheard = watch_hearts(seen, [living, run_of("dies", last)], number * BEAT, LEASE)
        assert "lives" not in unheard
        assert unheard == ({"dies": last} if (number - 10) * BEAT >= LEASE.total_seconds() else {})
    assert watch_hearts(seen, [], 1e9, LEASE) == {}
    assert not seen, "what is over is not remembered"


@pytest.mark.parametrize("ahead", [LEASE * 2, MONTH])
def test_a_heartbeat_that_is_to_come_holds_nothing_up(store: Database, ahead: dt.timedelta) -> None:
    """It was written by a clock that was ahead, and its run may be long dead."""
    with store.begin() as session:
        runs.start_run(session, "far", Process("elsewhere", 1, 0.0), [], utc_now(), lambda process: False)
        session.execute(sa.update(RunRow).values(heartbeat_at=utc_now() + ahead))
        assert runs.silent_runs(session, utc_now()) == {"far"}
    with store.begin() as session:
        rows.begin(session)
        assert [run.id for run in runs.living_runs(session)] == ["run"]


@pytest.mark.parametrize("away", [LEASE * 2, -LEASE * 2, MONTH, -MONTH])
def test_a_run_of_this_very_process_that_could_not_note_its_end_is_over(store: Database, away: dt.timedelta) -> None:
    with store.begin() as session:
        rows.begin(session)
        session.execute(sa.update(RunRow).values(heartbeat_at=utc_now() + away))
    with store.begin() as session:
        runs.start_run(session, "next", rows.ME, [], utc_now(), lambda process: True)
        assert [run.id for run in runs.living_runs(session)] == ["next"]


def test_a_run_never_judges_itself(store: Database) -> None:
    with store.begin() as session:
        rows.begin(session)
        (alive,) = runs.end_dead_runs(session, rows.ME, utc_now(), lambda process: False, mine="run")
        assert alive.id == "run"
        assert runs.end_dead_runs(session, rows.ME, utc_now(), lambda process: False) == []


def test_a_run_that_watches_judges_the_others_by_what_it_saw(store: Database) -> None:
    """The server's clock leapt just now: the heartbeat looks old, or to come, and the next one has yet to be."""
    with store.begin() as session:
        runs.start_run(session, "far", Process("elsewhere", 1, 0.0), [], utc_now(), lambda process: False)
    for leap in (-MONTH, MONTH):
        with store.begin() as session:
            session.execute(sa.update(RunRow).values(heartbeat_at=utc_now() + leap))
        with store.begin() as session:
            (alive,) = runs.end_dead_runs(session, rows.ME, utc_now(), lambda process: False, unheard={})
            before = {"far": alive.heartbeat_at - dt.timedelta(seconds=5)}
            assert runs.end_dead_runs(session, rows.ME, utc_now(), lambda process: False, unheard=before)
    with store.begin() as session:
        unheard = {"far": alive.heartbeat_at}
        assert runs.end_dead_runs(session, rows.ME, utc_now(), lambda process: False, unheard=unheard) == []


def test_a_living_run_on_one_host_keeps_others_out_whatever_its_clock_did(store: Database) -> None:
    with store.begin() as session:
        rows.begin(session)
        session.execute(sa.update(RunRow).values(heartbeat_at=utc_now() - MONTH))
    other = Process(rows.ME.host, rows.ME.pid + 1, 0.0)
    with pytest.raises(RunInProgress), store.begin() as session:
        runs.start_run(session, "other", other, [], utc_now(), lambda process: True)
