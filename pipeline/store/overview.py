"""What the database holds, for people: counts, lists, one document."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from pipeline.core.documents import DocumentState
from pipeline.store import counts
from pipeline.store.contents import TRIED
from pipeline.store.scopes import Scope, in_scope
from pipeline.store.tables import (
    ChunkRow,
    ContentEmbeddingRow,
    ContentRow,
    DocumentRow,
    EmbeddingRow,
    ModelRow,
    SourceRow,
)

FAILING = (DocumentState.EMPTY, DocumentState.ENCRYPTED, DocumentState.FAILED)

_content = aliased(ContentRow)
_state = sa.case(
    (DocumentRow.problem.is_not(None), DocumentState.FAILED.value),
    else_=sa.func.coalesce(_content.state, DocumentState.DISCOVERED.value),
)
_reason = sa.func.coalesce(DocumentRow.problem, _content.reason)
_effective = sa.func.coalesce(DocumentRow.pending_id, DocumentRow.current_id)
_searched = sa.exists().where(
    ContentRow.id == DocumentRow.current_id,
    ContentRow.embedded_count > 0,
    ContentRow.model_id.in_(sa.select(ModelRow.id).where(ModelRow.active)),
)
_replaced = sa.or_(DocumentRow.problem.is_not(None), DocumentRow.pending_id.is_not(None))


@dataclass(frozen=True, slots=True)
class DocumentLine:
    """A document in a list. `file` is its absolute path; `reason` says why it is where it is, if not embedded.

    searched: search finds something of it. older: what it finds is an earlier version or reading of it, not this one.
    pages_without_text: how many of its pages are pictures, or empty.
    """

    id: int
    file: str
    state: DocumentState
    reason: str | None
    title: str | None
    pages: int
    chunks: int
    embedded: int
    searched: bool = False
    older: bool = False
    pages_without_text: int = 0


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A model, and how far it is with the documents.

    path: of its file, where it was last. active: search uses it. set_aside: a person moved search away from
    it, and it does not move back by itself. waiting: documents that have not been through it; those that
    cannot even be read do not count.
    """

    name: str
    path: str
    fingerprint: str
    dimension: int
    active: bool
    waiting: int
    set_aside: bool = False


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A folder that documents came from, and how many are known there."""

    root: str
    documents: int


@dataclass(frozen=True, slots=True)
class ChunkLine:
    """A chunk of a document. prefix: the header of the table that its text begins inside of."""

    ordinal: int
    page_first: int | None
    page_last: int | None
    headings: Sequence[str]
    tokens: int
    embedded: bool
    error: str | None
    text: str
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class DocumentView:
    """Everything about one document. replacing: what search sees is an older version of it.

    method: how its own vector was made, as `ContentEmbeddingRow` says; None where it has none yet.
    gone_at: when its file was first seen to be gone, where its deletion waits for a person.
    """

    line: DocumentLine
    kind: str | None
    size: int
    sha256: str | None
    stage: str | None
    attempts: int
    retry_at: dt.datetime | None
    embedded_at: dt.datetime | None
    details: dict[str, Any]
    replacing: bool
    chunks: Sequence[ChunkLine]
    method: str | None = None
    gone_at: dt.datetime | None = None


def count_documents(session: Session, scopes: Sequence[Scope] | None = None) -> dict[str, int]:
    """Documents by state, and `total`; every state has a number."""
    if scopes is None:
        found = counts.by_state(session)
    else:
        query = (
            sa.select(_state, sa.func.count())
            .select_from(DocumentRow)
            .outerjoin(_content, _content.id == _effective)
            .where(in_scope(scopes))
            .group_by(_state)
        )
        found = dict(session.execute(query).all())
    return {"total": sum(found.values())} | {state.value: found.get(state.value, 0) for state in DocumentState}


def count_chunks(session: Session, scopes: Sequence[Scope] | None = None) -> dict[str, int]:
    """Chunks of the documents in scope, and how many have a vector; those of copies count once."""
    if scopes is None:
        total, embedded = counts.chunks(session)
        return {"total": total, "embedded": embedded}
    wanted = sa.select(_effective).where(in_scope(scopes))
    total, embedded = session.execute(
        sa.select(
            sa.func.coalesce(sa.func.sum(ContentRow.chunk_count), 0),
            sa.func.coalesce(sa.func.sum(ContentRow.embedded_count), 0),
        ).where(ContentRow.id.in_(wanted))
    ).one()
    return {"total": int(total), "embedded": int(embedded)}


def list_models(session: Session) -> list[ModelLine]:
    """The model that search uses, then those whose vectors documents wait for."""
    awaited = ModelRow.id.in_(counts.awaited_models(session))
    rows = session.scalars(
        sa.select(ModelRow).where(sa.or_(ModelRow.active, awaited)).order_by(ModelRow.active.desc(), ModelRow.id)
    ).all()
    return [_model_line(session, row) for row in rows]


def show_model(session: Session, model_id: int) -> ModelLine:
    """One model."""
    return _model_line(session, session.get_one(ModelRow, model_id))


def list_sources(session: Session) -> list[SourceLine]:
    """The folders that documents came from, by path."""
    found = counts.by_source(session)
    rows = session.execute(sa.select(SourceRow.id, SourceRow.root).order_by(SourceRow.root))
    return [SourceLine(root, found.get(source_id, 0)) for source_id, root in rows]


def list_documents(
    session: Session,
    states: Sequence[DocumentState] | None = None,
    scopes: Sequence[Scope] | None = None,
    limit: int | None = None,
    named: Callable[[str], bool] | None = None,
) -> list[DocumentLine]:
    """Documents by path; `states` None is all of them. named: keeps those whose absolute path it is true for."""
    query = _lines().where(in_scope(scopes)).order_by(SourceRow.root, DocumentRow.path)
    if states is not None:
        query = query.where(_state.in_([state.value for state in states]))
    if named is None:
        return [_line(row) for row in session.execute(query.limit(limit))]
    # Not in SQL: databases do not agree on what a letter's other case is, and compare no decomposed ones.
    with session.execute(query.execution_options(yield_per=1000)) as found:
        return list(itertools.islice((line for line in map(_line, found) if named(line.file)), limit))


def last_failures(session: Session, limit: int) -> list[DocumentLine]:
    """Documents that are empty, encrypted or failed, those that came last first."""
    states = [state.value for state in FAILING]
    contents = sa.select(ContentRow.id).where(ContentRow.state.in_(states)).order_by(ContentRow.id.desc()).limit(limit)
    wanted = contents.subquery()
    ids = sa.union_all(
        sa.select(DocumentRow.id).where(DocumentRow.pending_id.in_(sa.select(wanted.c.id))),
        sa.select(DocumentRow.id).where(DocumentRow.current_id.in_(sa.select(wanted.c.id))),
        sa.select(DocumentRow.id).where(DocumentRow.problem.is_not(None)),
    )
    lines = _lines().where(DocumentRow.id.in_(ids), _state.in_(states)).order_by(DocumentRow.id.desc())
    return [_line(row) for row in session.execute(lines.limit(limit))]


def database_bytes(session: Session) -> int:
    """How much the database takes on its disk."""
    if session.get_bind().dialect.name == "sqlite":
        return int(
            session.scalar(sa.text("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")) or 0
        )
    return int(session.scalar(sa.func.pg_database_size(sa.func.current_database())) or 0)


def find_documents(session: Session, name: str) -> list[DocumentLine]:
    """The documents meant by `name`: a number, an absolute path, a path in a source, or the end of one."""
    file = SourceRow.root + "/" + DocumentRow.path
    matches: list[sa.ColumnElement[bool]] = [file == name, DocumentRow.path == name]
    if name.isdecimal():
        matches.insert(0, DocumentRow.id == int(name))
    matches.append(DocumentRow.path.endswith("/" + name, autoescape=True))
    for match in matches:
        rows = session.execute(_lines().where(match).order_by(DocumentRow.id)).all()
        if rows:
            return [_line(row) for row in rows]
    return []


def show_document(session: Session, document_id: int) -> DocumentView | None:
    """One document with its chunks, or None."""
    document = session.get(DocumentRow, document_id)
    row = session.execute(_lines().where(DocumentRow.id == document_id)).one_or_none()
    if document is None or row is None:
        return None
    content_id = document.pending_id or document.current_id
    content = session.get(ContentRow, content_id) if content_id else None
    chunks = session.execute(
        sa.select(ChunkRow, EmbeddingRow.chunk_id.is_not(None))
        .outerjoin(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id)
        .where(ChunkRow.content_id == content_id)
        .order_by(ChunkRow.ordinal)
    )
    own = sa.select(ContentEmbeddingRow.method).where(ContentEmbeddingRow.content_id == content_id)
    return DocumentView(
        line=_line(row),
        method=session.scalar(own),
        gone_at=document.gone_at,
        kind=content.kind if content else None,
        size=document.size,
        sha256=document.sha256,
        stage=content.stage if content else None,
        attempts=content.attempts if content else 0,
        retry_at=content.retry_at if content else None,
        embedded_at=content.embedded_at if content else None,
        details={name: fact for name, fact in content.details.items() if name != TRIED} if content else {},
        replacing=document.current_id is not None and document.pending_id is not None,
        chunks=[
            ChunkLine(
                c.ordinal, c.page_first, c.page_last, c.headings, c.token_count, bool(done), c.error, c.text, c.prefix
            )
            for c, done in chunks
        ],
    )


def _lines() -> sa.Select[Any]:
    return (
        sa.select(
            DocumentRow.id,
            SourceRow.root,
            DocumentRow.path,
            _state,
            _reason,
            _content.title,
            _content.page_count,
            _content.chunk_count,
            _content.embedded_count,
            _searched,
            sa.and_(_searched, _replaced),
            _content.details["pages_without_text"],
        )
        .join(SourceRow, SourceRow.id == DocumentRow.source_id)
        .outerjoin(_content, _content.id == _effective)
    )


def _line(row: sa.Row[Any]) -> DocumentLine:
    document_id, root, path, state, reason, title, pages, chunks, embedded, searched, older, textless = tuple(row)
    return DocumentLine(
        document_id,
        f"{root.rstrip('/')}/{path}",
        DocumentState(state),
        reason,
        title,
        pages or 0,
        chunks or 0,
        embedded or 0,
        bool(searched),
        bool(older),
        len(textless or ()),
    )


def _model_line(session: Session, row: ModelRow) -> ModelLine:
    waiting = counts.waiting_for(session, row.id)
    return ModelLine(row.name, row.path, row.fingerprint, row.dimension, row.active, waiting, row.set_aside)
