"""The hold: the mode that an operator wants for a while, whatever the schedule says. A host has at most one."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.modes import Mode
from pipeline.core.schedule import Hold
from pipeline.store.database import host_of
from pipeline.store.locks import transaction_lock
from pipeline.store.tables import HoldRow


@dataclass(frozen=True, slots=True)
class StoredHold:
    """A hold, and when and by whom it was set."""

    hold: Hold
    set_at: dt.datetime
    set_by: str


def set_hold(session: Session, hold: Hold, set_by: str, now: dt.datetime) -> None:
    """Hold a mode, instead of what was held before."""
    # Two that set it at once must not both find none.
    transaction_lock(session, "holds")
    row = _row(session)
    if row is None:
        highest = session.scalar(sa.select(sa.func.max(HoldRow.id))) or 0
        row = HoldRow(id=highest + 1, host=host_of(session))
        session.add(row)
    row.mode, row.until, row.set_at, row.set_by = hold.mode, hold.until, now, set_by
    session.flush()


def clear_hold(session: Session) -> StoredHold | None:
    """Take the hold back; returns what was held, over or not."""
    return _remove(session, _row(session))


def current_hold(session: Session, now: dt.datetime) -> StoredHold | None:
    """The hold that counts at `now`. One that is over is None, whether it was removed or not."""
    row = _row(session)
    held = None if row is None else _plain(row)
    return held if held is not None and held.hold.holds(now) else None


def begin_anew(session: Session, now: dt.datetime) -> StoredHold | None:
    """Have a hold that was set in the future, by a clock that was ahead, last as long from now as it was to last."""
    row = _row(session)
    if row is not None and row.set_at > now:
        if row.until is not None:
            row.until = now + (row.until - row.set_at)
        row.set_at = now
        session.flush()
    return current_hold(session, now)


def _row(session: Session) -> HoldRow | None:
    return session.scalar(sa.select(HoldRow).where(HoldRow.host == host_of(session)))


def _remove(session: Session, row: HoldRow | None) -> StoredHold | None:
    if row is None:
        return None
    held = _plain(row)
    session.delete(row)
    session.flush()
    return held


def _plain(row: HoldRow) -> StoredHold:
    return StoredHold(Hold(Mode(row.mode), row.until), row.set_at, row.set_by)
