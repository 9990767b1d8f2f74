"""The type of a column of vectors: little-endian float32 for the program and for SQLite, `vector` on PostgreSQL.

Vectors go to and from PostgreSQL in pgvector's binary form: how many numbers there are (int16), a zero (int16), and
big-endian float32. Nothing has to know the number that the type has in a database: what a vector is sent to says what
it is, and one that comes back is bytes where its cursor is binary (see `read_vectors_in_binary`), else text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import base as postgresql
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.types import TypeEngine, UserDefinedType

HEADER_BYTES = 4


class Vector(sa.TypeDecorator[bytes]):
    """A vector, float32[d] in little-endian order, of any length."""

    impl = sa.LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The type of pgvector where there is one."""
        return dialect.type_descriptor(PgVector() if dialect.name == "postgresql" else sa.LargeBinary())


class PgVector(UserDefinedType[bytes]):
    """`vector` without a dimension: models differ in theirs."""

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **_: object) -> str:
        """As PostgreSQL writes it."""
        return "vector"

    def bind_processor(self, dialect: Dialect) -> Callable[[bytes | None], Any]:
        """To what the driver sends as it is."""
        return lambda value: None if value is None else Sent(to_sent(value))

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[bytes | str | None], bytes | None]:
        """From either of the forms in which the driver gives it."""
        return lambda value: None if value is None else from_sent(value)


postgresql.ischema_names["vector"] = PgVector
"""So that a table is known again when it is looked up in a database."""


class Sent(bytes):
    """A vector in pgvector's binary form, so that the driver tells it from other bytes."""


def to_sent(vector: bytes) -> bytes:
    """Little-endian float32 in pgvector's binary form."""
    numbers = np.frombuffer(vector, "<f4").astype(">f4")
    return len(numbers).to_bytes(2) + b"\0\0" + numbers.tobytes()


def from_sent(sent: bytes | str) -> bytes:
    """Little-endian float32 of what pgvector gave: in its binary form, or as text."""
    if isinstance(sent, str):
        return np.asarray(json.loads(sent), "<f4").tobytes()
    return np.frombuffer(sent, ">f4", offset=HEADER_BYTES).astype("<f4").tobytes()


def use_vectors(engine: Engine) -> None:
    """Teach the connections of an engine for PostgreSQL to send vectors, and to ask for them, in binary."""
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class AsItIs(Dumper):
        """Binary, and of no type: the server takes it for what the place wants."""

        format = Format.BINARY

        def dump(self, obj: bytes) -> bytes:
            return bytes(obj)

    @sa.event.listens_for(engine, "connect")
    def _register(connection: Any, _record: object) -> None:
        connection.adapters.register_dumper(Sent, AsItIs)

    @sa.event.listens_for(engine, "before_cursor_execute")
    def _ask_for_binary(
        _connection: Connection, cursor: Any, _statement: str, _parameters: object, context: Any, _many: bool
    ) -> None:
        if _returns_vectors(context):
            cursor.format = Format.BINARY


def _returns_vectors(context: Any) -> bool:
    statement = getattr(getattr(context, "compiled", None), "statement", None)
    if not isinstance(statement, sa.Select):
        return False
    return any(isinstance(column.type, Vector | PgVector) for column in statement.selected_columns)
