"""Takes an export over into a database: first the documents, which then wait, then one content after the other.

Whenever it dies the database is whole: what was not taken over waits to be read like any new document. To import the
same once more goes on where it stopped, because what is there is passed over.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.core.errors import StoreError
from pipeline.store import library
from pipeline.store.bulk import insert_rows, new_ids
from pipeline.store.checks.remaking import own_vector
from pipeline.store.contents import promote, start_over
from pipeline.store.database import Database
from pipeline.store.exchange.reading import Checked, Content, rows_of
from pipeline.store.models import ensure_model
from pipeline.store.tables import ChunkRow, ContentEmbeddingRow, ContentRow, DocumentRow, EmbeddingRow, ModelRow
from pipeline.store.words import store_words

DOCUMENTS = 500
"""Noted in one transaction."""

WAITING = (DocumentState.DISCOVERED, DocumentState.EXTRACTED)


@dataclass(slots=True)
class Imported:
    """What came over. kept: documents that the database knows with other bytes, which stay. there: contents it had."""

    documents: int = 0
    kept: int = 0
    contents: int = 0
    there: int = 0
    chunks: int = 0


@dataclass(slots=True)
class _Import:
    store: Database
    export: Checked
    roots: Mapping[str, str]
    now: dt.datetime
    guard: Callable[[Session], None]
    tell: Callable[[str, int, int], None]
    done: Imported = field(default_factory=Imported)
    models: dict[str, int] = field(default_factory=dict)
    sources: dict[str, tuple[int, str]] = field(default_factory=dict)
    older: dict[int, list[tuple[str, str, int]]] = field(default_factory=lambda: defaultdict(list))
    """Contents that documents show which wait for another one: source and path of these, and what they wait for."""

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A transaction, while nobody else is at work."""
        with self.store.begin() as session:
            self.guard(session)
            yield session


def import_export(
    store: Database,
    export: Checked,
    roots: Mapping[str, str],
    now: dt.datetime,
    guard: Callable[[Session], None] = lambda _: None,
    tell: Callable[[str, int, int], None] = lambda *_: None,
) -> Imported:
    """Take an export over. No run may be at work meanwhile.

    guard: called in each transaction; it raises where that is no longer so.

    roots: where folders of the export lie on this host, absolute, by what they are called in it.

    Raises:
        StoreError: a model has another dimension here, or the database cannot be written.
    """
    work = _Import(store, export, roots, now, guard, tell)
    _take_models(work)
    _take_documents(work)
    _take_contents(work)
    return work.done


def _take_models(work: _Import) -> None:
    rows = sorted(rows_of(work.export.folder, "models"), key=lambda row: not row["active"])
    with work.begin() as session:
        for row in rows:
            known = session.scalar(sa.select(ModelRow).where(ModelRow.fingerprint == row["fingerprint"]))
            if known is not None:
                if known.dimension != row["dimension"]:
                    raise StoreError(
                        f"{row['name']} has vectors of {row['dimension']} numbers, and of {known.dimension} here"
                    )
                work.models[row["fingerprint"]] = known.id
                continue
            # A size of 0: the file is hashed before anything believes that it is this model.
            facts = {name: row[name] for name in ("fingerprint", "name", "path", "dimension")}
            work.models[row["fingerprint"]] = ensure_model(session, **facts, size=0, mtime_ns=0, now=work.now).id


def _take_documents(work: _Import) -> None:
    taken = 0
    for block in _blocks(rows_of(work.export.folder, "documents"), DOCUMENTS):
        with work.begin() as session:
            for row in block:
                _take_document(session, work, row)
        taken += len(block)
        work.tell("documents", taken, work.export.manifest.rows["documents"])


def _take_document(session: Session, work: _Import, row: Mapping[str, Any]) -> None:
    source_id, path = _place(session, work, row["source"], row["path"])
    content = None if row["content"] is None else work.export.contents[row["content"]]
    if row["shown"] is not None and row["shown"] != row["content"]:
        work.older[row["shown"]].append((row["source"], row["path"], row["content"]))
    known = session.scalar(sa.select(DocumentRow).where(DocumentRow.source_id == source_id, DocumentRow.path == path))
    if known is not None:
        work.done.kept += known.sha256 != row["sha256"]
        return
    waits_for = None if content is None else _ensure_content(session, work, content, row["mtime_ns"])
    facts = {name: row[name] for name in ("size", "mtime_ns", "sha256", "problem", "found_at")}
    if content is None:
        facts |= {"sha256": None, "mtime_ns": 0}  # the next look at its folder reads it
    session.add(DocumentRow(source_id=source_id, path=path, pending_id=waits_for, **facts))
    work.done.documents += 1


def _place(session: Session, work: _Import, source: str, path: str) -> tuple[int, str]:
    """The source that holds a document of the export here, and its path in it."""
    if source not in work.sources:
        root = _moved(source, work.roots)
        known = library.sources(session)
        outer = library.enclosing_source(known, root)
        if outer is None:
            source_id, inside = library.ensure_source(session, root, work.now), ""
            work.sources.clear()  # it may have taken others in
        else:
            source_id, inside = known[outer], root.removeprefix(outer).strip("/")
        work.sources[source] = (source_id, f"{inside}/" if inside else "")
    source_id, prefix = work.sources[source]
    return source_id, prefix + path


def _moved(source: str, roots: Mapping[str, str]) -> str:
    """Where a source of the export lies here: by the longest of `roots` that it is, or is in."""
    for old in sorted(roots, key=len, reverse=True):
        if source == old or source.startswith(old.rstrip("/") + "/"):
            rest = source.removeprefix(old).lstrip("/")
            new = roots[old].rstrip("/")
            return f"{new}/{rest}" if rest else new or "/"
    return source


def _key(work: _Import, content: Content) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        ContentRow.sha256 == content.sha256,
        ContentRow.kind == content.kind,
        ContentRow.model_id == work.models[content.fingerprint],
        ContentRow.recipe == content.recipe,
    )


def _ensure_content(session: Session, work: _Import, content: Content, modified_ns: int) -> int:
    known = session.scalar(sa.select(ContentRow.id).where(*_key(work, content)))
    if known is not None:
        return known
    row = ContentRow(
        sha256=content.sha256,
        kind=content.kind,
        model_id=work.models[content.fingerprint],
        recipe=content.recipe,
        state=DocumentState.DISCOVERED,
        created_at=work.now,
        modified_ns=max(modified_ns, 0),
    )
    session.add(row)
    session.flush()
    return row.id


def _take_contents(work: _Import) -> None:
    folder, total = work.export.folder, work.export.manifest.rows["chunks"]
    by_content = itertools.groupby(rows_of(folder, "chunks"), key=lambda row: int(row["content"]))
    following = next(by_content, None)
    read = 0
    for about in rows_of(folder, "contents"):
        chunks: list[dict[str, Any]] = []
        if following is not None and following[0] == about["content"]:
            chunks = list(following[1])
            following = next(by_content, None)
        if about["state"] == DocumentState.DISCOVERED:
            continue
        with work.begin() as session:
            _take_content(session, work, about, chunks)
        read += len(chunks)
        work.tell("chunks", read, total)


def _take_content(
    session: Session, work: _Import, about: Mapping[str, Any], chunks: Sequence[Mapping[str, Any]]
) -> None:
    content = work.export.contents[about["content"]]
    row = session.scalar(sa.select(ContentRow).where(*_key(work, content)))
    shown_by = work.older.get(about["content"], ())
    if row is not None and row.state not in WAITING:
        work.done.there += 1
        return
    if row is None:
        if not shown_by and not _kept_for_its_model(session, work, content):
            return  # of a document that the database knows with other bytes
        row = session.get_one(ContentRow, _ensure_content(session, work, content, about["modified_ns"]))
    start_over(session, [row.id])
    session.refresh(row)
    _fill(session, row, about, chunks)
    session.flush()
    promote(session, [row.id])
    for source, path, awaited in shown_by:
        _show(session, work, row, source, path, work.export.contents[awaited])
    work.done.contents += 1
    work.done.chunks += len(chunks)


def _kept_for_its_model(session: Session, work: _Import, content: Content) -> bool:
    """Whether what another model than the active one made is of bytes that are here."""
    here = sa.exists().where(DocumentRow.sha256 == content.sha256)
    inactive = sa.exists().where(ModelRow.id == work.models[content.fingerprint], ~ModelRow.active)
    return bool(session.scalar(sa.select(sa.and_(here, inactive))))


def _fill(session: Session, row: ContentRow, about: Mapping[str, Any], chunks: Sequence[Mapping[str, Any]]) -> None:
    for name in ("state", "stage", "reason", "title", "page_count", "characters", "modified_ns"):
        setattr(row, name, about[name])
    row.details, row.embedded_at, row.created_at = (
        json.loads(about["details"]),
        about["embedded_at"],
        about["created_at"],
    )
    embedded = [chunk for chunk in chunks if chunk["vector"] is not None]
    row.chunk_count, row.embedded_count = len(chunks), len(embedded)
    row.failed_count = len(chunks) - len(embedded)
    row.token_count = sum(chunk["token_count"] for chunk in chunks)
    session.flush()
    if about["vector"] is not None:
        session.add(ContentEmbeddingRow(content_id=row.id, method=about["method"], vector=about["vector"]))
        session.flush()
    if not chunks:
        return
    columns = (
        "ordinal", "start_char", "end_char", "page_first", "page_last", "headings", "token_count", "text", "prefix",
        "error", "digest",
    )  # fmt: skip
    ids = new_ids(session, ChunkRow.id, len(chunks))
    numbered = list(zip(ids, chunks, strict=True))
    insert_rows(
        session,
        ChunkRow,
        [{"id": one, "content_id": row.id, **{name: chunk[name] for name in columns}} for one, chunk in numbered],
    )
    store_words(session, {one: [*chunk["headings"], chunk["prefix"], chunk["text"]] for one, chunk in numbered})
    vectors = [
        {"chunk_id": one, "content_id": row.id, "model_id": row.model_id, "vector": chunk["vector"]}
        for one, chunk in numbered
        if chunk["vector"] is not None
    ]
    insert_rows(session, EmbeddingRow, vectors)
    if vectors and about["vector"] is None:
        own_vector(session, row.id)


def _show(session: Session, work: _Import, row: ContentRow, source: str, path: str, awaited: Content) -> None:
    """Let a document that waits for another content show this one, as it did."""
    source_id, here = _place(session, work, source, path)
    waits_for = session.scalar(sa.select(ContentRow.id).where(*_key(work, awaited)))
    if not session.get_one(ModelRow, row.model_id).active:
        return
    session.execute(
        sa.update(DocumentRow)
        .where(
            DocumentRow.source_id == source_id,
            DocumentRow.path == here,
            sa.or_(
                sa.and_(DocumentRow.pending_id == waits_for, DocumentRow.current_id.is_(None)),
                sa.and_(DocumentRow.current_id == waits_for, DocumentRow.pending_id.is_(None)),
            ),
        )
        .values(current_id=row.id, pending_id=waits_for)
    )


def _blocks(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while block := list(itertools.islice(rows, size)):
        yield block
