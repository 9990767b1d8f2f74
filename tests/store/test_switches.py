"""The journal of mode switches: what is known so far is there, whenever the daemon dies."""

from __future__ import annotations

import datetime as dt

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.modes import Mode
from pipeline.store.database import Database
from pipeline.store.switches import (
    Phase,
    StoredSwitch,
    SwitchOutcome,
    SwitchReason,
    begin_switch,
    end_switch,
    interrupt_switches,
    latest_switches,
    note_progress,
)
from pipeline.store.tables import ModeSwitchRow

NOW = dt.datetime(2026, 6, 2, 2, tzinfo=dt.UTC)


def begin(session: Session, to_mode: Mode = Mode.EMBEDDING) -> int:
    return begin_switch(session, Mode.GENERATION, to_mode, SwitchReason.SCHEDULE, NOW)


def latest(session: Session) -> StoredSwitch:
    (switch,) = latest_switches(session)
    return switch


def test_a_switch_is_written_as_it_goes(store: Database) -> None:
    with store.begin() as session:
        switch_id = begin_switch(
            session,
            Mode.GENERATION,
            Mode.EMBEDDING,
            SwitchReason.JOB,
            NOW,
            detail="nightly",
            device="GPU 0",
            memory_before=9 << 30,
            pids_before={12, 11},
            in_flight=3,
        )
    with store.snapshot() as session:
        running = latest(session)
    assert (running.outcome, running.finished_at, running.seconds) == (SwitchOutcome.RUNNING, None, None)
    phases: dict[str, float] = {}
    for number, phase in enumerate(Phase):
        phases[phase.value] = number / 4
        with store.begin() as session:
            note_progress(session, switch_id, phases)
        with store.snapshot() as session:
            assert latest(session).phases == phases
    with store.begin() as session:
        end = NOW + dt.timedelta(seconds=7.25)
        end_switch(session, switch_id, SwitchOutcome.DONE, end, memory_after=1 << 30, pids_after={20, 13}, cut=1)
    with store.snapshot() as session:
        assert latest(session) == StoredSwitch(
            id=switch_id,
            from_mode=Mode.GENERATION,
            to_mode=Mode.EMBEDDING,
            reason=SwitchReason.JOB,
            detail="nightly",
            started_at=NOW,
            finished_at=end,
            outcome=SwitchOutcome.DONE,
            phases={phase.value: number / 4 for number, phase in enumerate(Phase)},
            memory_before=9 << 30,
            memory_after=1 << 30,
            device="GPU 0",
            pids_before=[11, 12],
            pids_after=[13, 20],
            in_flight=3,
            cut=1,
            error=None,
        )
        assert latest(session).seconds == sum(number / 4 for number in range(len(Phase)))


def test_progress_replaces_what_was_noted(store: Database) -> None:
    with store.begin() as session:
        switch_id = begin(session)
        note_progress(session, switch_id, {"close": 0.5})
        note_progress(session, switch_id, {"close": 0.5, "stop": 2.0}, memory_before=9, memory_after=1, cut=1)
        note_progress(session, switch_id, {"close": 0.75, "stop": 2.0}, pids_after={3})
        switch = latest(session)
    assert switch.phases == {"close": 0.75, "stop": 2.0}
    assert (switch.memory_before, switch.memory_after, switch.cut, switch.pids_after) == (9, 1, 1, [3])


def test_what_a_phase_found_out_stays_until_something_newer_is_known(store: Database) -> None:
    with store.begin() as session:
        switch_id = begin(session)
        note_progress(session, switch_id, {"drain": 0.0}, memory_before=5, cut=2)
        note_progress(session, switch_id, {"release": 0.0}, memory_after=3, pids_after=[])
        note_progress(session, switch_id, {"ready": 0.0}, pids_after=[7])
        end_switch(session, switch_id, SwitchOutcome.ROLLED_BACK, NOW, error="no canary")
        switch = latest(session)
    assert (switch.memory_before, switch.memory_after, switch.cut, switch.pids_after) == (5, 3, 2, [7])
    assert (switch.outcome, switch.error) == (SwitchOutcome.ROLLED_BACK, "no canary")


def test_a_daemon_finds_what_the_one_before_left_running(store: Database) -> None:
    with store.begin() as session:
        done = begin(session)
        end_switch(session, done, SwitchOutcome.DONE, NOW)
        early = begin(session)
        late = begin(session)
        note_progress(session, late, {"close": 0.1, "stop": 0.1})
    later = NOW + dt.timedelta(hours=9)
    with store.begin() as session:
        assert [(switch.id, switch.error) for switch in interrupt_switches(session, later)] == [
            (early, "the daemon ended in the middle of it, before any phase ended"),
            (late, "the daemon ended in the middle of it, after stop"),
        ]
    with store.begin() as session:
        assert interrupt_switches(session, later) == []
        switch = latest(session)
        assert (switch.outcome, switch.finished_at) == (SwitchOutcome.INTERRUPTED, later)
        assert switch.seconds is None  # nobody saw when it ended
        assert [each.outcome for each in latest_switches(session, 9)].count(SwitchOutcome.DONE) == 1


def test_the_newest_come_first_and_older_ones_after_them(store: Database) -> None:
    with store.begin() as session:
        ids = [begin(session) for _ in range(5)]
        assert [switch.id for switch in latest_switches(session, 2)] == [ids[4], ids[3]]
        assert [switch.id for switch in latest_switches(session, 2, before=ids[3])] == [ids[2], ids[1]]
        assert latest_switches(session, 2, before=ids[0]) == []


def test_an_emptied_journal_does_not_stop_a_switch(store: Database) -> None:
    with store.begin() as session:
        switch_id = begin(session)
        session.execute(sa.delete(ModeSwitchRow))
        session.expire_all()
        note_progress(session, switch_id, {"stop": 1.0})
        end_switch(session, switch_id, SwitchOutcome.DONE, NOW)
        assert latest_switches(session) == []


@pytest.mark.parametrize("size", [180 << 30])
def test_memory_of_a_large_gpu_fits(store: Database, size: int) -> None:
    with store.begin() as session:
        switch_id = begin(session)
        note_progress(session, switch_id, {"release": 0.0}, memory_before=size, memory_after=size)
    with store.snapshot() as session:
        assert (latest(session).memory_before, latest(session).memory_after) == (size, size)
