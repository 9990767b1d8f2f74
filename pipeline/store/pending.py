"""What waits, source by source, and what is known about how much a document comes to: for the plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.core.rates import CHARACTERS_A_PAGE
from pipeline.store.tables import HAS_TOKENS, ContentRow, DocumentRow, ModelRow, SourceRow

SAMPLE = 2000
"""Documents of each kind that were read last: what the next ones come to is estimated from these."""


@dataclass(frozen=True, slots=True)
class Pending:
    """What waits in a source.

    unread: documents to be read, by kind as (documents, bytes). read: documents that are read, with their `chunks`
    and `tokens` that have no vector yet.
    """

    source: str
    unread: dict[str, tuple[int, int]]
    read: int = 0
    chunks: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Density:
    """What documents of a kind came to, those that were read last. pages: of formats without pages, by their text."""

    kind: str
    documents: int
    size: int
    pages: int
    tokens: int


def pending_by_source(session: Session) -> list[Pending]:
    """What waits, by source. A content that waits in several counts for the first of them."""
    waiting = (
        sa.select(
            DocumentRow.pending_id.label("content_id"),
            sa.func.min(DocumentRow.source_id).label("source_id"),
            sa.func.max(DocumentRow.size).label("size"),
        )
        .where(DocumentRow.pending_id.is_not(None), DocumentRow.problem.is_(None))
        .group_by(DocumentRow.pending_id)
        .subquery()
    )
    left = ContentRow.chunk_count - ContentRow.embedded_count - ContentRow.failed_count
    tokens = ContentRow.token_count * left / sa.func.nullif(ContentRow.chunk_count, 0)
    rows = session.execute(
        sa.select(
            SourceRow.root,
            ContentRow.state,
            ContentRow.kind,
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(waiting.c.size), 0),
            sa.func.coalesce(sa.func.sum(left), 0),
            sa.func.coalesce(sa.func.sum(tokens), 0),
        )
        .join(waiting, waiting.c.content_id == ContentRow.id)
        .join(SourceRow, SourceRow.id == waiting.c.source_id)
        .where(ContentRow.state.in_([DocumentState.DISCOVERED, DocumentState.EXTRACTED]))
        .group_by(SourceRow.root, ContentRow.state, ContentRow.kind)
        .order_by(SourceRow.root)
    ).all()
    found: list[Pending] = []
    for root in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == root]
        read = [row for row in mine if row[1] == DocumentState.EXTRACTED]
        found.append(
            Pending(
                root,
                {kind: (n, int(size)) for _, state, kind, n, size, _, _ in mine if state == DocumentState.DISCOVERED},
                sum(row[3] for row in read),
                sum(int(row[5]) for row in read),
                math.ceil(sum(float(row[6]) for row in read)),
            )
        )
    return found


def awaited_model(session: Session) -> str | None:
    """The fingerprint of the model whose vectors are waited for, else of the one that search uses."""
    waiting = (
        sa.select(ModelRow.fingerprint)
        .join(ContentRow, ContentRow.model_id == ModelRow.id)
        .where(
            ContentRow.state.in_([DocumentState.DISCOVERED, DocumentState.EXTRACTED]),
            sa.exists().where(DocumentRow.pending_id == ContentRow.id),
        )
        .limit(1)
    )
    return session.scalar(waiting) or session.scalar(sa.select(ModelRow.fingerprint).where(ModelRow.active))


def densities(session: Session, kinds: Sequence[str]) -> list[Density]:
    """What the documents of these kinds that were read last came to."""
    return [density for kind in kinds if (density := _density(session, kind)).documents]


def _density(session: Session, kind: str) -> Density:
    last = (
        sa.select(ContentRow.id, ContentRow.page_count, ContentRow.characters, ContentRow.token_count)
        .where(ContentRow.kind == kind, HAS_TOKENS)
        .order_by(ContentRow.id.desc())
        .limit(SAMPLE)
        .subquery()
    )
    size = (
        sa.select(sa.func.max(DocumentRow.size))
        .where(sa.or_(DocumentRow.current_id == last.c.id, DocumentRow.pending_id == last.c.id))
        .scalar_subquery()
    )
    pages = sa.case(
        (last.c.page_count > 0, last.c.page_count), else_=last.c.characters / float(CHARACTERS_A_PAGE) + 0.5
    )
    row = session.execute(
        sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(size), 0),
            sa.func.coalesce(sa.func.sum(pages), 0),
            sa.func.coalesce(sa.func.sum(last.c.token_count), 0),
        )
    ).one()
    return Density(kind, row[0], int(row[1]), math.ceil(float(row[2])), int(row[3]))
