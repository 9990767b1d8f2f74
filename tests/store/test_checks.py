"""The checks of rows, on databases that the store's own functions made, step by step."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from pipeline.core.changes import Moves
from pipeline.core.documents import DocumentState
from pipeline.core.verifying import KINDS, Disagreement, Remedy, Tally, expected_state, is_below_any, spread_sample
from pipeline.store import library, models, queue, retry
from pipeline.store.checks import remaking, repairs
from pipeline.store.checks.everything import check_database, located
from pipeline.store.checks.vectors import cosine_of
from pipeline.store.database import Database
from pipeline.store.scopes import Scope
from pipeline.store.tables import ChunkRow, ContentRow, DocumentRow, PendingChunkRow, RunRow
from tests.store.rows import (
    add_target,
    begin,
    embed_all,
    extract_all,
    extracted,
    read_file,
    register,
    tokens_of,
    utc_now,
    vector,
)


def disagreements(store: Database) -> list[Disagreement]:
    tally = Tally()
    with store.snapshot() as session:
        check_database(session, tally, 100, 0)
        return located(session, tally.listed)


def codes(store: Database) -> set[str]:
    return {one.code for one in disagreements(store)}


def mend(store: Database) -> None:
    """Everything that rows mend."""
    for one in disagreements(store):
        if one.kind.remedy in (Remedy.ROWS, Remedy.INDEX):
            with store.begin() as session:
                repairs.mend(session, one.code, [one], utc_now())


def ready(session: Session) -> models.Target:
    library.ensure_source(session, "/docs", utc_now())
    begin(session)
    return add_target(session)


def test_no_step_of_a_documents_way_disagrees(store: Database) -> None:
    """Whatever a run does, and wherever it is cut off, every transaction leaves rows that agree."""
    with store.begin() as session:
        target = ready(session)
    assert not disagreements(store)
    with store.begin() as session:
        register(session, 1, target, a="one", b="two", c="one", d="four", e="five")
    assert not disagreements(store)
    with store.begin() as session:
        claimed = queue.claim_to_extract(session, "run", None, target, utc_now(), 2)
        queue.store_extracted(session, claimed[0].content_id, extracted("one", "two", "three"), utc_now())
    assert not disagreements(store)
    with store.begin() as session:
        queue.end_extraction(session, claimed[1].content_id, DocumentState.EMPTY, "no text", pages=3)
        extract_all(session, target)
    assert not disagreements(store)
    with store.begin() as session:
        (content_id,) = queue.claim_to_embed(session, "run", None, target, utc_now(), 1)
        first, *_ = queue.pending_chunks(session, content_id, 0, 10)
        queue.store_vectors(session, "run", [(first, vector(1))], [], utc_now())
    assert not disagreements(store)
    with store.begin() as session:
        session.execute(sa.update(ContentRow).values(claimed_by=None))
        embed_all(session, target, bad=[1])
    assert not disagreements(store)
    # One changes, one cannot be read, one goes; another model embeds what is there.
    with store.begin() as session:
        library.register(session, 1, [read_file("a.pdf", "other", 11, 2)], Moves([]), target, utc_now())
        library.note_unreadable(session, 1, [library.UnreadableFile("b.pdf", 5, "locked")], utc_now())
        library.forget(session, [one for one in library.known_documents(session, Scope(1)) if one.path == "d.pdf"])
    assert not disagreements(store)
    with store.begin() as session:
        other = add_target(session, "other")
        while library.retarget(session, None, other, utc_now()):
            pass
    assert not disagreements(store)
    with store.begin() as session:
        extract_all(session, other)
    assert not disagreements(store)
    with store.begin() as session:
        embed_all(session, other)
    assert not disagreements(store)
    with store.begin() as session:
        models.choose(session, other.model_id, anyway=True)
    assert not disagreements(store)
    with store.begin() as session:
        numbers = list(session.scalars(sa.select(DocumentRow.id)))
        retry.retry_documents(session, numbers)
        models.choose(session, target.model_id, anyway=True)
    assert not disagreements(store)


@pytest.fixture
def embedded(store: Database) -> Database:
    """Two documents with three chunks each, and one that waits for its vectors."""
    with store.begin() as session:
        target = ready(session)
        register(session, 1, target, a="one", b="two")
        extract_all(session, target)
        embed_all(session, target)
        register(session, 1, target, w="waits")
        extract_all(session, target, ("eins", "zwei"))
    assert not disagreements(store)
    return store


def test_what_waits_beside_a_vector_goes(embedded: Database) -> None:
    with embedded.begin() as session:
        chunk = session.scalars(sa.select(ChunkRow).where(ChunkRow.text == "one").order_by(ChunkRow.id)).first()
        assert chunk is not None
        tokens = np.asarray(tokens_of("one"), "<i4").tobytes()
        session.add(PendingChunkRow(chunk_id=chunk.id, content_id=chunk.content_id, tokens=tokens))
    assert codes(embedded) == {"chunk-places"}
    mend(embedded)
    assert not disagreements(embedded)


def test_an_error_beside_what_waits_goes(embedded: Database) -> None:
    with embedded.begin() as session:
        session.execute(sa.update(ChunkRow).where(ChunkRow.text == "eins").values(error="it broke"))
    assert codes(embedded) == {"chunk-places", "content-counters"}
    mend(embedded)
    assert not disagreements(embedded)
    with embedded.snapshot() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(PendingChunkRow)) == 2


@pytest.mark.parametrize(
    "tokens", [b"\1\2\3", np.asarray([101, 9, 9, 102], "<i4").tobytes(), b""], ids=["cut", "others", "none"]
)
def test_what_waits_with_other_tokens_is_read_again(embedded: Database, tokens: bytes) -> None:
    with embedded.begin() as session:
        chunk = session.scalars(sa.select(ChunkRow.id).where(ChunkRow.text == "eins")).one()
        session.execute(sa.update(PendingChunkRow).where(PendingChunkRow.chunk_id == chunk).values(tokens=tokens))
    (one,) = disagreements(embedded)
    assert (one.code, one.where) == ("queue-tokens", "/docs/w.pdf, chunk 0, page 1")
    with embedded.begin() as session:
        remaking.remake(session, int(one.ids["content"]), [int(one.ids["chunk"])], utc_now())
    assert not disagreements(embedded)
    with embedded.snapshot() as session:
        assert (
            session.scalars(sa.select(ContentRow.state).where(ContentRow.id == one.ids["content"])).one()
            == "discovered"
        )


def test_what_waits_for_a_stretch_that_is_not_there_is_read_again(embedded: Database) -> None:
    with embedded.begin() as session:
        session.execute(sa.update(PendingChunkRow).values(in_stretch=True))
    assert codes(embedded) == {"queue-tokens"}


def test_chunks_of_what_is_yet_to_be_read_go(embedded: Database) -> None:
    with embedded.begin() as session:
        session.execute(sa.update(ContentRow).where(ContentRow.state == "extracted").values(state="discovered"))
    assert codes(embedded) == {"content-state"}
    mend(embedded)
    assert not disagreements(embedded)


def test_the_state_of_what_failed_and_of_what_did_not(embedded: Database) -> None:
    with embedded.begin() as session:
        session.execute(sa.update(ContentRow).where(ContentRow.state == "embedded").values(state="failed"))
    assert {one.expected for one in disagreements(embedded)} == {"embedded"}
    mend(embedded)
    assert not disagreements(embedded)


def test_what_is_made_anew_stays_searchable_until_then(embedded: Database) -> None:
    with embedded.begin() as session:
        content = session.scalars(
            sa.select(ContentRow).where(ContentRow.state == "embedded").order_by(ContentRow.id)
        ).first()
        assert content is not None
        number, recipe = content.id, content.recipe
        lost = session.scalars(sa.select(ChunkRow.id).where(ChunkRow.content_id == number, ChunkRow.ordinal == 1)).all()
        remaking.remake(session, number, lost, utc_now())
    assert not disagreements(embedded)
    with embedded.begin() as session:
        document = session.scalars(sa.select(DocumentRow).where(DocumentRow.current_id == number)).one()
        document_id = document.id
        waits_for = session.get_one(ContentRow, document.pending_id)
        assert (waits_for.state, waits_for.recipe) == ("discovered", recipe)
        assert session.get_one(ContentRow, number).embedded_count == 2
        # To be asked once more changes nothing.
        remaking.remake(session, number, [], utc_now())
        assert document.pending_id == waits_for.id
        target = models.Target(waits_for.model_id, recipe)
        (claimed,) = queue.claim_to_extract(session, "run", None, target, utc_now(), 10)
        stored = queue.store_extracted(session, claimed.content_id, extracted("one", "two", "three"), utc_now())
        assert stored.reused == 2
        embed_all(session, target)
    assert not disagreements(embedded)
    with embedded.snapshot() as session:
        assert session.get(ContentRow, number) is None
        assert session.get_one(DocumentRow, document_id).pending_id is None


def test_a_run_that_ended_holds_nothing(embedded: Database) -> None:
    with embedded.begin() as session:
        session.execute(sa.update(ContentRow).values(claimed_by="run"))
    assert not disagreements(embedded)  # it is at work
    with embedded.begin() as session:
        session.execute(sa.update(RunRow).values(state="complete"))
    assert codes(embedded) == {"content-claim"}
    mend(embedded)
    assert not disagreements(embedded)


def test_what_nobody_wants_is_told_of_unless_a_run_still_has_to_clear_it_away(embedded: Database) -> None:
    with embedded.begin() as session:
        session.execute(sa.delete(DocumentRow).where(DocumentRow.path == "a.pdf"))
    for state, expected in (("running", set()), ("interrupted", set()), ("complete", {"content-unwanted"})):
        with embedded.begin() as session:
            session.execute(sa.update(RunRow).values(state=state))
        assert codes(embedded) == expected
    mend(embedded)
    assert not disagreements(embedded)


def test_more_than_is_kept_is_counted() -> None:
    tally = Tally(most=3)
    tally.add(Disagreement("chunk-text", str(number), "") for number in range(10))
    tally.add([Disagreement("row-orphan", "", "")])
    assert tally.total == 11
    assert [one.code for one in tally.listed] == ["row-orphan", "chunk-text", "chunk-text", "chunk-text"]


def test_every_kind_says_what_it_means_and_what_is_done() -> None:
    assert all(kind.means and kind.repair and kind.code == code for code, kind in KINDS.items())


@given(st.integers(0, 200), st.integers(1, 50), st.integers(0, 5))
def test_a_sample_is_the_same_for_a_seed_and_never_too_large(count: int, size: int, seed: int) -> None:
    keys = list(range(count))
    found = spread_sample(keys, size, seed)
    assert found == spread_sample(keys, size, seed)
    assert len(found) == min(size, count)
    assert found == sorted(set(found))
    assert set(found) <= set(keys)


def test_states_and_paths() -> None:
    assert expected_state(errors=1, waiting=1) == "extracted"
    assert expected_state(errors=1, waiting=0) == "failed"
    assert expected_state(errors=0, waiting=0) == "embedded"
    assert is_below_any("/a/b", ["/a"])
    assert is_below_any("/a", ["/a"])
    assert is_below_any("/a", ["/"])
    assert not is_below_any("/ab", ["/a"])


def test_vectors_that_are_none_have_no_cosine() -> None:
    one = vector(1)
    assert cosine_of(one, one) == pytest.approx(1.0)
    assert cosine_of(one, one[:-4]) is None
    assert cosine_of(one, None) is None
    assert cosine_of(one, np.zeros(4, "<f4").tobytes()) is None
    assert cosine_of(one, np.full(4, np.nan, "<f4").tobytes()) is None
