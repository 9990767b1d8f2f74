"""Backup and restore of a database on a server, by PostgreSQL's own programs.

A password is never on a command line, where every user of the host could read it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from pipeline.core.errors import RunInProgress, StoreError, UsageError
from pipeline.store.backup import BackedUp, put_in_place, unfinished_beside
from pipeline.store.database import check_revision
from pipeline.store.extension import ensure_extension
from pipeline.store.runs import LEASE
from pipeline.store.tables import Table

_HEAD = b"PGDMP"
_OURS_BESIDES = frozenset({"alembic_version", "document_counts", "chunk_counts"})


def back_up_server(engine: Engine, target: Path) -> BackedUp:
    """Write what the database holds at this moment into the file `target`, in PostgreSQL's own form.

    Raises as `backup.back_up`; StoreError also where `pg_dump` is missing or too old for the server.
    """
    if target.exists() and not _is_dump(target):
        raise UsageError(f"{target} is not a backup of this program: name another file")
    with engine.connect() as connection:
        server = _major(connection)
    with unfinished_beside(target) as unfinished:
        arguments = ["--format=custom", "--no-owner", "--no-privileges", f"--file={unfinished}"]
        _run("pg_dump", [*arguments, f"--dbname={_where(engine.url)}"], engine.url, server)
        revision = _revision_of(unfinished, engine.url, server)
        with engine.connect() as connection:
            documents = connection.scalar(sa.text("SELECT count(*) FROM documents")) or 0
            chunks = connection.scalar(sa.text("SELECT count(*) FROM chunks")) or 0
        size = unfinished.stat().st_size
        put_in_place(unfinished, target)
    return BackedUp(revision, documents, chunks, size)


def restore_server(engine: Engine, backup: Path, *, force: bool) -> BackedUp:
    """Put what `backup` holds into the database, in one transaction: all of it, or what was there before.

    force: also where the database holds documents, which are gone then.

    Raises as `backup.restore`; StoreError also where the programs are missing or too old for the server.
    """
    if not backup.is_file():
        raise UsageError(f"there is no file {backup}")
    if not _is_dump(backup):
        raise UsageError(f"{backup} is not a backup of a PostgreSQL database")
    with engine.begin() as connection:
        server = _major(connection)
        revision = _revision_of(backup, engine.url, server)
        check_revision(revision, str(backup))
        _nobody_at_work(connection)
        drop = _drop_everything(connection, force=force)
        ensure_extension(connection)
    _replace(engine.url, backup, drop, server)
    with engine.connect() as connection:
        documents = connection.scalar(sa.text("SELECT count(*) FROM documents")) or 0
        chunks = connection.scalar(sa.text("SELECT count(*) FROM chunks")) or 0
    return BackedUp(revision, documents, chunks, backup.stat().st_size)


def _replace(url: URL, backup: Path, drop: Sequence[str], server: int) -> None:
    """Send the server all of the backup as one transaction, which nothing commits but our own last word."""
    entries = _run("pg_restore", ["--list", str(backup)], url, server).splitlines()
    # The extension is the server's, and takes rights that the owner of the tables may not have.
    kept = [entry for entry in entries if not re.search(r" (EXTENSION|COMMENT - EXTENSION|SCHEMA) ", entry)]
    quiet = ["--no-psqlrc", "--quiet", "--output=/dev/null", "--set=ON_ERROR_STOP=1"]
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".list") as listed:
        listed.write("\n".join(kept) + "\n")
        listed.flush()
        arguments = ["--no-owner", "--no-privileges", f"--use-list={listed.name}", "--file=-", str(backup)]
        with subprocess.Popen(
            [_program("psql", server), *quiet, f"--dbname={_where(url)}"],
            env=_environment(url),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as writing:
            try:
                with suppress(BrokenPipeError):  # it says why
                    _send([_program("pg_restore", server), *arguments], writing, drop, backup)
                _, problem = writing.communicate()
            finally:
                writing.kill()
    if writing.returncode:
        raise StoreError(f"the database could not be restored, and is as it was: {_last(problem)}{_HINT}")


def _send(reading: Sequence[str], writing: subprocess.Popen[bytes], drop: Sequence[str], backup: Path) -> None:
    """Whatever ends this early leaves out the COMMIT, and the server then forgets the rest."""
    assert writing.stdin is not None
    first = ("BEGIN", "SET LOCAL client_min_messages = warning", *drop)
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(reading, stdout=subprocess.PIPE, stderr=said) as script:
            assert script.stdout is not None
            try:
                writing.stdin.write("".join(f"{line};\n" for line in first).encode())
                shutil.copyfileobj(script.stdout, writing.stdin)
            except BaseException:
                script.kill()
                raise
        if script.returncode:
            said.seek(0)
            raise StoreError(f"the backup {backup} cannot be read: {_last(said.read())}")
    writing.stdin.write(b"COMMIT;\n")
    writing.stdin.flush()


_HINT = " (the programs psql and pg_restore should be those of the server's version)"


def _nobody_at_work(connection: Connection) -> None:
    """Raises RunInProgress where a run of any host is at work. Of tables of any revision."""
    if sa.inspect(connection).has_table("runs"):
        lease = f"interval '{LEASE.total_seconds():.0f} s'"
        heard_of = f"heartbeat_at > now() - {lease} AND heartbeat_at < now() + {lease}"
        query = f"SELECT id, host, pid FROM runs WHERE state = 'running' AND {heard_of}"  # noqa: S608 - a constant
        for run_id, host, pid in connection.execute(sa.text(query)):
            raise RunInProgress(f"run {run_id} (pid {pid} on {host}, heard of within a minute)")


def _drop_everything(connection: Connection, *, force: bool) -> list[str]:
    """What makes room for a backup. Raises UsageError where that is not to be."""
    tables = set(sa.inspect(connection).get_table_names())
    strange = sorted(tables - set(Table.metadata.tables) - _OURS_BESIDES)
    if strange:
        raise UsageError(
            f"the database also holds tables that are not this program's ({', '.join(strange[:3])}): "
            "restore into a database of its own"
        )
    if "documents" in tables and not force and connection.scalar(sa.text("SELECT EXISTS (SELECT 1 FROM documents)")):
        raise UsageError("the database holds documents: --force puts the backup in their place, and they are gone")
    functions = connection.scalars(
        sa.text(
            "SELECT p.oid::regprocedure::text FROM pg_proc p "
            "WHERE p.prokind = 'f' AND p.pronamespace = current_schema()::regnamespace "
            "AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')"
        )
    )
    quoted = connection.dialect.identifier_preparer.quote
    return [
        *(f"DROP TABLE IF EXISTS {quoted(name)} CASCADE" for name in sorted(tables)),
        *(f"DROP FUNCTION IF EXISTS {name} CASCADE" for name in functions),
    ]


def _revision_of(dump: Path, url: URL, server: int) -> str:
    arguments = ["--data-only", "--table=alembic_version", "--file=-", str(dump)]
    found = re.search(r"^COPY [^\n]*\n(\w+)\n\\\.", _run("pg_restore", arguments, url, server), re.MULTILINE)
    if found is None:
        raise UsageError(f"{dump} is not a backup of this program's database")
    return found[1]


def _is_dump(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(_HEAD)) == _HEAD
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}") from error


def _run(program: str, arguments: Sequence[str], url: URL, server: int) -> str:
    found = _program(program, server)
    done = subprocess.run([found, *arguments], env=_environment(url), capture_output=True, check=False)
    if done.returncode:
        raise StoreError(f"{found} failed: {_last(done.stderr)}")
    return done.stdout.decode("utf-8", "replace")


def _program(name: str, server: int) -> str:
    """Where one of PostgreSQL's programs is. Raises StoreError where it is missing, or older than the server."""
    found = shutil.which(name)
    wanted = f"install the client programs of PostgreSQL {server}, and have them first on PATH"
    if found is None:
        raise StoreError(f"{name} is not on PATH, and it makes and reads backups of PostgreSQL: {wanted}")
    said = subprocess.run([found, "--version"], capture_output=True, check=False).stdout.decode("utf-8", "replace")
    version = re.search(r"\) (\d+)", said)
    if version is not None and int(version[1]) < server:
        raise StoreError(f"{found} is of PostgreSQL {version[1]}, and the server is {server}: {wanted}")
    return found


def _major(connection: Connection) -> int:
    try:
        return int(connection.scalar(sa.text("SHOW server_version_num"))) // 10_000
    except SQLAlchemyError as error:
        raise StoreError(f"the database cannot be asked for its version: {error}") from error


def _where(url: URL) -> str:
    """How libpq is told where the database is, without the password."""
    parts = {"host": url.host, "port": url.port, "user": url.username, "dbname": url.database, **url.query}
    given = {name: value for name, value in parts.items() if value is not None and name != "password"}
    return " ".join(f"{name}='{_escaped(str(value))}'" for name, value in given.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


def _environment(url: URL) -> Mapping[str, str]:
    password = url.password or url.query.get("password")
    return {**os.environ, "LC_ALL": "C.UTF-8", **({"PGPASSWORD": str(password)} if password else {})}


def _last(said: bytes) -> str:
    """The line that says what went wrong."""
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    return next(
        (line for line in lines if "error:" in line or "ERROR:" in line), lines[-1] if lines else "no reason given"
    )
