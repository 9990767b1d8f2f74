"""The queue and the library: nothing lost, nothing twice, old versions searchable until the new one is done."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.changes import Moves
from pipeline.core.documents import DocumentState
from pipeline.core.errors import RunInProgress
from pipeline.core.vectors import from_blobs
from pipeline.store import library, models, overview, queue, runs
from pipeline.store.contents import drop_unused
from pipeline.store.database import Database
from pipeline.store.models import Target
from pipeline.store.retry import retry_documents
from pipeline.store.runs import LEASE, Process
from pipeline.store.scopes import Scope
from pipeline.store.tables import (
    ChunkRow,
    ContentEmbeddingRow,
    ContentRow,
    EmbeddingRow,
    PendingChunkRow,
    RunRow,
)
from tests.store import rows
from tests.store.rows import utc_now


def count(session: Session, table: type) -> int:
    return session.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def start(session: Session) -> tuple[int, Target]:
    rows.begin(session)
    return library.ensure_source(session, "/docs", utc_now()), rows.add_target(session)


def found_texts(session: Session, target: Target) -> list[str]:
    question = np.full(rows.DIMENSION, 0.5, np.float32)
    return sorted(hit.text for hit in rows.search(session, question, target.model_id, 100))


def states(session: Session) -> dict[str, int]:
    counts = overview.count_documents(session)
    return {state: number for state, number in counts.items() if number and state != "total"}


def test_a_document_goes_all_the_way(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        assert rows.register(session, source, target, a="alpha") == 1
        assert states(session) == {"discovered": 1}
        assert queue.backlog(session, None, target) == queue.Backlog(1, 0, 0)
    with store.begin() as session:
        rows.extract_all(session, target)
        assert states(session) == {"extracted": 1}
        assert queue.backlog(session, None, target) == queue.Backlog(1, 1, 3)
        assert found_texts(session, target) == []
    with store.begin() as session:
        (batch,) = rows.embed_all(session, target)
        assert batch.vectors == 3
        assert [(e.path, e.state) for e in batch.ended] == [("a.pdf", DocumentState.EMBEDDED)]
    with store.snapshot() as session:
        assert states(session) == {"embedded": 1}
        assert overview.count_chunks(session) == {"total": 3, "embedded": 3}
        assert found_texts(session, target) == ["one", "three", "two"]
        assert count(session, PendingChunkRow) == 0
        (own,) = session.scalars(sa.select(ContentEmbeddingRow.vector))
        # Chunks of equal length: the mean of three axes.
        expected = np.array([1, 1, 1, 0], np.float32) / np.sqrt(3)
        np.testing.assert_allclose(from_blobs([own], rows.DIMENSION)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (bytes(4 * rows.DIMENSION), "nothing but zeros"),
        (np.ones(1, np.float32).tobytes(), "1 numbers instead of 4"),
        (rows.vector(0)[:-1], "3.75 numbers instead of 4"),
        (np.full(rows.DIMENSION, np.nan, np.float32).tobytes(), "not finite"),
        (np.full(rows.DIMENSION, 3.0, np.float32).tobytes(), "the length 6 instead of 1"),
    ],
)
def test_a_vector_that_is_none_fails_its_chunk_and_no_other(store: Database, broken: bytes, why: str) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha", b="beta")
        rows.extract_all(session, target, ["one", "two"])
        first, second = queue.claim_to_embed(session, "run", None, target, utc_now(), 100)
        chunks = [*queue.pending_chunks(session, first, 0, 9), *queue.pending_chunks(session, second, 0, 9)]
        made = [(chunk, broken if number == 1 else rows.vector(number)) for number, chunk in enumerate(chunks)]
        batch = queue.store_vectors(session, "run", made, [], utc_now())
        assert batch.vectors == 3
        assert states(session) == {"embedded": 1, "failed": 1}
        (reason,) = [ended.reason for ended in batch.ended if ended.reason]
        assert why in reason
        assert count(session, EmbeddingRow) == 3


def test_copies_share_one_content_and_cost_one_embedding(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        assert rows.register(session, source, target, a="same", b="same") == 1
        rows.extract_all(session, target)
        rows.embed_all(session, target)
        assert states(session) == {"embedded": 2}
        assert count(session, ContentRow) == 1
        (hit,) = rows.search(session, from_blobs([rows.vector(0)], rows.DIMENSION)[0], target.model_id, 1)
        assert (hit.file, list(hit.also)) == ("/docs/a.pdf", ["/docs/b.pdf"])
        # A later copy is done at once.
        assert rows.register(session, source, target, c="same") == 0
        assert states(session) == {"embedded": 3}


def test_a_changed_file_replaces_its_old_version_in_one_transaction(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="v1")
        rows.extract_all(session, target, ["old"])
        rows.embed_all(session, target)
        rows.register(session, source, target, a="v2")
        assert states(session) == {"discovered": 1}
        assert found_texts(session, target) == ["old"]
        rows.extract_all(session, target, ["new"])
        assert found_texts(session, target) == ["old"]
        rows.embed_all(session, target)
        assert found_texts(session, target) == ["new"]
        assert (count(session, ContentRow), count(session, ChunkRow), count(session, EmbeddingRow)) == (1, 1, 1)


def test_a_file_changed_back_before_it_was_made_anew_is_as_it_was(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="v1")
        rows.extract_all(session, target, ["old"])
        rows.embed_all(session, target)
        rows.register(session, source, target, a="v2")
        rows.register(session, source, target, a="v1")
        assert states(session) == {"embedded": 1}
        assert library.drop_leftovers(session) == 1
        assert count(session, ContentRow) == 1


def test_names_that_are_exchanged_cost_nothing(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="one", b="two")
        rows.extract_all(session, target)
        rows.embed_all(session, target)
        # In different batches of a scan: between them, nobody wants the content of "one".
        rows.register(session, source, target, a="two")
        rows.register(session, source, target, b="one")
        library.drop_leftovers(session)
        assert states(session) == {"embedded": 2}


def test_what_is_gone_is_gone_from_every_model(store: Database) -> None:
    with store.begin() as session:
        source, old = start(session)
        rows.register(session, source, old, a="alpha", b="beta")
        rows.extract_all(session, old)
        rows.embed_all(session, old)
        new = rows.add_target(session, "better")
        library.retarget(session, None, new, utc_now())
        rows.extract_all(session, new)
        rows.embed_all(session, new)
        assert models.activate_when_complete(session, new)
        assert count(session, ContentRow) == 4  # the old model's are kept, to go back to
        gone = [d for d in library.known_documents(session, Scope(source)) if d.path == "a.pdf"]
        library.forget(session, gone)
        assert count(session, ContentRow) == 2
        assert {sha for (sha,) in session.execute(sa.select(ContentRow.sha256))} == {rows.digest("beta")}
        rows.register(session, source, new, b="gamma")
        rows.extract_all(session, new)
        rows.embed_all(session, new)
        library.drop_leftovers(session)
        assert {sha for (sha,) in session.execute(sa.select(ContentRow.sha256))} == {rows.digest("gamma")}


def test_a_first_model_that_made_nothing_gives_way_at_once(store: Database) -> None:
    with store.begin() as session:
        source, wrong = start(session)
        rows.register(session, source, wrong, a="alpha", b="beta")
        right = rows.add_target(session, "right")
        rows.register(session, source, right, c="gamma")
        rows.extract_all(session, right)
        rows.embed_all(session, right)
        assert models.activate_when_complete(session, right)
        assert found_texts(session, right) == ["one", "three", "two"]


def test_retry_of_what_waits_for_vectors_leaves_it_waiting(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha")
        rows.extract_all(session, target)
        (line,) = overview.list_documents(session)
        assert retry_documents(session, [line.id]) == 0
        rows.embed_all(session, target)
        assert states(session) == {"embedded": 1}


def test_retry_of_one_copy_leaves_the_new_version_of_another_alone(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="same", b="same")
        rows.extract_all(session, target)
        rows.embed_all(session, target, bad=[1])
        rows.register(session, source, target, b="new")
        (a,) = overview.find_documents(session, "a.pdf")
        assert retry_documents(session, [a.id]) == 1
        rows.extract_all(session, target)
        rows.embed_all(session, target)
        assert states(session) == {"embedded": 2}
        wanted = {d.path: d.sha256 for d in library.known_documents(session, Scope(source))}
        assert wanted == {"a.pdf": rows.digest("same"), "b.pdf": rows.digest("new")}
        assert count(session, ContentRow) == 2


def test_chunks_of_an_abandoned_attempt_are_replaced(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha")
        (content_id,) = rows.extract_all(session, target)
        session.execute(sa.update(ContentRow).values(state="discovered"))
        queue.store_extracted(session, content_id, rows.extracted("again"), utc_now())
        assert count(session, ChunkRow) == count(session, PendingChunkRow) == 1


@pytest.mark.parametrize(
    ("state", "still_found"),
    [(DocumentState.FAILED, ["old"]), (DocumentState.EMPTY, []), (DocumentState.ENCRYPTED, [])],
)
def test_a_broken_new_version_keeps_the_last_good_text(
    store: Database, state: DocumentState, still_found: list[str]
) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="v1")
        rows.extract_all(session, target, ["old"])
        rows.embed_all(session, target)
        rows.register(session, source, target, a="v2")
        (claimed,) = queue.claim_to_extract(session, "run", None, target, utc_now(), 9)
        queue.end_extraction(session, claimed.content_id, state, "a reason")
        assert states(session) == {state.value: 1}
        assert found_texts(session, target) == still_found
        (line,) = overview.list_documents(session, overview.FAILING)
        assert line.reason == "a reason"


@pytest.mark.parametrize("state", [DocumentState.FAILED, DocumentState.EMPTY, DocumentState.ENCRYPTED])
def test_other_settings_take_no_text_of_the_same_bytes_away(store: Database, state: DocumentState) -> None:
    with store.begin() as session:
        source, ocr = start(session)
        rows.register(session, source, ocr, a="scan")
        rows.extract_all(session, ocr, ["read"])
        rows.embed_all(session, ocr)
        plain = Target(ocr.model_id, "plain")
        assert library.retarget(session, None, plain, utc_now()) == 1
        (claimed,) = queue.claim_to_extract(session, "run", None, plain, utc_now(), 9)
        queue.end_extraction(session, claimed.content_id, state, "a reason")
    for _ in range(2):  # a further run leaves it at that, also where the file was touched
        with store.begin() as session:
            assert states(session) == {state.value: 1}
            assert found_texts(session, ocr) == ["read"]
            (line,) = overview.list_documents(session, overview.FAILING)
            assert (line.reason, line.searched, line.older) == ("a reason", True, True)
            assert library.retarget(session, None, plain, utc_now()) == 0
            assert rows.register(session, source, plain, a="scan") == 0
            assert (queue.backlog(session, None, plain).contents, library.drop_leftovers(session)) == (0, 0)
    with store.begin() as session:  # with the old settings it is as it was, at once
        assert library.retarget(session, None, ocr, utc_now()) == 1
        assert (states(session), found_texts(session, ocr)) == ({"embedded": 1}, ["read"])
        assert library.drop_leftovers(session) == 1
        finer = Target(ocr.model_id, "finer")
        library.retarget(session, None, finer, utc_now())
        rows.extract_all(session, finer, ["better"])
        rows.embed_all(session, finer)
        assert (states(session), found_texts(session, ocr)) == ({"embedded": 1}, ["better"])
        assert count(session, ContentRow) == 1


def test_text_that_is_kept_goes_when_a_later_reading_finds_some_or_the_bytes_change(store: Database) -> None:
    with store.begin() as session:
        source, ocr = start(session)
        rows.register(session, source, ocr, a="scan", b="other scan")
        rows.extract_all(session, ocr, ["read"])
        rows.embed_all(session, ocr)
        plain = Target(ocr.model_id, "plain")
        library.retarget(session, None, plain, utc_now())
        for claimed in queue.claim_to_extract(session, "run", None, plain, utc_now(), 9):
            queue.end_extraction(session, claimed.content_id, DocumentState.EMPTY, "no text")
        (a, _) = overview.list_documents(session)
        assert retry_documents(session, [a.id]) == 1
        rows.extract_all(session, plain, ["better"])
        rows.embed_all(session, plain)
        assert found_texts(session, ocr) == ["better", "read"]
        rows.register(session, source, plain, b="blank page")
        (claimed,) = queue.claim_to_extract(session, "run", None, plain, utc_now(), 9)
        queue.end_extraction(session, claimed.content_id, DocumentState.EMPTY, "no text")
        assert found_texts(session, ocr) == ["better"]
        library.drop_leftovers(session)
        assert count(session, ContentRow) == 2


def test_a_rename_keeps_the_document_and_a_deletion_takes_all_of_it(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha", b="beta")
        rows.extract_all(session, target)
        rows.embed_all(session, target)
        before = {d.path: d.id for d in library.known_documents(session, Scope(source))}
        moves = Moves(library.known_documents(session, Scope(source)))
        library.register(session, source, [rows.read_file("x/c.pdf", "alpha")], moves, target, utc_now())
        library.forget(session, moves.unclaimed())
        assert {d.path: d.id for d in library.known_documents(session, Scope(source))} == {"x/c.pdf": before["a.pdf"]}
        assert states(session) == {"embedded": 1}
        assert (count(session, ContentRow), count(session, ChunkRow), count(session, EmbeddingRow)) == (1, 3, 3)
        library.forget(session, library.known_documents(session, Scope(source)))
        assert {count(session, table) for table in (ContentRow, ChunkRow, EmbeddingRow, ContentEmbeddingRow)} == {0}


def test_a_batch_stored_twice_counts_once(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha")
        rows.extract_all(session, target)
        (content_id,) = queue.claim_to_embed(session, "run", None, target, utc_now(), 9)
        chunks = queue.pending_chunks(session, content_id, 0, 9)
        batch = [(chunk, rows.vector(0)) for chunk in chunks[:2]]
        assert queue.store_vectors(session, "run", batch, [], utc_now()).vectors == 2
        assert queue.store_vectors(session, "run", batch, [], utc_now()).vectors == 0
        assert overview.count_chunks(session) == {"total": 3, "embedded": 2}
        (latest,) = runs.latest_runs(session)
        assert latest.chunks_embedded == 2


def test_vectors_of_a_file_that_went_meanwhile_are_passed_over(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha")
        rows.extract_all(session, target)
        (content_id,) = queue.claim_to_embed(session, "run", None, target, utc_now(), 9)
        chunks = queue.pending_chunks(session, content_id, 0, 9)
        library.forget(session, library.known_documents(session, Scope(source)))
        stored = queue.store_vectors(session, "run", [(c, rows.vector(0)) for c in chunks], [], utc_now())
        assert (stored.vectors, stored.ended) == (0, [])
        queue.store_extracted(session, content_id, rows.extracted("late"), utc_now())
        assert count(session, ChunkRow) == 0


def test_tokens_come_back_as_they_went_in(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha")
        rows.extract_all(session, target)
        (content_id,) = queue.claim_to_embed(session, "run", None, target, utc_now(), 9)
        first, second, third = queue.pending_chunks(session, content_id, 0, 9)
        assert second.tokens == rows.tokens_of("two")
        assert [c.chunk_id for c in queue.pending_chunks(session, content_id, first.chunk_id, 1)] == [second.chunk_id]
        assert queue.pending_chunks(session, content_id, third.chunk_id, 9) == []


def test_a_bad_chunk_fails_its_document_and_leaves_the_others_searchable(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha")
        rows.extract_all(session, target)
        rows.embed_all(session, target, bad=[1])
        assert states(session) == {"failed": 1}
        assert found_texts(session, target) == ["one", "three"]
        (line,) = overview.list_documents(session, overview.FAILING)
        assert line.reason == "1 of 3 chunks could not be embedded (it broke); the others can be searched"
        assert retry_documents(session, [line.id]) == 1
        assert states(session) == {"discovered": 1}
        rows.extract_all(session, target)
        rows.embed_all(session, target)
        assert states(session) == {"embedded": 1}
        assert found_texts(session, target) == ["one", "three", "two"]


def test_a_dead_runs_claims_are_free_again(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha")
        assert queue.claim_to_extract(session, "run", None, target, utc_now(), 9)
        assert not queue.claim_to_extract(session, "run", None, target, utc_now(), 9)
    with store.begin() as session:
        (dead,) = runs.start_run(session, "next", rows.ME, [], utc_now(), lambda process: False)
        assert dead.id == "run"
        assert [run.state for run in runs.latest_runs(session, 2)] == ["running", "interrupted"]
        assert queue.claim_to_extract(session, "next", None, target, utc_now(), 9)


def test_a_living_run_keeps_others_out(store: Database) -> None:
    with store.begin() as session:
        rows.begin(session)
    asked: list[Process] = []

    def alive(process: Process) -> bool:
        asked.append(process)
        return True

    with pytest.raises(RunInProgress, match="pid 1 on here"), store.begin() as session:
        runs.start_run(session, "other", rows.ME, [], utc_now(), alive)
    assert asked == [rows.ME]


@pytest.mark.parametrize(("age", "lives"), [(LEASE / 2, True), (LEASE * 2, False)])
def test_a_run_on_another_host_lives_by_its_heartbeat(store: Database, age: dt.timedelta, lives: bool) -> None:
    elsewhere = Process("elsewhere", 1, 0.0)
    with store.begin() as session:
        runs.start_run(session, "far", elsewhere, [], utc_now(), lambda process: False)
        session.execute(sa.update(RunRow).values(heartbeat_at=utc_now() - age))
    with store.begin() as session:
        if lives and not store.is_shared:
            with pytest.raises(RunInProgress):
                rows.begin(session)
            return
        rows.begin(session)
        assert {run.id for run in runs.living_runs(session)} == ({"far", "run"} if lives else {"run"})


def test_a_finished_run_lets_go(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha")
        queue.claim_to_extract(session, "run", None, target, utc_now(), 9)
        runs.finish_run(session, "run", "stopped", None, utc_now())
        rows.begin(session, "next")
        assert queue.claim_to_extract(session, "next", None, target, utc_now(), 9)


def test_a_postponed_content_waits_for_its_time(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha")
        (content,) = queue.claim_to_extract(session, "run", None, target, utc_now(), 9)
        later = utc_now() + dt.timedelta(minutes=1)
        queue.postpone(session, content.content_id, "locked", later)
        assert not queue.claim_to_extract(session, "run", None, target, utc_now(), 9)
        (again,) = queue.claim_to_extract(session, "run", None, target, later, 9)
        assert again.attempts == 1


def test_a_content_that_a_clock_that_was_ahead_postponed_does_not_wait_until_then(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha")
        (content,) = queue.claim_to_extract(session, "run", None, target, utc_now(), 9)
        queue.postpone(session, content.content_id, "locked", utc_now() + dt.timedelta(days=30))
        assert queue.backlog(session, None, target, utc_now()).contents == 1
        (again,) = queue.claim_to_extract(session, "run", None, target, utc_now(), 9)
        assert again.attempts == 1


def test_chunks_that_are_postponed_together_count_as_one_try(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha")
        (content,) = queue.claim_to_extract(session, "run", None, target, utc_now(), 9)
        session.get_one(ContentRow, content.content_id).state = DocumentState.EXTRACTED
        now = utc_now()
        for _ in range(5):
            assert len(queue.postpone_vectors(session, {content.content_id: "HTTP 500"}, now)) == 1
        row = session.get_one(ContentRow, content.content_id)
        assert row.attempts == 1
        assert row.retry_at is not None
        queue.postpone_vectors(session, {content.content_id: "HTTP 500"}, row.retry_at)
        assert row.attempts == 2


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("", ["a.pdf", "sub!.pdf", "sub/b.pdf", "sub/deep/c.pdf", "sub0.pdf", "subway/d.pdf"]),
        ("sub", ["sub/b.pdf", "sub/deep/c.pdf"]),
        ("sub/deep", ["sub/deep/c.pdf"]),
        ("sub/b.pdf", ["sub/b.pdf"]),
        ("SUB", []),
        ("nowhere", []),
    ],
)
def test_a_scope_is_a_folder_and_nothing_beside_it(store: Database, folder: str, expected: Sequence[str]) -> None:
    with store.begin() as session:
        source, target = start(session)
        names = ["a", "sub/b", "sub/deep/c", "subway/d", "sub0", "sub!"]
        rows.register(session, source, target, **{name: name for name in names})
        scope = Scope(source, folder)
        assert sorted(d.path for d in library.known_documents(session, scope)) == expected
        claimed = queue.claim_to_extract(session, "run", [scope], target, utc_now(), 99)
        assert sorted(path for content in claimed for _, path in content.files) == expected


def test_a_source_around_others_takes_them_in(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha")
        outer = library.ensure_source(session, "/", utc_now())
        assert library.sources(session) == {"/": outer}
        assert [d.path for d in library.known_documents(session, Scope(outer))] == ["docs/a.pdf"]
        assert overview.list_documents(session)[0].file == "/docs/a.pdf"


def test_another_recipe_is_made_document_by_document(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="alpha", b="beta")
        rows.extract_all(session, target, ["old"])
        rows.embed_all(session, target)
        finer = Target(target.model_id, "finer")
        assert library.retarget(session, None, finer, utc_now()) == 2
        assert library.retarget(session, None, finer, utc_now()) == 0
        assert found_texts(session, target) == ["old", "old"]
        (first, _) = queue.claim_to_extract(session, "run", None, finer, utc_now(), 9)
        queue.store_extracted(session, first.content_id, rows.extracted("new"), utc_now())
        rows.embed_all(session, finer)
        assert found_texts(session, target) == ["new", "old"]


def test_another_model_embeds_beside_the_old_one_and_search_moves_in_one_step(store: Database) -> None:
    with store.begin() as session:
        source, old = start(session)
        rows.register(session, source, old, a="alpha", b="beta")
        rows.extract_all(session, old, ["old"])
        rows.embed_all(session, old)
        new = rows.add_target(session, "better")
        assert library.retarget(session, None, new, utc_now()) == 2
        (first, second) = queue.claim_to_extract(session, "run", None, new, utc_now(), 9)
        queue.store_extracted(session, first.content_id, rows.extracted("new"), utc_now())
        rows.embed_all(session, new)
        assert found_texts(session, old) == ["old", "old"]
        assert found_texts(session, new) == ["new"]  # if search moved now
        assert not models.activate_when_complete(session, new)
        queue.store_extracted(session, second.content_id, rows.extracted("new"), utc_now())
        rows.embed_all(session, new)
        assert models.activate_when_complete(session, new)
        active = models.active_model(session)
        assert active is not None
        assert active.id == new.model_id
        assert found_texts(session, new) == ["new", "new"]
        # Going back costs nothing: what the old model made is still there.
        assert library.retarget(session, None, old, utc_now()) == 2
        assert queue.backlog(session, None, old).contents == 0
        assert models.activate_when_complete(session, old)
        assert found_texts(session, old) == ["old", "old"]


def test_what_no_document_has_is_dropped_whoever_made_it(store: Database) -> None:
    with store.begin() as session:
        source, old = start(session)
        rows.register(session, source, old, a="alpha")
        rows.extract_all(session, old)
        rows.embed_all(session, old)
        new = rows.add_target(session, "better")
        library.retarget(session, None, new, utc_now())
        library.forget(session, library.known_documents(session, Scope(source)))
        drop_unused(session)
        assert count(session, ContentRow) == 0


def test_unreadable_files_fail_until_they_can_be_read(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        unreadable = library.UnreadableFile("a.pdf", 7, "cannot be read: Permission denied")
        library.note_unreadable(session, source, [unreadable], utc_now())
        assert states(session) == {"failed": 1}
        (line,) = overview.list_documents(session)
        assert line.reason == "cannot be read: Permission denied"
        (known,) = library.known_documents(session, Scope(source))
        assert known.sha256 is None
        rows.register(session, source, target, a="alpha")
        assert states(session) == {"discovered": 1}


def test_documents_are_found_by_number_path_and_ending(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, **{"x/100%_a": "alpha", "y/100%_a": "beta", "b": "gamma"})
        (b,) = overview.find_documents(session, "/docs/b.pdf")
        assert overview.find_documents(session, str(b.id)) == [b]
        assert overview.find_documents(session, "b.pdf") == [b]
        assert len(overview.find_documents(session, "100%_a.pdf")) == 2
        assert overview.find_documents(session, "%.pdf") == []
        view = overview.show_document(session, b.id)
        assert view is not None
        assert view.line == b
