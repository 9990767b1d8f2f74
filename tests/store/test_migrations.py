"""A database that was in use is brought up to date: every row is still there, and the program goes on with it.

A new revision needs new entries in `old_rows`, and nothing here.
"""

from __future__ import annotations

import datetime as dt
import itertools
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from pipeline.core.documents import DocumentState
from pipeline.core.errors import SchemaError
from pipeline.store import models, overview, queue, runs
from pipeline.store.database import Database, make_engine, schema_revisions, upgrade
from pipeline.store.models import Target
from pipeline.store.runs import Process
from tests.filled import INBOX
from tests.runs import SMALL_CHUNKS, Host
from tests.store.old_rows import DIMENSION, ROWS, axis, columns_of, dump, insert, kept
from tests.store.rows import search

MIGRATIONS = Path(__file__).parents[2] / "alembic"
REVISIONS = sorted(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))
HEAD = REVISIONS[-1]
STEPS = list(itertools.pairwise([None, *REVISIONS]))
NOW = dt.datetime(2026, 6, 2, 2, tzinfo=dt.UTC)

CHANGES = ("CREATE", "ALTER", "DROP", "INSERT", "UPDATE", "DELETE")
EACH = 7
"""An upgrade is ended after so many statements, then after so many more, and so on."""

FILE = Path(__file__).parents[1] / "data" / "revision-0012.db.xz"
"""The file of the program that still had twelve revisions: two documents of data/inbox with their vectors, and the
third read by `run-now --extract-only`. Its folder was then called /srv/documents, and its host `box`."""
DONE = ("harbour-committee-minutes.docx", "seed-store-incident.pdf")
READ = "heron-operations-handbook.pdf"


class PowerCut(Exception):
    """The program ended here."""


@pytest.fixture
def engine(new_database_url: str) -> Iterator[Engine]:
    """An empty database of each kind."""
    engine = make_engine(new_database_url)
    yield engine
    engine.dispose()


def in_use(engine: Engine, revision: str | None) -> None:
    """Make the tables of a revision, with rows in all of them. None: there are no tables yet."""
    if revision is not None:
        upgrade(engine, revision)
        insert(engine, ROWS[revision])


@contextmanager
def cut_after(engine: Engine, statements: int) -> Iterator[list[str]]:
    """End what is in the block after so many statements that change something; yields the last, if it came so far."""
    done: list[str] = []
    last: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.lstrip().upper().startswith(CHANGES):
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
        columns = kept(columns_of(connection), revision)
    before = dump(engine, columns)
    upgrade(engine)
    assert schema_revisions(engine) == (HEAD, HEAD)
    assert dump(engine, columns) == before


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_program_goes_on_with_what_it_finds(engine: Engine, new_database_url: str, revision: str) -> None:
    in_use(engine, revision)
    if engine.dialect.name == "postgresql":
        upgrade(engine)
    with Database.open(new_database_url) as store:
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
def test_an_upgrade_that_ends_after_any_statement_changes_nothing(
    engine: Engine, before: str | None, after: str
) -> None:
    in_use(engine, before)
    rows = dump(engine)
    for statements in itertools.count(1, EACH):
        with cut_after(engine, statements) as cut:
            upgrade(engine, after)
        if not cut:
            break
        assert schema_revisions(engine)[0] == before
        assert dump(engine) == rows  # of all tables, and all their columns
    assert statements > 1  # the last one moves the revision: there were others before
    assert schema_revisions(engine)[0] == after


KILLED = """
import os, signal, sys
import sqlalchemy as sa
from pipeline.store.database import make_engine, upgrade

engine = make_engine(sys.argv[1])

@sa.event.listens_for(engine, "after_cursor_execute")
def cut(connection, cursor, statement, *_):
    if statement.lstrip().upper().startswith(("INSERT INTO ALEMBIC_VERSION", "UPDATE ALEMBIC_VERSION")):
        os.kill(os.getpid(), signal.SIGKILL)

upgrade(engine, sys.argv[2])
"""


@pytest.mark.parametrize(("before", "after"), STEPS)
def test_an_upgrade_that_is_killed_is_done_by_the_next(
    engine: Engine, new_database_url: str, before: str | None, after: str
) -> None:
    in_use(engine, before)
    rows = dump(engine)
    # The last statement is done, and only the commit is missing.
    killed = subprocess.run([sys.executable, "-c", KILLED, new_database_url, after], check=False)
    assert killed.returncode == -9
    assert schema_revisions(engine)[0] == before
    assert dump(engine) == rows
    upgrade(engine, after)
    assert schema_revisions(engine)[0] == after


# Databases of the program as it was before the first twelve revisions became one


@pytest.mark.parametrize("revision", ["0001", "0011"])
def test_a_very_old_database_is_not_touched_and_told_what_helps(
    engine: Engine, new_database_url: str, revision: str
) -> None:
    in_use(engine, HEAD)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :old"), {"old": revision})
    rows = dump(engine)
    told = f"is at revision {revision}, and this version of Nightshift can upgrade it only from {REVISIONS[0]} on"
    with pytest.raises(SchemaError, match=told) as refused:
        Database.open(new_database_url)
    assert "docs/operations.md" in str(refused.value)
    with pytest.raises(SchemaError, match=told):
        upgrade(engine)
    assert "## Very old databases" in (MIGRATIONS.parent / "docs" / "operations.md").read_text()
    assert schema_revisions(engine)[0] == revision
    assert dump(engine) == rows


def test_its_tables_are_those_that_are_made_today(tmp_path: Path) -> None:
    made = []
    for engine in (unpacked(tmp_path / "before.db"), make_engine(f"sqlite:///{tmp_path / 'new.db'}")):
        upgrade(engine)
        with engine.connect() as connection:
            made.append(parts_of(connection))
        engine.dispose()
    assert made[0] == made[1]


def test_what_is_up_to_date_is_opened_without_a_change(tmp_path: Path) -> None:
    engine = unpacked(tmp_path / "before.db")
    upgrade(engine)
    engine.dispose()
    before = (tmp_path / "before.db").read_bytes()
    Database.open(f"sqlite:///{tmp_path / 'before.db'}").close()
    assert (tmp_path / "before.db").read_bytes() == before


def test_a_run_goes_on_where_it_was_and_embeds_nothing_again(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name in (*DONE, READ):
        shutil.copyfile(INBOX / name, folder / name)
        os.utime(folder / name, (1_700_000_000, 1_700_000_000))
    engine = unpacked(tmp_path / "nightshift.db")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE sources SET root = :folder"), {"folder": str(folder)})
    vectors = "SELECT chunk_id, vector FROM embeddings WHERE chunk_id <= 29 ORDER BY chunk_id"
    with engine.connect() as connection:
        before = connection.execute(sa.text(vectors)).all()
    assert len(before) == 29

    host = Host(tmp_path, SMALL_CHUNKS)
    first = host.run_json("run-now", str(folder))
    assert (first["outcome"], first["chunks_embedded"], first["documents_read"]) == ("complete", 47, 0)
    assert first["changes"]["unchanged"] == 3
    assert first["chunks"] == {"total": 76, "embedded": 76}
    with engine.connect() as connection:
        assert connection.execute(sa.text(vectors)).all() == before
    engine.dispose()


def unpacked(path: Path) -> Engine:
    path.write_bytes(lzma.decompress(FILE.read_bytes()))
    return make_engine(f"sqlite:///{path}")


def parts_of(connection: Connection) -> dict[str, object]:
    """The columns of every table, and the SQL of whatever else there is, without its line breaks."""
    inspector = sa.inspect(connection)
    parts: dict[str, object] = {
        name: [list(row) for row in connection.exec_driver_sql(f"PRAGMA table_xinfo('{name}')")]
        + [sorted(map(str, inspector.get_foreign_keys(name))), sorted(map(str, inspector.get_unique_constraints(name)))]
        for name in inspector.get_table_names()
    }
    others = connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master WHERE type <> 'table'")
    return parts | {f"{kind} {name}": " ".join((sql or "").split()) for kind, name, sql in others}
