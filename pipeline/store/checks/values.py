"""Whether each value is one that its column may hold: SQLite takes any value in any column, and reads it back so."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.verifying import Disagreement
from pipeline.store.tables import Table, UtcDateTime

BLOCK = 4096
SHOWN = 60
"""Characters of a value."""

_NUMBERS = ("integer", "real")


def damaged_values(session: Session) -> Iterator[Disagreement]:
    """Values of another kind than their columns, text that is not UTF-8, and JSON and times that cannot be read."""
    connection = session.connection()
    if connection.dialect.name != "sqlite":
        return
    raw: Any = connection.connection.driver_connection
    for name, reads in _READERS.items():
        raw.create_function(f"reads_{name}", 1, _quietly(reads), deterministic=True)
    for table in Table.metadata.sorted_tables:
        yield from _of_table(session, table)


def _of_table(session: Session, table: sa.Table) -> Iterator[Disagreement]:
    good = {column.name: _is_good(column) for column in table.columns}
    keys = ", ".join(f'CAST("{column.name}" AS BLOB)' for column in table.primary_key.columns)
    bad = ", ".join(f"NOT ({condition})" for condition in good.values())
    query = sa.text(f'SELECT {keys}, {bad} FROM "{table.name}" WHERE NOT ({" AND ".join(good.values())})')  # noqa: S608
    of_key = len(table.primary_key.columns)
    for row in session.execute(query.execution_options(yield_per=BLOCK)):
        key = ", ".join(_shown(part) for part in row[:of_key])
        for name, is_bad in zip(good, row[of_key:], strict=True):
            if is_bad:
                yield Disagreement(
                    "value-damaged", f"its {name} cannot be read", "a value as this program writes it",
                    {"table": table.name, "key": key, "column": name},
                )  # fmt: skip


def _is_good(column: sa.Column[Any]) -> str:
    """A condition, in SQL."""
    name, kind = f'"{column.name}"', column.type
    if isinstance(kind, sa.JSON):
        shape = _SHAPES.get(str(column), "json")
        condition = f"typeof({name}) = 'text' AND reads_{shape}(CAST({name} AS BLOB))"
    elif isinstance(kind, UtcDateTime):
        condition = f"typeof({name}) = 'text' AND reads_time(CAST({name} AS BLOB))"
    elif isinstance(kind, sa.Integer | sa.Boolean):
        condition = f"typeof({name}) = 'integer'"
    elif isinstance(kind, sa.Float):
        condition = f"typeof({name}) IN {_NUMBERS}"
    elif isinstance(kind, sa.String):
        condition = f"typeof({name}) = 'text' AND reads_text(CAST({name} AS BLOB))"
    else:
        condition = f"typeof({name}) = 'blob'"
    return f"({name} IS NULL OR ({condition}))" if column.nullable else f"({condition})"


def _shown(key: bytes | None) -> str:
    return "" if key is None else key.decode("utf-8", "replace")[:SHOWN]


def _text(raw: bytes) -> bool:
    raw.decode("utf-8")
    return True


def _json(raw: bytes) -> bool:
    json.loads(raw)
    return True


def _texts(raw: bytes) -> bool:
    return raw == b"[]" or (isinstance(listed := json.loads(raw), list) and all(isinstance(one, str) for one in listed))


def _object(raw: bytes) -> bool:
    return isinstance(json.loads(raw), dict)


def _time(raw: bytes) -> bool:
    dt.datetime.fromisoformat(raw.decode("ascii"))
    return True


def _quietly(reads: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
    def judged(raw: bytes) -> bool:
        try:
            return reads(raw or b"")
        except (ValueError, RecursionError):
            return False

    return judged


_READERS: dict[str, Callable[[bytes], bool]] = {
    "text": _text, "json": _json, "texts": _texts, "object": _object, "time": _time,
}  # fmt: skip
_SHAPES = {"chunks.headings": "texts", "contents.details": "object"}
