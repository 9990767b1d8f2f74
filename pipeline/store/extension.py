"""pgvector, the extension of PostgreSQL that vectors need: made by an upgrade, checked by whoever opens a database."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from pipeline.core.errors import SchemaError

OLDEST_SERVER = 14

OLDEST = (0, 8)
"""Of pgvector: the first whose index goes on looking where a filter leaves too little of what it found."""

UPGRADE_AFTER = "then run `python -m pipeline db upgrade`"

_NO_RIGHT, _NOT_THERE = "42501", ("0A000", "58P01", "22023")
"""SQLSTATEs of CREATE EXTENSION: insufficient_privilege; no files, as the server's versions say it."""


def ensure_extension(connection: Connection) -> None:
    """Create the extension where it is not there yet, in the transaction of the connection.

    Raises:
        SchemaError: it cannot be had; the message says who has to do what.
    """
    check_server(connection)
    if _installed(connection) is None:
        try:
            with connection.begin_nested():
                connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS vector"))
        except DBAPIError as error:
            raise SchemaError(_why_not(connection, error)) from error
    check_extension(connection)


def check_server(connection: Connection) -> None:
    """Refuse a server that is too old, with a SchemaError."""
    if _major(connection) < OLDEST_SERVER:
        raise SchemaError(
            f"{_where(connection)} is on PostgreSQL {_major(connection)}; Nightshift needs {OLDEST_SERVER} or newer"
        )


def check_extension(connection: Connection) -> None:
    """Refuse a database whose extension is missing, too old, or out of sight, with a SchemaError."""
    check_server(connection)
    installed = _installed(connection)
    where = _where(connection)
    if installed is None:
        raise SchemaError(
            f"{where} does not have the extension pgvector, which vectors need: run `CREATE EXTENSION vector` there"
        )
    if not _recent(installed):
        offered = _offered(connection)
        first = "" if offered and _recent(offered) else "install pgvector 0.8 or newer on its server, and "
        raise SchemaError(
            f"{where} has pgvector {installed}; Nightshift needs 0.8 or newer: {first}"
            "have the extension's owner run `ALTER EXTENSION vector UPDATE` there"
        )
    if connection.scalar(sa.text("SELECT to_regtype('vector')")) is None:
        schema = connection.scalar(
            sa.text("SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
                    "WHERE e.extname = 'vector'")
        )  # fmt: skip
        raise SchemaError(
            f"{where} has pgvector in the schema {schema}, which is not on the search_path: "
            f"put it there, or run `ALTER EXTENSION vector SET SCHEMA public`"
        )


def _why_not(connection: Connection, error: DBAPIError) -> str:
    where, state = _where(connection), getattr(error.orig, "sqlstate", None)
    if state == _NO_RIGHT:
        user = connection.scalar(sa.text("SELECT current_user"))
        return (
            f"{where} needs the extension pgvector, which {user} may not create: "
            f"have a superuser run `CREATE EXTENSION vector` in that database, {UPGRADE_AFTER}"
        )
    if state in _NOT_THERE:
        return (
            f"{where} needs the extension pgvector, which its server does not have: install it there "
            f"(https://github.com/pgvector/pgvector; on Debian and Ubuntu the package postgresql-"
            f"{_major(connection)}-pgvector), {UPGRADE_AFTER}"
        )
    return f"{where} needs the extension pgvector, which could not be created: {' '.join(str(error.orig).split())}"


def _major(connection: Connection) -> int:
    return int((connection.dialect.server_version_info or (0,))[0])


def _installed(connection: Connection) -> str | None:
    version: str | None = connection.scalar(sa.text("SELECT extversion FROM pg_extension WHERE extname = 'vector'"))
    return version


def _offered(connection: Connection) -> str | None:
    offered = sa.text("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")
    version: str | None = connection.scalar(offered)
    return version


def _recent(version: str) -> bool:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) >= OLDEST


def _where(connection: Connection) -> str:
    return f"the database {connection.engine.url.render_as_string(hide_password=True)}"
