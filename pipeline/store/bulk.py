"""Many rows in one go: `executemany` on SQLite, `COPY` in its binary form on PostgreSQL.

All of it belongs to the transaction of the session that it is given, and goes past its identity map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstrumentedAttribute, Session

from pipeline.store.contents import IN_CLAUSE
from pipeline.store.tables import ChunkRow, Table
from pipeline.store.vector_type import Vector, to_sent

_chunk_numbers = sa.table("chunk_numbers", sa.column("last", sa.BigInteger))
"""The last number that a chunk has had on SQLite: copies for search are kept by them, and none may find another's."""


def last_chunk_number(connection: Connection) -> int:
    """The last number that a chunk has had on SQLite."""
    return connection.scalar(sa.select(_chunk_numbers.c.last)) or 0


def table_of(row: type[Table]) -> sa.Table:
    """The table itself, for statements that go past the identity map."""
    return cast("sa.Table", row.__table__)


def insert_rows(session: Session, table: type[Table], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, all with the same columns."""
    if not rows:
        return
    session.flush()
    if _is_postgresql(session):
        _copy(session, table_of(table), rows)
    else:
        session.connection().execute(sa.insert(table_of(table)), rows)


def insert_new(session: Session, table: type[Table], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, but for those that there are: another host may have come first."""
    insert = postgresql.insert if _is_postgresql(session) else sqlite.insert
    session.flush()
    session.connection().execute(insert(table_of(table)).on_conflict_do_nothing(), rows)


def new_ids(session: Session, column: InstrumentedAttribute[int], count: int) -> list[int]:
    """Numbers for `count` new rows, in their order, by the database's own way to number them."""
    if _is_postgresql(session):
        sequence = sa.func.pg_get_serial_sequence(column.class_.__tablename__, column.key)
        numbers = sa.func.generate_series(1, count).table_valued("number")
        return list(session.scalars(sa.select(sa.func.nextval(sequence)).select_from(numbers)))
    # A transaction that writes is alone on SQLite, which numbers in just this way; but it would number a second time
    # what was deleted at the end.
    last = session.scalar(sa.select(sa.func.max(column))) or 0
    if column.class_ is ChunkRow:
        last = max(last, session.scalar(sa.select(_chunk_numbers.c.last)) or 0)
        session.execute(sa.update(_chunk_numbers).values(last=last + count))
    return list(range(last + 1, last + 1 + count))


def delete_returning(session: Session, column: InstrumentedAttribute[int], ids: Sequence[int]) -> set[int]:
    """Delete the rows that have one of these numbers; returns the numbers that there were."""
    table = table_of(cast("type[Table]", column.class_))
    key = table.c[column.key]
    found: set[int] = set()
    if _is_postgresql(session):
        listed = sa.literal(list(ids), sa.ARRAY(sa.BigInteger))
        found.update(session.connection().scalars(sa.delete(table).where(key == sa.any_(listed)).returning(key)))
        return found
    for start in range(0, len(ids), IN_CLAUSE):
        some = sa.delete(table).where(key.in_(ids[start : start + IN_CLAUSE])).returning(key)
        found.update(session.connection().scalars(some))
    return found


def _is_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def _copy(session: Session, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    import psycopg  # there only where this database is
    from psycopg.types.json import Json

    formed: Mapping[type[Any], Callable[[Any], object]] = {sa.JSON: Json, Vector: to_sent}
    columns = [table.c[name] for name in rows[0]]
    types = [_TYPES[type(getattr(column.type, "impl", column.type))] for column in columns]
    forms = [formed.get(type(column.type)) for column in columns]
    names = ", ".join(f'"{column.name}"' for column in columns)
    statement = f'COPY "{table.name}" ({names}) FROM STDIN (FORMAT BINARY)'
    connection: Any = session.connection().connection.driver_connection
    try:
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(
                    [
                        value if form is None or value is None else form(value)
                        for value, form in zip(row.values(), forms, strict=True)
                    ]
                )
    except psycopg.Error as error:
        raise DBAPIError(statement, None, error) from error


# A vector's are sent as bytes, for the server takes what a binary COPY brings for what the column holds.
_TYPES: Mapping[type[Any], str] = {
    sa.BigInteger: "int8",
    sa.Integer: "int4",
    sa.Boolean: "bool",
    sa.Text: "text",
    sa.String: "text",
    sa.JSON: "json",
    sa.LargeBinary: "bytea",
    sa.DateTime: "timestamptz",
}
