"""The order in which what waits is taken up, and what the plan and the report read of the queue."""

from __future__ import annotations

import datetime as dt

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.changes import Moves
from pipeline.core.documents import DocumentState
from pipeline.store import attention, library, pending, queue, reports, retry, runs
from pipeline.store.database import Database
from pipeline.store.models import Target
from pipeline.store.pending import Aimed
from pipeline.store.queue import Order
from pipeline.store.runs import Measured
from pipeline.store.scopes import Scope
from pipeline.store.tables import ContentRow, DocumentRow
from tests.store import rows

DAY = 86_400 * 10**9
NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)


def add(session: Session, root: str, target: Target, priority: int = 0, **days: int) -> int:
    """Files of so many days since 1970, by name; each of content of its own."""
    source_id = library.ensure_source(session, root, NOON)
    files = [rows.read_file(f"{name}.pdf", f"{root}/{name}", 1000, day * DAY) for name, day in days.items()]
    library.register(session, source_id, files, Moves([]), target, NOON, priority)
    return source_id


def taken(session: Session, target: Target, order: Order, limit: int = 100) -> list[str]:
    """What is claimed to be read, in its order; it is free again afterwards."""
    claimed = queue.claim_to_extract(session, "run", None, target, NOON, limit, order)
    session.execute(sa.update(ContentRow).values(claimed_by=None))
    session.expire_all()
    return [content.files[0][1].removesuffix(".pdf") for content in claimed]


def test_documents_are_taken_up_by_their_time(store: Database) -> None:
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        add(session, "/docs", target, b=2, d=4, a=1, c=3)
        assert taken(session, target, "newest") == ["d", "c", "b", "a"]
        assert taken(session, target, "oldest") == ["a", "b", "c", "d"]
        assert taken(session, target, "newest", 2) == ["d", "c"]
        for content in queue.claim_to_extract(session, "run", None, target, NOON, 9):
            queue.store_extracted(session, content.content_id, rows.extracted(content.files[0][1]), NOON)
        days = dict(session.execute(sa.select(ContentRow.id, ContentRow.modified_ns)).all())
        ids = queue.claim_to_embed(session, "run", None, target, NOON, 9, "oldest")
        assert [days[content_id] // DAY for content_id in ids] == [1, 2, 3, 4]


def test_the_first_source_goes_first_whatever_its_age_and_a_change_reorders_what_waits(store: Database) -> None:
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        old = add(session, "/old", target, 0, a=1, b=2)
        new = add(session, "/new", target, 1, y=8, z=9)
        assert taken(session, target, "newest") == ["b", "a", "z", "y"]
        assert queue.prioritise(session, [Scope(new), Scope(old)]) == 4
        assert taken(session, target, "newest") == ["z", "y", "b", "a"]
        assert queue.prioritise(session, [Scope(new), Scope(old)]) == 0
        assert queue.prioritise(session, [Scope(old, "b.pdf"), Scope(new), Scope(old)]) == 4
        assert taken(session, target, "newest") == ["b", "z", "y", "a"]


def test_what_is_to_be_read_may_go_before_what_waits_for_vectors(store: Database) -> None:
    """As far as the order and the sources say so; a content without the other kind goes before nothing."""
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)

        def first(order: Order) -> bool:
            return queue.unread_goes_first(session, None, target, NOON, order)

        add(session, "/docs", target, b=2)
        assert not first("newest")
        assert not queue.any_extracted(session, None, target, NOON)
        rows.extract_all(session, target)
        session.execute(sa.update(ContentRow).values(claimed_by=None))
        assert not first("newest")
        assert queue.any_extracted(session, None, target, NOON)
        add(session, "/docs", target, c=3)
        assert (first("newest"), first("oldest")) == (True, False)
        add(session, "/docs", target, a=1)
        assert (first("newest"), first("oldest")) == (True, True)
        session.execute(sa.update(ContentRow).where(ContentRow.state == DocumentState.DISCOVERED).values(priority=1))
        session.expire_all()
        assert (first("newest"), first("oldest")) == (False, False)


def test_a_content_that_waits_in_two_sources_counts_for_the_first(store: Database) -> None:
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        one, other = (library.ensure_source(session, root, NOON) for root in ("/one", "/other"))
        for source_id in (one, other):
            library.register(session, source_id, [rows.read_file("x.pdf", "same")], Moves([]), target, NOON)
        queue.prioritise(session, [Scope(other), Scope(one)])
        assert session.scalar(sa.select(ContentRow.priority)) == 0
        (found,) = pending.pending_by_source(session)
        assert (found.source, found.unread) == ("/one", {"pdf": (1, 1, 10, 0)})


def test_a_document_that_is_made_anew_keeps_its_place(store: Database) -> None:
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        add(session, "/docs", target, 3, a=1, b=2)
        other = Target(target.model_id, "another recipe")
        library.retarget(session, None, other, NOON)
        assert taken(session, other, "oldest") == ["a", "b"]
        places = session.execute(sa.select(ContentRow.priority).where(ContentRow.recipe == other.recipe))
        assert set(places.scalars()) == {3}


@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_claiming_reads_the_queue_in_order_and_sorts_nothing(store: Database, order: Order) -> None:
    """However long the queue: an index has the rows in the order in which they are wanted."""
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        session.execute(
            sa.insert(ContentRow),
            [
                {
                    "sha256": rows.digest(str(number)), "kind": "pdf", "model_id": target.model_id, "recipe": "r",
                    "state": "discovered", "created_at": NOON, "modified_ns": number * 7919 % 3001, "details": {},
                }
                for number in range(3000)
            ],
        )  # fmt: skip
        if session.get_bind().dialect.name == "postgresql":
            session.execute(sa.text("ANALYZE contents"))
        age = "modified_ns DESC" if order == "newest" else "modified_ns"
        explain = "EXPLAIN" if session.get_bind().dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        query = f"{explain} SELECT id FROM contents WHERE state = 'discovered' ORDER BY priority, {age}, id LIMIT 16"
        plan = "\n".join(str(row) for row in session.execute(sa.text(query)))
        assert f"ix_contents_{order}" in plan
        assert "TEMP B-TREE" not in plan
        assert "Sort" not in plan


def test_what_was_made_for_other_settings_waits_unless_it_is_there_already(store: Database) -> None:
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        add(session, "/a", target, x=1, y=2)
        rows.extract_all(session, target)
        rows.embed_all(session, target)
        model = rows.digest("m")
        assert pending.pending_by_source(session, Aimed("r")) == []
        assert pending.pending_by_source(session, Aimed("r", model)) == []
        for aim in (Aimed("other"), Aimed("other", model), Aimed("r", rows.digest("never used"))):
            (found,) = pending.pending_by_source(session, aim)
            assert (found.unread, found.anew, found.read, found.chunks) == ({"pdf": (2, 0, 0, 2)}, 2, 0, 0)
        other = Target(target.model_id, "other")
        assert library.retarget(session, None, other, NOON) == 2
        (found,) = pending.pending_by_source(session, Aimed("other", model))
        assert (found.unread["pdf"].documents, found.anew) == (2, 0)
        rows.extract_all(session, other)
        rows.embed_all(session, other)
        assert pending.pending_by_source(session, Aimed("other", model)) == []
        nobody = rows.add_target(session, "n")
        library.retarget(session, None, nobody, NOON)
        rows.extract_all(session, nobody)
        (found,) = pending.pending_by_source(session, Aimed("other", rows.digest("n")))
        assert (found.unread["pdf"].documents, found.anew, found.read, found.tokens) == (2, 2, 0, 0)


def test_the_pages_of_a_document_that_is_read_again_are_known(store: Database) -> None:
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        add(session, "/a", target, x=1)
        (x,) = queue.claim_to_extract(session, "run", None, target, NOON, 1)
        queue.end_extraction(session, x.content_id, DocumentState.EMPTY, "no text", pages=2)
        assert retry.retry_documents(session, [session.scalars(sa.select(DocumentRow.id)).one()]) == 1
        (found,) = pending.pending_by_source(session)
        assert found.unread == {"pdf": (1, 0, 0, 2)}


def test_what_waits_is_known_by_source_without_a_look_at_the_chunks(store: Database) -> None:
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        add(session, "/a", target, 0, x=1, y=2)
        add(session, "/b", target, 1, z=3)
        (x,) = queue.claim_to_extract(session, "run", None, target, NOON, 1, "oldest")
        queue.store_extracted(session, x.content_id, rows.extracted("one", "two", "three"), NOON)
        assert x.size == 1000
        first, second = pending.pending_by_source(session)
        assert (first.source, first.unread, first.read, first.chunks, first.tokens) == (
            "/a",
            {"pdf": (1, 1, 1000, 0)},
            1,
            3,
            12,
        )
        assert (second.source, second.unread, second.read, second.chunks) == ("/b", {"pdf": (1, 1, 1000, 0)}, 0, 0)
        (density,) = pending.densities(session, ["pdf", "docx"])
        assert (density.kind, density.documents, density.size, density.pages, density.tokens) == ("pdf", 1, 1000, 1, 12)
        queue.claim_to_embed(session, "run", None, target, NOON, 9)
        one, *_ = queue.pending_chunks(session, x.content_id, 0, 9)
        queue.store_vectors(session, "run", [(one, rows.vector(0))], [], NOON)
        assert pending.pending_by_source(session)[0].tokens == 8
        assert queue.chunks_waiting(session, None, target) == queue.backlog(session, None, target).chunks == 2
        assert pending.awaited_model(session) == rows.digest("m")


def test_what_needs_a_person_is_counted(store: Database) -> None:
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        add(session, "/docs", target, a=1, b=2, c=3, d=4, e=5, f=6)
        for content in queue.claim_to_extract(session, "run", None, target, NOON, 9):
            name = content.files[0][1]
            if name == "a.pdf":
                queue.end_extraction(session, content.content_id, DocumentState.EMPTY, "needs OCR", pages=7)
            elif name == "f.pdf":
                queue.end_extraction(session, content.content_id, DocumentState.EMPTY, "the text is blank")
            elif name in ("b.pdf", "c.pdf"):
                queue.end_extraction(session, content.content_id, DocumentState.ENCRYPTED, "needs a password")
            elif name == "d.pdf":
                queue.end_extraction(session, content.content_id, DocumentState.FAILED, "broken")
            else:
                found = rows.extracted("text")
                partly = type(found)(found.title, {"pages_without_text": [2, 3, 5]}, 5, 4, found.chunks)
                queue.store_extracted(session, content.content_id, partly, NOON)
        failing = attention.failing_reasons(session)
        assert [(each.state, each.reason, each.documents, each.example) for each in failing] == [
            ("encrypted", "needs a password", 2, "/docs/b.pdf"),
            ("failed", "broken", 1, "/docs/d.pdf"),
        ]
        scans = attention.without_text(session)
        assert (scans.documents, scans.pages, scans.partly, scans.partly_pages) == (1, 7, 1, 3)


def test_what_a_run_measured_outlives_it(store: Database) -> None:
    measured = Measured(3, 2, 40, 5 << 32, 6 << 32, 1.5, 2.25, 0.125, "f", "gpu")
    with store.begin() as session:
        rows.begin(session)
        assert runs.measured_runs(session, rows.ME.host, 9) == []
        runs.heartbeat(session, "run", NOON, measured)
    with store.begin() as session:
        (run,) = runs.measured_runs(session, rows.ME.host, 9)
        assert (run.state, run.task, run.measured) == ("running", "ingest", measured)
        assert runs.measured_runs(session, "elsewhere", 9) == []
        runs.finish_run(session, "run", "complete", None, NOON)
        found = runs.find_run(session, "run")
        assert found is not None
        assert (found.state, found.measured) == ("complete", measured)


def test_a_report_is_found_by_its_run_or_as_the_newest(store: Database) -> None:
    with store.begin() as session:
        for number in range(3):
            rows.begin(session, f"run{number}")
            runs.finish_run(session, f"run{number}", "complete", None, NOON)
        assert reports.find_report(session, None) is None
        for number in range(2):
            reports.save_report(session, f"run{number}", {"run_id": f"run{number}", "ü": ["é"]})
    with store.begin() as session:
        assert reports.find_report(session, "run0") == {"run_id": "run0", "ü": ["é"]}
        assert reports.find_report(session, None) == {"run_id": "run1", "ü": ["é"]}
        assert reports.find_report(session, "run2") is None
        assert reports.find_report(session, "run9") is None
        assert not reports.save_first_report(session, "run0", {"run_id": "another"})
        assert reports.save_first_report(session, "run2", {"run_id": "run2"})
        assert reports.list_reports(session, 9) == ["run2", "run1", "run0"]
