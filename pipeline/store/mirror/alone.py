"""One process at a time brings a mirror in line.

Two would not only do the same: one that read a content, and was held up, would write over what the other wrote after a
change. So this is held by a connection or an open file, and not by a clock: a process that sleeps holds it on.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from pipeline.core.errors import StoreError
from pipeline.store.database import Database
from pipeline.store.locks import release_session_lock, session_lock

_NAME = "mirror"


@contextmanager
def alone(store: Database) -> Iterator[bool]:
    """Whether nobody else brings the mirror of this database in line; if so, nobody else does for the block's length.

    Raises:
        StoreError: that cannot be found out.
    """
    if store.engine.dialect.name == "postgresql":
        with _by_connection(store) as mine:
            yield mine
    else:
        with _by_file(f"{store.engine.url.database}.mirror.lock") as mine:
            yield mine


@contextmanager
def _by_connection(store: Database) -> Iterator[bool]:
    try:
        connection = store.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        mine = session_lock(connection, _NAME)
    except SQLAlchemyError as error:
        raise StoreError(f"the database cannot be used: {error}") from error
    try:
        yield mine
    finally:
        try:
            if mine:
                release_session_lock(connection, _NAME)
            connection.close()
        except SQLAlchemyError:
            connection.invalidate()  # a connection that is lost holds nothing


@contextmanager
def _by_file(path: str) -> Iterator[bool]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
