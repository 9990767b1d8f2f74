"""Deletes what a model made that search does not use, in transactions of a bounded size.

A document that has nothing else keeps its place in the queue, so that it is not forgotten: what it
waits for is emptied instead of deleted, and the next run makes it, with whatever model that run has.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.store.contents import start_over
from pipeline.store.tables import ContentRow, DocumentRow, ModelRow

CHUNKS = 10_000
"""Chunks deleted in one transaction; a document is not divided, whatever it has."""

CONTENTS = 500


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted: contents, and their chunks."""

    contents: int = 0
    chunks: int = 0

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(self.contents + other.contents, self.chunks + other.chunks)


def release(session: Session, model_id: int) -> None:
    """Let documents go back to what another model made of them, where that is of the bytes they have now.

    To be followed by `prune_some` until that has nothing left. Does nothing for the active model.
    """
    if not _may_go(session, model_id):
        return
    mine = sa.select(ContentRow.id).where(ContentRow.model_id == model_id)
    of_present_bytes = sa.select(ContentRow.id).where(
        ContentRow.id == DocumentRow.current_id, ContentRow.sha256 == DocumentRow.sha256
    )
    shown = DocumentRow.current_id.in_(mine)
    waits = DocumentRow.pending_id.is_not(None)
    for condition, values in (
        (sa.and_(shown, waits), {"current_id": None}),
        (shown, {"pending_id": DocumentRow.current_id, "current_id": None}),
        (sa.and_(DocumentRow.pending_id.in_(mine), of_present_bytes.exists()), {"pending_id": None}),
    ):
        session.execute(
            sa.update(DocumentRow).where(condition).values(values).execution_options(synchronize_session=False)
        )
    session.expire_all()


def prune_some(session: Session, model_id: int, chunks: int = CHUNKS) -> Pruned | None:
    """Delete some of what a model made; None where nothing is left, or it became the active one meanwhile."""
    if not _may_go(session, model_id):
        return None
    waited_for = sa.exists().where(
        sa.or_(DocumentRow.pending_id == ContentRow.id, DocumentRow.current_id == ContentRow.id)
    )
    emptied = sa.and_(ContentRow.state == DocumentState.DISCOVERED, ContentRow.chunk_count == 0, waited_for)
    rows = session.execute(
        sa.select(ContentRow.id, ContentRow.chunk_count, waited_for)
        .where(ContentRow.model_id == model_id, ~emptied)
        .order_by(ContentRow.id)
        .limit(CONTENTS)
    ).all()
    if not rows:
        return None
    total, unwanted, wanted = 0, list[int](), list[int]()
    for content_id, count, waited in rows:
        if total and total + count > chunks:
            break
        total += count
        (wanted if waited else unwanted).append(content_id)
    session.execute(sa.delete(ContentRow).where(ContentRow.id.in_(unwanted)))
    start_over(session, wanted)
    session.expire_all()
    return Pruned(len(unwanted) + len(wanted), total)


def reclaimable(session: Session) -> int | None:
    """Bytes of a SQLite file that hold nothing and wait to be filled again; None for a server database."""
    if session.get_bind().dialect.name != "sqlite":
        return None
    pages = session.scalar(sa.text("PRAGMA freelist_count")) or 0
    return int(pages) * int(session.scalar(sa.text("PRAGMA page_size")) or 0)


def _may_go(session: Session, model_id: int) -> bool:
    # Held until this transaction ends: search cannot move to the model meanwhile.
    active = session.scalar(sa.select(ModelRow.active).where(ModelRow.id == model_id).with_for_update(read=True))
    return active is False
