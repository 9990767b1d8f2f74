"""A database that was in use is brought up to date: every row is still there, and the program goes on with it.

A new migration needs one new entry in `old_rows.ROWS`, and nothing here.
"""

from __future__ import annotations

import datetime as dt
import itertools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.config import Config
from sqlalchemy.engine import Engine

from alembic import command
from pipeline.core.documents import DocumentState
from pipeline.store import models, overview, queue, retry, runs
from pipeline.store.database import Database, make_engine, schema_revisions, upgrade
from pipeline.store.models import Target
from pipeline.store.runs import Process
from pipeline.store.tables import ChunkRow, ContentRow
from tests.store.filled import add_documents, add_model, clustered
from tests.store.old_rows import DIMENSION, ROWS, axis, columns_of, dump, insert
from tests.store.rows import search

MIGRATIONS = Path(__file__).parents[2] / "alembic"
REVISIONS = sorted(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))
HEAD = REVISIONS[-1]
STEPS = list(itertools.pairwise(REVISIONS))
NOW = dt.datetime(2026, 6, 2, 2, tzinfo=dt.UTC)


class PowerCut(Exception):
    """The program ended here."""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An empty database of each kind."""
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


def in_use(engine: Engine, revision: str) -> None:
    """Make the tables of a revision, with rows in all of them."""
    upgrade(engine, revision)
    insert(engine, ROWS[revision])


def downgrade(engine: Engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.execution_options(nightshift_immediate=True).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


@contextmanager
def cut_after(engine: Engine, statements: int) -> Iterator[list[str]]:
    """End what is in the block after so many statements that change something; yields the last, if it came so far."""
    done: list[str] = []
    last: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.lstrip().upper().startswith(("CREATE", "ALTER", "DROP", "INSERT", "UPDATE", "DELETE")):
            done.append(statement)
            if len(done) == statements:
                last.append(statement)
                raise PowerCut

    sa.event.listen(engine, "after_cursor_execute", count)
    try:
        with suppress(PowerCut):
            yield last
    finally:
        sa.event.remove(engine, "after_cursor_execute", count)


@pytest.mark.parametrize("revision", REVISIONS)
def test_no_table_of_a_revision_is_left_out_here(engine: Engine, revision: str) -> None:
    in_use(engine, revision)
    assert [table for table, rows in dump(engine).items() if not rows] == []


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_row_survives_unchanged(engine: Engine, revision: str) -> None:
    in_use(engine, revision)
    with engine.connect() as connection:
        columns = columns_of(connection)
    before = dump(engine, columns)
    upgrade(engine)
    assert schema_revisions(engine) == (HEAD, HEAD)
    assert dump(engine, columns) == before


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_program_goes_on_with_what_it_finds(engine: Engine, database_url: str, revision: str) -> None:
    in_use(engine, revision)
    if engine.dialect.name == "postgresql":
        upgrade(engine)
    with Database.open(database_url) as store:
        with store.snapshot() as session:
            counts = overview.count_documents(session)
            assert {state: number for state, number in counts.items() if number} == {
                "total": 6, "embedded": 2, "extracted": 1, "discovered": 1, "failed": 2,
            }  # fmt: skip
            assert overview.count_chunks(session) == {"total": 6, "embedded": 4}
            assert found(store) == {"first", "zweiter Teil, größer", "outdated", "whole"}
        with store.begin() as session:
            me = Process("box", 1, 0.0)
            (dead,) = runs.start_run(session, "next", me, ["/docs"], NOW, lambda process: False)
            assert (dead.id, dead.state) == ("killed", "interrupted")
            target = Target(1, "r")
            (waits,) = queue.claim_to_extract(session, "next", None, target, NOW, 10)
            assert waits.files == [("/docs", "waits.pdf")]
            queue.end_extraction(session, waits.content_id, DocumentState.EMPTY, "no text")
            (content_id,) = queue.claim_to_embed(session, "next", None, target, NOW, 10)
            (chunk,) = queue.pending_chunks(session, content_id, 0, 10)
            assert chunk.tokens == [101, 7, 30_000, 102]
        with store.begin() as session:
            batch = queue.store_vectors(session, "next", [(chunk, axis(1))], [], NOW)
            assert [(ended.path, ended.state) for ended in batch.ended] == [("changed.pdf", DocumentState.EMBEDDED)]
            runs.finish_run(session, "next", "complete", None, NOW)
        assert found(store) == {"first", "zweiter Teil, größer", "stored", "queued", "whole"}
        with store.begin() as session:  # the database goes on numbering where it was
            assert models.ensure_model(
                session, fingerprint="2", name="n", path="/n", size=1, mtime_ns=1, dimension=DIMENSION, now=NOW
            ).id == 2  # fmt: skip


def found(store: Database) -> set[str]:
    with store.snapshot() as session:
        return {hit.text for hit in search(session, np.full(DIMENSION, 0.5, np.float32), 1, 100)}


@pytest.mark.parametrize(("before", "after"), STEPS)
def test_a_step_back_keeps_what_the_older_version_knew(engine: Engine, before: str, after: str) -> None:
    in_use(engine, after)
    rows = dump(engine)
    with engine.connect() as connection:
        columns = columns_of(connection)
    downgrade(engine, before)
    with engine.connect() as connection:
        older = columns_of(connection)
    kept = {table: [name for name in names if name in columns[table]] for table, names in older.items()}
    assert {table: len(found) for table, found in dump(engine, kept).items()} == {
        table: len(rows[table]) for table in kept
    }
    untouched = [table for table in kept if kept[table] == columns[table]]
    assert dump(engine, {table: kept[table] for table in untouched}) == {table: rows[table] for table in untouched}
    upgrade(engine, after)
    with engine.connect() as connection:
        assert columns_of(connection) == columns


@pytest.mark.parametrize(("before", "after"), STEPS)
def test_an_upgrade_that_ends_after_any_statement_changes_nothing(engine: Engine, before: str, after: str) -> None:
    in_use(engine, before)
    rows = dump(engine)
    for statements in itertools.count(1):
        with cut_after(engine, statements) as cut:
            upgrade(engine, after)
        if not cut:
            break
        assert schema_revisions(engine)[0] == before
        assert dump(engine) == rows  # of all tables, and all their columns
    assert statements > 2  # the last one moves the revision: there were others before
    assert schema_revisions(engine)[0] == after


def vectors_of(engine: Engine) -> list[tuple[Any, ...]]:
    tables = {"embeddings": ["chunk_id", "vector"], "content_embeddings": ["content_id", "method", "vector"]}
    return [row for rows in dump(engine, tables).values() for row in rows]


def test_many_vectors_pass_through_the_migration_and_back(engine: Engine, database_url: str) -> None:
    upgrade(engine)
    with Database.open(database_url) as store, store.begin() as session:
        add_documents(session, add_model(session, "m", 3), clustered(2500, 3))
        add_documents(session, add_model(session, "n", 2100), clustered(20, 2100), root="/long")
    before = vectors_of(engine)
    downgrade(engine, "0008")
    assert vectors_of(engine) == before
    upgrade(engine)
    assert vectors_of(engine) == before
    with engine.connect() as connection:
        copied = sa.text(
            "SELECT count(*) FROM embeddings AS e "
            "JOIN chunks AS k ON k.id = e.chunk_id AND k.content_id = e.content_id "
            "JOIN contents AS c ON c.id = e.content_id AND c.model_id = e.model_id"
        )
        assert connection.scalar(copied) == 2520


@pytest.mark.parametrize(
    "vector", [np.asarray([1, np.nan], "<f4").tobytes(), b"", b"\0\0\0"], ids=["not a number", "empty", "cut off"]
)
def test_what_the_server_would_not_take_for_a_vector_has_failed_and_can_be_tried_again(
    postgres_url: str, vector: bytes
) -> None:
    engine = make_engine(postgres_url)
    in_use(engine, "0008")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE embeddings SET vector = :bad WHERE chunk_id = 1"), {"bad": vector})
        connection.execute(sa.text("UPDATE content_embeddings SET vector = :bad WHERE content_id = 2"), {"bad": vector})
    upgrade(engine)
    engine.dispose()
    with Database.open(postgres_url) as store:
        with store.begin() as session:
            content, other = session.get_one(ContentRow, 1), session.get_one(ContentRow, 2)
            assert (content.state, content.embedded_count, content.failed_count) == (DocumentState.FAILED, 1, 1)
            assert (other.state, other.embedded_count, other.failed_count) == (DocumentState.FAILED, 1, 0)
            assert content.reason == other.reason == session.get_one(ChunkRow, 1).error
        assert found(store) == {"zweiter Teil, größer", "outdated", "whole"}
        with store.begin() as session:
            assert retry.retry_documents(session, [1]) == 1
            assert session.get_one(ContentRow, 1).state == DocumentState.DISCOVERED


KILLED = """
import os, signal, sys
import sqlalchemy as sa
from pipeline.store.database import make_engine, upgrade

engine = make_engine(sys.argv[1])

@sa.event.listens_for(engine, "after_cursor_execute")
def cut(connection, cursor, statement, *_):
    if statement.lstrip().upper().startswith("UPDATE ALEMBIC_VERSION"):
        os.kill(os.getpid(), signal.SIGKILL)

upgrade(engine, sys.argv[2])
"""


@pytest.mark.parametrize(("before", "after"), STEPS)
def test_an_upgrade_that_is_killed_is_done_by_the_next(
    engine: Engine, database_url: str, before: str, after: str
) -> None:
    in_use(engine, before)
    rows = dump(engine)
    # The last statement is done, and only the commit is missing.
    killed = subprocess.run([sys.executable, "-c", KILLED, database_url, after], check=False)
    assert killed.returncode == -9
    assert schema_revisions(engine)[0] == before
    assert dump(engine) == rows
    upgrade(engine, after)
    assert schema_revisions(engine)[0] == after
