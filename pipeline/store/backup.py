"""Backup and restore of a SQLite database. PostgreSQL has programs of its own for it: see docs/operations.md.

A backup is a database file of its own, taken while runs go on: one moment's state, checked, and put in place whole.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import StoreError, UsageError
from pipeline.store.database import BUSY_TIMEOUT_MS, check_revision
from pipeline.store.nearest.copies import folder_of
from pipeline.store.sqlite_file import uri_for_reading

ASIDE = ".before-restore"
"""What the name of a database ends in that a restore replaced."""

_HEAD = b"SQLite format 3\0"
_HEAD_SIZE = 100
_FILES = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True)
class BackedUp:
    """What a backup holds. size: of the file, in bytes."""

    revision: str
    documents: int
    chunks: int
    size: int


def back_up(database: Path, target: Path) -> BackedUp:
    """Write what `database` holds at this moment into the file `target`, in place of an earlier backup.

    Raises:
        UsageError: there is no such database, or `target` is something else than a backup.
        StoreError: it cannot be read or written, or the copy is not sound.
    """
    if not database.exists():
        raise UsageError(f"there is no database at {database}")
    if target.exists() and (target.samefile(database) or not _is_backup(target)):
        raise UsageError(f"{target} is not a backup of this program: name another file")
    with _explained(target), unfinished_beside(target) as unfinished:
        with closing(_connect(database)) as source, closing(sqlite3.connect(unfinished)) as copy:
            # In one step: one that is divided begins anew whenever another process writes, and might never end.
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            copy.execute("PRAGMA application_id = 0")
        found = inspect(unfinished)
        _set_sum(unfinished, _sum_of(unfinished))
        put_in_place(unfinished, target)
    return found


def restore(backup: Path, database: Path, *, force: bool) -> BackedUp:
    """Put what `backup` holds in the place of `database`; what was there stays beside it, as `ASIDE`.

    Whoever calls sees to it that nobody uses the database. A power cut leaves the old one or the new one.

    force: also where the database holds documents.

    Raises:
        UsageError: `backup` is not one, or the database holds documents and not `force`.
        SchemaError: it was made by a newer version, or by one that is too old.
        StoreError: it is not sound, or a process uses the database.
    """
    if not backup.is_file():
        raise UsageError(f"there is no file {backup}")
    if database.exists() and backup.samefile(database):
        raise UsageError(f"{backup} is the database itself: name the backup")
    with _explained(database), unfinished_beside(database) as unfinished:
        shutil.copyfile(backup, unfinished)
        found = _checked(unfinished, str(backup))
        _set_sum(unfinished, 0)
        if database.exists():
            if not force and _holds_anything(database):
                raise UsageError(
                    f"{database} holds documents: --force puts the backup in its place, and keeps it as "
                    f"{database.name}{ASIDE}"
                )
            _set_aside(database)
        for ending in _FILES:  # of a database that somebody deleted: they would be taken for the new one's
            database.with_name(database.name + ending).unlink(missing_ok=True)
        # The numbers of chunks go back with the database: what was made of them by these is of other chunks.
        shutil.rmtree(folder_of(str(database)), ignore_errors=True)
        put_in_place(unfinished, database)
    return found


def inspect(file: Path, name: str = "") -> BackedUp:
    """What a database file holds. Raises UsageError, SchemaError or StoreError where it is not a sound one of ours.

    name: how messages call it, where not by its own.
    """
    name = name or str(file)
    if not _is_sqlite(file):
        raise UsageError(f"{name} is not a backup of a SQLite database")
    with closing(_connect(file)) as connection:
        try:
            problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as error:
            problem = str(error)
        if problem != "ok":
            raise StoreError(f"{name} is damaged: {problem}")
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            raise UsageError(f"{name} is not a backup of this program's database")
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone() or ("",)
        check_revision(revision, name)
        (documents,) = connection.execute("SELECT count(*) FROM documents").fetchone()
        (chunks,) = connection.execute("SELECT count(*) FROM chunks").fetchone()
    return BackedUp(revision, documents, chunks, file.stat().st_size)


def _checked(file: Path, name: str) -> BackedUp:
    """As `inspect`, of a backup: its bytes too are those that were written. name: how messages call it."""
    if not _is_sqlite(file):
        raise UsageError(f"{name} is not a backup of a SQLite database")
    with closing(_connect(file)) as connection:
        try:
            (wanted,) = connection.execute("PRAGMA application_id").fetchone()
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{name} is damaged: {error}") from error
    if wanted and wanted != _sum_of(file):  # 0 in a copy that was made by other means
        raise StoreError(f"{name} is damaged, or was changed since it was made")
    return inspect(file, name)


def _sum_of(file: Path) -> int:
    """A checksum of all but the head, in which it is kept. Never 0, and signed, as SQLite has numbers there."""
    found = 0
    with file.open("rb") as opened:
        opened.seek(_HEAD_SIZE)
        while block := opened.read(1 << 20):
            found = zlib.crc32(block, found)
    return int.from_bytes((found or 1).to_bytes(4, "big"), "big", signed=True)


def _set_sum(file: Path, value: int) -> None:
    with closing(_connect(file)) as connection:
        connection.execute(f"PRAGMA application_id = {value}")


def _connect(file: Path) -> sqlite3.Connection:
    uri = uri_for_reading(file)
    connection = sqlite3.connect(uri or file, isolation_level=None, uri=uri is not None)
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    return connection


def _is_sqlite(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_HEAD)) == _HEAD


def _is_backup(file: Path) -> bool:
    try:
        _checked(file, str(file))
    except (StoreError, UsageError, sqlite3.Error, OSError):
        return False
    return True


def _holds_anything(database: Path) -> bool:
    try:
        return inspect(database).documents > 0
    except (StoreError, UsageError, sqlite3.Error):
        return True  # whatever it is, somebody may still want it


def _set_aside(database: Path) -> None:
    """Make the old database one file, and give it a second name. A later power cut finds it under its first."""
    aside = database.with_name(database.name + ASIDE)
    try:
        with closing(_connect(database)) as connection:
            connection.execute("PRAGMA busy_timeout = 1000")
            # Nobody else may have it open for this; what its log holds is in the file then, and the log is gone.
            mode = connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
        if mode != "delete":
            raise StoreError(f"a process uses {database}: stop it first")
    except sqlite3.OperationalError as error:
        raise StoreError(f"a process uses {database} ({error}): stop it first") from error
    except sqlite3.DatabaseError:
        # It cannot be read at all: what is beside it goes with it, and must not be taken for the new one's.
        for ending in _FILES:
            with contextlib.suppress(FileNotFoundError):
                database.with_name(database.name + ending).replace(aside.with_name(aside.name + ending))
    with unfinished_beside(aside) as second:
        try:
            os.link(database, second)
        except OSError:  # a file system without links
            shutil.copyfile(database, second)
        put_in_place(second, aside)


@contextmanager
def unfinished_beside(target: Path) -> Iterator[Path]:
    """A name for a file that is not finished, in the same folder; what is left of it goes."""
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        yield unfinished
    finally:
        for ending in ("", *_FILES):
            unfinished.with_name(unfinished.name + ending).unlink(missing_ok=True)


def put_in_place(unfinished: Path, target: Path) -> None:
    """Rename a file, once all of it is on the disk."""
    for path, flags in ((unfinished, os.O_RDONLY), (target.parent, os.O_RDONLY | os.O_DIRECTORY)):
        if path == target.parent:
            unfinished.replace(target)
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{target} cannot be written: {getattr(error, 'strerror', None) or error}") from error
