"""Runs: who is at work on this database, and whether they still live."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.errors import RunInProgress
from pipeline.core.windows import Window
from pipeline.store.tables import ContentRow, RunRow

HEARTBEAT = dt.timedelta(seconds=5)
"""How often a run says that it lives."""

INTERRUPTED_TOLD = 20
"""Interrupted runs in a row that are told of; a host that loses its power so often has other worries."""

LEASE = dt.timedelta(seconds=60)
"""How long after its last heartbeat a run on another host is taken for dead."""


@dataclass(frozen=True, slots=True)
class Process:
    """Who a run is: `started` (seconds since 1970) tells a process from a later one with the same pid."""

    host: str
    pid: int
    started: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run has done so far, and what it did it with; the fields are those of `RunRow`."""

    documents_read: int = 0
    documents_done: int = 0
    pages_read: int = 0
    characters: int = 0
    tokens_embedded: int = 0
    extract_seconds: float = 0.0
    embed_seconds: float = 0.0
    request_seconds: float = 0.0
    fingerprint: str | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as the database knows it.

    job, window_start, window_end: the job that it is a run of, and that job's window; None for one by hand.
    stop_at: when it is to stop so that the next mode serves at the window's end.
    task: `ingest`, or `extract` for one that only reads.
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
    task: str = "ingest"
    measured: Measured = Measured()


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
    task: str = "ingest",
) -> list[StoredRun]:
    """Begin a run. Dead runs are marked interrupted and what they held is free.

    Returns the runs that were interrupted since the last one that was not, oldest first.

    is_alive: asked about processes of this host; those of others live until their lease is over.
    job, window, stop_at, task: as in `StoredRun`.

    Raises:
        RunInProgress: another run lives.
    """
    if session.get_bind().dialect.name == "postgresql":
        # Two that begin at once must see each other; on SQLite a writing transaction is alone anyway.
        session.execute(sa.text("LOCK TABLE runs IN SHARE ROW EXCLUSIVE MODE"))
    # A process has one run at a time: one of this very process could not note its end when the database was away.
    session.execute(
        sa.update(RunRow)
        .where(
            RunRow.state == "running", RunRow.host == me.host, RunRow.pid == me.pid, RunRow.heartbeat_at < now - LEASE
        )
        .values(state="interrupted", finished_at=RunRow.heartbeat_at, error="how it ended could not be noted")
    )
    for row in end_dead_runs(session, me, now, is_alive):
        raise RunInProgress(
            f"run {row.id} (pid {row.process.pid} on {row.process.host}, "
            f"since {row.started_at.astimezone():%Y-%m-%d %H:%M %Z})"
        )
    before = list(itertools.takewhile(lambda run: run.state == "interrupted", latest_runs(session, INTERRUPTED_TOLD)))
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
            task=task,
        )
    )
    # With no other run alive, no claim is held by anyone.
    session.execute(sa.update(ContentRow).where(ContentRow.claimed_by.is_not(None)).values(claimed_by=None))
    return before[::-1]


def end_dead_runs(
    session: Session, me: Process, now: dt.datetime, is_alive: Callable[[Process], bool]
) -> list[StoredRun]:
    """Mark runs that died as interrupted, each at its last heartbeat; returns those that live. As `start_run`."""
    alive: list[StoredRun] = []
    for row in session.scalars(sa.select(RunRow).where(RunRow.state == "running")).all():
        process = Process(row.host, row.pid, row.process_started)
        if is_alive(process) if row.host == me.host else now - row.heartbeat_at < LEASE:
            alive.append(plain(row))
            continue
        row.state, row.finished_at, row.error = "interrupted", row.heartbeat_at, "its process ended without a word"
    session.flush()
    return alive


def heartbeat(session: Session, run_id: str, now: dt.datetime, measured: Measured | None = None) -> dt.datetime | None:
    """Say that the run lives, and how far it is; returns when it is to stop. One taken for dead meanwhile stays so."""
    mine = (RunRow.id == run_id, RunRow.state == "running")
    session.execute(sa.update(RunRow).where(*mine).values(heartbeat_at=now, **_values(measured)))
    return session.scalar(sa.select(RunRow.stop_at).where(RunRow.id == run_id))


def ask_for_room(session: Session, now: dt.datetime) -> bool:
    """Tell a run that only reads to stop, wherever it is: its next heartbeat hears it. Whether there is one."""
    reading = (RunRow.state == "running", RunRow.task == "extract")
    session.execute(sa.update(RunRow).where(*reading).values(stop_at=now))
    return session.scalar(sa.select(RunRow.id).where(*reading).limit(1)) is not None


def finish_run(
    session: Session, run_id: str, state: str, error: str | None, now: dt.datetime, measured: Measured | None = None
) -> None:
    """End a run as `complete`, `stopped` or `failed`, and let go of what it held."""
    session.execute(
        sa.update(RunRow)
        .where(RunRow.id == run_id, RunRow.state == "running")
        .values(state=state, error=error, finished_at=now, heartbeat_at=now, **_values(measured))
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
    return [plain(row) for row in rows]


def find_run(session: Session, run_id: str) -> StoredRun | None:
    """One run, or None."""
    row = session.get(RunRow, run_id)
    return None if row is None else plain(row)


def measured_runs(session: Session, host: str, limit: int) -> list[StoredRun]:
    """The last runs of a host that read or embedded anything, newest first."""
    rows = session.scalars(
        sa.select(RunRow)
        .where(RunRow.host == host, sa.or_(RunRow.pages_read > 0, RunRow.tokens_embedded > 0))
        .order_by(RunRow.started_at.desc(), RunRow.id.desc())
        .limit(limit)
    )
    return [plain(row) for row in rows]


def _values(measured: Measured | None) -> dict[str, Any]:
    return {} if measured is None else asdict(measured)


def plain(row: RunRow) -> StoredRun:
    """A run without its session."""
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
        row.task,
        Measured(**{each.name: getattr(row, each.name) for each in fields(Measured)}),
    )
