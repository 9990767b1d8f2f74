"""What is asked of the whole database reads indexes and counts, not all of its rows: by SQLite's own plans."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentKind
from pipeline.store import library, models, overview, pending, queue, retry, runs
from pipeline.store.database import Database
from pipeline.store.models import Target
from tests.store import rows
from tests.store.rows import utc_now

LARGE = ("chunks", "embeddings", "pending_chunks", "pending_stretches", "content_embeddings")
"""Tables with a row for each chunk, or large ones for each document."""

GROWING = (*LARGE, "documents", "contents")

Question = Callable[[Session, Target], object]
NOW = dt.datetime(2026, 6, 2, 2, tzinfo=dt.UTC)

BY_COUNTS: dict[str, Question] = {
    "documents by state": lambda session, _: overview.count_documents(session),
    "chunks": lambda session, _: overview.count_chunks(session),
    "models": lambda session, _: overview.list_models(session),
    "found after a move": lambda session, _: models.count_unsearched(session),
    "sources": lambda session, _: overview.list_sources(session),
    "last run": lambda session, _: runs.latest_runs(session),
    "lease": lambda session, _: runs.start_run(session, "next", rows.ME, [], NOW, lambda process: False),
    "end of a run": lambda session, _: runs.finish_run(session, "run", "complete", None, NOW),
    "density": lambda session, _: pending.densities(session, [kind.value for kind in DocumentKind]),
    "backlog": lambda session, target: queue.backlog(session, None, target, NOW),
    "chunks that wait": lambda session, target: queue.chunks_waiting(session, None, target),
    "claim to read": lambda session, target: queue.claim_to_extract(session, "run", None, target, NOW, 16),
    "claim to embed": lambda session, target: queue.claim_to_embed(session, "run", None, target, NOW, 16),
    "model that is waited for": lambda session, _: pending.awaited_model(session),
    "what waits, by source": lambda session, _: pending.pending_by_source(session),
    "next retry": lambda session, target: retry.next_retry(session, None, target),
    "passwords tried": lambda session, target: retry.tried_passwords(session, None, target),
    "chunks of a document": lambda session, _: queue.pending_chunks(session, 1, 0, 64),
}
"""Nothing here may take longer because there are more documents that are done."""

BY_DOCUMENTS: dict[str, Question] = {
    "a page of documents": lambda session, _: overview.list_documents(session, limit=20),
    "those that failed": lambda session, _: overview.list_documents(session, overview.FAILING, limit=20),
    "leftovers": lambda session, _: library.drop_leftovers(session),
    "what waits after a change": lambda session, _: pending.pending_by_source(session, pending.Aimed("new", "m")),
    "other recipes": lambda session, target: library.retarget(session, None, target, NOW),
}
"""These may look at each document, and at no chunk of it."""


@pytest.fixture
def filled(sqlite_url: str) -> Iterator[tuple[Database, Target]]:
    """A document that waits to be read, one that waits for vectors, and one that is done."""
    with Database.open(sqlite_url) as store:
        with store.begin() as session:
            rows.begin(session)
            source, target = library.ensure_source(session, "/docs", utc_now()), rows.add_target(session)
            for step, name in enumerate("abc"):
                rows.register(session, source, target, **{name: name})
                if step < 2:
                    rows.extract_all(session, target)
                if step < 1:
                    rows.embed_all(session, target)
        yield store, target


@contextmanager
def statements(store: Database) -> Iterator[list[tuple[str, Any]]]:
    """What is executed in the block, with its parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        seen.append((statement, parameters[0] if isinstance(parameters, list) else parameters))

    sa.event.listen(store.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(store.engine, "before_cursor_execute", note)


def scanned(store: Database, question: Question, target: Target) -> set[str]:
    """The tables that are read from one end to the other. SQLite says `SCAN` of the whole of a table or an index."""
    found: set[str] = set()
    with store.begin() as session:
        with statements(store) as executed:
            question(session, target)
        assert executed
        connection = session.connection()
        for statement, parameters in executed:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            real = {step[3].split()[1] for step in plan if step[3].startswith("SCAN ")}
            aliases = {"contents_1": "contents", "documents_1": "documents"}
            found |= {aliases.get(name, name) for name in real}
        session.rollback()
    return found


@pytest.mark.parametrize("name", BY_COUNTS)
def test_no_question_about_the_whole_reads_all_of_it(filled: tuple[Database, Target], name: str) -> None:
    store, target = filled
    assert scanned(store, BY_COUNTS[name], target).isdisjoint(GROWING)


@pytest.mark.parametrize("name", BY_DOCUMENTS)
def test_a_list_of_documents_reads_no_chunks(filled: tuple[Database, Target], name: str) -> None:
    store, target = filled
    assert scanned(store, BY_DOCUMENTS[name], target).isdisjoint(LARGE)


def test_a_batch_of_vectors_and_a_new_document_touch_their_own_rows(filled: tuple[Database, Target]) -> None:
    store, target = filled
    assert scanned(store, lambda session, target: rows.embed_all(session, target), target).isdisjoint(GROWING)
    assert scanned(store, lambda session, target: rows.extract_all(session, target), target).isdisjoint(GROWING)


def test_the_plans_tell_a_scan(filled: tuple[Database, Target]) -> None:
    store, target = filled
    everything = sa.text("SELECT COUNT(*) FROM chunks WHERE token_count > 3")
    assert scanned(store, lambda session, _: session.execute(everything), target) == {"chunks"}
    by_state = sa.text("SELECT COUNT(*) FROM contents WHERE characters > 3")
    assert scanned(store, lambda session, _: session.execute(by_state), target) == {"contents"}
