"""The writer: answers that come during a commit share the next one, and only so many wait."""

from __future__ import annotations

import asyncio
import threading

import pytest
import sqlalchemy as sa

from pipeline.core.errors import StoreError
from pipeline.ingest.writer import GroupWriter
from pipeline.store import library, queue
from pipeline.store.answers import Answer
from pipeline.store.database import Database
from pipeline.store.queue import StoredBatch
from pipeline.store.tables import EmbeddingRow, PendingChunkRow
from tests.store import rows
from tests.store.rows import utc_now

MOST = 4
CHUNKS = 12


@pytest.fixture
def answers(store: Database) -> list[Answer]:
    """To one chunk each, all of one document."""
    with store.begin() as session:
        rows.begin(session)
        source, target = library.ensure_source(session, "/docs", utc_now()), rows.add_target(session)
        rows.register(session, source, target, a="a")
        (content_id,) = rows.extract_all(session, target, [f"text {number}" for number in range(CHUNKS)])
        chunks = queue.pending_chunks(session, content_id, 0, CHUNKS)
        return [Answer([(chunk, rows.vector(number))], []) for number, chunk in enumerate(chunks)]


async def test_what_comes_during_a_commit_shares_the_next(store: Database, answers: list[Answer]) -> None:
    commits: list[StoredBatch] = []
    writer = GroupWriter(store, "run", MOST, commits.append)
    gate = threading.Event()
    held = asyncio.create_task(store.write(lambda _: gate.wait()))  # the one thread that writes
    running = asyncio.create_task(writer.run())
    for answer in answers[:MOST]:
        await writer.add(answer)
    others = [asyncio.create_task(writer.add(answer)) for answer in answers[MOST:]]
    for _ in range(50):
        await asyncio.sleep(0)
    assert not any(other.done() for other in others)  # until something is stored
    assert not commits
    gate.set()
    async with asyncio.timeout(60):
        await asyncio.gather(held, *others)
        writer.close()
        await running
    assert sum(commit.vectors for commit in commits) == CHUNKS
    assert len(commits) <= CHUNKS - MOST + 1 < CHUNKS
    assert [ended.path for commit in commits for ended in commit.ended] == ["a.pdf"]
    with store.snapshot() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(EmbeddingRow)) == CHUNKS
        assert session.scalar(sa.select(sa.func.count()).select_from(PendingChunkRow)) == 0


async def test_what_cannot_be_stored_ends_it_and_leaves_the_queue_as_it_was(
    store: Database, answers: list[Answer]
) -> None:
    writer = GroupWriter(store, "run", MOST, lambda _: None)
    twice = answers[1].vectors[0]
    await writer.add(answers[0])
    await writer.add(Answer([twice, twice], []))
    with pytest.raises(StoreError):
        await writer.run()
    with store.snapshot() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(EmbeddingRow)) == 0
        assert session.scalar(sa.select(sa.func.count()).select_from(PendingChunkRow)) == CHUNKS
