"""Mends rows that disagree. Each function belongs to one transaction, and looks again before it changes anything.

Nobody else may be at work on the database meanwhile (see `runs.REPAIR`). Whatever is mended here, a process that dies
in between leaves the database as it was before the transaction or after it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.changes import UNSETTLED
from pipeline.core.verifying import Disagreement
from pipeline.store.checks import counts
from pipeline.store.checks.database import expected_parts, is_orphan
from pipeline.store.checks.remaking import own_vector, parts, settle
from pipeline.store.checks.rows import one_active_model
from pipeline.store.checks.words import mend_words
from pipeline.store.contents import drop_unused, promote
from pipeline.store.nearest.copying import delete_copies
from pipeline.store.tables import (
    ChunkRow,
    ContentRow,
    DocumentRow,
    EmbeddingRow,
    ModelRow,
    PendingChunkRow,
    Table,
)


def mend(session: Session, code: str, found: Sequence[Disagreement], now: dt.datetime) -> None:
    """Mend disagreements of one kind whose remedy are rows or an index, or that a run is to see."""
    _MENDERS[code](session, found, now)


def unread(session: Session, document_ids: Collection[int]) -> None:
    """Let the next run that looks at these documents' files read them again."""
    for some in parts(document_ids):
        session.execute(sa.update(DocumentRow).where(DocumentRow.id.in_(some)).values(mtime_ns=UNSETTLED))


def _orphans(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    with _uncounted(session):
        _forget(session, found)


@contextmanager
def _uncounted(session: Session) -> Iterator[None]:
    """Without SQLite's kept counts, which cannot tell what a row that is not there counted for; then counted anew."""
    if session.get_bind().dialect.name != "sqlite":
        yield
        return
    find = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'count\\_%' ESCAPE '\\'"
    triggers = session.execute(sa.text(find)).all()
    for name, _ in triggers:
        session.execute(sa.text(f'DROP TRIGGER "{name}"'))
    yield
    session.flush()
    for _, sql in triggers:
        session.connection().exec_driver_sql(sql)
    _count_again(session)


def _forget(session: Session, found: Sequence[Disagreement]) -> None:
    for one in found:
        table = Table.metadata.tables[str(one.ids["table"])]
        column, key = table.c[str(one.ids["column"])], next(iter(table.primary_key.columns))
        (constraint,) = (each for each in table.foreign_key_constraints if column in each.columns.values())
        mine = sa.and_(key == one.ids["key"], column == one.ids["parent"], is_orphan(constraint))
        if column.nullable:
            session.execute(sa.update(table).where(mine).values({column.name: None}))
        else:
            session.execute(sa.delete(table).where(mine))


def _active(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    if not any(one_active_model(session)):
        return
    shown = (
        sa.select(sa.func.count())
        .select_from(DocumentRow)
        .join(ContentRow, ContentRow.id == DocumentRow.current_id)
        .where(ContentRow.model_id == ModelRow.id)
        .correlate(ModelRow)
        .scalar_subquery()
    )
    best = session.scalar(sa.select(ModelRow.id).order_by(shown.desc(), ModelRow.active.desc(), ModelRow.id).limit(1))
    session.execute(sa.update(ModelRow).values(active=ModelRow.id == best))


def _places(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    for some in parts([int(one.ids["chunk"]) for one in found]):
        done = sa.select(EmbeddingRow.chunk_id)
        waits = sa.select(PendingChunkRow.chunk_id)
        chunk = ChunkRow.id.in_(some)
        session.execute(
            sa.delete(PendingChunkRow).where(PendingChunkRow.chunk_id.in_(some), PendingChunkRow.chunk_id.in_(done)),
            execution_options={"synchronize_session": False},
        )
        session.execute(
            sa.update(ChunkRow).where(chunk, sa.or_(ChunkRow.id.in_(done), ChunkRow.id.in_(waits))).values(error=None),
            execution_options={"synchronize_session": False},
        )
    _contents(session, found, now)


def _contents(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    settle(session, (int(one.ids["content"]) for one in found), now)


def _claims(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    for some in parts([int(one.ids["content"]) for one in found]):
        session.execute(sa.update(ContentRow).where(ContentRow.id.in_(some)).values(claimed_by=None))


def _unwanted(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    for some in parts([int(one.ids["content"]) for one in found]):
        drop_unused(session, some)


def _unread(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    unread(session, [int(one.ids["document"]) for one in found])


def _shown(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    for some in parts([int(one.ids["content"]) for one in found]):
        promote(session, some)


def _copies(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    delete_copies(session.connection())
    content = sa.select(ChunkRow.content_id)
    model = sa.select(ContentRow.model_id).join(ChunkRow, ChunkRow.content_id == ContentRow.id)
    for some in parts([int(one.ids["chunk"]) for one in found]):
        for table in (PendingChunkRow, EmbeddingRow):
            right: dict[str, Any] = {"content_id": content.where(ChunkRow.id == table.chunk_id).scalar_subquery()}
            if table is EmbeddingRow:
                right["model_id"] = model.where(ChunkRow.id == table.chunk_id).scalar_subquery()
            session.execute(
                sa.update(table).where(table.chunk_id.in_(some)).values(**right),
                execution_options={"synchronize_session": False},
            )


def _kept_counts(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    _count_again(session)


def _count_again(session: Session) -> None:
    session.execute(sa.text("DELETE FROM document_counts"))
    session.execute(sa.text(f"INSERT INTO document_counts ({counts.KEY}, documents) {counts.DOCUMENTS}"))
    session.execute(sa.text("DELETE FROM chunk_counts"))
    session.execute(sa.text(f"INSERT INTO chunk_counts (chunks, embedded) {counts.CHUNKS}"))


def _chunk_numbers(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    last = session.scalar(sa.text("SELECT MAX(last) FROM chunk_numbers")) or 0
    highest = session.scalar(sa.select(sa.func.max(ChunkRow.id))) or 0
    session.execute(sa.text("DELETE FROM chunk_numbers"))
    session.execute(sa.text("INSERT INTO chunk_numbers (last) VALUES (:last)"), {"last": max(last, highest)})


def _indexes(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    index = "" if session.get_bind().dialect.name == "sqlite" else "INDEX "
    quoted = session.connection().dialect.identifier_preparer.quote
    for name in sorted({str(one.ids["index"]) for one in found}):
        session.execute(sa.text(f"REINDEX {index}{quoted(name)}"))


def _parts_of_schema(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    names = [(kind, str(name)) for one in found for kind, name in one.ids.items()]
    if session.get_bind().dialect.name != "sqlite":
        wanted = {name for _, name in names}
        for index in [index for table in Table.metadata.tables.values() for index in table.indexes]:
            if index.name in wanted:
                index.create(session.connection(), checkfirst=True)
        return
    expected = expected_parts()
    for kind, name in names:
        session.execute(sa.text(f'DROP {kind} IF EXISTS "{name}"'))
        session.connection().exec_driver_sql(expected[name][1])


def _text_index(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    mend_words(session, sorted({int(one.ids["chunk"]) for one in found}))


def _quantized(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    delete_copies(session.connection())


def _means(session: Session, found: Sequence[Disagreement], now: dt.datetime) -> None:
    for one in found:
        own_vector(session, int(one.ids["content"]))


_MENDERS: Mapping[str, Callable[[Session, Sequence[Disagreement], dt.datetime], None]] = {
    "index-damaged": _indexes,
    "schema-missing": _parts_of_schema,
    "row-orphan": _orphans,
    "model-active": _active,
    "chunk-places": _places,
    "chunk-numbers": _chunk_numbers,
    "content-counters": _contents,
    "content-state": _contents,
    "content-claim": _claims,
    "content-unwanted": _unwanted,
    "document-content": _unread,
    "document-not-shown": _shown,
    "copy-content": _copies,
    "count-documents": _kept_counts,
    "count-chunks": _kept_counts,
    "text-index": _text_index,
    "copy-stale": _quantized,
    "document-vector-other": _means,
    "file-bytes": _unread,
}
