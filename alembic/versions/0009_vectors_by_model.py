"""Vectors that say which content and which model they are of, as pgvector's type on PostgreSQL.

SQLite gets the last number that a chunk had, so that no number is used twice; PostgreSQL has its sequence for that.
On PostgreSQL every vector passes through this program once, in blocks: no SQL turns bytes into a vector.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from alembic import op

revision = "0009"
down_revision = "0008"

BLOCK = 1000
"""Rows in memory at once."""

MOST = 16_000
"""Numbers in a vector of pgvector."""

UNUSABLE = "a vector that was stored was none; documents retry makes it anew"

EMBEDDINGS = ("chunk_id", "content_id", "model_id", "vector")
CONTENT_EMBEDDINGS = ("content_id", "method", "vector")

JOINED = """
SELECT e.chunk_id, k.content_id, c.model_id, e.vector
FROM older_embeddings AS e JOIN chunks AS k ON k.id = e.chunk_id JOIN contents AS c ON c.id = k.content_id
ORDER BY e.chunk_id
"""

OF_CHUNKS = (
    "CONSTRAINT pk_embeddings PRIMARY KEY (chunk_id)",
    "CONSTRAINT fk_embeddings_chunk_id_chunks FOREIGN KEY (chunk_id) REFERENCES chunks (id) ON DELETE CASCADE",
)
OF_CONTENTS = (
    "CONSTRAINT pk_content_embeddings PRIMARY KEY (content_id)",
    "CONSTRAINT fk_content_embeddings_content_id_contents "
    "FOREIGN KEY (content_id) REFERENCES contents (id) ON DELETE CASCADE",
)


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE TABLE newer_embeddings (chunk_id INTEGER NOT NULL, content_id INTEGER NOT NULL, "
            f"model_id INTEGER NOT NULL, vector BLOB NOT NULL, {', '.join(OF_CHUNKS)})"
        )
        op.execute("ALTER TABLE embeddings RENAME TO older_embeddings")
        op.execute(f"INSERT INTO newer_embeddings ({', '.join(EMBEDDINGS)}) {JOINED}")
        op.execute("DROP TABLE older_embeddings")
        op.execute("ALTER TABLE newer_embeddings RENAME TO embeddings")
        op.execute("CREATE TABLE chunk_numbers (last INTEGER NOT NULL)")
        op.execute("INSERT INTO chunk_numbers (last) SELECT COALESCE(MAX(id), 0) FROM chunks")
        return
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    _put_aside("embeddings", OF_CHUNKS)
    op.execute(
        "CREATE TABLE embeddings (chunk_id BIGINT NOT NULL, content_id BIGINT NOT NULL, model_id INTEGER NOT NULL, "
        "vector vector NOT NULL)"
    )
    _keep_in_rows("embeddings")
    _fail_chunks(_copy(JOINED, "embeddings", EMBEDDINGS, ("int8", "int8", "int4", "bytea"), _to_vector))
    _take_its_place("embeddings", OF_CHUNKS)
    op.execute("CREATE INDEX ix_embeddings_content_id ON embeddings (content_id)")

    _put_aside("content_embeddings", OF_CONTENTS)
    op.execute(
        "CREATE TABLE content_embeddings (content_id BIGINT NOT NULL, method VARCHAR(16) NOT NULL, "
        "vector vector NOT NULL)"
    )
    _keep_in_rows("content_embeddings")
    _fail_contents(_copy_contents(_to_vector))


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE chunk_numbers")
        op.execute(
            f"CREATE TABLE older_embeddings (chunk_id INTEGER NOT NULL, vector BLOB NOT NULL, {', '.join(OF_CHUNKS)})"
        )
        op.execute("INSERT INTO older_embeddings (chunk_id, vector) SELECT chunk_id, vector FROM embeddings")
        op.execute("DROP TABLE embeddings")
        op.execute("ALTER TABLE older_embeddings RENAME TO embeddings")
        return
    _put_aside("embeddings", OF_CHUNKS)
    op.execute("CREATE TABLE embeddings (chunk_id BIGINT NOT NULL, vector BYTEA NOT NULL)")
    rows = "SELECT chunk_id, vector FROM older_embeddings ORDER BY chunk_id"
    _copy(rows, "embeddings", ("chunk_id", "vector"), ("int8", "bytea"), _to_bytes)
    _take_its_place("embeddings", OF_CHUNKS)
    _put_aside("content_embeddings", OF_CONTENTS)
    op.execute(
        "CREATE TABLE content_embeddings (content_id BIGINT NOT NULL, method VARCHAR(16) NOT NULL, "
        "vector BYTEA NOT NULL)"
    )
    _copy_contents(_to_bytes)
    # The extension stays: others may use it.


def _put_aside(table: str, constraints: Sequence[str]) -> None:
    """Rename a table, without the names that the new one needs."""
    op.execute(f"ALTER TABLE {table} RENAME TO older_{table}")
    for constraint in constraints:
        op.execute(f"ALTER TABLE older_{table} DROP CONSTRAINT {constraint.split()[1]}")


def _take_its_place(table: str, constraints: Sequence[str]) -> None:
    for constraint in constraints:
        op.execute(f"ALTER TABLE {table} ADD {constraint}")
    op.execute(f"DROP TABLE older_{table}")


def _keep_in_rows(table: str) -> None:
    """Vectors stay in their rows as long as they fit into a page: each that is elsewhere is looked for by itself."""
    op.execute(f"ALTER TABLE {table} ALTER COLUMN vector SET STORAGE MAIN")


def _copy_contents(convert: Callable[[bytes], bytes | None]) -> list[int]:
    rows = f"SELECT {', '.join(CONTENT_EMBEDDINGS)} FROM older_content_embeddings ORDER BY content_id"
    left = _copy(rows, "content_embeddings", CONTENT_EMBEDDINGS, ("int8", "text", "bytea"), convert)
    _take_its_place("content_embeddings", OF_CONTENTS)
    return left


def _copy(
    query: str, table: str, columns: Sequence[str], types: Sequence[str], convert: Callable[[bytes], bytes | None]
) -> list[int]:
    """Fill a table with what a query finds, its last column converted; returns the ids of rows that could not be."""
    import psycopg  # there only where this database is

    connection: Any = op.get_bind().connection.driver_connection
    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)"
    left = []
    try:
        with connection.cursor("older_vectors", binary=True) as found, connection.cursor() as writing:
            found.execute(query)
            while rows := found.fetchmany(BLOCK):
                with writing.copy(statement) as copy:
                    copy.set_types(types)
                    for *others, vector in rows:
                        converted = convert(vector)
                        if converted is None:
                            left.append(others[0])
                        else:
                            copy.write_row([*others, converted])
    except psycopg.Error as error:
        raise DBAPIError(statement, None, error) from error
    return left


def _fail_chunks(chunk_ids: Sequence[int]) -> None:
    """Chunks that are left without a vector have failed, as if none could be made of them."""
    bind = op.get_bind()
    for chunk_id in chunk_ids:
        of_it = {"chunk": chunk_id, "reason": UNUSABLE}
        bind.execute(sa.text("UPDATE chunks SET error = :reason WHERE id = :chunk"), of_it)
        bind.execute(
            sa.text(
                "UPDATE contents SET embedded_count = embedded_count - 1, failed_count = failed_count + 1 "
                "WHERE id = (SELECT content_id FROM chunks WHERE id = :chunk)"
            ),
            of_it,
        )
        content_id = bind.scalar(sa.text("SELECT content_id FROM chunks WHERE id = :chunk"), of_it)
        _fail_contents([content_id])


def _fail_contents(content_ids: Sequence[int]) -> None:
    for content_id in content_ids:
        op.get_bind().execute(
            sa.text(
                "UPDATE contents SET state = 'failed', stage = 'embed', reason = :reason "
                "WHERE id = :content AND state = 'embedded'"
            ),
            {"content": content_id, "reason": UNUSABLE},
        )


def _to_vector(stored: bytes) -> bytes | None:
    """Little-endian float32 as pgvector receives it: how many, a zero, and big-endian float32. None: it would not."""
    if len(stored) % 4 or not 0 < len(stored) <= 4 * MOST:
        return None
    numbers = np.frombuffer(stored, "<f4").astype(">f4")
    if not np.isfinite(numbers).all():
        return None
    return len(numbers).to_bytes(2) + b"\0\0" + numbers.tobytes()


def _to_bytes(sent: bytes) -> bytes:
    return np.frombuffer(sent, ">f4", offset=4).astype("<f4").tobytes()
