"""The reports of runs, and the outbox: those that are owed to a receiver until it took them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.store.runs import StoredRun, newest_first, plain
from pipeline.store.tables import DeliveryRow, RunRow, may_be_tried

LONGEST = dt.timedelta(hours=24)
"""Between two tries at a report."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A report that a receiver is owed. attempts: tries so far, each of which failed with an `error`."""

    run_id: str
    report: Mapping[str, Any]
    attempts: int
    error: str | None


def save_report(session: Session, run_id: str, report: Mapping[str, Any], *, owed_from: dt.datetime | None) -> None:
    """Keep the report of a run. owed_from: when to try first to deliver it; None where nobody wants it."""
    session.execute(sa.update(RunRow).where(RunRow.id == run_id).values(report=dict(report)))
    if owed_from is not None:
        session.merge(DeliveryRow(run_id=run_id, due_at=owed_from, attempts=0, error=None, delivered_at=None))


def save_first_report(
    session: Session, run_id: str, report: Mapping[str, Any], *, owed_from: dt.datetime | None
) -> bool:
    """Keep the report of a run that has none; whether that was so."""
    mine = sa.select(RunRow.id).where(RunRow.id == run_id, RunRow.report.is_(None)).with_for_update()
    if session.scalar(mine) is None:
        return False
    save_report(session, run_id, report, owed_from=owed_from)
    return True


def find_report(session: Session, run_id: str | None) -> dict[str, Any] | None:
    """The report of a run, or the newest one; None where there is none."""
    query = sa.select(RunRow.report).where(RunRow.report.is_not(None))
    if run_id is not None:
        query = query.where(RunRow.id == run_id)
    return session.scalar(query.order_by(*newest_first()).limit(1))


def untold_runs(session: Session, since: dt.datetime, limit: int) -> list[StoredRun]:
    """Runs that began since then, are over, and made no report though they did not just find nothing to do."""
    rows = session.scalars(
        sa.select(RunRow)
        .where(
            RunRow.state.in_(["interrupted", "stopped", "failed"]),
            RunRow.started_at >= since,
            RunRow.report.is_(None),
        )
        .order_by(RunRow.started_at, RunRow.id)
        .limit(limit)
    )
    return [plain(row) for row in rows]


def list_reports(session: Session, limit: int) -> list[str]:
    """The runs that have a report, newest first."""
    query = sa.select(RunRow.id).where(RunRow.report.is_not(None))
    return list(session.scalars(query.order_by(*newest_first()).limit(limit)))


def due_deliveries(session: Session, now: dt.datetime, limit: int = 20) -> list[Delivery]:
    """The reports that are to be delivered by now, those due longest first."""
    rows = session.execute(_due(now).limit(limit))
    return [Delivery(row.run_id, report, row.attempts, row.error) for row, report in rows]


def take_due(session: Session, now: dt.datetime, until: dt.datetime) -> Delivery | None:
    """The report that is due longest, for this process alone until then: nobody else takes it up before."""
    found = session.execute(_due(now).limit(1).with_for_update(of=DeliveryRow, skip_locked=True)).first()
    if found is None:
        return None
    row, report = found
    row.due_at = until
    session.flush()
    return Delivery(row.run_id, report, row.attempts, row.error)


def _due(now: dt.datetime) -> sa.Select[tuple[DeliveryRow, Any]]:
    return (
        sa.select(DeliveryRow, RunRow.report)
        .join(RunRow, RunRow.id == DeliveryRow.run_id)
        .where(
            DeliveryRow.due_at.is_not(None), may_be_tried(DeliveryRow.due_at, now, LONGEST), RunRow.report.is_not(None)
        )
        .order_by(DeliveryRow.due_at, DeliveryRow.run_id)
    )


def next_delivery(session: Session) -> dt.datetime | None:
    """When the next report is due; None where none is owed."""
    return session.scalar(sa.select(sa.func.min(DeliveryRow.due_at)))


def note_delivered(session: Session, run_id: str, now: dt.datetime) -> None:
    """The receiver took it."""
    _update(session, run_id, due_at=None, delivered_at=now, error=None)


def note_failed(session: Session, run_id: str, error: str, due_at: dt.datetime | None) -> None:
    """It did not. due_at: when to try again; None to give it up."""
    _update(session, run_id, due_at=due_at, attempts=DeliveryRow.attempts + 1, error=error)


def undelivered(session: Session) -> Sequence[tuple[str, int, str | None]]:
    """Every report that nobody took: its run, how often it was tried, and what went wrong last."""
    rows = session.execute(
        sa.select(DeliveryRow.run_id, DeliveryRow.attempts, DeliveryRow.error)
        .where(DeliveryRow.delivered_at.is_(None))
        .order_by(DeliveryRow.run_id)
    )
    return [(run_id, attempts, error) for run_id, attempts, error in rows]


def _update(session: Session, run_id: str, **values: Any) -> None:
    session.execute(sa.update(DeliveryRow).where(DeliveryRow.run_id == run_id).values(**values))
