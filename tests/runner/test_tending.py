"""The indexes over vectors at the end of a run: built, left to others, given up, and never the end of a run."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from pipeline.runner.tending import tend_indexes
from pipeline.store.database import Database
from pipeline.store.hnsw import FEWEST, LOCK, standings
from pipeline.store.locks import session_lock
from tests.store.filled import add_documents, add_model, clustered

DIMENSION = 4
BUILDING = "SELECT 1 FROM pg_stat_progress_create_index WHERE datname = current_database() AND lockers_total > 0"


@pytest.fixture
def url(postgres_url: str) -> str:
    """Of a PostgreSQL database with enough vectors for an index."""
    with Database.open(postgres_url) as store, store.begin() as session:
        add_documents(session, add_model(session, "m", DIMENSION), clustered(FEWEST, DIMENSION))
    return postgres_url


def index_of(store: Database) -> str:
    with store.snapshot() as session:
        (standing,) = standings(session)
    return standing.index


async def test_a_run_builds_what_is_missing_unless_it_is_to_stop(url: str) -> None:
    with Database.open(url) as store, capture_logs() as logs:
        stop = asyncio.Event()
        with store.engine.connect() as other:
            other.execution_options(isolation_level="AUTOCOMMIT")
            session_lock(other, LOCK)
            await tend_indexes(store, stop)
            assert index_of(store) == "none"
            other.invalidate()  # the lock ends with its connection
        await tend_indexes(store, stop)
        assert index_of(store) == "ready"
        stop.set()
        await tend_indexes(store, stop)
    assert [entry["event"] for entry in logs] == [
        "another process builds an index for search",
        "an index for search was built",
    ]


async def test_a_stop_gives_up_the_build(url: str) -> None:
    with Database.open(url) as store, capture_logs() as logs:
        stop = asyncio.Event()
        with store.engine.connect() as writing:  # a build waits for whoever writes
            writing.execute(sa.text("LOCK TABLE embeddings IN ROW EXCLUSIVE MODE"))
            tending = asyncio.create_task(tend_indexes(store, stop))
            while not await store.read(lambda session: session.scalar(sa.text(BUILDING))):
                pass
            stop.set()
            await tending
        assert index_of(store) == "broken"
    assert [entry["event"] for entry in logs] == ["the build of an index for search was given up: a later run does it"]


async def test_a_build_that_fails_is_a_warning(url: str) -> None:
    with Database.open(url) as store:
        with store.begin() as session:
            session.execute(
                sa.text(
                    "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN RAISE EXCEPTION 'no room for an index'; END $$"
                )
            )
            session.execute(
                sa.text(
                    "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE INDEX') "
                    "EXECUTE FUNCTION refuse()"
                )
            )
        with capture_logs() as logs:
            await tend_indexes(store, asyncio.Event())
    ((level, error),) = [(entry["log_level"], entry["error"]) for entry in logs]
    assert level == "warning"
    assert error.startswith(
        "the index over vectors could not be built, so search looks at all of them: no room for an index"
    )
