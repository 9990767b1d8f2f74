"""The reports of runs, each in the row of its run."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.store.runs import StoredRun, newest_first, plain
from pipeline.store.tables import RunRow


def save_report(session: Session, run_id: str, report: Mapping[str, Any]) -> None:
    """Keep the report of a run."""
    session.execute(sa.update(RunRow).where(RunRow.id == run_id).values(report=dict(report)))


def save_first_report(session: Session, run_id: str, report: Mapping[str, Any]) -> bool:
    """Keep the report of a run that has none; whether that was so."""
    mine = sa.select(RunRow.id).where(RunRow.id == run_id, RunRow.report.is_(None)).with_for_update()
    if session.scalar(mine) is None:
        return False
    save_report(session, run_id, report)
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
