"""Opening, upgrading, and what an out-of-date or unreachable database says."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from pipeline.core.errors import SchemaError, StoreError
from pipeline.store.database import Database, make_engine, schema_revisions, shown, upgrade
from pipeline.store.tables import SourceRow, Table
from tests.store.rows import utc_now

VERSIONS = sorted((Path(__file__).parents[2] / "alembic" / "versions").glob("*.py"))


def test_sqlite_is_made_with_its_folder_and_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.db"
    with Database.open(f"sqlite:///{path}") as store:
        assert schema_revisions(store.engine)[0] == schema_revisions(store.engine)[1]
    assert path.exists()


def test_sqlite_is_durable_shared_and_checked(tmp_path: Path) -> None:
    with Database.open(f"sqlite:///{tmp_path / 'x.db'}") as store, store.snapshot() as session:
        values = {name: session.scalar(sa.text(f"PRAGMA {name}")) for name in ("journal_mode", "foreign_keys")}
        assert values == {"journal_mode": "wal", "foreign_keys": 1}
        assert session.scalar(sa.text("PRAGMA busy_timeout")) == 30_000
        assert session.scalar(sa.text("PRAGMA synchronous")) == 2  # FULL


def test_a_server_database_is_upgraded_only_when_asked(new_postgres_url: str) -> None:
    with pytest.raises(SchemaError, match="has no tables yet: run `python -m pipeline db upgrade`"):
        Database.open(new_postgres_url)
    engine = make_engine(new_postgres_url)
    upgrade(engine)
    engine.dispose()
    Database.open(new_postgres_url).close()


@pytest.mark.parametrize("revision", ["9999"])
def test_a_database_of_a_newer_version_is_refused(store: Database, database_url: str, revision: str) -> None:
    with store.begin() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    with pytest.raises(SchemaError, match="newer version of Nightshift"):
        Database.open(database_url)


def test_an_older_server_database_is_refused_with_the_way_out(store: Database, database_url: str) -> None:
    if store.engine.dialect.name == "sqlite":
        pytest.skip("SQLite is upgraded by itself")
    with store.begin() as session:
        session.execute(sa.text("DELETE FROM alembic_version"))
    with pytest.raises(SchemaError, match="db upgrade"):
        Database.open(database_url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "not a database URL"),
        ("oracle+nothing://x", "no such kind of database"),
        ("postgresql+asyncpg://x/y", "write postgresql\\+psycopg://|driver of postgresql\\+asyncpg is not installed"),
        ("postgresql+psycopg://nobody@127.0.0.1:1/x", "cannot be used"),
    ],
)
def test_a_database_that_cannot_be_had_says_so(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        Database.open(url)


def test_a_file_that_is_no_database_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_text("this is not a database, whatever its name says" * 50)
    with pytest.raises(StoreError, match=r"x\.db cannot be used: file is not a database"):
        Database.open(f"sqlite:///{path}")


def test_a_password_is_not_shown() -> None:
    with pytest.raises(StoreError) as caught:
        Database.open("postgresql+psycopg://me:hunter2@127.0.0.1:1/x")
    assert "hunter2" not in str(caught.value)


def test_the_folder_of_a_socket_is_shown_as_it_is_typed() -> None:
    typed = "postgresql+psycopg://me@/x?host=/run/postgresql"
    assert shown(make_url(typed)) == typed


def test_the_migrations_make_the_tables_of_the_code(store: Database) -> None:
    with store.engine.connect() as connection:
        # The counts are the database's own, and SQLite does not say that an index descends.
        unseen = {"document_counts", "chunk_counts", "chunk_numbers"}
        if connection.dialect.name == "sqlite":
            unseen.add("ix_contents_newest")
            unseen |= {"ix_chunk_words_words", "ix_embeddings_content_id"}  # that PostgreSQL alone has
        # Nor do tables that are the index over another one belong to the program.
        options = {
            "include_object": lambda _object, name, *_: name not in unseen and not name.startswith("chunk_words_")
        }
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Table.metadata) == []


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_each_revision_is_numbered_as_its_file(path: Path) -> None:
    assert f'revision = "{path.stem[:4]}"' in path.read_text()


def test_writers_wait_for_each_other_and_readers_for_nobody(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    with Database.open(url) as one, Database.open(url) as other:
        began, finished = threading.Event(), threading.Event()

        def write_slowly() -> None:
            with one.begin() as session:
                session.add(SourceRow(root="/a", created_at=utc_now()))
                session.flush()
                began.set()
                time.sleep(0.3)
            finished.set()

        writer = threading.Thread(target=write_slowly)
        writer.start()
        began.wait()
        with other.snapshot() as session:
            assert session.scalar(sa.select(sa.func.count()).select_from(SourceRow)) == 0
            assert not finished.is_set()
        with other.begin() as session:
            # It was let in only after the other had committed, and sees what that wrote.
            assert session.scalars(sa.select(SourceRow.root)).all() == ["/a"]
            session.add(SourceRow(root="/b", created_at=utc_now()))
        writer.join()
        assert finished.is_set()


async def test_an_error_rolls_the_transaction_back(store: Database) -> None:
    def write(session: Session) -> None:
        session.add(SourceRow(root="/a", created_at=utc_now()))
        session.flush()
        raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        await store.write(write)

    def count(session: Session) -> int | None:
        return session.scalar(sa.select(sa.func.count()).select_from(SourceRow))

    assert await store.read(count) == 0


async def test_a_database_error_is_a_store_error(store: Database) -> None:
    def twice(session: Session) -> None:
        session.add_all([SourceRow(root="/a", created_at=utc_now()), SourceRow(root="/a", created_at=utc_now())])

    with pytest.raises(StoreError, match="cannot be used"):
        await store.write(twice)


def test_foreign_keys_hold_on_sqlite(tmp_path: Path) -> None:
    with Database.open(f"sqlite:///{tmp_path / 'x.db'}") as store:
        connection = store.engine.raw_connection()
        try:
            with pytest.raises(sqlite3.IntegrityError):
                connection.cursor().execute(
                    "INSERT INTO pending_chunks (chunk_id, content_id, tokens) VALUES (1, 1, x'00')"
                )
        finally:
            connection.close()
