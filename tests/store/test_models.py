"""Models beside each other: search answers with one of them, whole; what was embedded before is not embedded again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from pipeline.core.changes import Moves
from pipeline.core.documents import DocumentState
from pipeline.core.errors import ModelIncomplete, UsageError
from pipeline.core.vectors import from_blobs
from pipeline.store import library, models, overview, pruning, queue
from pipeline.store.contents import drop_unused
from pipeline.store.database import Database
from pipeline.store.inventory import ModelInventory, find_model, list_inventory, use_model
from pipeline.store.models import Target
from pipeline.store.retry import retry_documents
from pipeline.store.reuse import token_digest
from pipeline.store.scopes import Scope
from pipeline.store.tables import (
    ChunkRow,
    ContentEmbeddingRow,
    ContentRow,
    DocumentRow,
    EmbeddingRow,
    PendingChunkRow,
)
from pipeline.store.view import view_of
from tests.store import rows
from tests.store.rows import utc_now

QUESTION = np.full(rows.DIMENSION, 0.5, np.float32)


def start(session: Session, **documents: str) -> tuple[int, Target]:
    """Documents that were embedded by a model called `old`."""
    rows.begin(session)
    source, old = library.ensure_source(session, "/docs", utc_now()), rows.add_target(session, "old")
    if documents:
        rows.register(session, source, old, **documents)
        make_all(session, old)
    return source, old


def make_all(session: Session, target: Target) -> None:
    """Make what waits: each document has one chunk, its path and its model's number."""
    for content in queue.claim_to_extract(session, "run", None, target, utc_now(), 100):
        text = f"{content.files[0][1].removesuffix('.pdf')} {target.model_id}"
        queue.store_extracted(session, content.content_id, rows.extracted(text), utc_now())
    rows.embed_all(session, target)


def make_all_but(session: Session, target: Target, empty: str) -> None:
    """As `make_all`, but one document, by its path, has no text."""
    for content in queue.claim_to_extract(session, "run", None, target, utc_now(), 100):
        path = content.files[0][1]
        if path == empty:
            queue.end_extraction(session, content.content_id, DocumentState.EMPTY, "no text")
        else:
            texts = rows.extracted(f"{path.removesuffix('.pdf')} {target.model_id}")
            queue.store_extracted(session, content.content_id, texts, utc_now())
    rows.embed_all(session, target)


def aim(session: Session, target: Target) -> None:
    """What a run does at its start."""
    while library.retarget(session, None, target, utc_now()):
        pass


def found(session: Session) -> list[str]:
    """What a search now finds."""
    active = models.active_model(session)
    assert active is not None
    hits = rows.search(session, QUESTION, active.id, 100)
    return sorted(hit.text for hit in hits)


def texts(session: Session, target: Target) -> list[str]:
    """What a search by a model finds."""
    return sorted(hit.text for hit in rows.search(session, QUESTION, target.model_id, 9))


def by_name(session: Session) -> dict[str, ModelInventory]:
    return {model.name: model for model in list_inventory(session)}


def count(session: Session, table: type) -> int:
    return session.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def test_search_stays_with_the_old_model_until_the_new_one_has_made_all(store: Database) -> None:
    with store.begin() as session:
        source, old = start(session, a="alpha", b="beta")
        new = rows.add_target(session, "new")
        aim(session, new)
        first, second = queue.claim_to_extract(session, "run", None, new, utc_now(), 9)
        queue.store_extracted(session, first.content_id, rows.extracted("a 2"), utc_now())
        rows.embed_all(session, new)
        assert not models.activate_when_complete(session, new)
        assert found(session) == ["a 1", "b 1"]
        listed = by_name(session)
        assert (listed["old"].active, listed["old"].documents, listed["old"].missing) == (True, 2, 0)
        assert (listed["new"].building, listed["new"].documents, listed["new"].missing) == (True, 1, 1)
        # Documents that come meanwhile are made by the new model, and found when search moves to it.
        rows.register(session, source, new, c="gamma")
        queue.store_extracted(session, second.content_id, rows.extracted("b 2"), utc_now())
        make_all(session, new)
        assert found(session) == ["a 1", "b 1"]
        assert models.count_unsearched(session) == 1
    with store.begin() as session:
        assert models.activate_when_complete(session, new)
        assert found(session) == ["a 2", "b 2", "c 2"]
        assert models.count_unsearched(session) == 0
        assert not view_of(session, old.model_id).active
        assert [model.name for model in list_inventory(session)] == ["new", "old"]


def test_the_move_is_made_also_where_the_new_model_has_less(store: Database) -> None:
    with store.begin() as session:
        _, old = start(session, a="alpha", b="beta")
        plain = Target(old.model_id, "plain")
        aim(session, plain)
        make_all_but(session, plain, "a.pdf")
        assert found(session) == ["a 1", "b 1"]
        listed = by_name(session)["old"]
        assert (listed.documents, listed.embedded, listed.missing) == (2, 2, 0)
        new = rows.add_target(session, "new")
        aim(session, new)
        make_all_but(session, new, "a.pdf")
        assert models.activate_when_complete(session, new)
        assert found(session) == ["b 2"]
        listed = by_name(session)["new"]
        assert (listed.documents, listed.embedded, listed.missing) == (2, 1, 0)


def test_a_move_there_and_back_takes_no_text_away(store: Database) -> None:
    with store.begin() as session:
        _, old = start(session, a="alpha")
        new = rows.add_target(session, "new")
        aim(session, new)
        make_all(session, new)
        assert models.activate_when_complete(session, new)
        models.choose(session, old.model_id)
        aim(session, Target(old.model_id, "plain"))
        make_all_but(session, Target(old.model_id, "plain"), "a.pdf")
        assert found(session) == ["a 1"]
        models.choose(session, new.model_id)
        assert found(session) == ["a 2"]
        models.choose(session, old.model_id)
        drop_unused(session)
        assert found(session) == ["a 1"]
        assert [line.state for line in overview.list_documents(session)] == [DocumentState.EMPTY]


def test_what_is_embedded_stays_counted_while_the_rest_is_tried_again(store: Database) -> None:
    with store.begin() as session:
        source, old = start(session)
        rows.register(session, source, old, a="alpha", b="beta")
        make_all_but(session, old, "a.pdf")
        library.note_unreadable(session, source, [library.UnreadableFile("c.pdf", 7, "away")], utc_now())
        listed = by_name(session)["old"]
        assert (listed.embedded, listed.documents, listed.missing, listed.unreadable) == (1, 2, 0, 1)
        (a,) = overview.find_documents(session, "a.pdf")
        retry_documents(session, [a.id])
        listed = by_name(session)["old"]
        assert (listed.embedded, listed.documents, listed.missing, listed.unreadable) == (1, 1, 1, 1)


def test_a_document_that_goes_or_changes_during_the_move(store: Database) -> None:
    with store.begin() as session:
        source, _ = start(session, a="alpha", b="beta", c="gamma")
        new = rows.add_target(session, "new")
        aim(session, new)
        known = library.known_documents(session, Scope(source))
        library.forget(session, [document for document in known if document.path == "a.pdf"])
        assert found(session) == ["b 1", "c 1"]
        rows.register(session, source, new, b="changed")
        library.drop_leftovers(session)
        assert found(session) == ["b 1", "c 1"]  # the last version that search can show
        make_all(session, new)
        assert models.activate_when_complete(session, new)
        assert found(session) == ["b 2", "c 2"]
        # What the old model made of bytes that are gone is gone too.
        assert by_name(session)["old"].missing == 1
        shas = {sha for (sha,) in session.execute(sa.select(ContentRow.sha256))}
        assert shas == {rows.digest("changed"), rows.digest("gamma")}


def test_moving_back_is_one_step_and_lasts(store: Database) -> None:
    with store.begin() as session:
        _, old = start(session, a="alpha", b="beta")
        new = rows.add_target(session, "new")
        aim(session, new)
        make_all(session, new)
        assert models.activate_when_complete(session, new)
    with store.begin() as session:
        used = use_model(session, "old")
        assert (used.moved, used.missing, used.model.active) == (True, 0, True)
        assert found(session) == ["a 1", "b 1"]
        assert count(session, PendingChunkRow) == 0
    with store.begin() as session:
        # The settings still name the new one: a run goes on with it, and search stays where it was put.
        aim(session, new)
        assert queue.backlog(session, None, new).contents == 0
        assert not models.activate_when_complete(session, new)
        assert found(session) == ["a 1", "b 1"]
        assert by_name(session)["new"].set_aside
        assert overview.show_model(session, new.model_id).set_aside
        assert not use_model(session, "old").moved
    with store.begin() as session:
        use_model(session, "new")
        assert found(session) == ["a 2", "b 2"]
        aim(session, old)
        assert not models.activate_when_complete(session, old)
        assert found(session) == ["a 2", "b 2"]


def test_an_incomplete_model_is_used_only_anyway(store: Database) -> None:
    with store.begin() as session:
        start(session, a="alpha", b="beta")
        new = rows.add_target(session, "new")
        aim(session, new)
        first, second = queue.claim_to_extract(session, "run", None, new, utc_now(), 9)
        queue.store_extracted(session, first.content_id, rows.extracted("a 2"), utc_now())
        rows.embed_all(session, new)
    with store.begin() as session:
        with pytest.raises(ModelIncomplete, match="1 document has not been through new"):
            use_model(session, "new")
        assert found(session) == ["a 1", "b 1"]
        assert use_model(session, "new", anyway=True).missing == 1
        assert found(session) == ["a 2"]
        searched = {line.file: line.searched for line in overview.list_documents(session)}
        assert searched == {"/docs/a.pdf": True, "/docs/b.pdf": False}
        # From now on each document is found as soon as it is done.
        queue.store_extracted(session, second.content_id, rows.extracted("b 2"), utc_now())
        rows.embed_all(session, new)
        assert found(session) == ["a 2", "b 2"]
        use_model(session, "old")
        assert found(session) == ["a 1", "b 1"]


def test_a_third_model_can_be_used_while_a_second_is_built(store: Database) -> None:
    with store.begin() as session:
        start(session, a="alpha", b="beta")
        second, third = rows.add_target(session, "second"), rows.add_target(session, "third")
        aim(session, third)
        make_all(session, third)
        aim(session, second)
        use_model(session, "third")
        assert found(session) == ["a 3", "b 3"]
        assert queue.backlog(session, None, second).contents == 2
        make_all(session, second)
        assert models.activate_when_complete(session, second)
        assert found(session) == ["a 2", "b 2"]


def test_other_chunk_settings_rebuild_document_by_document_and_back(store: Database) -> None:
    with store.begin() as session:
        _, first = start(session, a="alpha", b="beta", c="gamma")
        second = replace(first, recipe="other")
        aim(session, second)
        assert found(session) == ["a 1", "b 1", "c 1"]
        a, b, _ = queue.claim_to_extract(session, "run", None, second, utc_now(), 9)
        queue.store_extracted(session, a.content_id, rows.extracted("a, first", "a, second"), utc_now())
        rows.embed_all(session, second)
        assert found(session) == ["a, first", "a, second", "b 1", "c 1"]
        # Half made: the old chunks are searched until the last of the new has its vector.
        queue.store_extracted(session, b.content_id, rows.extracted("b, first", "b, second"), utc_now())
        (content_id,) = queue.claim_to_embed(session, "run", None, second, utc_now(), 9)
        half, _ = queue.pending_chunks(session, content_id, 0, 9)
        queue.store_vectors(session, "run", [(half, rows.vector(0))], [], utc_now())
        assert found(session) == ["a, first", "a, second", "b 1", "c 1"]
    with store.begin() as session:
        # Back again: what had not moved is as it was at once, and only what had is made anew.
        aim(session, first)
        library.drop_leftovers(session)
        assert queue.backlog(session, None, first).contents == 1
        assert found(session) == ["a, first", "a, second", "b 1", "c 1"]
        make_all(session, first)
        assert found(session) == ["a 1", "b 1", "c 1"]
        assert count(session, ContentRow) == 3


def prune(store: Database, model_id: int, most: int = 10_000) -> list[int]:
    """The contents that each transaction deleted."""
    with store.begin() as session:
        pruning.release(session, model_id)
    batches = list[int]()
    while True:
        with store.begin() as session:
            some = pruning.prune_some(session, model_id, most)
        if some is None:
            return batches
        batches.append(some.contents)


def test_pruning_deletes_what_search_does_not_use_in_bounded_steps(store: Database) -> None:
    with store.begin() as session:
        _, old = start(session, **{name: name for name in "abcde"})
        new = rows.add_target(session, "new")
        aim(session, new)
        make_all(session, new)
        assert models.activate_when_complete(session, new)
        before = found(session)
    assert prune(store, new.model_id) == []  # never the one that search uses
    assert prune(store, old.model_id, most=2) == [2, 2, 1]
    with store.begin() as session:
        assert found(session) == before
        assert [model.name for model in list_inventory(session)] == ["new"]
        assert {count(session, table) for table in (ContentRow, ChunkRow, EmbeddingRow, ContentEmbeddingRow)} == {5}
        # The model can be built again.
        again = rows.add_target(session, "old")
        assert again == old
        aim(session, old)
        make_all(session, old)
        assert by_name(session)["old"].complete


def test_pruning_that_was_cut_short_leaves_what_is_left_usable(store: Database) -> None:
    with store.begin() as session:
        _, old = start(session, a="alpha", b="beta", c="gamma")
        new = rows.add_target(session, "new")
        aim(session, new)
        make_all(session, new)
        assert models.activate_when_complete(session, new)
    with store.begin() as session:
        pruning.release(session, old.model_id)
    with store.begin() as session:
        assert pruning.prune_some(session, old.model_id, 1) == pruning.Pruned(1, 1)
    with store.begin() as session:
        assert (by_name(session)["old"].documents, by_name(session)["old"].missing) == (2, 1)
        # Search moves to it all the same: the rest of it must not be deleted then.
        use_model(session, "old", anyway=True)
        assert pruning.prune_some(session, old.model_id, 1) is None
        assert found(session) == ["b 1", "c 1"]
        aim(session, old)
        make_all(session, old)
        assert found(session) == ["a 1", "b 1", "c 1"]


def test_pruning_a_model_that_is_being_built_forgets_no_document(store: Database) -> None:
    with store.begin() as session:
        source, old = start(session, a="alpha", b="beta")
        new = rows.add_target(session, "new")
        aim(session, new)
        rows.register(session, source, new, b="changed", c="gamma")
        make_all(session, new)
    prune(store, new.model_id)
    with store.begin() as session:
        assert found(session) == ["a 1", "b 1"]
        assert count(session, EmbeddingRow) == 2
        states = {line.file: line.state for line in overview.list_documents(session)}
        assert states["/docs/a.pdf"] is DocumentState.EMBEDDED
        assert states["/docs/b.pdf"] is states["/docs/c.pdf"] is DocumentState.DISCOVERED
        # The next run makes them with its own model, whichever that is.
        aim(session, old)
        make_all(session, old)
        assert found(session) == ["a 1", "b 1", "c 1"]
        states = {line.file: line.state for line in overview.list_documents(session)}
        assert set(states.values()) == {DocumentState.EMBEDDED}


def test_pruning_a_model_that_search_was_moved_away_from_too_early(store: Database) -> None:
    with store.begin() as session:
        _, old = start(session, a="alpha", b="beta")
        new = rows.add_target(session, "new")
        aim(session, new)
        (first,) = queue.claim_to_extract(session, "run", None, new, utc_now(), 1)
        queue.store_extracted(session, first.content_id, rows.extracted("a 2"), utc_now())
        rows.embed_all(session, new)
        use_model(session, "new", anyway=True)
    prune(store, old.model_id)
    with store.begin() as session:
        assert found(session) == ["a 2"]
        assert [model.name for model in list_inventory(session)] == ["new"]
        make_all(session, new)
        assert found(session) == ["a 2", "b 2"]


def inventory_of(name: str, fingerprint: str, path: str = "/models/x.gguf") -> ModelInventory:
    now = utc_now()
    return ModelInventory(1, name, path, fingerprint, 4, False, False, False, 0, 0, 1, 0, 0, now, now)


KNOWN = [
    inventory_of("mini", "aaaa1111", "/models/mini-F16.gguf"),
    inventory_of("mini", "cls:aaaa1111", "/models/mini-F16.gguf"),
    inventory_of("big", "bbbb2222", "/models/big.gguf"),
    inventory_of("bbbb", "cccc3333", "/models/other.gguf"),
    inventory_of("one pooling", "cls:dddd4444", "/models/d.gguf"),
    inventory_of("another", "last:dddd4444", "/models/d.gguf"),
]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("aaaa1111", 0), ("aaaa", 0), ("cls:aaaa1111", 1), ("cls:aaaa", 1), ("big", 2), ("big.gguf", 2),
        ("/models/big.gguf", 2), ("BBBB2", 2), ("bbbb", 3), ("cccc", 3), ("BIG", 2), ("other", 3),
        ("hf:models/big.gguf", 2),
    ],
)  # fmt: skip
def test_a_model_is_named_by_its_name_its_file_or_the_start_of_its_fingerprint(wanted: str, expected: int) -> None:
    assert find_model(KNOWN, wanted) is KNOWN[expected]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            "mini",
            r"could be more than one model: mini-F16.gguf \(mini, fingerprint aaaa1111\), .* cls:aaaa1111",
        ),
        ("mini-F16.gguf", "more than one"),
        ("dddd", "more than one"),
        ("ccc", r"no such model here; there are: mini-F16.gguf \(mini, .*, big.gguf \("),
        ("", "no such model"),
        ("cls:", "no such model"),
    ],
)
def test_a_name_that_means_no_model_or_two_is_refused(wanted: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_model(KNOWN, wanted)


# Vectors that are taken over


def make(session: Session, target: Target, texts: Sequence[str]) -> queue.StoredExtraction:
    (content,) = queue.claim_to_extract(session, "run", None, target, utc_now(), 9)
    return queue.store_extracted(session, content.content_id, rows.extracted(*texts), utc_now())


def vectors(session: Session, content_id: int) -> dict[str, bytes]:
    query = sa.select(ChunkRow.text, EmbeddingRow.vector).join(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id)
    return dict(session.execute(query.where(ChunkRow.content_id == content_id)).all())


def test_an_edited_document_costs_only_what_was_edited(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="v1")
        assert make(session, target, ["one", "two", "three"]) == queue.StoredExtraction(3, 0, [])
        rows.embed_all(session, target)
        (before,) = session.scalars(sa.select(ContentRow.id))
        old = vectors(session, before)
        rows.register(session, source, target, a="v2")
        assert make(session, target, ["zero", "one", "three"]) == queue.StoredExtraction(3, 2, [])
        assert queue.backlog(session, None, target) == queue.Backlog(1, 1, 1)
        assert overview.count_chunks(session) == {"total": 3, "embedded": 2}
        assert texts(session, target) == ["one", "three", "two"]
    with store.begin() as session:
        (batch,) = rows.embed_all(session, target)
        assert (batch.vectors, len(batch.ended)) == (1, 1)
        assert texts(session, target) == ["one", "three", "zero"]
        (after,) = session.scalars(sa.select(ContentRow.id))
        new = vectors(session, after)
        assert {text: new[text] for text in ("one", "three")} == {text: old[text] for text in ("one", "three")}


def test_a_document_whose_chunks_all_had_vectors_is_done_at_once(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="v1")
        make(session, target, ["one", "two"])
        rows.embed_all(session, target)
        rows.register(session, source, target, a="only its title is another")
        stored = make(session, target, ["two", "one", "two"])
        assert (stored.chunks, stored.reused) == (3, 3)
        assert [(ended.path, ended.state) for ended in stored.ended] == [("a.pdf", DocumentState.EMBEDDED)]
        assert queue.backlog(session, None, target).contents == 0
        assert count(session, ContentRow) == 1
        (own,) = session.scalars(sa.select(ContentEmbeddingRow.vector))
        np.testing.assert_allclose(from_blobs([own], 4)[0], np.array([1, 2, 0, 0], np.float32) / np.sqrt(5), atol=1e-6)


def test_another_recipe_takes_over_what_it_leaves_as_it_is_also_in_a_model_that_is_being_built(store: Database) -> None:
    with store.begin() as session:
        source, old = start(session)
        rows.register(session, source, old, a="v1")
        make(session, old, ["one", "two"])
        rows.embed_all(session, old)
        new = rows.add_target(session, "new")
        aim(session, new)
        assert make(session, new, ["one", "two"]).reused == 0  # another model's vectors are of no use
        rows.embed_all(session, new)
        recut = replace(new, recipe="other")
        aim(session, recut)
        assert make(session, recut, ["one", "two", "three"]).reused == 2
        rows.embed_all(session, recut)
        assert models.activate_when_complete(session, recut)
        assert texts(session, new) == ["one", "three", "two"]


def test_a_chunk_that_failed_or_waits_is_not_taken_over(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="v1")
        make(session, target, ["one", "bad"])
        rows.embed_all(session, target, bad=[1])
        rows.register(session, source, target, a="v2")
        assert make(session, target, ["one", "bad"]).reused == 1
        (content_id,) = queue.claim_to_embed(session, "run", None, target, utc_now(), 9)
        (chunk,) = queue.pending_chunks(session, content_id, 0, 9)
        assert chunk.tokens == rows.tokens_of("bad")


@pytest.mark.parametrize("broken", [bytes(4 * rows.DIMENSION), np.ones(1, np.float32).tobytes()])
def test_a_broken_vector_is_not_taken_over_and_spoils_no_mean(store: Database, broken: bytes) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="v1")
        make(session, target, ["one", "two"])
        rows.embed_all(session, target)
        first = session.scalar(sa.select(sa.func.min(EmbeddingRow.chunk_id)))
        session.execute(sa.update(EmbeddingRow).where(EmbeddingRow.chunk_id == first).values(vector=broken))
        rows.register(session, source, target, a="v2")
        assert make(session, target, ["one", "two"]).reused == 1
        # One that was taken over by an earlier version is there, when the rest of the document is done.
        last = session.scalar(sa.select(sa.func.max(EmbeddingRow.chunk_id)))
        session.execute(sa.update(EmbeddingRow).where(EmbeddingRow.chunk_id == last).values(vector=broken))
        rows.embed_all(session, target)
        (own,) = session.scalars(sa.select(ContentEmbeddingRow.vector))
        assert own == rows.vector(0)


def test_a_chunk_without_a_digest_is_embedded_anew(store: Database) -> None:
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="v1")
        make(session, target, ["one"])
        rows.embed_all(session, target)
        session.execute(sa.update(ChunkRow).values(digest=None))
        rows.register(session, source, target, a="v2")
        assert make(session, target, ["one"]).reused == 0


def test_many_chunks_are_taken_over(store: Database) -> None:
    texts = [f"chunk {number}" for number in range(1000)]
    with store.begin() as session:
        source, target = start(session)
        rows.register(session, source, target, a="v1")
        make(session, target, texts)
        (content_id,) = queue.claim_to_embed(session, "run", None, target, utc_now(), 9)
        chunks = queue.pending_chunks(session, content_id, 0, 1000)
        queue.store_vectors(session, "run", [(c, rows.vector(n)) for n, c in enumerate(chunks)], [], utc_now())
        rows.register(session, source, target, a="v2")
        texts[500] = "edited"
        assert make(session, target, texts).reused == 999
        (content_id,) = queue.claim_to_embed(session, "run", None, target, utc_now(), 9)
        assert vectors(session, content_id) == {
            text: rows.vector(number) for number, text in enumerate(texts) if text != "edited"
        }


TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=8)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(versions=st.lists(TEXTS, min_size=2, max_size=4))
def test_whatever_is_edited_each_chunk_waits_or_has_the_vector_of_its_text(
    store: Database, versions: Sequence[Sequence[str]]
) -> None:
    with store.begin() as session:
        rows.begin(session)
        source, target = library.ensure_source(session, "/docs", utc_now()), rows.add_target(session)
        library.forget(session, library.known_documents(session, Scope(source)))
        shown: set[str] = set()
        for number, texts in enumerate(versions):
            file = rows.read_file("a.pdf", f"version {number}")
            library.register(session, source, [file], Moves([]), target, utc_now())
            stored = make(session, target, texts)
            assert stored.reused == sum(text in shown for text in texts)
            waiting = session.scalars(
                sa.select(ChunkRow.text).join(PendingChunkRow, PendingChunkRow.chunk_id == ChunkRow.id)
            ).all()
            assert Counter(waiting) == Counter(text for text in texts if text not in shown)
            for content_id in queue.claim_to_embed(session, "run", None, target, utc_now(), 9):
                chunks = queue.pending_chunks(session, content_id, 0, 99)
                made = [(chunk, rows.vector(chunk.tokens[2])) for chunk in chunks]
                queue.store_vectors(session, "run", made, [], utc_now())
            shown = set(texts)
            (current_id,) = session.scalars(sa.select(DocumentRow.current_id))
            assert vectors(session, current_id or 0) == {text: rows.vector(rows.tokens_of(text)[2]) for text in texts}
        session.rollback()


def test_a_digest_is_of_all_the_tokens() -> None:
    one, other = np.array([1, 2, 3], "<i4").tobytes(), np.array([1, 2, 4], "<i4").tobytes()
    assert len(token_digest(one)) == 16
    assert token_digest(one) != token_digest(other)
    assert token_digest(one) == token_digest(bytes(one))


# Readers


def test_a_reader_sees_one_state_of_the_database(store: Database) -> None:
    with store.begin() as session:
        _, old = start(session, a="alpha")
        new = rows.add_target(session, "new")
        aim(session, new)
        make_all(session, new)
    with store.snapshot() as reader:
        active = models.active_model(reader)
        with store.begin() as session:
            assert models.activate_when_complete(session, new)
        assert active is not None
        assert active.id == old.model_id
        hits = rows.search(reader, QUESTION, active.id, 9)
        assert [hit.text for hit in hits] == ["a 1"]
    with store.snapshot() as reader:
        assert found(reader) == ["a 2"]
