"""Opens the database, keeps its tables up to date, and hands out transactions.

SQLite is brought up to date when it is opened; a server database, which others may share, only
by `upgrade`. SQL is blocking: `read` and `write` are the one place where it leaves the event loop.
"""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import traceback
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
from pipeline.core.redaction import redacted
from pipeline.store.extension import check_extension, ensure_extension
from pipeline.store.locks import transaction_lock
from pipeline.store.sqlite_file import OpenFile, advice, open_file, uri_for_reading
from pipeline.store.vector_type import use_vectors

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT_MS = 30_000
"""How long a transaction on SQLite waits for another process's; ours last milliseconds."""

HOST = "host"
"""In what a session carries: the name of the host that it is of."""

IDLE_MS = 60_000
"""Between two statements of a transaction on a server; ours are over in milliseconds, or are at work."""

CONFLICTS = 5
"""How often a transaction is tried again that met another host's: they waited for each other, or for the same row."""

CONFLICT_STATES = ("40P01", "40001", "23503", "23505")
"""Of PostgreSQL: a deadlock, a serialization failure, and a row that another transaction took away, or made first."""

PAGE_BYTES = 8192
"""Of a SQLite file that is made: of 4096 bytes, two vectors of 384 numbers would leave a quarter unused."""

LOG_BYTES = 64 << 20
"""Of SQLite's write-ahead log, once all of it is in the database: what lies beyond is cut off."""


def host_of(session: Session) -> str:
    """Whose rows a session sees of what each host has its own of. SQLite is of one host, whatever it is called now."""
    if session.get_bind().dialect.name == "sqlite":
        return ""
    return name_of_host(session)


def name_of_host(session: Session) -> str:
    """What this host is called in what its runs write of themselves."""
    return str(session.info.get(HOST) or socket.gethostname())


class Database:
    """A database with the right tables. Close it, or use it as a context manager.

    `begin` opens a transaction that may write, `snapshot` one that only reads. The asynchronous
    `write` and `read` run a function of a session in such a transaction on another thread; writes
    have one thread, so that they follow each other and never meet SQLite's lock among themselves.

    carried: what each session finds in its `info`, besides the host.
    """

    def __init__(self, engine: Engine, host: str | None = None) -> None:
        self.engine = engine
        self.host = host or socket.gethostname()
        self.carried: dict[str, Any] = {}
        self._writing = engine.execution_options(nightshift_immediate=True)
        # SQLite reads one state of the database in a transaction anyway.
        snapshots = engine.dialect.name == "postgresql"
        self._reading = engine.execution_options(isolation_level="REPEATABLE READ") if snapshots else engine
        self._file = _open_file(engine)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="store-reader")

    @classmethod
    def open(cls, url: str, host: str | None = None) -> Self:
        """Open `url` with tables of this version.

        host: the name of this host among those that share the database; None is the system's.

        Raises:
            StoreError: it cannot be reached.
            SchemaError: it is a server database whose tables are out of date, or no revision that this program knows.
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
        return cls(engine, host)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A transaction that may write: committed at the end, rolled back on an exception."""
        with self._explained(), self._session(self._writing) as session, session.begin():
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A transaction that reads one consistent state and blocks no writer."""
        with self._explained(), self._session(self._reading) as session, session.begin():
            yield session

    async def write(self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function(session, ...)` in a transaction of its own on the writer's thread."""

        def run() -> T:
            for tries in range(CONFLICTS, -1, -1):
                try:
                    with self.begin() as session:
                        return function(session, *args, **kwargs)
                except StoreError as error:
                    if not tries or not _is_conflict(error.__cause__):
                        raise
            raise AssertionError

        return await asyncio.get_running_loop().run_in_executor(self._writer, run)

    async def read(self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function(session, ...)` in a reading transaction on another thread."""

        def run() -> T:
            with self.snapshot() as session:
                return function(session, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    def _session(self, engine: Engine) -> Session:
        return Session(engine, expire_on_commit=False, info={HOST: self.host, **self.carried})

    @contextmanager
    def _explained(self) -> Iterator[None]:
        if self._file is not None:
            self._file.check()
        try:
            yield
        except (SQLAlchemyError, OverflowError) as error:
            raise StoreError(_unusable(self.engine.url, error)) from error
        except (ValueError, TypeError) as error:
            if not _is_of_a_row(error):
                raise
            name = shown(self.engine.url)
            raise StoreError(
                f"the database {name} has a row that cannot be read ({error}): `python -m pipeline verify` says which"
            ) from error

    @property
    def lost(self) -> str | None:
        """Why nothing can be stored any more: its file was taken away while it is open. None where it is there."""
        try:
            if self._file is not None:
                self._file.check()
        except StoreError as error:
            return str(error)
        return None

    @property
    def is_shared(self) -> bool:
        """Whether several hosts may use it at once."""
        return self.engine.dialect.name != "sqlite"

    def close(self) -> None:
        """Finish what is being written and let go of every connection."""
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _is_of_a_row(error: BaseException) -> bool:
    """Whether an error is of turning a stored value into one of Python: no code of this program raised it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = str(frames[-1].f_globals.get("__name__", "")) if frames else ""
    return module in ("json", "json.decoder") or module.startswith("sqlalchemy.")


def _is_conflict(error: BaseException | None) -> bool:
    return getattr(getattr(error, "orig", None), "sqlstate", None) in CONFLICT_STATES


def make_engine(url: str) -> Engine:
    """An engine for `url`, with SQLite set up to be shared and durable.

    Raises:
        StoreError: the URL is not one, or its driver is not installed or none that this program knows.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite_engine(parsed)
        engine = sa.create_engine(parsed, pool_pre_ping=True)
    except NoSuchModuleError as error:  # an ArgumentError too, so it comes first
        raise StoreError(f"no such kind of database: {url.partition(':')[0]}") from error
    except (ArgumentError, ValueError) as error:  # a port that is no number is a ValueError
        raise StoreError(f"{url!r} is not a database URL; one looks like sqlite:///data/nightshift.db") from error
    except ImportError as error:
        raise StoreError(
            f"the driver of {parsed.drivername} is not installed ({error.name}): .venv/bin/pip install -e '.[postgres]'"
        ) from error
    if engine.dialect.name == "postgresql":
        if engine.dialect.driver != "psycopg":
            raise StoreError(f"{parsed.drivername} is no driver that Nightshift uses: write postgresql+psycopg://...")
        use_vectors(engine)
        _end_sleepers(engine)
    return engine


def _end_sleepers(engine: Engine) -> None:
    """Let the server end a transaction whose host fell asleep in it: others may wait for what it has locked."""

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET idle_in_transaction_session_timeout = {IDLE_MS}")
        connection.commit()


def _sqlite_engine(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise StoreError("a database in memory would be gone with the run: name a file, sqlite:///data/nightshift.db")
    file = Path(url.database)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        uri = None if url.database.startswith("file:") else uri_for_reading(file)
    except OSError as error:
        raise StoreError(_unusable(url, error)) from error
    if uri is None:
        engine = sa.create_engine(url)
    else:
        engine = sa.create_engine(url, creator=lambda: sqlite3.connect(uri, uri=True, check_same_thread=False))

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        # sqlite3 would begin transactions only before some statements, and none before DDL.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        if uri is not None:
            return
        for pragma in (
            f"page_size = {PAGE_BYTES}",
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
    """Bring the tables to `revision`, all in one transaction. Hosts that do so at the same time take turns.

    Raises:
        SchemaError: the database is at a revision that this version does not know, or its server lacks what it needs.
        StoreError: the database cannot be used.
    """
    # Alembic is slow to import, and rarely needed.
    from alembic.config import Config

    from alembic import command

    config = Config()
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    with engine.execution_options(nightshift_immediate=True).begin() as connection:
        config.attributes["connection"] = connection
        if connection.dialect.name == "postgresql":
            transaction_lock(connection, "upgrade")
        check_revision(_revision_of(connection), _name_of(engine.url))
        if connection.dialect.name == "postgresql":
            ensure_extension(connection)
        try:
            command.upgrade(config, revision)
        except SQLAlchemyError as error:
            raise StoreError(_unusable(engine.url, error)) from error


def _bring_up_to_date(engine: Engine) -> None:
    current, head = _current(engine), _head()
    if current == head:
        if engine.dialect.name == "postgresql":
            with engine.connect() as connection:
                check_extension(connection)
        return
    check_revision(current, _name_of(engine.url))
    if engine.dialect.name == "sqlite":
        upgrade(engine)
        return
    state = "has no tables yet" if current is None else f"is at revision {current}, this version needs {head}"
    raise SchemaError(f"{_name_of(engine.url)} {state}: run `python -m pipeline db upgrade`")


def check_revision(revision: str | None, name: str) -> None:
    """Raises SchemaError where this program has no such revision.

    revision: what a database is at, or a backup; None: no tables yet. name: how the message calls it.
    """
    known = known_revisions()
    if revision is None or revision in known:
        return
    if revision.isdecimal() and revision < known[0]:
        raise SchemaError(
            f"{name} is at revision {revision}, and this version of Nightshift can upgrade it only from {known[0]} on: "
            'upgrade it with an older version first (docs/operations.md, "Very old databases")'
        )
    raise SchemaError(f"{name} was made by a newer version of Nightshift (revision {revision}): update the program")


def _current(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return _revision_of(connection)


def _revision_of(connection: Connection) -> str | None:
    # The same answer as Alembic's, without the time that importing Alembic takes at each start.
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: Any = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return None if revision is None else str(revision)


def _head() -> str:
    """The newest revision: files are named NNNN_what.py, and the number is the revision."""
    return max(known_revisions())


def known_revisions() -> list[str]:
    """The revisions that this program knows, oldest first."""
    return sorted(path.name.split("_", 1)[0] for path in (_migrations() / "versions").glob("[0-9]*_*.py"))


def _migrations() -> Path:
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent / "alembic"
    return checkout if (checkout / "versions").is_dir() else package / "_alembic"


def shown(url: URL) -> str:
    """The URL without its secrets, and with a folder among its parameters as a person types it."""
    address, mark, parameters = url.render_as_string(hide_password=True).partition("?")
    return redacted(address + mark + parameters.replace("%2F", "/"))


def _name_of(url: URL) -> str:
    return f"the database {shown(url)}"


def _unusable(url: URL, error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    words = cause.strerror if isinstance(cause, OSError) and cause.strerror else " ".join(str(cause).split())
    known = advice(Path(url.database or ""), words) if url.get_backend_name() == "sqlite" else None
    return f"the database {shown(url)} cannot be used: {words}{f'; {known}' if known else ''}"


def _open_file(engine: Engine) -> OpenFile | None:
    name = engine.url.database if engine.dialect.name == "sqlite" else None
    return None if name is None or name.startswith("file:") else open_file(Path(name))
