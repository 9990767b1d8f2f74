"""What a scan means: never a deletion because nobody looked, never the same document twice."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.changes import (
    FEW,
    SETTLE_NS,
    UNSETTLED,
    Found,
    Known,
    Moves,
    classify_changes,
    emptied_folders,
    is_below,
    is_mass_deletion,
    is_settled,
    settled_mtime,
)

names = st.text(string.ascii_lowercase, min_size=1, max_size=2)
paths = st.lists(names, min_size=1, max_size=3).map("/".join).map(lambda path: path + ".pdf")
numbers = st.integers(0, 3)
found_files = st.dictionaries(paths, st.tuples(numbers, numbers), max_size=8).map(
    lambda files: [Found(path, *facts) for path, facts in files.items()]
)
known_documents = st.dictionaries(
    paths, st.tuples(numbers, numbers, st.sampled_from([None, "aa", "bb"])), max_size=8
).map(lambda files: [Known(number, path, *facts) for number, (path, facts) in enumerate(files.items())])


@given(found_files, known_documents)
def test_every_file_and_every_document_is_accounted_for(found: list[Found], known: list[Known]) -> None:
    changes = classify_changes(found, known)
    by_path = {file.path: file for file in found}
    for document in changes.missing:
        assert document.path not in by_path
    assert {d.path for d in known} - by_path.keys() == {d.path for d in changes.missing}
    for file in set(found) - set(changes.to_read):
        same = next(d for d in known if d.path == file.path)
        assert (same.size, same.mtime_ns) == (file.size, file.mtime_ns)
        assert same.sha256 is not None
    assert changes.unchanged + len(changes.to_read) == len(found)


@given(found_files, known_documents, st.lists(names, max_size=2))
def test_nothing_is_missing_where_nobody_could_look(
    found: list[Found], known: list[Known], unlisted: list[str]
) -> None:
    changes = classify_changes(found, known, unlisted)
    assert not [d for d in changes.missing if any(is_below(d.path, folder) for folder in unlisted)]


@given(known_documents)
def test_a_folder_that_is_suddenly_empty_is_told_from_one_that_always_was(known: list[Known]) -> None:
    assert classify_changes([], known).emptied == bool(known)


def test_files_that_are_there_but_not_to_be_read_hide_nothing_else() -> None:
    known = [Known(n, f"{n}.pdf", 1, 1, "aa") for n in range(5)]
    changes = classify_changes([], known, unreadable=["0.pdf"])
    assert changes.emptied
    assert [d.path for d in changes.missing] == ["1.pdf", "2.pdf", "3.pdf", "4.pdf"]


def test_a_folder_that_is_there_and_empty_is_told_from_one_that_was_deleted() -> None:
    missing = [Known(n, f"disk/deep/{n}.pdf", 1, 1, "aa") for n in range(FEW + 1)]
    others = [Found("other/a.pdf", 1, 1)]
    assert emptied_folders(missing, others, {"", "disk", "disk/deep", "other"}) == {"disk": FEW + 1}
    assert emptied_folders(missing, others, {"", "disk", "other"}) == {"disk": FEW + 1}
    assert emptied_folders(missing, others, {"", "other"}) == {}
    assert emptied_folders(missing[1:], others, {"", "disk", "disk/deep", "other"}) == {}
    assert emptied_folders(missing, [*others, Found("disk/b.pdf", 1, 1)], {"", "disk"}) == {}


@pytest.mark.parametrize(
    ("gone", "known", "asked"),
    [(10, 10, False), (11, 11, True), (11, 109, True), (11, 110, False), (100, 1000, False), (101, 1000, True)],
)
def test_more_than_ten_and_more_than_a_tenth_are_asked_about(gone: int, known: int, asked: bool) -> None:
    assert is_mass_deletion(gone, known) is asked


@given(st.integers(0, 300), st.integers(0, 3000))
def test_the_brake_is_both_counts_and_never_eases_as_more_goes(gone: int, more: int) -> None:
    known = gone + more
    assert is_mass_deletion(gone, known) == (gone > 10 and gone / known > 0.1)
    if is_mass_deletion(gone, known) and more:
        assert is_mass_deletion(gone + 1, known)


def test_a_folder_whose_files_are_kept_out_was_not_emptied() -> None:
    known = [Known(1, "drafts/a.pdf", 1, 1, "aa")]
    assert classify_changes([], known).emptied
    changes = classify_changes([], known, passed_over=1)
    assert (changes.emptied, changes.missing) == (False, known)


@given(st.integers(-5, 20), st.integers(0, 10), st.integers(0, 10), st.integers(0, 10))
def test_a_file_is_settled_once_it_was_left_alone_long_enough(mtime: int, seen: int, later: int, settle: int) -> None:
    now = seen + later
    settled = is_settled(Found("a.pdf", 1, mtime), seen, now, settle)
    assert settled == (now - mtime >= settle or later >= settle)
    # A clock that runs ahead, or an mtime in the future, holds nothing up for longer than that.
    assert is_settled(Found("a.pdf", 1, 10**18), seen, seen + settle, settle)


def test_a_file_of_the_same_size_and_time_is_unchanged() -> None:
    changes = classify_changes([Found("a.pdf", 5, 9)], [Known(1, "a.pdf", 5, 9, "aa")])
    assert (changes.unchanged, changes.to_read, changes.missing) == (1, [], [])


def test_a_document_that_could_not_be_read_is_read_again() -> None:
    assert classify_changes([Found("a.pdf", 5, 9)], [Known(1, "a.pdf", 5, 9, None)]).to_read == [Found("a.pdf", 5, 9)]


def test_a_young_mtime_vouches_for_nothing() -> None:
    now = 10 * SETTLE_NS
    assert settled_mtime(now - SETTLE_NS, now) == now - SETTLE_NS
    assert settled_mtime(now - SETTLE_NS + 1, now) == UNSETTLED
    assert settled_mtime(now + 5, now) == UNSETTLED  # a clock that runs ahead
    assert classify_changes([Found("a.pdf", 5, 9)], [Known(1, "a.pdf", 5, UNSETTLED, "aa")]).to_read


def test_below_is_a_matter_of_whole_names() -> None:
    assert is_below("a/b.pdf", "a")
    assert is_below("a", "a")
    assert is_below("anything", "")
    assert not is_below("ab.pdf", "a")


def test_a_rename_is_claimed_once_and_the_same_name_is_preferred() -> None:
    one, two = Known(1, "old/x.pdf", 1, 1, "aa"), Known(2, "old/y.pdf", 1, 1, "aa")
    moves = Moves([one, two])
    assert moves.claim("new/y.pdf", "aa") == two
    assert moves.claim("new/z.pdf", "aa") == one
    assert moves.claim("new/w.pdf", "aa") is None
    assert moves.unclaimed() == []


def test_other_bytes_are_no_rename_and_another_suffix_is() -> None:
    one, unread = Known(1, "x.pdf", 1, 1, "aa"), Known(2, "y.pdf", 1, 1, None)
    moves = Moves([one, unread])
    assert moves.claim("z.pdf", "bb") is None
    assert moves.unclaimed() == [one, unread]
    assert moves.claim("x.docx", "aa") == one  # what the bytes are does not change with the name
    assert moves.unclaimed() == [unread]
