"""What waits, source by source, and what is known about how much a document comes to: for the plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from pipeline.core.documents import DocumentState
from pipeline.core.rates import CHARACTERS_A_PAGE
from pipeline.store.tables import HAS_TOKENS, ContentRow, DocumentRow, ModelRow, SourceRow

SAMPLE = 2000
"""Documents of each kind that were read last: what the next ones come to is estimated from these."""


_WAITING = (DocumentState.DISCOVERED, DocumentState.EXTRACTED)


@dataclass(frozen=True, slots=True)
class Aimed:
    """What the settings want documents to become. fingerprint: of the model; None where that cannot be told."""

    recipe: str
    fingerprint: str | None = None


class Unread(NamedTuple):
    """Documents to be read. pages: of those that were read before; size: in bytes, of the `unmeasured` others."""

    documents: int
    unmeasured: int
    size: int
    pages: int


@dataclass(frozen=True, slots=True)
class Pending:
    """What waits in a source.

    unread: documents to be read, by kind; `anew` of them are there, made for another model or recipe than the
    settings want. read: documents that are read, with their `chunks` and `tokens` that have no vector yet.
    """

    source: str
    unread: dict[str, Unread]
    read: int = 0
    chunks: int = 0
    tokens: int = 0
    anew: int = 0


@dataclass(frozen=True, slots=True)
class Density:
    """What documents of a kind came to, those that were read last. pages: of formats without pages, by their text."""

    kind: str
    documents: int
    size: int
    pages: int
    tokens: int


def pending_by_source(session: Session, aim: Aimed | None = None) -> list[Pending]:
    """What waits, by source. A content that waits in several counts for the first of them.

    aim: what the next run will make; what was made for another waits too, as `library.retarget` will have it.
    """
    outdated = sa.false() if aim is None else _outdated(aim)
    wanted = DocumentRow.pending_id if aim is None else sa.func.coalesce(DocumentRow.pending_id, DocumentRow.current_id)
    waiting = (
        sa.select(
            wanted.label("content_id"),
            sa.func.min(DocumentRow.source_id).label("source_id"),
            sa.func.max(DocumentRow.size).label("size"),
        )
        .where(wanted.is_not(None), DocumentRow.problem.is_(None))
        .group_by(wanted)
        .subquery()
    )
    left = ContentRow.chunk_count - ContentRow.embedded_count - ContentRow.failed_count
    tokens = ContentRow.token_count * left / sa.func.nullif(ContentRow.chunk_count, 0)
    is_anew = sa.case((outdated, 1), else_=0)
    contents = (
        sa.select(
            SourceRow.root.label("root"),
            sa.case((is_anew == 1, sa.literal(DocumentState.DISCOVERED.value)), else_=ContentRow.state).label("state"),
            ContentRow.kind,
            ContentRow.page_count.label("pages"),
            sa.case((ContentRow.page_count > 0, 0), else_=waiting.c.size).label("size"),
            sa.case((ContentRow.page_count > 0, 0), else_=1).label("unmeasured"),
            left.label("left_over"),
            tokens.label("tokens"),
            is_anew.label("anew"),
        )
        .join(waiting, waiting.c.content_id == ContentRow.id)
        .join(SourceRow, SourceRow.id == waiting.c.source_id)
        .where(sa.or_(ContentRow.state.in_(_WAITING), outdated))
        .subquery()
    )
    summed = ("unmeasured", "size", "pages", "left_over", "tokens", "anew")
    rows = session.execute(
        sa.select(
            contents.c.root,
            contents.c.state,
            contents.c.kind,
            sa.func.count(),
            *(sa.func.coalesce(sa.func.sum(contents.c[name]), 0).label(name) for name in summed),
        )
        .group_by(contents.c.root, contents.c.state, contents.c.kind)
        .order_by(contents.c.root)
    ).all()
    found: list[Pending] = []
    for root in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == root]
        read = [row for row in mine if row[1] == DocumentState.EXTRACTED]
        found.append(
            Pending(
                root,
                {
                    row.kind: Unread(row[3], int(row.unmeasured), int(row.size), int(row.pages))
                    for row in mine
                    if row.state == DocumentState.DISCOVERED
                },
                sum(row[3] for row in read),
                sum(int(row.left_over) for row in read),
                math.ceil(sum(float(row.tokens) for row in read)),
                sum(int(row.anew) for row in mine),
            )
        )
    return found


def _outdated(aim: Aimed) -> sa.ColumnElement[bool]:
    """A condition on `contents`: made for another model or recipe, and what is wanted is not there yet."""
    done = aliased(ContentRow)
    same_bytes = sa.and_(done.sha256 == ContentRow.sha256, done.kind == ContentRow.kind, done.recipe == aim.recipe)
    other = ContentRow.recipe != aim.recipe
    same_model = done.model_id == ContentRow.model_id
    if aim.fingerprint is not None:
        model = sa.select(ModelRow.id).where(ModelRow.fingerprint == aim.fingerprint)
        other = sa.or_(other, ContentRow.model_id.not_in(model))
        same_model = done.model_id.in_(model)
    return sa.and_(other, ~sa.exists().where(same_bytes, same_model, done.state.not_in(_WAITING)))


def awaited_model(session: Session) -> str | None:
    """The fingerprint of the model whose vectors are waited for, else of the one that search uses."""
    waiting = (
        sa.select(ModelRow.fingerprint)
        .join(ContentRow, ContentRow.model_id == ModelRow.id)
        .where(
            ContentRow.state.in_(_WAITING),
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
