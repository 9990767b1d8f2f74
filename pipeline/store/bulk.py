"""Many rows in one go: `executemany` on SQLite, `COPY` in its binary form on PostgreSQL.

All of it belongs to the transaction of the session that it is given, and goes past its identity map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstrumentedAttribute, Session

from pipeline.store.contents import IN_CLAUSE
from pipeline.store.tables import Table


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


def new_ids(session: Session, column: InstrumentedAttribute[int], count: int) -> list[int]:
    """Numbers for `count` new rows, in their order, by the database's own way to number them."""
    if _is_postgresql(session):
        sequence = sa.func.pg_get_serial_sequence(column.class_.__tablename__, column.key)
        numbers = sa.func.generate_series(1, count).table_valued("number")
        return list(session.scalars(sa.select(sa.func.nextval(sequence)).select_from(numbers)))
    # A transaction that writes is alone on SQLite, which numbers in just this way.
    last = session.scalar(sa.select(sa.func.max(column))) or 0
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

    columns = [table.c[name] for name in rows[0]]
    types = [_TYPES[type(column.type)] for column in columns]
    names = ", ".join(f'"{column.name}"' for column in columns)
    statement = f'COPY "{table.name}" ({names}) FROM STDIN (FORMAT BINARY)'
    connection: Any = session.connection().connection.driver_connection
    try:
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(
                    [Json(value) if kind == "json" else value for value, kind in zip(row.values(), types, strict=True)]
                )
    except psycopg.Error as error:
        raise DBAPIError(statement, None, error) from error


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
