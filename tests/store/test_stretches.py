"""Whole documents and stretches in the queue: a document is done with the last of them, and not before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.stretches import WHOLE, Span, Stretch
from pipeline.core.vectors import from_blobs
from pipeline.store import library, overview, queue, stretches
from pipeline.store.database import Database
from pipeline.store.models import Target
from pipeline.store.queue import DOCUMENT, PendingChunk
from pipeline.store.retry import retry_documents
from pipeline.store.scopes import Scope
from pipeline.store.search import find_documents
from pipeline.store.stretches import Own, PendingStretch
from pipeline.store.tables import ChunkRow, ContentEmbeddingRow, ContentRow, PendingChunkRow, PendingStretchRow
from pipeline.store.view import view_of
from tests.store import rows
from tests.store.rows import utc_now

WHOLE_TEXT = Stretch([101, 5, 6, 7, 102])
LATE = Stretch([101, 5, 6, 7, 102], (Span(0, 0, 3), Span(1, 3, 5), Span(WHOLE, 0, 5)))


def start(session: Session, *found: Stretch, texts: Sequence[str] = ("one", "two")) -> tuple[Target, int]:
    """A document that was read, with stretches."""
    rows.begin(session)
    source = library.ensure_source(session, "/docs", utc_now())
    target = rows.add_target(session)
    rows.register(session, source, target, a="alpha")
    (claimed,) = queue.claim_to_extract(session, "run", None, target, utc_now(), 9)
    plain = rows.extracted(*texts)
    extraction = queue.ExtractedContent(
        plain.title, plain.details, plain.page_count, plain.characters, plain.chunks, found
    )
    queue.store_extracted(session, claimed.content_id, extraction, utc_now())
    return target, claimed.content_id


def waiting(session: Session, content_id: int) -> list[PendingStretch]:
    return stretches.pending_stretches(session, content_id, 0, 9)


def own_vectors(session: Session) -> list[tuple[str, list[float]]]:
    found = session.execute(sa.select(ContentEmbeddingRow.method, ContentEmbeddingRow.vector))
    return [
        (method, [round(x, 3) for x in from_blobs([vector], rows.DIMENSION)[0].tolist()]) for method, vector in found
    ]


def state(session: Session) -> str:
    session.expire_all()
    return session.scalars(sa.select(ContentRow.state)).one()


def test_an_own_vector_that_is_none_leaves_the_document_to_the_mean_of_its_chunks(store: Database) -> None:
    with store.begin() as session:
        target, content_id = start(session, WHOLE_TEXT)
        rows.embed_all(session, target)
        (stretch,) = waiting(session, content_id)
        bad = Own(content_id, bytes(4 * rows.DIMENSION))
        stored = stretches.store_stretches(session, "run", [stretch], [], [], [bad], utc_now())
        assert [ended.path for ended in stored.ended] == ["a.pdf"]
        assert own_vectors(session) == [("mean", [0.707, 0.707, 0.0, 0.0])]


def test_a_document_is_done_when_it_was_computed_whole(store: Database) -> None:
    with store.begin() as session:
        target, content_id = start(session, WHOLE_TEXT)
        (batch,) = rows.embed_all(session, target)
        assert (batch.vectors, batch.ended) == (2, [])
        assert state(session) == "extracted"
        (stretch,) = waiting(session, content_id)
        assert (stretch.tokens.tolist(), stretch.spans.shape) == ([101, 5, 6, 7, 102], (0, 3))
    with store.begin() as session:
        stored = stretches.store_stretches(
            session, "run", [stretch], [], [], [Own(content_id, rows.vector(3))], utc_now()
        )
        assert [ended.path for ended in stored.ended] == ["a.pdf"]
    with store.snapshot() as session:
        assert state(session) == "embedded"
        assert own_vectors(session) == [("model", [0, 0, 0, 1])]
        assert session.scalars(sa.select(PendingStretchRow.id)).all() == []


def test_a_whole_that_came_first_waits_for_the_chunks(store: Database) -> None:
    with store.begin() as session:
        target, content_id = start(session, WHOLE_TEXT)
        own = [Own(content_id, rows.vector(3))]
        stored = stretches.store_stretches(session, "run", waiting(session, content_id), [], [], own, utc_now())
        assert (stored.ended, state(session)) == ([], "extracted")
        (batch,) = rows.embed_all(session, target)
        assert [ended.path for ended in batch.ended] == ["a.pdf"]
        assert own_vectors(session) == [("model", [0, 0, 0, 1])]


def test_a_whole_that_failed_leaves_the_mean(store: Database) -> None:
    with store.begin() as session:
        target, content_id = start(session, WHOLE_TEXT)
        rows.embed_all(session, target)
        stretches.store_stretches(session, "run", waiting(session, content_id), [], [], [], utc_now())
        assert state(session) == "embedded"
        assert own_vectors(session) == [("mean", [0.707, 0.707, 0, 0])]


def test_the_vector_of_a_document_that_is_one_chunk_is_the_models(store: Database) -> None:
    with store.begin() as session:
        target, _ = start(session, texts=["all of it"])
        rows.embed_all(session, target)
        assert own_vectors(session) == [("model", [1, 0, 0, 0])]


def test_chunks_in_a_stretch_wait_for_it(store: Database) -> None:
    with store.begin() as session:
        _, content_id = start(session, LATE, texts=["one", "two", "by itself"])
        (alone,) = queue.pending_chunks(session, content_id, 0, 9)
        first, second = session.scalars(sa.select(ChunkRow.id).order_by(ChunkRow.ordinal).limit(2))
        (stretch,) = waiting(session, content_id)
        assert stretch.spans.tolist() == [[first, 0, 3], [second, 3, 5], [DOCUMENT, 0, 5]]
        alike = [list(chunk.tokens) for chunk in rows.extracted("one", "two").chunks]
        assert [chunk.tokens for chunk in stretches.chunks_of(session, stretch)] == alike
        without = set(session.scalars(sa.select(ChunkRow.id).where(ChunkRow.digest.is_(None))))
        assert (without, alone.chunk_id in without) == ({first, second}, False)
        chunks = [PendingChunk(chunk_id, content_id, []) for chunk_id in (first, second)]
        vectors = list(zip(chunks, [rows.vector(1), rows.vector(2)], strict=True))
        own = [Own(content_id, rows.vector(3))]
        stored = stretches.store_stretches(session, "run", [stretch], vectors, [], own, utc_now())
        assert (stored.vectors, stored.ended) == (2, [])
        stored = queue.store_vectors(session, "run", [(alone, rows.vector(0))], [], utc_now())
        assert [ended.path for ended in stored.ended] == ["a.pdf"]
        assert own_vectors(session) == [("model", [0, 0, 0, 1])]
        assert overview.count_chunks(session) == {"total": 3, "embedded": 3}


def test_documents_are_searched_by_their_own_vectors(store: Database) -> None:
    with store.begin() as session:
        target, content_id = start(session, WHOLE_TEXT)
        question = np.array([0, 0, 0, 1], np.float32)
        assert find_documents(session, question, view_of(session, target.model_id), 9) == []
        rows.embed_all(session, target)
        own = [Own(content_id, rows.vector(3))]
        stretches.store_stretches(session, "run", waiting(session, content_id), [], [], own, utc_now())
        (source,) = library.sources(session).values()
        rows.register(session, source, target, b="alpha", c="another")
        rows.extract_all(session, target, ["only"])
        rows.embed_all(session, target)
    with store.snapshot() as session:
        found = find_documents(session, question, view_of(session, target.model_id), 9)
        assert [(hit.file, list(hit.also), hit.method, hit.score) for hit in found] == [
            ("/docs/a.pdf", ["/docs/b.pdf"], "model", 1.0), ("/docs/c.pdf", [], "model", 0.0),
        ]  # fmt: skip


def test_a_stretch_stored_twice_counts_once(store: Database) -> None:
    with store.begin() as session:
        _, content_id = start(session, LATE)
        (stretch,) = waiting(session, content_id)
        chunks = stretches.chunks_of(session, stretch)
        vectors = [(chunk, rows.vector(1)) for chunk in chunks]
        own = [Own(content_id, rows.vector(3))]
        assert stretches.store_stretches(session, "run", [stretch], vectors, [], own, utc_now()).vectors == 2
        again = stretches.store_stretches(session, "run", [stretch], vectors, [], own, utc_now())
        assert (again.vectors, again.ended) == (0, [])


def test_stretches_of_a_file_that_went_meanwhile_are_passed_over(store: Database) -> None:
    with store.begin() as session:
        _, content_id = start(session, LATE)
        (stretch,) = waiting(session, content_id)
        chunks = stretches.chunks_of(session, stretch)
        (source,) = library.sources(session).values()
        library.forget(session, library.known_documents(session, Scope(source)))
        assert session.scalars(sa.select(PendingStretchRow.id)).all() == []
        own = [Own(content_id, rows.vector(3))]
        vectors = [(chunk, rows.vector(0)) for chunk in chunks]
        stored = stretches.store_stretches(session, "run", [stretch], vectors, [], own, utc_now())
        assert (stored.vectors, stored.ended, own_vectors(session)) == (0, [], [])


def test_a_document_that_is_read_again_has_only_its_new_stretches(store: Database) -> None:
    with store.begin() as session:
        target, content_id = start(session, WHOLE_TEXT)
        rows.embed_all(session, target, bad=[1])
        stretches.store_stretches(
            session, "run", waiting(session, content_id), [], [], [Own(content_id, rows.vector(3))], utc_now()
        )
        assert state(session) == "failed"
        (line,) = overview.list_documents(session)
        retry_documents(session, [line.id])
        rows.extract_all(session, target, ["only"])
        assert (waiting(session, content_id), own_vectors(session)) == ([], [])
        rows.embed_all(session, target)
        assert own_vectors(session) == [("model", [1, 0, 0, 0])]
        assert session.scalars(sa.select(PendingChunkRow.chunk_id)).all() == []


def test_tokens_come_back_as_they_went_in(store: Database) -> None:
    tokens = list(np.random.default_rng(1).integers(0, 250_000, 5000))
    with store.begin() as session:
        _, content_id = start(session, Stretch(tokens), Stretch([1, 2]))
        first, second = waiting(session, content_id)
        assert first.tokens.tolist() == tokens
        assert [one.id for one in stretches.pending_stretches(session, content_id, first.id, 1)] == [second.id]
