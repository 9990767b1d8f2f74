"""What a filter leaves of the index, and what a model shows that search does not use."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Sequence

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.changes import UNSETTLED, Moves
from pipeline.store import library, models
from pipeline.store.database import Database
from pipeline.store.models import Target
from pipeline.store.tables import ContentRow, SourceRow
from pipeline.store.view import Filter, listed_ids, searched_contents, view_of
from tests.store import rows

DAY = 24 * 3600 * 10**9
FILES = {
    ("/docs", "a.pdf"): (1 * DAY, "a"),
    ("/docs", "year/b.PDF"): (2 * DAY, "b"),
    ("/docs", "year/deep/c.docx"): (3 * DAY, "c"),
    ("/docs", "yearbook/d.pdf"): (4 * DAY, "d"),
    ("/more", "year/100% [x]_'.pdf"): (5 * DAY, "e"),
    ("/more", "copy of a.pdf"): (6 * DAY, "a"),
}


def fill(session: Session, target: Target, files: dict[tuple[str, str], tuple[int, str]] = FILES) -> None:
    for (root, path), (mtime_ns, content) in files.items():
        source = library.ensure_source(session, root, rows.utc_now())
        file = dataclasses.replace(rows.read_file(path.lower(), content, mtime_ns=mtime_ns), path=path)
        library.register(session, source, [file], Moves([]), target, rows.utc_now())
    rows.extract_all(session, target)
    rows.embed_all(session, target)


def found(session: Session, model_id: int, wanted: Filter | None = None) -> list[str]:
    """The contents in view, by the letters that they were made of."""
    contents = searched_contents(view_of(session, model_id, wanted))
    hashes = session.scalars(sa.select(ContentRow.sha256).where(ContentRow.id.in_(contents)))
    letters = {rows.digest(letter): letter for letter in "abcdefgh"}
    return sorted(letters[sha256] for sha256 in hashes)


LEFT: list[tuple[Filter, str]] = [
    (Filter(), "abcde"),
    (Filter(sources=["/docs"]), "abcd"),
    (Filter(sources=["/docs/"]), "abcd"),
    (Filter(sources=["/"]), "abcde"),
    (Filter(sources=["/docs/year"]), "bc"),
    (Filter(sources=["/docs/year/"]), "bc"),
    (Filter(sources=["/docs/year/b.PDF", "/more/year"]), "be"),
    (Filter(sources=["/doc"]), ""),
    (Filter(sources=["/docs/yea"]), ""),
    (Filter(sources=["/docs/b"]), ""),
    (Filter(sources=["/nowhere", "/more"]), "ae"),
    (Filter(paths=["*.pdf"]), "abde"),
    (Filter(paths=["year/"]), "bce"),
    (Filter(paths=["/year/*.pdf"]), "be"),
    (Filter(paths=["year*/**"]), "bcde"),
    (Filter(paths=["nothing", "c.*"]), "c"),
    (Filter(paths=["nothing"]), ""),
    (Filter(kinds=["docx"]), "c"),
    (Filter(kinds=["docx", "pdf"]), "abcde"),
    (Filter(kinds=["text"]), ""),
    (Filter(sources=["/more"], paths=["year/"], kinds=["pdf"]), "e"),
    (Filter(sources=["/docs"], paths=["copy*"]), ""),
]


def test_a_filter_leaves_what_it_says(store: Database) -> None:
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        fill(session, target)
        for wanted, left in LEFT:
            assert ("".join(found(session, target.model_id, wanted)), wanted) == (left, wanted)


def test_times_are_from_the_first_and_until_before_the_second(store: Database) -> None:
    def at(days: float) -> dt.datetime:
        return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=days)

    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        fill(session, target)

        def between(after: dt.datetime | None, before: dt.datetime | None) -> str:
            return "".join(found(session, target.model_id, Filter(after=after, before=before)))

        assert between(at(3), None) == "acde"  # a by its copy
        assert between(None, at(3)) == "ab"
        assert between(at(2), at(4)) == "bc"
        assert between(at(2) + dt.timedelta(microseconds=1), at(4)) == "c"
        assert between(at(7), None) == ""
        zone = dt.timezone(dt.timedelta(hours=-5))
        assert between((at(2)).astimezone(zone), at(3)) == "b"
        assert between(dt.datetime.min.replace(tzinfo=dt.UTC), dt.datetime.max.replace(tzinfo=dt.UTC)) == "abcde"


def test_a_file_too_young_to_trust_its_time_goes_by_when_it_was_queued(store: Database) -> None:
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        fill(session, target, {("/docs", "a.pdf"): (UNSETTLED, "a")})
        hour = dt.timedelta(hours=1)
        now = rows.utc_now()
        assert found(session, target.model_id, Filter(after=now - hour, before=now + hour)) == ["a"]
        assert found(session, target.model_id, Filter(before=now - hour)) == []


def test_a_million_ids_are_one_parameter(store: Database) -> None:
    ids = json.dumps(list(range(1, 200_001)))
    with store.snapshot() as session:
        count = session.scalar(sa.select(sa.func.count()).select_from(listed_ids(ids).subquery()))
        assert count == 200_000
        assert session.scalars(listed_ids("[]")).all() == []


def test_a_glob_that_wants_everything_is_as_good_as_none(store: Database) -> None:
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        fill(session, target)
        assert view_of(session, target.model_id, Filter(paths=["*"])) == view_of(session, target.model_id)
        of_more = view_of(session, target.model_id, Filter(sources=["/more"], paths=["*.pdf"]))
        assert of_more == view_of(session, target.model_id, Filter(sources=["/more"]))
        assert view_of(session, target.model_id, Filter(paths=["*.pdf"])).contents is not None


def test_a_glob_that_makes_no_sense_says_so(store: Database) -> None:
    with store.begin() as session:
        target = rows.add_target(session)
        with pytest.raises(ValueError, match=r"\[x"):
            view_of(session, target.model_id, Filter(paths=["[x"]))


def test_a_model_that_search_does_not_use_shows_what_it_would_if_search_moved(store: Database) -> None:
    filters = [Filter(), Filter(paths=["*.pdf"]), Filter(sources=["/docs"])]
    with store.begin() as session:
        old = rows.add_target(session, "old")
        rows.begin(session)
        fill(session, old)
        new = rows.add_target(session, "new")
        source = library.sources(session)["/docs"]
        # New bytes that only the new model was to embed, and a change of settings after it had made some.
        rows.register(session, source, new, g="g", a="h")
        library.retarget(session, None, new, rows.utc_now())
        rows.extract_all(session, new)
        rows.embed_all(session, new)
        later = Target(new.model_id, "another recipe")
        library.retarget(session, None, later, rows.utc_now())

        def contents(model_id: int) -> list[set[int]]:
            views = [view_of(session, model_id, wanted) for wanted in filters]
            return [set(session.scalars(searched_contents(view))) for view in views]

        assert not view_of(session, new.model_id).active
        assert found(session, new.model_id) == ["a", "b", "c", "d", "e", "g", "h"]
        of_new, of_old = contents(new.model_id), contents(old.model_id)

        models.choose(session, new.model_id, anyway=True)
        assert view_of(session, new.model_id).active
        assert contents(new.model_id) == of_new
        # The old one never saw the new bytes of a.pdf: it shows nothing of that, but still the copy elsewhere.
        lost = [before - after for before, after in zip(of_old, contents(old.model_id), strict=True)]
        assert [len(gone) for gone in lost] == [0, 0, 1]


def test_a_source_may_be_the_whole_disk(store: Database) -> None:
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        fill(session, target, {("/", "docs/a.pdf"): (1, "a"), ("/", "b.pdf"): (1, "b")})
        assert session.scalars(sa.select(SourceRow.root)).all() == ["/"]
        assert found(session, target.model_id, Filter(sources=["/"])) == ["a", "b"]
        assert found(session, target.model_id, Filter(sources=["/docs"])) == ["a"]
        assert found(session, target.model_id, Filter(sources=["/docs/a.pdf"])) == ["a"]


def test_the_filter_knows_whether_it_leaves_anything_out() -> None:
    assert Filter().wants_all
    parts: Sequence[Filter] = [
        Filter(sources=["/x"]),
        Filter(paths=["x"]),
        Filter(kinds=["pdf"]),
        Filter(after=rows.utc_now()),
        Filter(before=rows.utc_now()),
    ]
    assert not any(part.wants_all for part in parts)
