"""When an index over vectors is built, by whom, and what becomes of one whose build did not end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import given
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.core.errors import StoreError
from pipeline.store import hnsw, pruning
from pipeline.store.database import Database
from pipeline.store.hnsw import FEWEST, LARGEST_DIMENSION, LOCK, Standing, Tended, Tending, plan_index
from pipeline.store.locks import release_session_lock, session_lock, transaction_lock
from pipeline.store.nearest import nearest_chunks
from pipeline.store.tables import ContentRow
from pipeline.store.view import view_of
from tests.store.filled import add_documents, add_model, clustered

DIMENSION = 8
NAME = f"ix_embeddings_hnsw_1_{DIMENSION}"
DEADLINE = 120.0
"""Seconds after which what a test waits for is not coming any more."""

FULL = Standing(1, "m", DIMENSION, vectors=FEWEST, waiting=0, documents=1000, index="none")


@pytest.fixture
def store(postgres_url: str) -> Iterator[Database]:
    """A PostgreSQL database with its tables."""
    with Database.open(postgres_url) as opened:
        yield opened


def fill(store: Database, count: int = 300) -> None:
    with store.begin() as session:
        add_documents(session, add_model(session, "m", DIMENSION), clustered(count, DIMENSION))


def index_state(store: Database, name: str = NAME) -> str:
    with store.engine.connect() as connection:
        return hnsw._state(connection, name)


@pytest.mark.parametrize(
    ("standing", "plan"),
    [
        (FULL, "build"),
        (replace(FULL, vectors=FEWEST - 1), "none"),
        (replace(FULL, waiting=100), "build"),
        (replace(FULL, waiting=101), "none"),
        (replace(FULL, dimension=LARGEST_DIMENSION), "build"),
        (replace(FULL, dimension=LARGEST_DIMENSION + 1), "none"),
        (replace(FULL, index="ready"), "keep"),
        (replace(FULL, index="ready", vectors=1, waiting=1000), "keep"),
        (replace(FULL, index="ready", vectors=0), "drop"),
        (replace(FULL, index="broken"), "rebuild"),
        (replace(FULL, index="broken", waiting=500), "drop"),
        (replace(FULL, index="broken", vectors=0), "drop"),
        (replace(FULL, vectors=0), "none"),
    ],
)
def test_an_index_is_built_after_a_bulk_load_and_kept_after_that(standing: Standing, plan: str) -> None:
    assert plan_index(standing) == plan


@given(
    st.integers(0, 3 * FEWEST), st.integers(0, 200), st.integers(1, 5000), st.sampled_from(["none", "broken", "ready"])
)
def test_who_asks_for_an_index_gets_one_wherever_there_can_be_one(
    vectors: int, waiting: int, dimension: int, index: Literal["none", "broken", "ready"]
) -> None:
    standing = Standing(1, "m", dimension, vectors, waiting, 200, index)
    by_itself, asked = plan_index(standing), plan_index(standing, at_once=True)
    if vectors and dimension <= LARGEST_DIMENSION:
        assert asked in ("build", "rebuild", "keep")
    assert by_itself in (asked, "none", "drop")
    # What is done about a broken index leaves none that is broken.
    assert index != "broken" or by_itself in ("rebuild", "drop")


def test_an_index_is_built_once_and_search_finds_new_vectors_by_it(store: Database) -> None:
    fill(store)
    assert Tending(store.engine).run() == Tended()  # too few
    assert Tending(store.engine, at_once=True).run() == Tended(built=("m",))
    assert index_state(store) == "ready"
    assert Tending(store.engine, at_once=True).run() == Tended()
    late = -clustered(1, DIMENSION)
    with store.begin() as session:
        (chunk_id,) = add_documents(session, add_model(session, "m", DIMENSION), late, folder="late")
    with store.snapshot() as session:
        told: list[str] = []
        assert nearest_chunks(session, late[0], view_of(session, 1), 1, told=told)[0][0] == chunk_id
        assert "HNSW" in told[0]


def test_the_decision_sees_what_waits(store: Database) -> None:
    fill(store)
    with store.begin() as session:
        before = hnsw.standings(session)
        assert before == [Standing(1, "m", DIMENSION, 300, 0, 30, "none")]
        session.execute(sa.update(ContentRow).where(ContentRow.id <= 6).values(state=DocumentState.EXTRACTED.value))
        assert hnsw.standings(session) == [replace(before[0], waiting=6)]


def test_the_index_of_a_model_that_was_pruned_goes(store: Database) -> None:
    fill(store)
    with store.begin() as session:
        add_documents(session, add_model(session, "old", 4), clustered(50, 4), root="/old")
    assert Tending(store.engine, at_once=True).run().built == ("m", "old")
    with store.begin() as session:
        pruning.release(session, 2)
        while pruning.prune_some(session, 2) is not None:
            pass
    assert Tending(store.engine, at_once=True, drops_only=True).run() == Tended(dropped=("old",))
    assert (index_state(store), index_state(store, "ix_embeddings_hnsw_2_4")) == ("ready", "none")


def test_of_two_hosts_one_builds_and_the_other_goes_on(store: Database) -> None:
    fill(store)
    with store.engine.connect() as other:
        other.execution_options(isolation_level="AUTOCOMMIT")  # a build waits for transactions that are open
        assert session_lock(other, LOCK)
        assert Tending(store.engine, at_once=True).run() == Tended(busy=True)
        assert index_state(store) == "none"
        release_session_lock(other, LOCK)
        assert Tending(store.engine, at_once=True).run() == Tended(built=("m",))


def test_a_lock_of_a_transaction_ends_with_it(store: Database) -> None:
    with Session(store.engine) as session, store.engine.connect() as other:
        assert transaction_lock(session, "x")
        assert not session_lock(other, "x")
        assert session_lock(other, "y")
        session.commit()
        assert session_lock(other, "x")


def test_on_sqlite_there_is_nothing_to_lock_or_to_build(sqlite_url: str) -> None:
    with Database.open(sqlite_url) as store, store.begin() as session:
        assert transaction_lock(session, "x")
        assert session_lock(session.connection(), "x")
        assert hnsw.standings(session) == []
        assert Tending(store.engine, at_once=True).run() == Tended()


BUILDER = """
import sys
from pipeline.store.database import make_engine
from pipeline.store.hnsw import Tending

print(Tending(make_engine(sys.argv[1]), at_once=True).run(), flush=True)
"""


def wait_until(store: Database, query: str) -> None:
    """Until a query finds something: what is waited for is in another process."""
    ends = time.monotonic() + DEADLINE
    with store.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        while connection.scalar(sa.text(query)) is None:
            assert time.monotonic() < ends, query
            time.sleep(0.01)


BUILDING = "SELECT 1 FROM pg_stat_progress_create_index WHERE datname = current_database() AND lockers_total > 0"
NOT_BUILDING = (
    "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM pg_stat_activity "
    "WHERE datname = current_database() AND query LIKE 'CREATE INDEX%')"
)


def test_a_build_whose_process_is_killed_is_made_good_by_the_next(store: Database, postgres_url: str) -> None:
    fill(store)
    with store.begin() as session:  # a build waits for whoever writes: it will not end before this
        session.execute(sa.text("LOCK TABLE embeddings IN ROW EXCLUSIVE MODE"))
        builder = subprocess.Popen([sys.executable, "-c", BUILDER, postgres_url])
        try:
            wait_until(store, BUILDING)
        finally:
            builder.kill()
            builder.wait()
        wait_until(store, NOT_BUILDING)  # the server has noticed
    assert index_state(store) == "broken"
    with store.snapshot() as session:
        told: list[str] = []
        assert len(nearest_chunks(session, clustered(1, DIMENSION)[0], view_of(session, 1), 5, told=told)) == 5
        assert told == ["exact, by pgvector"]
    assert Tending(store.engine, at_once=True).run() == Tended(built=("m",))
    assert index_state(store) == "ready"


def test_a_build_that_is_stopped_ends_and_is_made_good_by_the_next(store: Database) -> None:
    fill(store)
    tending = Tending(store.engine, at_once=True)
    with ThreadPoolExecutor(1) as threads, store.begin() as session:
        session.execute(sa.text("LOCK TABLE embeddings IN ROW EXCLUSIVE MODE"))
        running = threads.submit(tending.run)
        wait_until(store, BUILDING)
        tending.stop()
        assert running.result(DEADLINE) == Tended(stopped=True)
    assert index_state(store) == "broken"
    assert Tending(store.engine, at_once=True).run() == Tended(built=("m",))
    assert index_state(store) == "ready"


def test_a_build_that_fails_says_so_and_search_is_as_before(store: Database) -> None:
    fill(store)

    def allow_no_writing(setting: str) -> None:
        with store.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(sa.text("SET default_transaction_read_only = off"))
            name = store.engine.url.database
            connection.execute(sa.text(f"ALTER DATABASE {name} SET default_transaction_read_only = {setting}"))
        store.engine.dispose()

    allow_no_writing("on")
    with pytest.raises(StoreError, match="search looks at all of them: cannot execute CREATE INDEX"):
        Tending(store.engine, at_once=True).run()
    allow_no_writing("off")
    assert Tending(store.engine, at_once=True).run() == Tended(built=("m",))


def test_a_vector_that_is_none_stops_no_build(store: Database) -> None:
    fill(store)
    with store.begin() as session:
        session.execute(sa.text("UPDATE embeddings SET vector = '[1, 0]' WHERE chunk_id = 1"))
    assert Tending(store.engine, at_once=True).run() == Tended(built=("m",))
