"""What needs a person: documents that failed, by their reasons, and pages that need OCR."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.store.tables import ContentRow, DocumentRow, SourceRow

MOST_REASONS = 5000
"""Different reasons that are looked at: those of most documents."""


@dataclass(frozen=True, slots=True)
class Failing:
    """So many documents that ended in a state for this very reason, one of them by its path."""

    state: str
    reason: str
    documents: int
    example: str


@dataclass(frozen=True, slots=True)
class WithoutText:
    """Documents that are pictures only, with their pages as far as they are known; pages without text in others."""

    documents: int = 0
    pages: int = 0
    partly: int = 0
    partly_pages: int = 0


def failing_reasons(session: Session) -> list[Failing]:
    """Every document that is encrypted or failed, by its reason, those of most documents first."""
    state = sa.case((DocumentRow.problem.is_not(None), DocumentState.FAILED.value), else_=ContentRow.state)
    reason = sa.func.coalesce(DocumentRow.problem, ContentRow.reason, "")
    effective = sa.func.coalesce(DocumentRow.pending_id, DocumentRow.current_id)
    count = sa.func.count()
    rows = session.execute(
        sa.select(state, reason, count, sa.func.min(SourceRow.root + "/" + DocumentRow.path))
        .select_from(DocumentRow)
        .join(SourceRow, SourceRow.id == DocumentRow.source_id)
        .outerjoin(ContentRow, ContentRow.id == effective)
        .where(
            sa.or_(
                DocumentRow.problem.is_not(None),
                ContentRow.state.in_([DocumentState.ENCRYPTED, DocumentState.FAILED]),
            )
        )
        .group_by(state, reason)
        .order_by(count.desc(), reason)
        .limit(MOST_REASONS)
    )
    return [Failing(*row) for row in rows]


def without_text(session: Session) -> WithoutText:
    """What OCR could make readable, of the documents that are there now."""
    mine = sa.exists().where(sa.func.coalesce(DocumentRow.pending_id, DocumentRow.current_id) == ContentRow.id)
    documents, pages = session.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(ContentRow.page_count), 0))
        .select_from(DocumentRow)
        .join(ContentRow, ContentRow.id == sa.func.coalesce(DocumentRow.pending_id, DocumentRow.current_id))
        .where(
            ContentRow.state == DocumentState.EMPTY,
            DocumentRow.problem.is_(None),
            sa.or_(ContentRow.page_count > 0, ContentRow.reason.contains("needs OCR")),
        )
    ).one()
    if session.get_bind().dialect.name == "postgresql":
        length = sa.func.json_array_length(sa.func.json_extract_path(ContentRow.details, "pages_without_text"))
    else:
        length = sa.func.json_array_length(ContentRow.details, "$.pages_without_text")
    partly, partly_pages = session.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(length), 0)).where(
            ContentRow.state.in_([DocumentState.EXTRACTED, DocumentState.EMBEDDED]), length > 0, mine
        )
    ).one()
    return WithoutText(documents, int(pages), partly, int(partly_pages))
