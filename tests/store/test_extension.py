"""What is said where pgvector is missing, too old, out of sight, or may not be created; and upgrades that meet."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from pipeline.core.errors import SchemaError, StoreError
from pipeline.store.database import Database, make_engine, schema_revisions, upgrade
from pipeline.store.locks import transaction_lock

DEADLINE = 120.0
"""Seconds after which what a test waits for is not coming any more."""


def run_as_superuser(url: str, *statements: str) -> None:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


def refused_upgrade(url: str) -> str:
    """What an upgrade says; it must have left nothing behind."""
    engine = make_engine(url)
    try:
        with pytest.raises(SchemaError) as refused:
            upgrade(engine)
        assert schema_revisions(engine)[0] is None
    finally:
        engine.dispose()
    return str(refused.value)


def refused_opening(url: str) -> str:
    with pytest.raises(SchemaError) as refused:
        Database.open(url)
    return str(refused.value)


def test_a_role_that_may_not_create_the_extension_is_told_who_may(new_postgres_url: str) -> None:
    name = sa.make_url(new_postgres_url).database
    role = f"plain_{name}"
    run_as_superuser(new_postgres_url, f"CREATE ROLE {role} LOGIN", f"ALTER DATABASE {name} OWNER TO {role}")
    url = sa.make_url(new_postgres_url).set(username=role).render_as_string(hide_password=False)
    message = refused_upgrade(url)
    assert message.endswith(
        f"needs the extension pgvector, which {role} may not create: have a superuser run `CREATE EXTENSION vector` in "
        "that database, then run `python -m pipeline db upgrade`"
    )
    run_as_superuser(new_postgres_url, "CREATE EXTENSION vector")  # as it says
    engine = make_engine(url)
    upgrade(engine)
    engine.dispose()
    Database.open(url).close()


def test_a_server_without_the_extension_is_named_with_what_to_install(new_postgres_url: str) -> None:
    name = sa.make_url(new_postgres_url).database
    run_as_superuser(new_postgres_url, f"ALTER DATABASE {name} SET extension_control_path = '/nowhere'")
    message = refused_upgrade(new_postgres_url)
    assert "needs the extension pgvector, which its server does not have: install it there" in message
    assert "the package postgresql-18-pgvector), then run `python -m pipeline db upgrade`" in message


def test_the_command_says_it_in_one_line(new_postgres_url: str) -> None:
    name = sa.make_url(new_postgres_url).database
    run_as_superuser(new_postgres_url, f"ALTER DATABASE {name} SET extension_control_path = '/nowhere'")
    command = [sys.executable, "-m", "pipeline", "db", "upgrade", "--database", new_postgres_url]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Traceback" not in refused.stderr
    assert "pgvector" in refused.stderr


def test_an_extension_that_is_too_old_is_not_worked_with(postgres_url: str) -> None:
    run_as_superuser(postgres_url, "UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    assert refused_opening(postgres_url).endswith(
        "has pgvector 0.7.4; Nightshift needs 0.8 or newer: have the extension's owner run "
        "`ALTER EXTENSION vector UPDATE` there"
    )
    name = sa.make_url(postgres_url).database
    run_as_superuser(postgres_url, f"ALTER DATABASE {name} SET extension_control_path = '/nowhere'")
    assert "0.8 or newer: install pgvector 0.8 or newer on its server, and have" in refused_opening(postgres_url)


def test_an_extension_that_is_gone_or_out_of_sight_is_noticed_when_the_database_is_opened(
    postgres_url: str,
) -> None:
    run_as_superuser(postgres_url, "CREATE SCHEMA hidden", "ALTER EXTENSION vector SET SCHEMA hidden")
    assert "has pgvector in the schema hidden, which is not on the search_path" in refused_opening(postgres_url)
    run_as_superuser(postgres_url, "DROP EXTENSION vector CASCADE")
    assert refused_opening(postgres_url).endswith(
        "does not have the extension pgvector, which vectors need: run `CREATE EXTENSION vector` there"
    )


def waiting_for_locks(connection: Connection) -> int:
    query = sa.text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return int(connection.scalar(query) or 0)


@pytest.fixture
def engine(new_postgres_url: str) -> Engine:
    return make_engine(new_postgres_url)


def test_of_two_hosts_that_upgrade_at_once_each_finds_it_done(engine: Engine, new_postgres_url: str) -> None:
    command = [sys.executable, "-m", "pipeline", "db", "upgrade", "--json", "--database", new_postgres_url]
    ends = time.monotonic() + DEADLINE
    with engine.begin() as holding:
        transaction_lock(holding, "upgrade")
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
        while waiting_for_locks(holding) < 2:  # both have seen a database without tables
            assert time.monotonic() < ends
            time.sleep(0.01)
    for process in both:
        out, err = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, err
        assert b'"before": null' in out
    current, head = schema_revisions(engine)
    assert current == head
    engine.dispose()


def test_a_driver_that_is_missing_names_the_command(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a process that finds no psycopg, as in an installation without the extra."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "psycopg.py").write_text("raise ModuleNotFoundError('no psycopg', name='psycopg')\n")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pipeline.core.errors import StoreError\n"
        "from pipeline.store.database import make_engine\n"
        "try: make_engine('postgresql+psycopg://x/y')\n"
        "except StoreError as error: print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
    ).stdout
    assert said == (
        "the driver of postgresql+psycopg is not installed (psycopg): .venv/bin/pip install -e '.[postgres]'\n"
    )


def test_a_server_that_does_not_answer_is_no_question_of_the_extension() -> None:
    with pytest.raises(StoreError, match="cannot be used"):
        Database.open("postgresql+psycopg://nobody@127.0.0.1:1/x")
