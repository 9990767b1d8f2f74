"""The hold: the mode that an operator wants for a while, whatever the schedule says. There is at most one."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.modes import Mode
from pipeline.core.schedule import Hold
from pipeline.store.tables import HoldRow

_THE_ONE = 1


@dataclass(frozen=True, slots=True)
class StoredHold:
    """A hold, and when and by whom it was set."""

    hold: Hold
    set_at: dt.datetime
    set_by: str


def set_hold(session: Session, hold: Hold, set_by: str, now: dt.datetime) -> None:
    """Hold a mode, instead of what was held before."""
    if session.get_bind().dialect.name == "postgresql":
        # Two that set it at once must not both find none; on SQLite a writing transaction is alone anyway.
        session.execute(sa.text("LOCK TABLE holds IN SHARE ROW EXCLUSIVE MODE"))
    session.merge(HoldRow(id=_THE_ONE, mode=hold.mode, until=hold.until, set_at=now, set_by=set_by))
    session.flush()


def clear_hold(session: Session) -> StoredHold | None:
    """Take the hold back; returns what was held, over or not."""
    return _remove(session, session.get(HoldRow, _THE_ONE))


def current_hold(session: Session, now: dt.datetime) -> StoredHold | None:
    """The hold that counts at `now`. One that is over is None, whether it was removed or not."""
    row = session.get(HoldRow, _THE_ONE)
    held = None if row is None else _plain(row)
    return held if held is not None and held.hold.holds(now) else None


def remove_ended_hold(session: Session, now: dt.datetime) -> StoredHold | None:
    """Remove the hold if it is over; returns it, so that its end can be told."""
    row = session.get(HoldRow, _THE_ONE)
    return None if row is None or _plain(row).hold.holds(now) else _remove(session, row)


def _remove(session: Session, row: HoldRow | None) -> StoredHold | None:
    if row is None:
        return None
    held = _plain(row)
    session.delete(row)
    session.flush()
    return held


def _plain(row: HoldRow) -> StoredHold:
    return StoredHold(Hold(Mode(row.mode), row.until), row.set_at, row.set_by)
