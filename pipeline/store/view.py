"""What a search may find: what a model made of the documents, narrowed by a filter."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from pipeline.core.changes import UNSETTLED, is_below
from pipeline.core.globs import path_filter
from pipeline.store.models import shown_by
from pipeline.store.scopes import Scope, in_scope
from pipeline.store.tables import ContentRow, DocumentRow, ModelRow, SourceRow

_LAST_NS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Filter:
    """Which documents are wanted; an empty part wants all of them.

    sources: roots of sources, or folders and files in them, or folders around them; absolute. paths: globs over the
    path in its source. kinds: of the file's content (`DocumentKind`). after, before: when its file was last changed,
    from `after` and until before `before`, with a zone.
    """

    sources: Sequence[str] = ()
    paths: Sequence[str] = ()
    kinds: Sequence[str] = ()
    after: dt.datetime | None = None
    before: dt.datetime | None = None

    @property
    def wants_all(self) -> bool:
        """Whether it leaves nothing out."""
        return not (self.sources or self.paths or self.kinds or self.after or self.before)


@dataclass(frozen=True, slots=True)
class View:
    """What search looks at. Only `view_of` makes it, in the transaction that it is then used in.

    active: of the model that search uses, what documents show; else the newest that the model made of the bytes
    that documents have now, as if search had moved to it.
    scopes: the filter's sources, as they are known; None for all. contents: a JSON array of the contents that are
    left, where the database alone cannot tell; None where it can.
    """

    model_id: int
    fingerprint: str
    dimension: int
    active: bool = True
    filter: Filter = field(default_factory=Filter)
    scopes: Sequence[Scope] | None = None
    contents: str | None = field(default=None, repr=False)


def view_of(session: Session, model_id: int, wanted: Filter | None = None) -> View:
    """The view of a model as it is in this transaction.

    Raises:
        ValueError: a glob makes no sense; it says which.
    """
    model, wanted = session.get_one(ModelRow, model_id), wanted or Filter()
    scopes = _scopes(session, wanted.sources) if wanted.sources else None
    view = View(model.id, model.fingerprint, model.dimension, model.active, wanted, scopes)
    if model.active and not wanted.paths:
        return view
    wants = path_filter(wanted.paths).wants
    session.flush()
    # Of all documents: rows as they come from the database, which the identity map would double the time of.
    rows = session.connection().execute(
        _documents(view).where(*_wanted(view)).add_columns(DocumentRow.path).execution_options(yield_per=10_000)
    )
    listed, all_wanted = set[int](), True
    for content_id, path in rows:
        if wants(path):
            listed.add(content_id)
        else:
            all_wanted = False
    if model.active and all_wanted:  # then the database can tell, and need not be told each of them
        return replace(view, filter=replace(wanted, paths=()))
    return replace(view, contents=as_json(listed))


def searched_contents(view: View) -> sa.Select[int]:
    """The ids of the contents that search looks at, selected from `contents`; one may come more than once."""
    mine = sa.select(ContentRow.id).where(ContentRow.model_id == view.model_id)
    if view.contents is not None:
        return mine.where(ContentRow.id.in_(listed_ids(view.contents)))
    if view.filter.wants_all:
        return mine.where(sa.exists().where(DocumentRow.current_id == ContentRow.id).correlate(ContentRow))
    return _documents(view).where(*_wanted(view))


def listed_ids(ids: str) -> sa.Select[int]:
    """The numbers in a JSON array as rows: however many they are, they are one parameter."""
    number = _Listed(sa.literal(ids)).table_valued("value", name="value").c.value
    return sa.select(sa.cast(number, sa.BigInteger))


@dataclass(frozen=True, slots=True)
class ShownFile:
    """A file that shows a content. path: absolute. modified_ns: since 1970, or not above 0 where it is not known."""

    path: str
    modified_ns: int


def files_of(session: Session, view: View, content_ids: Iterable[int]) -> dict[int, list[ShownFile]]:
    """The files that show each content: those that the filter wants first, then by path."""
    query = _documents(view, as_json(content_ids)).join(SourceRow, SourceRow.id == DocumentRow.source_id)
    is_wanted = sa.and_(sa.true(), *_wanted(view)).label("is_wanted")
    wants = path_filter(view.filter.paths).wants
    found: dict[int, list[tuple[bool, ShownFile]]] = {}
    for content_id, root, path, modified, wanted in session.execute(
        query.add_columns(SourceRow.root, DocumentRow.path, _modified_ns(), is_wanted)
    ):
        file = ShownFile(f"{root.rstrip('/')}/{path}", modified)
        found.setdefault(content_id, []).append((not (wanted and wants(path)), file))
    return {
        content_id: [file for _, file in sorted(files, key=lambda pair: (pair[0], pair[1].path))]
        for content_id, files in found.items()
    }


def _wanted(view: View) -> list[sa.ColumnElement[bool]]:
    """Conditions on `documents` and the `contents` that they show: the view's filter, all but its globs."""
    wanted, conditions = view.filter, [in_scope(view.scopes)]
    if wanted.kinds:
        conditions.append(ContentRow.kind.in_(list(wanted.kinds)))
    if wanted.after is not None:
        conditions.append(_modified_ns() >= _ns(wanted.after))
    if wanted.before is not None:
        conditions.append(_modified_ns() < _ns(wanted.before))
    return conditions


def _modified_ns() -> sa.ColumnElement[int]:
    """When a document's file was last changed, as far as is known, in nanoseconds since 1970."""
    return sa.case((DocumentRow.mtime_ns == UNSETTLED, ContentRow.modified_ns), else_=DocumentRow.mtime_ns)


def _documents(view: View, among: str | None = None) -> sa.Select[int]:
    """The model's contents that documents show, whatever is wanted; one of several documents comes several times.

    among: a JSON array of contents; none but these.
    """
    contents = sa.select(ContentRow.id).where(ContentRow.model_id == view.model_id)
    if among is not None:
        contents = contents.where(ContentRow.id.in_(listed_ids(among)))
    if view.active:
        return contents.join(DocumentRow, DocumentRow.current_id == ContentRow.id)
    candidates = sa.select(DocumentRow.id, shown_by(view.model_id).label("content_id"))
    if among is not None:
        hashes = sa.select(ContentRow.sha256).where(ContentRow.id.in_(listed_ids(among)))
        candidates = candidates.where(DocumentRow.sha256.in_(hashes))
    shown = candidates.subquery()
    return contents.join(shown, shown.c.content_id == ContentRow.id).join(DocumentRow, DocumentRow.id == shown.c.id)


def unknown_sources(session: Session, wanted: Sequence[str]) -> list[str]:
    """Those of a filter's sources that no known source lies in or around."""
    return [path for path in wanted if not _scopes(session, [path])]


def _scopes(session: Session, wanted: Sequence[str]) -> tuple[Scope, ...]:
    """What absolute paths mean among the sources that are known; a path that lies in none means nothing."""
    roots = session.execute(sa.select(SourceRow.root, SourceRow.id)).all()
    found = []
    for path in wanted:
        place = path.rstrip("/") or "/"
        for root, source_id in roots:
            if root == place or is_below(root, place.rstrip("/")):
                found.append(Scope(source_id))
            elif is_below(place, root.rstrip("/")):
                found.append(Scope(source_id, place.removeprefix(root.rstrip("/") + "/")))
    return tuple(dict.fromkeys(found))


def _ns(instant: dt.datetime) -> int:
    """Nanoseconds since 1970, at most what a database can hold."""
    since = instant - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return max(-_LAST_NS, min(_LAST_NS, since // dt.timedelta(microseconds=1) * 1000))


def as_json(ids: Iterable[int]) -> str:
    """Ids as `listed_ids` takes them."""
    return json.dumps(sorted(ids), separators=(",", ":"))


class _Listed(FunctionElement[int]):
    """A JSON array as a table of one column, `value`."""

    inherit_cache = True


@compiles(_Listed, "sqlite")
def _on_sqlite(element: _Listed, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(_Listed, "postgresql")
def _on_postgresql(element: _Listed, compiler: SQLCompiler, **options: Any) -> str:
    # An array says how many there are; of JSON the planner knows nothing. Its column has the name of the table.
    return f"unnest(CAST(translate({compiler.process(element.clauses, **options)}, '[]', '{{}}') AS bigint[]))"
