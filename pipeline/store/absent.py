"""Documents whose files are gone, and whose deletion waits for a person."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.store.contents import IN_CLAUSE
from pipeline.store.scopes import Scope, in_scope
from pipeline.store.tables import DocumentRow, SourceRow


@dataclass(frozen=True, slots=True)
class WaitingDeletion:
    """So many documents of the source at `root` that are still searched, and whose files are gone since `since`."""

    root: str
    documents: int
    since: dt.datetime


def waiting_deletions(session: Session) -> list[WaitingDeletion]:
    """The sources of which a person has to say whether documents are really gone, by path."""
    rows = session.execute(
        sa.select(SourceRow.root, sa.func.count(), sa.func.min(DocumentRow.gone_at))
        .join(DocumentRow, DocumentRow.source_id == SourceRow.id)
        .where(DocumentRow.gone_at.is_not(None))
        .group_by(SourceRow.root)
        .order_by(SourceRow.root)
    )
    return [WaitingDeletion(root, documents, since) for root, documents, since in rows if since is not None]


def waiting_in(session: Session, scope: Scope) -> dict[str, int]:
    """The documents in scope whose deletion waits: their ids, by path."""
    query = sa.select(DocumentRow.path, DocumentRow.id).where(DocumentRow.gone_at.is_not(None), in_scope([scope]))
    return dict(session.execute(query).all())


def note_absent(session: Session, gone: Collection[int], back: Collection[int], now: dt.datetime) -> None:
    """Let the deletion of the documents `gone` wait, from now unless it does already; those of `back` are there."""
    _set(session, gone, now, DocumentRow.gone_at.is_(None))
    _set(session, back, None, DocumentRow.gone_at.is_not(None))


def _set(session: Session, ids: Iterable[int], gone_at: dt.datetime | None, which: sa.ColumnElement[bool]) -> None:
    listed = sorted(ids)
    for start in range(0, len(listed), IN_CLAUSE):
        some = DocumentRow.id.in_(listed[start : start + IN_CLAUSE])
        session.execute(sa.update(DocumentRow).where(some, which).values(gone_at=gone_at))
