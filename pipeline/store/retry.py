"""Sends documents back into the queue, and says when one is due that was left for later."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentKind, DocumentState
from pipeline.store.contents import STAGE_EXTRACT, TRIED, end, start_over
from pipeline.store.models import Target
from pipeline.store.queue import still_claimed
from pipeline.store.scopes import Scope, in_scope, wanted_contents
from pipeline.store.tables import ContentRow, DocumentRow

_NOTHING_TO_RETRY = (DocumentState.EMBEDDED, DocumentState.EXTRACTED)


def retry_documents(session: Session, document_ids: Sequence[int]) -> int:
    """Let the next run try these documents from the start, if they are not embedded; returns how many.

    A document some of whose chunks failed is made anew as a whole, and cannot be searched until then.
    """
    changed = 0
    for document_id in document_ids:
        row = session.get(DocumentRow, document_id)
        if row is None:
            continue
        if row.problem is not None:
            # The next scan reads the file again, because no hash vouches for it.
            row.problem, row.mtime_ns, row.sha256 = None, 0, None
            changed += 1
            continue
        content = session.get(ContentRow, row.pending_id or row.current_id or 0)
        if content is None or content.claimed_by is not None or content.state in _NOTHING_TO_RETRY:
            continue
        changed += 1
        _start_over(session, content)
    session.flush()
    return changed


def _start_over(session: Session, content: ContentRow) -> None:
    start_over(session, [content.id])
    mine = DocumentRow.current_id == content.id
    # A copy whose file has changed waits for its new version, and goes on doing that.
    session.execute(sa.update(DocumentRow).where(mine, DocumentRow.pending_id.is_(None)).values(pending_id=content.id))
    session.execute(sa.update(DocumentRow).where(mine).values(current_id=None))


def next_retry(
    session: Session,
    scopes: Sequence[Scope] | None,
    target: Target,
    *,
    within: Collection[int] | None = None,
) -> dt.datetime | None:
    """When the first of the contents in scope that were postponed is due; None where none is.

    within: as in `queue.claim_to_extract`.
    """
    due: dt.datetime | None = session.scalar(
        sa.select(sa.func.min(ContentRow.retry_at)).where(
            ContentRow.state == DocumentState.DISCOVERED,
            ContentRow.model_id == target.model_id,
            ContentRow.recipe == target.recipe,
            ContentRow.claimed_by.is_(None),
            wanted_contents(scopes, within),
        )
    )
    return due


def end_encrypted(
    session: Session, content_id: int, reason: str, tried: str | None, *, run_id: str | None = None
) -> None:
    """End a content that needs a password, and note which were tried, as `ingest.passwords` marks them.

    run_id: as in `queue.store_extracted`.
    """
    if not still_claimed(session, content_id, run_id):
        return
    row = session.get(ContentRow, content_id)
    if row is not None:
        row.details = {TRIED: tried} if tried else {}
    end(session, content_id, DocumentState.ENCRYPTED, STAGE_EXTRACT, reason)


def tried_passwords(session: Session, scopes: Sequence[Scope] | None, target: Target) -> set[str | None]:
    """The marks of the encrypted contents in scope; None where no password was tried."""
    rows = session.scalars(sa.select(ContentRow.details).where(*_encrypted(scopes, target)))
    return {details.get(TRIED) for details in rows}


def retry_encrypted(session: Session, scopes: Sequence[Scope] | None, target: Target, mark: str) -> int:
    """Let encrypted PDFs in scope be tried again on which other passwords than those of `mark` were tried."""
    rows = session.scalars(sa.select(ContentRow).where(*_encrypted(scopes, target))).all()
    again = [row for row in rows if row.details.get(TRIED) != mark]
    for row in again:
        _start_over(session, row)
    session.flush()
    return len(again)


def _encrypted(scopes: Sequence[Scope] | None, target: Target) -> list[sa.ColumnElement[bool]]:
    mine = sa.exists().where(
        sa.or_(DocumentRow.pending_id == ContentRow.id, DocumentRow.current_id == ContentRow.id), in_scope(scopes)
    )
    return [
        ContentRow.state == DocumentState.ENCRYPTED,
        ContentRow.kind == DocumentKind.PDF,  # nothing here opens an encrypted DOCX
        ContentRow.model_id == target.model_id,
        ContentRow.recipe == target.recipe,
        mine,
    ]
