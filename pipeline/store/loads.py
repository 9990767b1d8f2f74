"""How long models take to load on this host, as measured: what the schedule reserves so that a window ends on time.

A load is slow when the file is not in the page cache, and fast otherwise. To be late costs more
than to be early, so the estimate goes up at once and comes down slowly.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.store.database import host_of
from pipeline.store.tables import LoadRow

DECAY = 0.1
"""How much of the way down to a faster load the estimate goes with it: half of it after seven."""


@dataclass(frozen=True, slots=True)
class StoredLoad:
    """The loads of a model by one kind of server on one device: the last one's seconds, and the estimate."""

    fingerprint: str
    kind: str
    device: str
    seconds: float
    seconds_max: float
    count: int
    measured_at: dt.datetime


def upper_estimate(before: float | None, seconds: float) -> float:
    """What the next load will hardly exceed, from that estimate before (None: no load yet) and the last load."""
    if before is None:
        return seconds
    return max(seconds, before + DECAY * (seconds - before))


def note_load(
    session: Session, fingerprint: str, kind: str, device: str, seconds: float, now: dt.datetime
) -> StoredLoad:
    """Note that a model was ready after `seconds`."""
    key = (host_of(session), fingerprint, kind, device)
    row = session.get(LoadRow, key)
    before = None if row is None else row.seconds_max
    if row is None:
        row = LoadRow(host=key[0], fingerprint=fingerprint, kind=kind, device=device, count=0)
        session.add(row)
    row.seconds, row.seconds_max = seconds, upper_estimate(before, seconds)
    row.count, row.measured_at = row.count + 1, now
    session.flush()
    return _plain(row)


def measured_loads(session: Session) -> list[StoredLoad]:
    """Every load that was measured, the last measured first; those measured in the future come last."""
    mine = sa.select(LoadRow).where(LoadRow.host == host_of(session))
    return [
        _plain(row)
        for row in session.scalars(
            mine.order_by(LoadRow.measured_at > dt.datetime.now(dt.UTC), LoadRow.measured_at.desc())
        )
    ]


def _plain(row: LoadRow) -> StoredLoad:
    return StoredLoad(row.fingerprint, row.kind, row.device, row.seconds, row.seconds_max, row.count, row.measured_at)
