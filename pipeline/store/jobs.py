"""What became of each job of this host: what its schedule must know of the past to make up for a window."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.store.database import host_of
from pipeline.store.runs import begun_ahead
from pipeline.store.tables import JobStateRow

FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StoredJobState:
    """A job as the database knows it.

    known_since: when it was first seen; windows before owe nothing.
    last_finished: when its task was last done with: complete, at its window's end, or given up.
    last_outcome: how its last run ended, done with or not.
    failures: runs that failed since its window began; see `failures_in`.
    """

    name: str
    known_since: dt.datetime
    last_started: dt.datetime | None
    last_finished: dt.datetime | None
    last_outcome: str | None
    failures: int

    def failures_in(self, window_start: dt.datetime) -> int:
        """How often it failed in the window that began then: none, where it was not started since."""
        return self.failures if self.last_started is not None and self.last_started >= window_start else 0


def note_known(session: Session, names: Iterable[str], now: dt.datetime) -> list[str]:
    """Note jobs that are declared; returns those that are new. One whose file is gone or broken stays known.

    One that a clock which was ahead noted is known since now: the windows from now on are owed.
    """
    wanted = sorted(set(names))
    host = host_of(session)
    too_late = sa.update(JobStateRow).where(JobStateRow.host == host, JobStateRow.known_since > now)
    session.execute(too_late.values(known_since=now))
    mine = sa.select(JobStateRow.name).where(JobStateRow.host == host, JobStateRow.name.in_(wanted))
    known = set(session.scalars(mine))
    new = [name for name in wanted if name not in known]
    session.add_all([JobStateRow(host=host, name=name, known_since=now, failures=0) for name in new])
    session.flush()
    return new


def note_started(session: Session, name: str, now: dt.datetime, *, window_start: dt.datetime | None = None) -> None:
    """Note that a run of a job begins; failures count from the first one in the window that began then.

    window_start: None for a run outside any window, which leaves the failures as they are.

    What lies in the future is forgotten: a clock that was ahead noted it, and it must not count once that time comes.
    """
    row = _row(session, name, now)
    if row.last_started is not None and row.last_started > now:
        row.last_started, row.failures = None, 0
    if row.last_finished is not None and row.last_finished > now:
        row.last_finished = None
    if window_start is not None:
        row.failures = _plain(row).failures_in(window_start)
    row.last_started = now
    session.flush()


def note_finished(session: Session, name: str, outcome: str, now: dt.datetime, *, done: bool) -> None:
    """Note how a run of a job ended; `failed` counts as a failure.

    done: the task is done with for its window: complete, stopped at the window's end, or not to be
    tried again. A run that was stopped or failed and is to go on later is not.
    """
    row = _row(session, name, now)
    row.last_outcome = outcome
    row.failures += outcome == FAILED
    if done:
        row.last_finished = now
    session.flush()


def job_states(session: Session) -> dict[str, StoredJobState]:
    """Every job that was ever known, by its name."""
    mine = sa.select(JobStateRow).where(JobStateRow.host == host_of(session))
    return {row.name: _plain(row) for row in session.scalars(mine.order_by(JobStateRow.name))}


def noted_ahead(session: Session, now: dt.datetime) -> list[str]:
    """What was noted of jobs and runs for a time that is to come, in words. It does not count."""
    latest = {
        f"job {state.name} is noted to have run": max(
            (at for at in (state.last_started, state.last_finished) if at is not None), default=now
        )
        for state in job_states(session).values()
    }
    latest |= {f"run {run.id} is noted to have begun": run.started_at for run in begun_ahead(session, now)}
    return [
        f"{what} at {at:%Y-%m-%d %H:%M} UTC, which is to come and does not count: "
        "the clock was ahead then, or is behind now"
        for what, at in latest.items()
        if at > now
    ]


def _row(session: Session, name: str, now: dt.datetime) -> JobStateRow:
    note_known(session, [name], now)
    return session.get_one(JobStateRow, (host_of(session), name))


def _plain(row: JobStateRow) -> StoredJobState:
    return StoredJobState(
        row.name, row.known_since, row.last_started, row.last_finished, row.last_outcome, row.failures
    )
