"""The database itself: its pages, its indexes and triggers, and rows that refer to others."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.verifying import Disagreement
from pipeline.store.database import make_engine, upgrade
from pipeline.store.tables import Table

BLOCK = 4096
MOST_PROBLEMS = 100
"""That SQLite's own check lists."""

PRECIOUS = ("documents.source_id", "contents.model_id")
"""What refers to a source or a model cannot do without it, and stands for hours of work."""

_OF_INDEXES = ("missing from index", "wrong # of entries in index", "non-unique entry in index")


def damage(session: Session) -> Iterator[Disagreement]:
    """What SQLite's own check of its file finds; of PostgreSQL, indexes that a build left without being valid."""
    if session.get_bind().dialect.name == "sqlite":
        for (line,) in session.execute(sa.text(f"PRAGMA integrity_check({MOST_PROBLEMS})")):
            if line == "ok":
                continue
            is_index = any(words in line for words in _OF_INDEXES)
            ids = {"index": line.rpartition(" ")[2]} if is_index else {}
            yield Disagreement("index-damaged" if is_index else "database-damaged", line, "as it was written", ids)
        return
    invalid = """
        SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = current_schema() AND NOT (i.indisvalid AND i.indisready)
        AND NOT EXISTS (SELECT 1 FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid)
        ORDER BY 1"""
    for (name,) in session.execute(sa.text(invalid)):
        yield Disagreement("index-damaged", "a build of it did not end", "valid", {"index": name})


def missing_parts(session: Session) -> Iterator[Disagreement]:
    """Indexes and triggers that tables of this version have, and these have not (or others of the same name)."""
    if session.get_bind().dialect.name == "sqlite":
        there = _parts(session.connection())
        for name, (kind, sql) in sorted(expected_parts().items()):
            if there.get(name) != (kind, sql):
                found = f"no such {kind}" if name not in there else f"another {kind}"
                yield Disagreement("schema-missing", found, f"the {kind} {name}", {kind: name})
        return
    inspector = sa.inspect(session.connection())
    for table in Table.metadata.sorted_tables:
        present = {index["name"] for index in inspector.get_indexes(table.name)}
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            if index.name not in present:
                yield Disagreement(
                    "schema-missing", "no such index", f"the index {index.name}", {"index": index.name or ""}
                )


@functools.cache
def expected_parts() -> dict[str, tuple[str, str]]:
    """The indexes and triggers of a SQLite database that was just made, by name: what it is, and its SQL."""
    with tempfile.TemporaryDirectory(prefix="nightshift-") as folder:
        engine = make_engine(f"sqlite:///{Path(folder, 'new.db')}")
        try:
            upgrade(engine)
            with engine.connect() as connection:
                return _parts(connection)
        finally:
            engine.dispose()


def _parts(connection: sa.Connection) -> dict[str, tuple[str, str]]:
    rows = connection.exec_driver_sql("SELECT name, type, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {name: (kind, " ".join(sql.split())) for name, kind, sql in rows if kind in ("index", "trigger")}


def orphans(session: Session) -> Iterator[Disagreement]:
    """Rows that refer to one that is not there, of every table."""
    for table in Table.metadata.sorted_tables:
        for constraint in sorted(table.foreign_key_constraints, key=lambda one: str(one.name)):
            yield from _orphans(session, table, constraint)


def is_orphan(constraint: sa.ForeignKeyConstraint) -> sa.ColumnElement[bool]:
    """A condition on a table: its row refers to one that is not there."""
    (element,) = constraint.elements
    parent = element.column.table.alias("parent")
    return sa.and_(element.parent.is_not(None), ~sa.exists().where(parent.c[element.column.name] == element.parent))


def _orphans(session: Session, table: sa.Table, constraint: sa.ForeignKeyConstraint) -> Iterator[Disagreement]:
    (element,) = constraint.elements
    column = element.parent
    key: Any = next(iter(table.primary_key.columns))
    query = sa.select(key, column).where(is_orphan(constraint)).order_by(key).execution_options(yield_per=BLOCK)
    for number, value in session.execute(query):
        ids = {"table": table.name, "column": column.name, "key": number, "parent": value}
        found = f"{column.name} {value} is in no row of {element.column.table.name}"
        code = "row-lost" if f"{table.name}.{column.name}" in PRECIOUS else "row-orphan"
        yield Disagreement(code, found, "a row that is there", ids)
