"""Runs: who is at work on this database, and whether they still live."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.errors import RunInProgress
from pipeline.core.windows import Window
from pipeline.store.tables import ContentRow, RunRow

HEARTBEAT = dt.timedelta(seconds=5)
"""How often a run says that it lives."""

LEASE = dt.timedelta(seconds=60)
"""How long after its last heartbeat a run on another host is taken for dead."""


@dataclass(frozen=True, slots=True)
class Process:
    """Who a run is: `started` (seconds since 1970) tells a process from a later one with the same pid."""

    host: str
    pid: int
    started: float


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as the database knows it.

    job, window_start, window_end: the job that it is a run of, and that job's window; None for one by hand.
    stop_at: when it is to stop so that the next mode serves at the window's end.
    """

    id: str
    state: str
    process: Process
    started_at: dt.datetime
    heartbeat_at: dt.datetime
    finished_at: dt.datetime | None
    sources: Sequence[str]
    chunks_embedded: int
    error: str | None
    job: str | None
    window_start: dt.datetime | None
    window_end: dt.datetime | None
    stop_at: dt.datetime | None


def start_run(
    session: Session,
    run_id: str,
    me: Process,
    sources: Sequence[str],
    now: dt.datetime,
    is_alive: Callable[[Process], bool],
    *,
    job: str | None = None,
    window: Window | None = None,
    stop_at: dt.datetime | None = None,
) -> list[StoredRun]:
    """Begin a run. Dead runs are marked interrupted and what they held is free; returns these.

    is_alive: asked about processes of this host; those of others live until their lease is over.
    job, window, stop_at: as in `StoredRun`.

    Raises:
        RunInProgress: another run lives.
    """
    if session.get_bind().dialect.name == "postgresql":
        # Two that begin at once must see each other; on SQLite a writing transaction is alone anyway.
        session.execute(sa.text("LOCK TABLE runs IN SHARE ROW EXCLUSIVE MODE"))
    interrupted: list[StoredRun] = []
    for row in session.scalars(sa.select(RunRow).where(RunRow.state == "running")):
        process = Process(row.host, row.pid, row.process_started)
        lives = is_alive(process) if row.host == me.host else now - row.heartbeat_at < LEASE
        if lives:
            raise RunInProgress(
                f"run {row.id} (pid {row.pid} on {row.host}, since {row.started_at.astimezone():%Y-%m-%d %H:%M %Z})"
            )
        row.state, row.finished_at, row.error = "interrupted", row.heartbeat_at, "its process ended without a word"
        interrupted.append(_plain(row))
    session.flush()
    session.add(
        RunRow(
            id=run_id,
            state="running",
            host=me.host,
            pid=me.pid,
            process_started=me.started,
            started_at=now,
            heartbeat_at=now,
            sources=list(sources),
            job=job,
            window_start=window.start if window else None,
            window_end=window.end if window else None,
            stop_at=stop_at,
        )
    )
    # With no other run alive, no claim is held by anyone.
    session.execute(sa.update(ContentRow).where(ContentRow.claimed_by.is_not(None)).values(claimed_by=None))
    return interrupted


def heartbeat(session: Session, run_id: str, now: dt.datetime) -> None:
    """Say that the run lives; one that was taken for dead meanwhile stays so."""
    session.execute(sa.update(RunRow).where(RunRow.id == run_id, RunRow.state == "running").values(heartbeat_at=now))


def finish_run(session: Session, run_id: str, state: str, error: str | None, now: dt.datetime) -> None:
    """End a run as `complete`, `stopped` or `failed`, and let go of what it held."""
    session.execute(
        sa.update(RunRow)
        .where(RunRow.id == run_id, RunRow.state == "running")
        .values(state=state, error=error, finished_at=now, heartbeat_at=now)
    )
    session.execute(sa.update(ContentRow).where(ContentRow.claimed_by == run_id).values(claimed_by=None))


def stop_at_once(session: Session, me: Process, now: dt.datetime) -> None:
    """End the run of a process that is about to end as it is, with what it claims."""
    mine = (RunRow.state == "running", RunRow.host == me.host, RunRow.pid == me.pid)
    for run_id in session.scalars(sa.select(RunRow.id).where(*mine)).all():
        finish_run(session, run_id, "stopped", "stopped at once", now)


def latest_runs(session: Session, limit: int = 1) -> list[StoredRun]:
    """The last runs, newest first."""
    rows = session.scalars(sa.select(RunRow).order_by(RunRow.started_at.desc(), RunRow.id.desc()).limit(limit))
    return [_plain(row) for row in rows]


def _plain(row: RunRow) -> StoredRun:
    return StoredRun(
        row.id,
        row.state,
        Process(row.host, row.pid, row.process_started),
        row.started_at,
        row.heartbeat_at,
        row.finished_at,
        list(row.sources),
        row.chunks_embedded,
        row.error,
        row.job,
        row.window_start,
        row.window_end,
        row.stop_at,
    )
