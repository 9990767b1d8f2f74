"""Several hosts on one database: which sources each has, who looks at one, and who else is at work.

Nothing here is ever taken back by hand: what a run holds counts for as long as that run lives (see `runs`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from pipeline.core.documents import DocumentState
from pipeline.store.database import host_of
from pipeline.store.models import Target
from pipeline.store.queue import is_free
from pipeline.store.scopes import Scope, folder_of_source, wanted_contents
from pipeline.store.tables import ContentRow, DocumentRow, RunRow, SourceHostRow, SourceRow


@dataclass(frozen=True, slots=True)
class AtWork:
    """Another run, and what it holds of what this one could do.

    reads, embeds: contents that it claimed to read, and to embed. looks: whether it looks at one of the sources asked
    about.
    """

    run_id: str
    host: str
    heartbeat_at: dt.datetime
    reads: int = 0
    embeds: int = 0
    looks: bool = False


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file as it was found: its path in the source, and its size in bytes."""

    path: str
    size: int


SAMPLE = 100


def begin_look(session: Session, source_id: int, run_id: str, now: dt.datetime) -> str | None:
    """Have a source to oneself for as long as this run looks at its files; or the host whose run has it."""
    source = session.scalar(sa.select(SourceRow).where(SourceRow.id == source_id).with_for_update())
    if source is None:
        return None
    other = sa.select(RunRow.host).where(RunRow.id == source.looked_at_by, RunRow.state == "running")
    holder = session.scalar(other.where(RunRow.id != run_id))
    if holder is None:
        source.looked_at_by = run_id
    note_host(session, source_id, now)
    return holder


def end_looks(session: Session, run_id: str) -> None:
    """Let other hosts look at what this run looked at."""
    session.execute(sa.update(SourceRow).where(SourceRow.looked_at_by == run_id).values(looked_at_by=None))


def note_host(session: Session, source_id: int, now: dt.datetime) -> None:
    """Note that this host has a source, as of now."""
    session.merge(SourceHostRow(source_id=source_id, host=host_of(session), looked_at=now))
    session.flush()


def sources_to_read(session: Session) -> dict[int, str] | None:
    """The sources whose files this host may read where they are there: the paths by id. None: all of them, unasked.

    Those that it looked at itself; and those of hosts that are not at work, unless they are a host's own.
    """
    if session.get_bind().dialect.name == "sqlite":
        return None
    mine = sa.exists().where(SourceHostRow.source_id == SourceRow.id, SourceHostRow.host == host_of(session))
    busy = sa.exists().where(
        SourceHostRow.source_id == SourceRow.id, SourceHostRow.host == RunRow.host, RunRow.state == "running"
    )
    may = sa.or_(mine, sa.and_(SourceRow.mark.is_(None), ~busy))
    return dict(session.execute(sa.select(SourceRow.id, folder_of_source()).where(may)).all())


def files_known_to_others(session: Session, source_id: int) -> list[KnownFile]:
    """A sample of the files of a source that another host looked at too; none where this host alone did.

    None of a host's own folder either, which is told by its mark.
    """
    others = sa.exists().where(SourceHostRow.source_id == SourceRow.id, SourceHostRow.host != host_of(session))
    shared = sa.select(SourceRow.id).where(SourceRow.id == source_id, SourceRow.mark.is_(None), others)
    sample = (
        sa.select(DocumentRow.path, DocumentRow.size)
        .where(DocumentRow.source_id == shared.scalar_subquery(), DocumentRow.problem.is_(None))
        .order_by(DocumentRow.sha256)  # as good as any, and spread over the folder
        .limit(SAMPLE)
    )
    return [KnownFile(path, size) for path, size in session.execute(sample)]


def sources_of_others(session: Session) -> frozenset[int]:
    """The sources that other hosts have, and that no run of this host has looked at."""
    mine = sa.select(SourceHostRow.source_id).where(SourceHostRow.host == host_of(session))
    others = sa.select(SourceHostRow.source_id).where(SourceHostRow.source_id.not_in(mine))
    return frozenset(session.scalars(others))


def others_at_work(
    session: Session,
    run_id: str,
    scopes: Sequence[Scope] | None,
    target: Target,
    sources: Collection[int] = (),
) -> list[AtWork]:
    """The other runs that hold contents in scope for this target, or look at one of `sources`."""
    reads = sa.case((ContentRow.state == DocumentState.DISCOVERED, 1), else_=0)
    held = (
        sa.select(ContentRow.claimed_by, sa.func.sum(reads).label("reads"), sa.func.count().label("all"))
        .where(
            ContentRow.claimed_by.is_not(None),
            ContentRow.claimed_by != run_id,
            ContentRow.model_id == target.model_id,
            ContentRow.recipe == target.recipe,
            wanted_contents(scopes),
        )
        .group_by(ContentRow.claimed_by)
        .subquery()
    )
    looked = aliased(SourceRow)
    looks = sa.exists().where(looked.looked_at_by == RunRow.id, looked.id.in_(sorted(sources)))
    rows = session.execute(
        sa.select(RunRow.id, RunRow.host, RunRow.heartbeat_at, held.c.reads, held.c.all, looks)
        .outerjoin(held, held.c.claimed_by == RunRow.id)
        .where(RunRow.state == "running", RunRow.id != run_id, sa.or_(held.c.claimed_by.is_not(None), looks))
        .order_by(RunRow.started_at, RunRow.id)
    )
    return [
        AtWork(other, host, heartbeat_at, int(reads or 0), int(held or 0) - int(reads or 0), bool(looks))
        for other, host, heartbeat_at, reads, held, looks in rows
    ]


def anything_left(
    session: Session,
    run_id: str,
    scopes: Sequence[Scope] | None,
    target: Target,
    now: dt.datetime,
    within: Collection[int] | None,
    *,
    embeds: bool,
) -> bool:
    """Whether this run holds anything, or could claim something. embeds: whether it does more than read."""
    if session.scalar(sa.select(ContentRow.id).where(ContentRow.claimed_by == run_id).limit(1)) is not None:
        return True
    return is_free(session, scopes, target, DocumentState.DISCOVERED, now, within) or (
        embeds and is_free(session, scopes, target, DocumentState.EXTRACTED, now)
    )
