"""Sends documents back into the queue."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.store.tables import ChunkRow, ContentEmbeddingRow, ContentRow, DocumentRow

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
    content.state, content.stage, content.reason = DocumentState.DISCOVERED, None, None
    content.attempts, content.retry_at, content.claimed_by = 0, None, None
    content.chunk_count = content.embedded_count = content.failed_count = 0
    session.execute(sa.delete(ChunkRow).where(ChunkRow.content_id == content.id))
    session.execute(sa.delete(ContentEmbeddingRow).where(ContentEmbeddingRow.content_id == content.id))
    mine = DocumentRow.current_id == content.id
    # A copy whose file has changed waits for its new version, and goes on doing that.
    session.execute(sa.update(DocumentRow).where(mine, DocumentRow.pending_id.is_(None)).values(pending_id=content.id))
    session.execute(sa.update(DocumentRow).where(mine).values(current_id=None))
