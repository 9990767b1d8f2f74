"""Opens the database, keeps its tables up to date, and hands out transactions.

SQLite is brought up to date when it is opened; a server database, which others may share, only
by `upgrade`. SQL is blocking: `read` and `write` are the one place where it leaves the event loop.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from pipeline.core.errors import SchemaError, StoreError

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT_MS = 30_000
"""How long a transaction on SQLite waits for another process's; ours last milliseconds."""

LOG_BYTES = 64 << 20
"""Of SQLite's write-ahead log, once all of it is in the database: what lies beyond is cut off."""


class Database:
    """A database with the right tables. Close it, or use it as a context manager.

    `begin` opens a transaction that may write, `snapshot` one that only reads. The asynchronous
    `write` and `read` run a function of a session in such a transaction on another thread; writes
    have one thread, so that they follow each other and never meet SQLite's lock among themselves.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writing = engine.execution_options(nightshift_immediate=True)
        # SQLite reads one state of the database in a transaction anyway.
        snapshots = engine.dialect.name == "postgresql"
        self._reading = engine.execution_options(isolation_level="REPEATABLE READ") if snapshots else engine
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="store-reader")

    @classmethod
    def open(cls, url: str) -> Self:
        """Open `url` with tables of this version.

        Raises:
            StoreError: it cannot be reached.
            SchemaError: it is a server database whose tables are out of date, or it is newer than this program.
        """
        engine = make_engine(url)
        try:
            _bring_up_to_date(engine)
        except (SQLAlchemyError, OSError) as error:
            engine.dispose()
            raise StoreError(_unusable(engine.url, error)) from error
        except StoreError:
            engine.dispose()
            raise
        return cls(engine)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A transaction that may write: committed at the end, rolled back on an exception."""
        with self._explained(), Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A transaction that reads one consistent state and blocks no writer."""
        with self._explained(), Session(self._reading, expire_on_commit=False) as session, session.begin():
            yield session

    async def write(self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function(session, ...)` in a transaction of its own on the writer's thread."""

        def run() -> T:
            with self.begin() as session:
                return function(session, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._writer, run)

    async def read(self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function(session, ...)` in a reading transaction on another thread."""

        def run() -> T:
            with self.snapshot() as session:
                return function(session, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, OverflowError) as error:
            raise StoreError(_unusable(self.engine.url, error)) from error

    def close(self) -> None:
        """Finish what is being written and let go of every connection."""
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def make_engine(url: str) -> Engine:
    """An engine for `url`, with SQLite set up to be shared and durable.

    Raises:
        StoreError: the URL is not one, or its driver is not installed.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite_engine(parsed)
        return sa.create_engine(parsed, pool_pre_ping=True)
    except NoSuchModuleError as error:  # an ArgumentError too, so it comes first
        raise StoreError(f"no such kind of database: {url.partition(':')[0]}") from error
    except ArgumentError as error:
        raise StoreError(f"{url!r} is not a database URL; one looks like sqlite:///data/nightshift.db") from error
    except ImportError as error:
        raise StoreError(
            f"the driver of {parsed.drivername} is not installed ({error.name}): pip install 'psycopg[binary]'"
        ) from error


def _sqlite_engine(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise StoreError("a database in memory would be gone with the run: name a file, sqlite:///data/nightshift.db")
    if url.database:
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(_unusable(url, error)) from error
    engine = sa.create_engine(url)

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        # sqlite3 would begin transactions only before some statements, and none before DDL.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {BUSY_TIMEOUT_MS}",
            "journal_mode = WAL",
            # FULL: what a commit stored is still there after a power cut. A commit is a batch, so it costs little.
            "synchronous = FULL",
            # One large transaction, or one long reader, leaves the log no larger than this for ever after.
            f"journal_size_limit = {LOG_BYTES}",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads first and then writes fails at once when another one wrote in between.
        immediate = connection.get_execution_options().get("nightshift_immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def schema_revisions(engine: Engine) -> tuple[str | None, str]:
    """The revision that the database is at (None: no tables yet) and the one that this program needs.

    Raises:
        StoreError: the database cannot be reached.
    """
    try:
        return _current(engine), _head()
    except SQLAlchemyError as error:
        raise StoreError(_unusable(engine.url, error)) from error


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the tables to `revision`, each migration in a transaction.

    Raises:
        SchemaError: the database was made by a newer version.
    """
    # Alembic is slow to import, and rarely needed.
    from alembic.config import Config
    from alembic.util import CommandError

    from alembic import command

    config = Config()
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    with engine.execution_options(nightshift_immediate=True).begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, revision)
        except CommandError as error:
            raise SchemaError(_newer(engine.url)) from error


def _bring_up_to_date(engine: Engine) -> None:
    current, head = _current(engine), _head()
    if current == head:
        return
    if engine.dialect.name == "sqlite":
        upgrade(engine)
        return
    if current is not None and current not in _known_revisions():
        raise SchemaError(_newer(engine.url))
    state = "has no tables yet" if current is None else f"is at revision {current}, this version needs {head}"
    raise SchemaError(f"the database {shown(engine.url)} {state}: run `python -m pipeline db upgrade`")


def _current(engine: Engine) -> str | None:
    # The same answer as Alembic's, without the time that importing Alembic takes at each start.
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        revision: Any = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        return None if revision is None else str(revision)


def _head() -> str:
    """The newest revision: files are named NNNN_what.py, and the number is the revision."""
    return max(_known_revisions())


def _known_revisions() -> list[str]:
    return sorted(path.name.split("_", 1)[0] for path in (_migrations() / "versions").glob("[0-9]*_*.py"))


def _migrations() -> Path:
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent / "alembic"
    return checkout if (checkout / "versions").is_dir() else package / "_alembic"


def shown(url: URL) -> str:
    """The URL without its password."""
    return url.render_as_string(hide_password=True)


def _newer(url: URL) -> str:
    return f"the database {shown(url)} was made by a newer version of Nightshift: update the program"


def _unusable(url: URL, error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return f"the database {shown(url)} cannot be used: {' '.join(str(cause).split())}"
