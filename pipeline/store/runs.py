"""Runs: who is at work on this database, and whether they still live.

On SQLite there is one at a time. On a server database there is one for each host. The clock of a host says nothing
about the runs of others: a run that begins judges them by the server's clock, and a run at work by whether their
heartbeats change while it watches (`watch_hearts`), because the server's clock may be set too.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.errors import LeaseLost, RunInProgress
from pipeline.core.windows import Window
from pipeline.store.database import host_of
from pipeline.store.locks import transaction_lock
from pipeline.store.tables import ContentRow, RunRow, UtcDateTime

HEARTBEAT = dt.timedelta(seconds=5)
"""How often a run says that it lives."""

INTERRUPTED_TOLD = 20
"""Interrupted runs in a row that are told of; a host that loses its power so often has other worries."""

CLOCKS_DIFFER = dt.timedelta(minutes=1)
"""By how much another host's clock may be ahead without a word."""

LEASE = dt.timedelta(seconds=60)
"""How long after its last heartbeat a run on another host is taken for dead, where nothing else is said."""


Hearts = dict[str, tuple[dt.datetime, float]]
"""What a process saw of runs: the last heartbeat of each, and since when by its own steady clock, in seconds."""

REPAIR = "repair"
"""The task of a run that mends what disagrees: nobody else is at work meanwhile, on no host."""


@dataclass(frozen=True, slots=True)
class Process:
    """Who a run is. started: tells the process from others with its pid, see `backends.family.birth`."""

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
    lease: dt.timedelta = LEASE,
) -> list[StoredRun]:
    """Begin a run. Dead runs are marked interrupted and what they held is free.

    Returns the runs that were interrupted since the last one of this host that was not, oldest first.

    is_alive: asked about processes of this host; those of others live until their lease is over.
    job, window, stop_at, task: as in `StoredRun`.

    Raises:
        RunInProgress: another run of this host lives; on SQLite, any; and so where either is a repair.
    """
    # Two that begin at once must see each other.
    transaction_lock(session, "runs")
    # A process has one run at a time: one of this very process could not note its end when the database was away.
    session.execute(
        sa.update(RunRow)
        .where(
            RunRow.state == "running",
            RunRow.host == me.host,
            RunRow.pid == me.pid,
            RunRow.process_started == me.started,
            _silent(session, now, lease),
        )
        .values(state="interrupted", finished_at=RunRow.heartbeat_at, error="how it ended could not be noted")
    )
    alone = session.get_bind().dialect.name == "sqlite" or task == REPAIR
    running = {run.id for run in living_runs(session)}
    for run in end_dead_runs(session, me, now, is_alive, lease=lease):
        if alone or run.process.host == me.host or run.task == REPAIR:
            raise RunInProgress(
                f"run {run.id} (pid {run.process.pid} on {run.process.host}, "
                f"since {run.started_at.astimezone():%Y-%m-%d %H:%M %Z})"
            )
    # How the runs of other hosts went is told there, but for those that this one takes over from.
    taken_over = sa.and_(RunRow.id.in_(running), RunRow.state != "running")
    mine = sa.true() if alone else sa.or_(RunRow.host == me.host, taken_over)
    latest = sa.select(RunRow).where(mine).order_by(*newest_first())
    ended = [plain(row) for row in session.scalars(latest.limit(INTERRUPTED_TOLD))]
    before = list(itertools.takewhile(lambda run: run.state == "interrupted", ended))
    session.add(
        RunRow(
            id=run_id,
            state="running",
            host=me.host,
            pid=me.pid,
            process_started=me.started,
            started_at=now,
            heartbeat_at=server_time(session, now),
            sources=list(sources),
            job=job,
            window_start=window.start if window else None,
            window_end=window.end if window else None,
            stop_at=stop_at,
            task=task,
        )
    )
    session.flush()
    return before[::-1]


def end_dead_runs(
    session: Session,
    me: Process,
    now: dt.datetime,
    is_alive: Callable[[Process], bool],
    *,
    lease: dt.timedelta = LEASE,
    mine: str | None = None,
    unheard: Mapping[str, dt.datetime] | None = None,
) -> list[StoredRun]:
    """Mark runs that died as interrupted, each at its last heartbeat, and free what no run holds any more.

    mine: the run that asks, which never judges itself.
    unheard: the runs of other hosts that count as dead, each with its last heartbeat (see `watch_hearts`); None: those
    without a heartbeat for a lease by the server's clock.

    Returns those that live.
    """
    alive: list[StoredRun] = []
    found = sa.select(RunRow, _silent(session, now, lease)).where(RunRow.state == "running")
    for row, silent in session.execute(found).all():
        if row.host == me.host:
            lives = is_alive(Process(row.host, row.pid, row.process_started))
        else:
            lives = not silent if unheard is None else unheard.get(row.id) != row.heartbeat_at
        if lives or row.id == mine:
            alive.append(plain(row))
            continue
        # Not where it was heard of in between.
        dead = (RunRow.id == row.id, RunRow.state == "running", RunRow.heartbeat_at == row.heartbeat_at)
        session.execute(
            sa.update(RunRow)
            .where(*dead)
            .values(state="interrupted", finished_at=RunRow.heartbeat_at, error="its process ended without a word")
        )
    held = sa.exists().where(RunRow.id == ContentRow.claimed_by, RunRow.state == "running")
    session.execute(
        sa.update(ContentRow).where(ContentRow.claimed_by.is_not(None), ~held).values(claimed_by=None),
        execution_options={"synchronize_session": False},
    )
    session.expire_all()
    return alive


def watch_hearts(
    seen: Hearts,
    running: Iterable[StoredRun],
    now: float,
    lease: dt.timedelta,
) -> dict[str, dt.datetime]:
    """The runs whose heartbeat has not changed for a lease, as far as this process saw, each with that heartbeat.

    seen: what was seen so far, which is brought up to date. now: seconds, by a clock that nobody sets.
    """
    hearts = {run.id: run.heartbeat_at for run in running}
    for run_id in seen.keys() - hearts.keys():
        del seen[run_id]
    for run_id, beat in hearts.items():
        if run_id not in seen or seen[run_id][0] != beat:
            seen[run_id] = beat, now
    return {run_id: beat for run_id, (beat, since) in seen.items() if now - since >= lease.total_seconds()}


def heartbeat(session: Session, run_id: str, now: dt.datetime, measured: Measured | None = None) -> dt.datetime | None:
    """Say that the run lives, and how far it is; returns when it is to stop.

    Raises:
        LeaseLost: it was taken for dead meanwhile, and stays so.
    """
    mine = (RunRow.id == run_id, RunRow.state == "running")
    session.execute(sa.update(RunRow).where(*mine).values(heartbeat_at=server_time(session, now), **_values(measured)))
    row = session.execute(sa.select(RunRow.state, RunRow.stop_at).where(RunRow.id == run_id)).one_or_none()
    if row is None or row.state == "interrupted":
        raise LeaseLost
    stop_at: dt.datetime | None = row.stop_at
    return stop_at


def check_lease(session: Session, run_id: str) -> None:
    """Make sure that the run counts as alive, to the end of this transaction. Raises LeaseLost."""
    if session.get_bind().dialect.name == "sqlite":
        return  # all runs are of one host, which sees whether they live
    # Whoever takes it for dead waits for this transaction, and then frees what was claimed in it too.
    mine = sa.select(RunRow.state).where(RunRow.id == run_id).with_for_update(read=True)
    if session.scalar(mine) != "running":
        raise LeaseLost


def living_runs(session: Session) -> list[StoredRun]:
    """The runs that nobody took for dead so far, of all hosts, oldest first."""
    running = sa.select(RunRow).where(RunRow.state == "running")
    return [plain(row) for row in session.scalars(running.order_by(RunRow.started_at, RunRow.id))]


def silent_runs(session: Session, now: dt.datetime, lease: dt.timedelta = LEASE) -> set[str]:
    """The runs that nobody ended, and that have been without a heartbeat for a lease."""
    return set(session.scalars(sa.select(RunRow.id).where(RunRow.state == "running", _silent(session, now, lease))))


def ask_for_room(session: Session, now: dt.datetime, host: str) -> bool:
    """Tell a run of this host that only reads to stop: its next heartbeat hears it. Whether there is one.

    On SQLite of any host: there is room for one run.
    """
    here = sa.true() if session.get_bind().dialect.name == "sqlite" else RunRow.host == host
    reading = (RunRow.state == "running", RunRow.task == "extract", here)
    session.execute(sa.update(RunRow).where(*reading).values(stop_at=now))
    return session.scalar(sa.select(RunRow.id).where(*reading).limit(1)) is not None


def finish_run(
    session: Session, run_id: str, state: str, error: str | None, now: dt.datetime, measured: Measured | None = None
) -> None:
    """End a run as `complete`, `stopped` or `failed`, and let go of what it held."""
    session.execute(
        sa.update(RunRow)
        .where(RunRow.id == run_id, RunRow.state == "running")
        .values(state=state, error=error, finished_at=now, heartbeat_at=server_time(session, now), **_values(measured))
    )
    session.execute(sa.update(ContentRow).where(ContentRow.claimed_by == run_id).values(claimed_by=None))


def stop_at_once(session: Session, me: Process, now: dt.datetime) -> None:
    """End the run of a process that is about to end as it is, with what it claims."""
    mine = (RunRow.state == "running", RunRow.host == me.host, RunRow.pid == me.pid)
    for run_id in session.scalars(sa.select(RunRow.id).where(*mine)).all():
        finish_run(session, run_id, "stopped", "stopped at once", now)


def latest_runs(session: Session, limit: int = 1) -> list[StoredRun]:
    """The last runs, newest first."""
    rows = session.scalars(sa.select(RunRow).order_by(*newest_first()).limit(limit))
    return [plain(row) for row in rows]


def looked_at_by_runs(session: Session, *, here: bool = False) -> set[str]:
    """The folders and files that runs were told to look at, absolute, as far as runs are on record.

    here: only runs of this host count, and only those that have ended and did not fail.
    """
    query = sa.select(RunRow.sources).where(RunRow.task != REPAIR)
    if here:
        query = query.where(RunRow.state.in_(("complete", "stopped")))
        if host := host_of(session):
            query = query.where(RunRow.host == host)
    return {path for paths in session.scalars(query) for path in paths}


def newest_first() -> tuple[sa.ColumnElement[Any], ...]:
    """The order in which runs are told of. Those that a clock which was ahead noted come last."""
    return (_is_ahead(dt.datetime.now(dt.UTC)), RunRow.started_at.desc(), RunRow.id.desc())


def begun_ahead(session: Session, now: dt.datetime) -> list[StoredRun]:
    """Up to three runs that are noted to begin at a time that is to come, the latest first."""
    rows = session.scalars(sa.select(RunRow).where(_is_ahead(now)).order_by(RunRow.started_at.desc()).limit(3))
    return [plain(row) for row in rows]


def _is_ahead(now: dt.datetime) -> sa.ColumnElement[bool]:
    return RunRow.started_at > now + CLOCKS_DIFFER


def find_run(session: Session, run_id: str) -> StoredRun | None:
    """One run, or None."""
    row = session.get(RunRow, run_id)
    return None if row is None else plain(row)


def measured_runs(session: Session, host: str, limit: int) -> list[StoredRun]:
    """The last runs of a host that read or embedded anything, newest first."""
    rows = session.scalars(
        sa.select(RunRow)
        .where(RunRow.host == host, sa.or_(RunRow.pages_read > 0, RunRow.tokens_embedded > 0))
        .order_by(*newest_first())
        .limit(limit)
    )
    return [plain(row) for row in rows]


def server_time(
    session: Session, now: dt.datetime, *, ago: dt.timedelta = dt.timedelta()
) -> sa.ColumnElement[dt.datetime]:
    """The time that leases go by: the server's, where hosts with clocks of their own share one; else `now`."""
    if session.get_bind().dialect.name == "postgresql":
        return sa.type_coerce(sa.func.now() - sa.literal(ago, sa.Interval()), UtcDateTime())
    return sa.literal(now - ago, UtcDateTime())


def _silent(session: Session, now: dt.datetime, lease: dt.timedelta) -> sa.ColumnElement[bool]:
    """Whether a run has no heartbeat within a lease of now. A heartbeat to come is from a clock that was ahead."""
    since, until = server_time(session, now, ago=lease), server_time(session, now, ago=-lease)
    return sa.or_(RunRow.heartbeat_at <= since, RunRow.heartbeat_at >= until)


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
