"""Named locks between the processes that share a server's database.

On SQLite they are not needed, and held at once: a transaction that writes is alone there, and what outlives a
transaction is guarded by lock files, because all who use the file are on one host.
"""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session


def transaction_lock(session: Session | Connection, name: str) -> bool:
    """Wait until no other transaction holds the lock of this name, and hold it to the end of this one. Always True."""
    connection = session.connection() if isinstance(session, Session) else session
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_key(name))))
    return True


def session_lock(connection: Connection, name: str) -> bool:
    """Whether this connection holds the lock of this name from now on; False, at once, where another one does.

    It is held until the connection to the server ends, or `release_session_lock`, whatever transactions come and go.
    """
    if connection.dialect.name != "postgresql":
        return True
    return bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_key(name)))))


def release_session_lock(connection: Connection, name: str) -> None:
    """Let go of what `session_lock` gave."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_unlock(_key(name))))


def _key(name: str) -> sa.ColumnElement[int]:
    """A number of 64 bits that is the same in every process and version."""
    digest = hashlib.blake2b(f"nightshift {name}".encode(), digest_size=8).digest()
    return sa.literal(int.from_bytes(digest, signed=True), sa.BigInteger)
