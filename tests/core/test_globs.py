"""Globs: what .gitignore means by them, said once more the slow way and compared."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.globs import compile_globs, path_filter

CASES = [
    ("*.tmp", ["a.tmp", "x/a.TMP"], ["a.tmpx", "tmp", "tmp/a"]),
    ("drafts/", ["drafts/a.pdf", "x/drafts/a/b.pdf", "drafts/"], ["drafts", "drafts2/a.pdf", "mydrafts/a.pdf"]),
    ("drafts", ["drafts", "drafts/a.pdf", "x/drafts"], ["drafts.pdf", "Drafts"]),
    ("/a.pdf", ["a.pdf", "a.PDF"], ["x/a.pdf", "A.pdf"]),
    ("a/b.pdf", ["a/b.pdf"], ["x/a/b.pdf"]),
    ("a/**/b.pdf", ["a/b.pdf", "a/x/b.pdf", "a/x/y/b.pdf"], ["b.pdf", "ab.pdf", "a/xb.pdf"]),
    ("**/x", ["x", "a/x", "a/x/b"], ["ax", "xa"]),
    ("a/**", ["a/b", "a/b/c"], ["a", "a/"]),
    ("a/*", ["a/b", "a/b/c"], ["a", "a/"]),
    ("*a*b*c", ["aabbcc", "x/abc", "abcbc"], ["ab/c", "acb"]),
    ("[!a-c]x", ["dx"], ["ax", "/x", "x"]),
    ("[]x]y", ["]y", "xy"], ["y"]),
    ("a?c", ["abc"], ["ac", "a/c"]),
    (r"\*.pdf", ["*.pdf"], ["a.pdf"]),
    ("v1.*", ["v1.pdf", "v1."], ["v2.pdf"]),
    ("*", ["a", "a/b"], []),
    (r"a[\]b", ["a\\b"], ["ab"]),
    ("caf\u00e9/", ["cafe\u0301/a.pdf", "caf\u00e9/a.pdf"], ["cafe/a.pdf"]),
]


@pytest.mark.parametrize(("glob", "matching", "others"), CASES, ids=[case[0] for case in CASES])
def test_what_a_glob_matches(glob: str, matching: list[str], others: list[str]) -> None:
    pattern = compile_globs([glob])
    assert pattern is not None
    wants = path_filter(exclude=[glob]).wants
    assert [path for path in matching if wants(path)] == []
    assert [path for path in others if not wants(path)] == []


@pytest.mark.parametrize("glob", ["!a", "", "/", "a//b", "../a", "a/./b", "[a", "a\\", "[z-a]"])
def test_a_glob_that_makes_no_sense_is_refused(glob: str) -> None:
    with pytest.raises(ValueError, match=r"should|holds"):
        compile_globs([glob])


def test_a_file_has_to_be_included_and_not_excluded() -> None:
    both = path_filter(["reports/", "*.docx"], ["drafts/", "*-old.*"])
    assert both.wants("reports/2024/a.pdf")
    assert both.wants("a.docx")
    assert not both.wants("a.pdf")
    assert not both.wants("reports/drafts/a.pdf")
    assert not both.wants("reports/a-old.pdf")
    assert not both.wants_below("reports/drafts")
    assert both.wants_below("reports")
    assert both.wants_below("elsewhere")  # an included name may be anywhere
    assert path_filter().wants("anything")


def test_stars_and_gaps_in_their_dozens_end() -> None:
    assert path_filter(exclude=["*a" * 40 + "b"]).wants("a" * 5000)
    assert path_filter(exclude=["**/a/" * 12 + "b"]).wants("a/" * 400 + "a")


letters = st.sampled_from("ab.")
names = st.text(letters, min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
parts = st.one_of(st.just("**"), st.text(st.sampled_from("ab.*?"), min_size=1, max_size=4)).filter(
    lambda part: part not in (".", "..")
)
globs = st.tuples(st.sampled_from(["", "/"]), st.lists(parts, min_size=1, max_size=4), st.sampled_from(["", "/"])).map(
    lambda found: found[0] + "/".join(found[1]) + found[2]
)


@given(globs, paths)
@example("*/", "a/b")
@example("**", "a")
@example("/**/a", "a")
@example("a/**/**/b", "a/b")
def test_the_expression_means_what_trying_every_way_means(glob: str, path: str) -> None:
    assert path_filter(exclude=[glob]).wants(path) is not matches(glob, path)


@given(globs, paths, names)
def test_what_need_not_be_looked_into_holds_nothing_that_is_wanted(glob: str, folder: str, name: str) -> None:
    excluding = path_filter(exclude=[glob])
    if not excluding.wants_below(folder):
        assert not excluding.wants(f"{folder}/{name}")
    # A scan asks only about the file, having asked about each folder above it.
    above = [folder.rsplit("/", n)[0] for n in range(folder.count("/") + 1)]
    if all(excluding.wants_below(one) for one in above):
        assert excluding.wants_file(f"{folder}/{name}") == excluding.wants(f"{folder}/{name}")


def matches(glob: str, path: str) -> bool:
    """Whether a glob matches a file's path or a folder above it, by trying every way."""
    folder_only, glob = glob.endswith("/"), glob.removesuffix("/")
    wanted = glob.removeprefix("/").split("/") if "/" in glob else ["**", glob]
    found = unicodedata.normalize("NFC", path).split("/")
    ends = range(1, len(found) if folder_only else len(found) + 1)
    return any(parts_match(wanted, found[:end]) for end in ends)


def parts_match(wanted: list[str], found: list[str]) -> bool:
    if not wanted:
        return not found
    if wanted[0] == "**":
        if len(wanted) == 1:
            return bool(found)
        return any(parts_match(wanted[1:], found[skipped:]) for skipped in range(len(found) + 1))
    return bool(found) and name_matches(wanted[0], found[0]) and parts_match(wanted[1:], found[1:])


def name_matches(wanted: str, found: str) -> bool:
    if not wanted:
        return not found
    if wanted[0] == "*":
        return any(name_matches(wanted[1:], found[skipped:]) for skipped in range(len(found) + 1))
    return bool(found) and wanted[0] in ("?", found[0]) and name_matches(wanted[1:], found[1:])
