"""The journal of this host's mode switches: one row each, written as it goes, so that a killed daemon leaves it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.modes import Mode
from pipeline.store.database import host_of
from pipeline.store.tables import ModeSwitchRow


class SwitchReason(StrEnum):
    """What asked for a switch."""

    SCHEDULE = "schedule"
    JOB = "job"
    OPERATOR = "operator"
    REQUEST = "request"
    RECOVERY = "recovery"


class SwitchOutcome(StrEnum):
    """How a switch ended. rolled-back: the mode before is back; deferred: put off because of requests under way."""

    RUNNING = "running"
    DONE = "done"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"
    DEFERRED = "deferred"
    INTERRUPTED = "interrupted"


class Phase(StrEnum):
    """The parts of a switch, in their order."""

    CLOSE = "close"
    DRAIN = "drain"
    STOP = "stop"
    RELEASE = "release"
    START = "start"
    READY = "ready"
    CANARY = "canary"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class StoredSwitch:
    """A switch as the database knows it.

    detail: which job or who. phases: seconds by `Phase`, in the order in which they came.
    memory_before, memory_after: bytes in use on `device` before the first server was stopped, and
    after the last was gone; None where there is nothing to read them from.
    pids_before, pids_after: processes of the model servers before and after. in_flight: requests
    under way when it began; cut: those of them that it ended.
    """

    id: int
    from_mode: Mode
    to_mode: Mode
    reason: SwitchReason
    detail: str | None
    started_at: dt.datetime
    finished_at: dt.datetime | None
    outcome: SwitchOutcome
    phases: Mapping[str, float]
    memory_before: int | None
    memory_after: int | None
    device: str | None
    pids_before: Sequence[int]
    pids_after: Sequence[int]
    in_flight: int
    cut: int
    error: str | None

    @property
    def seconds(self) -> float | None:
        """How long it took, by its phases: the clock may have been set meanwhile.

        None while it runs, and where nobody saw it end.
        """
        if self.finished_at is None or self.outcome is SwitchOutcome.INTERRUPTED:
            return None
        return sum(self.phases.values())


def begin_switch(
    session: Session,
    from_mode: Mode,
    to_mode: Mode,
    reason: SwitchReason,
    now: dt.datetime,
    *,
    detail: str | None = None,
    device: str | None = None,
    memory_before: int | None = None,
    pids_before: Iterable[int] = (),
    in_flight: int = 0,
) -> int:
    """Note that a switch begins; returns its id. The fields are those of `StoredSwitch`."""
    row = ModeSwitchRow(
        host=host_of(session),
        from_mode=from_mode,
        to_mode=to_mode,
        reason=reason,
        detail=detail,
        started_at=now,
        outcome=SwitchOutcome.RUNNING,
        phases={},
        memory_before=memory_before,
        device=device,
        pids_before=sorted(pids_before),
        pids_after=[],
        in_flight=in_flight,
        cut=0,
    )
    session.add(row)
    session.flush()
    return row.id


def note_progress(
    session: Session,
    switch_id: int,
    phases: Mapping[str, float],
    *,
    memory_before: int | None = None,
    memory_after: int | None = None,
    pids_after: Iterable[int] | None = None,
    cut: int | None = None,
) -> None:
    """Note all phases that are over so far, in place of what was noted; None leaves a field as it is.

    For whoever keeps the record of the switch anyway: a write that failed is made good by the next.
    """
    row = session.get(ModeSwitchRow, switch_id)
    if row is None:
        return
    row.phases = dict(phases)
    if memory_before is not None:
        row.memory_before = memory_before
    _note(row, memory_after, pids_after, cut)


def end_switch(
    session: Session,
    switch_id: int,
    outcome: SwitchOutcome,
    now: dt.datetime,
    *,
    error: str | None = None,
    memory_after: int | None = None,
    pids_after: Iterable[int] | None = None,
    cut: int | None = None,
) -> None:
    """Note how a switch ended; None leaves a field as it is."""
    row = session.get(ModeSwitchRow, switch_id)
    if row is None:
        return
    row.outcome, row.finished_at, row.error = outcome, now, error
    _note(row, memory_after, pids_after, cut)


def interrupt_switches(session: Session, now: dt.datetime) -> list[StoredSwitch]:
    """At the start of the daemon: switches that still run were cut off with the one before; returns these.

    now: becomes their `finished_at`, which says when this was noticed.
    """
    running = (ModeSwitchRow.host == host_of(session), ModeSwitchRow.outcome == SwitchOutcome.RUNNING)
    rows = session.scalars(sa.select(ModeSwitchRow).where(*running).order_by(ModeSwitchRow.id)).all()
    for row in rows:
        done = list(row.phases)
        row.outcome, row.finished_at = SwitchOutcome.INTERRUPTED, now
        row.error = f"the daemon ended in the middle of it, {f'after {done[-1]}' if done else 'before any phase ended'}"
    return [_plain(row) for row in rows]


def latest_switches(session: Session, limit: int = 1, *, before: int | None = None) -> list[StoredSwitch]:
    """The last switches, newest first; `before` an id, to go further back."""
    mine = ModeSwitchRow.host == host_of(session)
    query = sa.select(ModeSwitchRow).where(mine).order_by(ModeSwitchRow.id.desc()).limit(limit)
    if before is not None:
        query = query.where(ModeSwitchRow.id < before)
    return [_plain(row) for row in session.scalars(query)]


def _note(row: ModeSwitchRow, memory_after: int | None, pids_after: Iterable[int] | None, cut: int | None) -> None:
    if memory_after is not None:
        row.memory_after = memory_after
    if pids_after is not None:
        row.pids_after = sorted(pids_after)
    if cut is not None:
        row.cut = cut


def _plain(row: ModeSwitchRow) -> StoredSwitch:
    return StoredSwitch(
        id=row.id,
        from_mode=Mode(row.from_mode),
        to_mode=Mode(row.to_mode),
        reason=SwitchReason(row.reason),
        detail=row.detail,
        started_at=row.started_at,
        finished_at=row.finished_at,
        outcome=SwitchOutcome(row.outcome),
        phases=dict(row.phases),
        memory_before=row.memory_before,
        memory_after=row.memory_after,
        device=row.device,
        pids_before=list(row.pids_before),
        pids_after=list(row.pids_after),
        in_flight=row.in_flight,
        cut=row.cut,
        error=row.error,
    )
