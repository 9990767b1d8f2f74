"""What a mirror is owed: written with whatever changes what search sees, and taken off only for what was delivered."""

from __future__ import annotations

import datetime as dt
import threading

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.changes import Known
from pipeline.store import library, models, pruning, retry
from pipeline.store.database import Database
from pipeline.store.mirror import contents, outbox
from pipeline.store.mirror.alone import alone
from pipeline.store.mirror.outbox import ContentKey, Owed
from pipeline.store.models import Target
from pipeline.store.tables import ContentRow, DocumentRow, EmbeddingRow
from tests.store.rows import (
    add_target,
    begin,
    digest,
    embed_all,
    extract_all,
    register,
    utc_now,
    vector,
)

NOW = dt.datetime(2026, 6, 2, 2, tzinfo=dt.UTC)


@pytest.fixture
def target(store: Database) -> Target:
    """A model, a run, and a source with the number 1, with a mirror registered beside them."""
    with store.begin() as session:
        library.ensure_source(session, "/docs", utc_now())
        begin(session)
        target = add_target(session)
    with store.begin() as session:
        assert outbox.register(session, "here", NOW)
    return target


def ingest(session: Session, target: Target, **files: str) -> None:
    """Files by name and content, each embedded as three chunks."""
    register(session, 1, target, **files)
    extract_all(session, target)
    embed_all(session, target)


def deliver(store: Database) -> list[tuple[str, int]]:
    """Take all that is owed as delivered; returns the contents with how many points they are to have."""
    done: list[tuple[str, int]] = []
    while True:
        with store.begin() as session:
            wanted = contents.gather(session, utc_now(), 10)
            if not wanted:
                return sorted(done)
            outbox.intend(session, [(one.owed.key, one.points) for one in wanted if one.points])
            outbox.settle(session, [(one.owed, one.points) for one in wanted])
            done += [(one.owed.key.sha256, one.points) for one in wanted]


def held(store: Database) -> dict[str, int]:
    with store.snapshot() as session:
        rows = session.execute(sa.text("SELECT sha256, points FROM mirrored"))
        return {row.sha256: row.points for row in rows}


def documents(session: Session) -> list[Known]:
    rows = session.execute(sa.select(DocumentRow.id, DocumentRow.path, DocumentRow.sha256).order_by(DocumentRow.path))
    return [Known(number, path, 10, 1, sha256) for number, path, sha256 in rows]


def key_of(text: str) -> ContentKey:
    return ContentKey(digest("m"), digest(text), "pdf", "r")


def test_nothing_is_owed_where_no_mirror_is_registered(store: Database) -> None:
    with store.begin() as session:
        library.ensure_source(session, "/docs", utc_now())
        begin(session)
        target = add_target(session)
        ingest(session, target, a="one")
        library.forget(session, documents(session))
        assert not outbox.owes(session)


def test_a_mirror_is_owed_all_that_search_sees_by_then(store: Database) -> None:
    with store.begin() as session:
        library.ensure_source(session, "/docs", utc_now())
        begin(session)
        target = add_target(session)
        ingest(session, target, a="one", b="two", copy="one")
        register(session, 1, target, waits="three")
    with store.begin() as session:
        assert outbox.register(session, "here", NOW)
        assert not outbox.register(session, "here", NOW)
        assert outbox.count_owed(session) == 2
    assert deliver(store) == sorted([(digest("one"), 3), (digest("two"), 3)])
    with store.begin() as session:
        assert not outbox.register(session, "here", NOW)
        assert not outbox.owes(session)
        # At another place there is nothing yet.
        assert outbox.register(session, "there", NOW)
        assert outbox.count_owed(session) == 2
        assert outbox.forget(session)
        assert not outbox.owes(session)
        assert not outbox.forget(session)
    assert held(store) == {}


def test_a_document_is_owed_once_it_is_embedded(store: Database, target: Target) -> None:
    with store.begin() as session:
        register(session, 1, target, a="one")
        extract_all(session, target)
        assert not outbox.owes(session)
        embed_all(session, target)
        assert outbox.count_owed(session) == 1
    assert deliver(store) == [(digest("one"), 3)]
    assert held(store) == {digest("one"): 3}


def test_what_is_rolled_back_is_not_owed(store: Database, target: Target) -> None:
    with store.begin() as session:
        ingest(session, target, a="one")
        assert outbox.owes(session)
        session.rollback()
    with store.snapshot() as session:
        assert not outbox.owes(session)


@pytest.mark.parametrize("change", ["renamed", "moved", "touched", "copied"])
def test_what_is_told_of_a_document_is_owed_when_it_changes(store: Database, target: Target, change: str) -> None:
    with store.begin() as session:
        ingest(session, target, a="one", other="two")
    deliver(store)
    with store.begin() as session:
        document = session.scalars(sa.select(DocumentRow).where(DocumentRow.path == "a.pdf")).one()
        if change == "renamed":
            document.path = "b.pdf"
        elif change == "moved":
            document.source_id = library.ensure_source(session, "/other", utc_now())
        elif change == "touched":
            document.mtime_ns += 1
        else:
            register(session, 1, target, b="one")
    with store.snapshot() as session:
        (owed,) = contents.gather(session, utc_now(), 10)
        assert owed.owed.key == key_of("one")
        assert owed.facts is not None
        files = {"renamed": ["/docs/b.pdf"], "moved": ["/other/a.pdf"], "touched": ["/docs/a.pdf"]}
        files["copied"] = ["/docs/a.pdf", "/docs/b.pdf"]
        assert ["/".join(file) for file in owed.facts.files] == files[change]


def test_what_is_no_longer_seen_is_owed_as_nothing(store: Database, target: Target) -> None:
    with store.begin() as session:
        ingest(session, target, a="one", b="two", copy="two")
    deliver(store)
    with store.begin() as session:
        library.forget(session, [one for one in documents(session) if one.path != "b.pdf"])
    # Of the second there is a file yet, and its payload names one less.
    assert deliver(store) == sorted([(digest("one"), 0), (digest("two"), 3)])
    assert held(store) == {digest("two"): 3}


def test_a_changed_file_is_owed_as_what_it_was_and_what_it_is(store: Database, target: Target) -> None:
    with store.begin() as session:
        ingest(session, target, a="one")
    deliver(store)
    with store.begin() as session:
        register(session, 1, target, a="changed")
        assert not outbox.owes(session)  # search sees the old text until the new one has its vectors
        extract_all(session, target, ["only"])
        embed_all(session, target)
    assert deliver(store) == sorted([(digest("one"), 0), (digest("changed"), 1)])
    assert held(store) == {digest("changed"): 1}


def test_a_document_that_is_sent_back_is_owed_as_nothing_and_then_as_what_it_became(
    store: Database, target: Target
) -> None:
    with store.begin() as session:
        register(session, 1, target, a="one")
        extract_all(session, target)
        embed_all(session, target, bad=[1])
    with store.snapshot() as session:
        (partly,) = contents.gather(session, utc_now(), 10)
        assert partly.facts is not None
        assert (partly.facts.ordinals, partly.points) == ([0, 2], 3)
    deliver(store)
    with store.begin() as session:
        retry.retry_documents(session, [one.id for one in documents(session)])
    assert deliver(store) == [(digest("one"), 0)]
    with store.begin() as session:
        extract_all(session, target)
        embed_all(session, target)
    assert deliver(store) == [(digest("one"), 3)]


def test_another_model_is_owed_before_the_old_one_goes(store: Database, target: Target) -> None:
    with store.begin() as session:
        ingest(session, target, a="one", b="two")
    deliver(store)
    with store.begin() as session:
        newer = add_target(session, "newer")
        library.retarget(session, None, newer, utc_now())
        extract_all(session, newer)
        embed_all(session, newer)
        assert not outbox.owes(session)
        assert models.activate_when_complete(session, newer)
    with store.snapshot() as session:
        wanted = contents.gather(session, utc_now(), 10)
        assert {one.owed.key.fingerprint for one in wanted} == {digest("newer")}
        assert [one.points for one in wanted] == [3, 3]
        outbox_rows = session.scalar(sa.text("SELECT count(*) FROM outbox"))
        assert outbox_rows == 4
    deliver(store)
    with store.begin() as session:
        assert not outbox.holds(session, digest("m"))
        assert outbox.holds(session, digest("newer"))
        # What search does not see is pruned without a word.
        pruning.release(session, target.model_id)
        while pruning.prune_some(session, target.model_id) is not None:
            pass
        assert not outbox.owes(session)


def test_a_vector_that_is_mended_is_owed(store: Database, target: Target) -> None:
    with store.begin() as session:
        ingest(session, target, a="one", b="two")
    deliver(store)
    with store.begin() as session:
        chunk_id = session.scalar(
            sa.text("SELECT min(k.id) FROM chunks k JOIN contents c ON c.id = k.content_id WHERE c.sha256 = :sha256"),
            {"sha256": digest("one")},
        )
        session.execute(sa.update(EmbeddingRow).where(EmbeddingRow.chunk_id == chunk_id).values(vector=vector(3)))
    assert deliver(store) == [(digest("one"), 3)]


def test_a_change_while_it_is_delivered_is_owed_again(store: Database, target: Target) -> None:
    with store.begin() as session:
        ingest(session, target, a="one")
    with store.snapshot() as session:
        wanted = contents.gather(session, utc_now(), 10)
    with store.begin() as session:
        library.forget(session, documents(session))
    with store.begin() as session:
        outbox.intend(session, [(one.owed.key, one.points) for one in wanted])
        outbox.settle(session, [(one.owed, one.points) for one in wanted])
    assert held(store) == {digest("one"): 3}
    with store.snapshot() as session:
        (again,) = contents.gather(session, utc_now(), 10)
        assert (again.owed.key, again.owed.points, again.facts) == (key_of("one"), 3, None)
    assert deliver(store) == [(digest("one"), 0)]
    assert held(store) == {}


def test_numbers_of_rows_that_were_delivered_do_not_come_again(store: Database, target: Target) -> None:
    with store.begin() as session:
        ingest(session, target, a="one")
        (owed,) = outbox.due(session, utc_now(), 10)
        outbox.forget(session)
        outbox.register(session, "there", NOW)
        (again,) = outbox.due(session, utc_now(), 10)
        assert not set(owed.rows) & set(again.rows)


def test_a_content_of_another_number_is_the_same_content(store: Database, target: Target) -> None:
    """SQLite gives the number of a content that is gone to the next one."""
    with store.begin() as session:
        ingest(session, target, a="one")
        library.forget(session, documents(session))
        ingest(session, target, b="two")
        numbers = session.scalars(sa.select(ContentRow.id)).all()
    assert deliver(store) == sorted([(digest("one"), 0), (digest("two"), 3)])
    assert len(numbers) == 1


def test_what_is_refused_is_tried_later_or_once_it_changes(store: Database, target: Target) -> None:
    later = utc_now() + dt.timedelta(hours=1)
    with store.begin() as session:
        ingest(session, target, a="one", b="two")
        first = next(owed for owed in outbox.due(session, utc_now(), 10) if owed.key == key_of("one"))
        outbox.put_off(session, first, "too large", later)
        assert [owed.key for owed in outbox.due(session, utc_now(), 10)] == [key_of("two")]
        assert sorted(owed.attempts for owed in outbox.due(session, later, 10)) == [0, 1]
        assert outbox.errors(session) == [(key_of("one"), 1, "too large")]
        # A month is longer than any wait: the clock was ahead when that was noted.
        assert len(outbox.due(session, later - dt.timedelta(days=30), 10)) == 2
        register(session, 1, target, copy="one")
        (again,) = [owed for owed in outbox.due(session, utc_now(), 10) if owed.key == key_of("one")]
        assert again.attempts == 1
        assert set(first.rows) < set(again.rows)


def test_a_long_document_is_read_in_parts(store: Database, target: Target) -> None:
    with store.begin() as session:
        register(session, 1, target, a="one")
        extract_all(session, target, [f"part {number}" for number in range(30)])
        embed_all(session, target)
        (wanted,) = contents.gather(session, utc_now(), 10, chunks=12)
        assert [chunk.ordinal for chunk in wanted.chunks] == list(range(12))
        assert wanted.facts is not None
        assert (list(wanted.facts.ordinals), wanted.points) == (list(range(30)), 30)
        rest = contents.read_chunks(session, wanted.owed.key, 12, 100)
        assert [chunk.text for chunk in rest] == [f"part {number}" for number in range(12, 30)]
        assert [chunk.vector.tobytes() for chunk in rest] == [vector(number) for number in range(12, 30)]


def test_what_is_changed_while_a_mirror_is_registered_is_owed_to_it(store: Database) -> None:
    """A transaction that looked for a mirror before there was one would owe it nothing."""
    with store.begin() as session:
        library.ensure_source(session, "/docs", utc_now())
        begin(session)
        target = add_target(session)
        register(session, 1, target, a="one")
        extract_all(session, target)
    registering = threading.Event()

    def register_mirror() -> None:
        registering.set()
        with store.begin() as session:
            outbox.register(session, "here", NOW)

    thread = threading.Thread(target=register_mirror)
    with store.begin() as session:
        embed_all(session, target)  # whose triggers found no mirror
        thread.start()
        registering.wait()
        thread.join(0.3)  # waits for this transaction; where it did not, it would be over by then
    thread.join()
    assert deliver(store) == [(digest("one"), 3)]


def test_one_at_a_time_delivers(store: Database, database_url: str) -> None:
    with Database.open(database_url) as other, alone(store) as mine:
        assert mine
        with alone(other) as also:
            assert not also
    with Database.open(database_url) as other, alone(other) as mine:
        assert mine


def test_what_may_be_there_is_never_less_than_was_intended(store: Database, target: Target) -> None:
    key = key_of("one")
    with store.begin() as session:
        outbox.intend(session, [(key, 5)])
        outbox.intend(session, [(key, 3)])
        assert outbox.held_of(session, [key]) == {key: 5}
        outbox.settle(session, [(Owed(key, [], 0, 5), 3)])
        assert outbox.held_of(session, [key]) == {key: 3}
