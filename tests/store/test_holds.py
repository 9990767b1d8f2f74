"""The hold: one at most, over when it says so."""

from __future__ import annotations

import datetime as dt
import threading

import pytest
import sqlalchemy as sa

from pipeline.core.errors import StoreError
from pipeline.core.modes import Mode
from pipeline.core.schedule import Hold
from pipeline.store.database import Database, host_of
from pipeline.store.holds import StoredHold, begin_anew, clear_hold, current_hold, set_hold
from pipeline.store.tables import HoldRow

NOW = dt.datetime(2026, 6, 2, 2, tzinfo=dt.UTC)
TWO_HOURS = Hold(Mode.MIXED, NOW + dt.timedelta(hours=2))
FOR_GOOD = Hold(Mode.IDLE)


def test_a_hold_counts_until_it_is_over(store: Database) -> None:
    assert TWO_HOURS.until is not None
    with store.begin() as session:
        assert current_hold(session, NOW) is None
        set_hold(session, TWO_HOURS, "ada", NOW)
    with store.snapshot() as session:
        assert current_hold(session, NOW) == StoredHold(TWO_HOURS, NOW, "ada")
        assert current_hold(session, TWO_HOURS.until - dt.timedelta(seconds=1)) is not None
        assert current_hold(session, TWO_HOURS.until) is None


def test_a_hold_without_an_end_counts_until_it_is_taken_back(store: Database) -> None:
    with store.begin() as session:
        set_hold(session, FOR_GOOD, "ada", NOW)
        held = current_hold(session, NOW + dt.timedelta(days=9999))
        assert held is not None
        assert held.hold == FOR_GOOD
        assert clear_hold(session) == held
        assert current_hold(session, NOW) is None
        assert clear_hold(session) is None


def test_a_hold_that_was_set_in_the_future_lasts_as_long_as_it_was_to_last(store: Database) -> None:
    """The clock was ahead by a month, and is right again."""
    month, minute = dt.timedelta(days=30), dt.timedelta(minutes=1)
    assert TWO_HOURS.until is not None
    with store.begin() as session:
        set_hold(session, Hold(Mode.MIXED, TWO_HOURS.until + month), "ada", NOW + month)
    with store.begin() as session:
        assert begin_anew(session, NOW) == StoredHold(TWO_HOURS, NOW, "ada")
        assert begin_anew(session, NOW + minute) == StoredHold(TWO_HOURS, NOW, "ada"), "only once"
        assert current_hold(session, TWO_HOURS.until) is None
        set_hold(session, FOR_GOOD, "ada", NOW + month)
        assert begin_anew(session, NOW) == StoredHold(FOR_GOOD, NOW, "ada")


def test_a_new_hold_takes_the_place_of_the_old_one(store: Database) -> None:
    later = NOW + dt.timedelta(minutes=1)
    with store.begin() as session:
        set_hold(session, TWO_HOURS, "ada", NOW)
    with store.begin() as session:
        set_hold(session, FOR_GOOD, "ben", later)
    with store.snapshot() as session:
        assert current_hold(session, later) == StoredHold(FOR_GOOD, later, "ben")
        assert session.scalar(sa.select(sa.func.count()).select_from(HoldRow)) == 1


def test_a_host_has_no_second_row(store: Database) -> None:
    with store.begin() as session:
        set_hold(session, TWO_HOURS, "ada", NOW)
    with pytest.raises(StoreError, match=r"holds\.host|uq_holds_host"), store.begin() as session:
        session.add(HoldRow(id=2, host=host_of(session), mode="idle", set_at=NOW, set_by="ada"))


def test_two_operators_at_once_both_succeed(store: Database) -> None:
    set_first, errors = threading.Event(), []

    def second() -> None:
        set_first.wait()
        try:
            with store.begin() as session:
                set_hold(session, FOR_GOOD, "ben", NOW)
        except Exception as error:  # noqa: BLE001  # a thread's error has to be brought out
            errors.append(error)

    other = threading.Thread(target=second)
    other.start()
    with store.begin() as session:
        set_hold(session, TWO_HOURS, "ada", NOW)
        set_first.set()
        other.join(0.3)
        assert other.is_alive()  # it waits for this transaction
    other.join()
    assert errors == []
    with store.snapshot() as session:
        held = current_hold(session, NOW)
        assert held is not None
        assert held.set_by == "ben"
