"""Passages are found by meaning, by words and by both, and each says how it came to its place."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.fusion import By, share
from pipeline.store import models
from pipeline.store.database import Database
from pipeline.store.models import Target
from pipeline.store.search import Account, Hit, Query, count_searched, find, find_documents
from pipeline.store.tables import DocumentRow
from pipeline.store.view import Filter, View, view_of
from tests.store import rows
from tests.store.library import DAY, FILES, HARBOUR, HUTS, NOTE, direction, fill_library

ALL = [text for text, _ in [*HARBOUR, *HUTS, *FILES["/more", "observatory.pdf"][1], *NOTE]]


def view(session: Session, target: Target, wanted: Filter | None = None) -> View:
    return view_of(session, target.model_id, wanted)


def texts(hits: Sequence[Hit]) -> list[str]:
    return [hit.text for hit in hits]


def test_by_meaning_the_nearest_come_first(store: Database) -> None:
    with store.begin() as session:
        target = fill_library(session)
        hits = find(session, Query("boats", direction(0), By.VECTOR, 3), view(session, target))
    assert texts(hits) == [HARBOUR[0][0], HUTS[0][0], "Clear nights were counted."]
    assert [round(hit.score, 4) for hit in hits] == [1.0, 0.9848, 0.9397]
    assert [hit.places["vector"].rank for hit in hits] == [1, 2, 3]
    assert all(set(hit.places) == {"vector"} for hit in hits)


def test_by_words_no_vector_is_needed(store: Database) -> None:
    with store.begin() as session:
        target = fill_library(session)
        hits = find(session, Query("hull paint", None, By.TEXT, 10), view(session, target))
        assert find(session, Query("bicycle", None, By.TEXT, 10), view(session, target)) == []
        with pytest.raises(ValueError, match="cannot be ranked by fused"):
            find(session, Query("hull"), view(session, target))
    assert texts(hits)[0] == "Hull paint, hull paint and more hull paint."
    assert set(texts(hits)) == {HARBOUR[0][0], HARBOUR[2][0], HUTS[1][0], NOTE[0][0]}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        place = hit.places["text"]
        assert hit.score == place.score == pytest.approx(sum(place.words.values()))
        assert set(place.words) <= {"hull", "paint"}


def test_fused_adds_what_the_ranks_are_worth(store: Database) -> None:
    with store.begin() as session:
        target = fill_library(session)
        account = Account()
        query = Query("hull paint", direction(45), By.FUSED, 10)
        hits = find(session, query, view(session, target), account)
        alone = {
            by: texts(find(session, Query(query.text, query.vector, by, 10), view(session, target)))
            for by in (By.VECTOR, By.TEXT)
        }
    assert sorted(texts(hits)) == sorted(ALL)
    for hit in hits:
        assert hit.score == pytest.approx(sum(share(place.rank, place.weight) for place in hit.places.values()))
        assert all(place.weight == 1 for name, place in hit.places.items() if name == "vector")
        assert {By(name): place.rank for name, place in hit.places.items()} == {
            by: ranking.index(hit.text) + 1 for by, ranking in alone.items() if hit.text in ranking
        }
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert texts(hits)[0] in {NOTE[0][0], HARBOUR[2][0]}  # first in one ranking, and high in the other
    assert account.candidates == {"vector": 8, "text": 4}
    assert set(account.seconds) == {"vector", "text", "results"}
    assert all(account.how.values())


def test_a_hit_says_where_it_is(store: Database) -> None:
    with store.begin() as session:
        target = fill_library(session)
        hits = find(session, Query("hull tonne", direction(0), By.FUSED, 10), view(session, target))
        (huts,) = find(session, Query("bread", None, By.TEXT, 1), view(session, target))
    first, _, in_table = (next(hit for hit in hits if hit.text == text) for text, _ in HARBOUR)
    assert (first.file, first.also) == ("/docs/harbour.pdf", ["/more/copy of harbour.pdf"])
    assert (first.title, first.kind, first.page_first, first.page_last) == ("Harbour.pdf", "pdf", 1, 1)
    assert first.modified == dt.datetime(1970, 1, 2, tzinfo=dt.UTC)
    assert [first.text[start:end] for start, end in first.highlights] == ["hull"]
    assert first.excerpt == (0, len(first.text))
    assert (huts.file, huts.page_first, huts.headings, huts.prefix) == ("/docs/2026/huts.docx", None, ["Part"], "")
    assert (in_table.headings, in_table.prefix) == (["Part", "End"], "name | price\n")


def test_words_that_are_everywhere_are_not_highlighted(store: Database) -> None:
    days = [(f"The day of the number {number}.", number) for number in range(60)] + [("The lamp of the house.", 70.0)]
    with store.begin() as session:
        target = fill_library(session, files={("/docs", "days.pdf"): (DAY, days)})
        (hit,) = find(session, Query("the lamp of", None, By.TEXT, 1), view(session, target))
        assert [hit.text[start:end] for start, end in hit.highlights] == ["lamp"]
        # Ranked by meaning alone nothing says which words those are.
        (hit,) = find(session, Query("the lamp", direction(70), By.VECTOR, 1), view(session, target))
        assert [hit.text[start:end] for start, end in hit.highlights] == ["The", "lamp", "the"]


def test_a_filter_holds_for_every_ranking(store: Database) -> None:
    with store.begin() as session:
        target = fill_library(session)
        for by in By:
            check_filters(session, target, by)


def check_filters(session: Session, target: Target, by: By) -> None:
    def found(session: Session, target: Target, wanted: Filter) -> list[Hit]:
        return find(session, Query("hull paint bread comet", direction(0), by, 10), view(session, target, wanted))

    assert {hit.kind for hit in found(session, target, Filter(kinds=["docx"]))} == {"docx"}
    huts = found(session, target, Filter(sources=["/docs/2026"]))
    assert {hit.file for hit in huts} == {"/docs/2026/huts.docx"}
    assert found(session, target, Filter(paths=["nothing"])) == []
    assert found(session, target, Filter(sources=["/nowhere"])) == []
    # Of a document that is in two places, the one that the filter names comes first.
    copies = found(session, target, Filter(sources=["/more"], paths=["copy*"]))
    assert {(hit.file, *hit.also) for hit in copies} == {("/more/copy of harbour.pdf", "/docs/harbour.pdf")}
    late = found(session, target, Filter(after=dt.datetime(1970, 1, 5, tzinfo=dt.UTC)))
    assert {hit.file for hit in late} == {"/more/copy of harbour.pdf", "/more/note.text"}
    assert count_searched(session, view(session, target, Filter(paths=["nothing"]))) == 0
    assert count_searched(session, view(session, target, Filter(kinds=["pdf"]))) == 2
    assert count_searched(session, view(session, target)) == 4


def test_no_more_passages_of_a_document_than_wanted(store: Database) -> None:
    with store.begin() as session:
        target = fill_library(session)
        seen = view(session, target)

        def files(by: By, k: int, per_document: int | None) -> list[str]:
            query = Query("hull paint bread comet crowns", direction(30), by, k, per_document)
            return [hit.file for hit in find(session, query, seen)]

        for by in By:
            many = files(by, 10, None)
            assert max(many.count(file) for file in many) > 1
            once = files(by, 10, 1)
            assert sorted(once) == sorted(set(many))
            assert once == list(dict.fromkeys(many))
            assert files(by, 2, 1) == once[:2]
            twice = files(by, 10, 2)
            assert max(twice.count(file) for file in twice) == 2


def test_documents_that_fill_the_first_ranks_do_not_keep_others_out(store: Database) -> None:
    crowd = [(f"Hull number {number} of many hulls and hull.", number / 100) for number in range(450)]
    with store.begin() as session:
        target = fill_library(session, files={("/docs", "crowd.pdf"): (DAY, crowd)} | dict(FILES))
        for by in By:
            query = Query("hull", direction(0), by, 5, per_document=1)
            found = [hit.file for hit in find(session, query, view(session, target))]
            assert len(found) == len(set(found)) == (4 if by is By.TEXT else 5)


def test_the_first_results_are_the_same_however_many_are_wanted(store: Database) -> None:
    crowd = [(f"Hull {number}, paint {number % 7}.", number % 90) for number in range(300)]
    with store.begin() as session:
        target = fill_library(session, files={("/docs", "crowd.pdf"): (DAY, crowd)})
        for by in By:
            few, many = (
                texts(find(session, Query("hull paint 5", direction(20), by, k), view(session, target)))
                for k in (5, 50)
            )
            assert len(many) == 50
            assert few == many[:5]


def test_equals_come_in_the_order_in_which_they_were_stored(store: Database) -> None:
    twins = {("/docs", f"{name}.pdf"): (DAY, [(f"Twin {name}.", 10.0)]) for name in "cab"}
    with store.begin() as session:
        target = fill_library(session, files=twins)
        for by in By:
            assert texts(find(session, Query("twin", direction(0), by, 9), view(session, target))) == [
                "Twin c.",
                "Twin a.",
                "Twin b.",
            ]


def test_what_a_question_excludes_is_in_no_ranking(store: Database) -> None:
    comet, paints, note = "A comet came from outside.", HARBOUR[2][0], NOTE[0][0]
    excluding = [
        ("hull -paint", {paints, note}),
        ('hull -"hull paint"', {paints}),
        ("hull bread -PAINT -comet", {paints, note, comet}),
        ("hull -2026 - paint", set[str]()),
    ]
    with store.begin() as session:
        target = fill_library(session)
        for by in By:
            for question, gone in excluding:
                found = set(texts(find(session, Query(question, direction(50), by, 20), view(session, target))))
                assert found
                assert not found & gone
                assert by is By.TEXT or found == set(ALL) - gone
            few = find(session, Query("hull -paint", direction(60), by, 2), view(session, target))
            assert len(few) == 2


HOSTILE = [
    "hull\0paint",
    "'; DROP TABLE chunks; --",
    '"',
    "hull AND NOT (",
    "NEAR(hull paint)",
    "hull* paint:*",
    "!hull & |",
    "text:hull",
    "-",
    "\u202e\ufffd",
    "\u00df\u0130\ufb01",
    "hull " * 3000,
    "%_\\",
    "\U0001f6a2 hull",
]


def test_a_hostile_question_finds_or_does_not(store: Database) -> None:
    with store.begin() as session:
        target = fill_library(session)
        for question in HOSTILE:
            for by in (By.TEXT, By.FUSED):
                hits = find(session, Query(question, direction(0), by, 20), view(session, target))
                assert set(texts(hits)) <= set(ALL)
                for hit in hits:
                    assert all(0 <= start < end <= len(hit.text) for start, end in hit.highlights)
        assert session.scalar(sa.select(sa.func.count()).select_from(DocumentRow)) == len(FILES)


def test_a_document_whose_file_is_gone_is_found_until_it_is_deleted(store: Database) -> None:
    with store.begin() as session:
        target = fill_library(session)
        session.execute(sa.update(DocumentRow).values(gone_at=rows.utc_now()))
        assert len(find(session, Query("hull", direction(0), By.FUSED, 20), view(session, target))) == len(ALL)


def test_a_model_that_search_does_not_use_finds_by_its_own_vectors(store: Database) -> None:
    with store.begin() as session:
        old = fill_library(session)
        new = fill_library(session, rows.add_target(session, "new"), turned=40.0)
        question = Query("hull", direction(60), By.FUSED, 20)
        by_old, by_new = (find(session, question, view(session, target)) for target in (old, new))
        assert texts(by_old)[0] == HARBOUR[2][0]
        assert sorted(texts(by_new)) == sorted(ALL)
        assert texts(by_new) != texts(by_old)
        assert {(hit.file, *hit.also) for hit in by_new} == {(hit.file, *hit.also) for hit in by_old}
        for_huts = find(session, question, view(session, new, Filter(sources=["/docs/2026"])))
        assert {hit.file for hit in for_huts} == {"/docs/2026/huts.docx"}
        # What it finds is what search finds once it has moved there.
        models.choose(session, new.model_id)
        moved = find(session, question, view(session, new))
        assert [(hit.text, hit.score, hit.file) for hit in moved] == [(hit.text, hit.score, hit.file) for hit in by_new]


def test_whole_documents_by_their_own_vectors(store: Database) -> None:
    with store.begin() as session:
        target = fill_library(session)
        hits = find_documents(session, direction(0), view(session, target), 10)
        assert len(hits) == 4
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        only = find_documents(session, direction(0), view(session, target, Filter(kinds=["text", "docx"])), 10)
        assert {hit.file for hit in only} == {"/docs/2026/huts.docx", "/more/note.text"}
        (copy,) = find_documents(session, direction(0), view(session, target, Filter(paths=["copy*"])), 10)
        assert (copy.file, copy.also) == ("/more/copy of harbour.pdf", ["/docs/harbour.pdf"])
        assert copy.modified == dt.datetime(1970, 1, 5, tzinfo=dt.UTC)
        assert np.isclose(copy.score, next(hit.score for hit in hits if "harbour" in hit.file))
