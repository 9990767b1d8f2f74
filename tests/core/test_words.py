"""The words of a text, what a question wants, and where in a text that stands."""

from __future__ import annotations

import itertools
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.words import (
    BORDER,
    LONGEST,
    MOST_BYTES,
    MOST_PHRASES,
    MOST_WORDS,
    Wanted,
    excerpt,
    indexed,
    occurrences,
    spans,
    terms,
    wanted,
    without_excluded,
)

ODD = (
    "aAzZ09 \t\n.,-_'\"@ßıİſøŁæŒﬁé\u0301\u0308\u0327üÅ가각\u1100\u1161\u11a8がか\u3099ー東京都人口ｱｲのไทย\u0e33"
    "हिन्दी½²①™㎏\ufdfa\u00ad\u200b\u200d\ufe0f\u2028\x00\ud800💚"
)
TEXTS = st.text(st.one_of(st.sampled_from(ODD), st.characters()), max_size=60)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Pump's seals, 3.5 mm", "the pump s seals 3 5 mm"),
        ("Größe GRÖSSE grosse", "grosse grosse grosse"),
        ("naïve cafe\u0301 café", "naive cafe cafe"),
        ("Łódź Malmø œuvre İstanbul ısı", "lodz malmo oeuvre istanbul isi"),  # noqa: RUF001
        ("Ὀδυσσεύς ΟΔΥΣΣΕΥΣ", "οδυσσευσ οδυσσευσ"),
        ("ёлка Ёлка елка", "елка елка елка"),
        ("foo_bar-12.x@example.org", "foo bar 12 x example org"),
        ("ﬁnd ﬃ ｆｕｌｌ", "find ffi full"),  # noqa: RUF001
        ("m² ½ ①", "m2 1 2 1"),
        ("Acme™ №5", "acme tm no 5"),
        ("soft\u00adhyphen a\u200db zero\u200bwidth", "softhyphen ab zero width"),
        ("हिन्दी की", "हिन्दी की"),
        ("שָׁלוֹם שלום", "שלום שלום"),
        ("한국어 \u1112\u1161\u11ab", "한국어 한"),
        ("東京都", "東 東京 京 京都 都"),
        ("iPhone手机", "iphone 手 手机 机"),
        ("が か\u3099", "が が"),
        ("ﾃﾞｰﾀ", "デ デー ー ータ タ"),
        ("a\x00b \ud800 💚 --", "a b"),
        ("", ""),
    ],
)
def test_what_words_are(text: str, words: str) -> None:
    assert indexed([text]) == words


def test_texts_are_kept_apart() -> None:
    assert indexed(["Über uns", "", "§ 1", "Text"]) == f"uber uns {BORDER} 1 {BORDER} text"


def test_a_long_word_is_cut_in_the_index_as_in_the_question() -> None:
    for letter in ("x", "я", "\U0001e900"):
        word = letter * 5000
        assert [len(cut) for cut in indexed([word]).split()] == [LONGEST]
        assert indexed([word]).split() == terms(word)


def test_what_is_indexed_has_a_limit() -> None:
    stored = indexed([" ".join(f"{number:x}я" for number in range(300_000))])
    assert stored.startswith("0я 1я 2я")
    assert MOST_BYTES - 30 < sum(len(word.encode()) + 12 for word in stored.split()) <= MOST_BYTES


@given(TEXTS)
def test_words_hold_nothing_that_a_query_language_knows(text: str) -> None:
    for word in indexed([text]).split():
        assert 0 < len(word) <= LONGEST
        assert all(unicodedata.category(character)[0] in "LNM" for character in word)


@given(TEXTS)
def test_words_are_the_same_however_a_text_is_written(text: str) -> None:
    forms = {indexed([unicodedata.normalize(form, text)]) for form in ("NFC", "NFD")}
    assert forms == {indexed([text])}


@given(st.lists(TEXTS, max_size=4))
def test_each_word_of_a_question_stands_in_the_index_of_a_text_with_it(parts: list[str]) -> None:
    text = " ".join(parts)
    assert set(terms(text.replace('"', " ").replace("-", " "))) <= set(indexed([text]).split())


@given(TEXTS)
@example("a\u0301b")
@example("\u1100\u1161\u11a8 x")
@example("か\u3099き")
def test_every_word_has_its_place_in_the_text(text: str) -> None:
    words = indexed([text]).split()
    found = occurrences(text, words)
    assert [word for word, _, _ in found] == words
    assert [start for _, start, _ in found] == sorted(start for _, start, _ in found)
    for word, start, end in found:
        assert 0 <= start < end <= len(text)
        # What is highlighted is that word, beside others where one character makes several; a mark alone is none.
        assert word in indexed([text[start:end]]).split() or not any(map(str.isalnum, word))


@given(TEXTS, TEXTS)
def test_spans_are_apart_and_cover_what_is_found(text: str, question: str) -> None:
    some = [*terms(question), *indexed([text]).split()[::2]]
    marked = spans(text, some)
    assert marked == sorted(marked)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(marked))
    assert all(any(a <= start and end <= b for a, b in marked) for _, start, end in occurrences(text, some))


@pytest.mark.parametrize(
    ("text", "question", "shown"),
    [
        ("Die Straße, STRASSE und strasse.", "strasse", ["Straße", "STRASSE", "strasse"]),
        ("İzmir izmir İZMİR", "izmir", ["İzmir", "izmir", "İZMİR"]),
        ("eﬃcient", "efficient", ["eﬃcient"]),
        ("re\u0301sume\u0301.", "resume", ["re\u0301sume\u0301"]),
        ("in 東京都の人口", "東京都", ["東京都"]),
        ("foo_bar-12", "foo 12", ["foo", "12"]),
        ("各\u1100\u1161\u11a8!", "각", ["\u1100\u1161\u11a8"]),
        ("nothing", "", []),
    ],
)
def test_highlights_are_what_was_written(text: str, question: str, shown: list[str]) -> None:
    assert [text[start:end] for start, end in spans(text, terms(question))] == shown


@given(TEXTS, TEXTS, st.integers(1, 70))
def test_an_excerpt_is_within_the_text_and_as_short_as_it_has_to_be(text: str, question: str, length: int) -> None:
    start, end = excerpt(text, terms(question), length)
    assert 0 <= start <= end <= len(text)
    assert end - start <= length
    if len(text) <= length:
        assert (start, end) == (0, len(text))


@given(st.lists(st.sampled_from(["pump", "seal", "basin", "the", "of", "ein"]), min_size=1, max_size=60))
def test_an_excerpt_has_as_many_different_words_as_any_window(words: list[str]) -> None:
    text, sought, length = " ".join(words), ["pump", "seal", "basin"], 30
    start, end = excerpt(text, sought, length)
    places = occurrences(text, sought)

    def held(first: int, last: int) -> int:
        return len({word for word, a, b in places if first <= a and b <= last})

    assert held(start, end) == max(held(first, first + length) for first in range(len(text)))
    assert text[start:end].split() == [word for word in text[start:end].split() if word in words]


def test_an_excerpt_ends_between_words() -> None:
    text = "The first one. " * 20 + "Here the pump has new seals, since March. " + "The last one. " * 20
    start, end = excerpt(text, terms("seals of the pump"), 60)
    assert "pump has new seals" in text[start:end]
    assert text[start - 1].isspace()
    assert text[end].isspace()


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("The pump, the seal", Wanted(("the", "pump", "seal"))),
        ('"new seals" pump', Wanted(("new", "seals", "pump"), (("new", "seals"),))),
        ("„neue Dichtungen“ Pumpe", Wanted(("neue", "dichtungen", "pumpe"), (("neue", "dichtungen"),))),
        ("“new seals” «vieux joints»", Wanted(
            ("new", "seals", "vieux", "joints"), (("new", "seals"), ("vieux", "joints"))
        )),
        ('"pump"', Wanted(("pump",))),
        ("pump -basin", Wanted(("pump",), (), (("basin",),))),
        ('pump -"third basin" -foo_bar', Wanted(("pump",), (), (("third", "basin"), ("foo", "bar")))),
        ("-5 degrees, foo-bar - baz", Wanted(("5", "degrees", "foo", "bar", "baz"))),
        ('a 5" pipe and a 3" valve', Wanted(("a", "5", "pipe", "and", "3", "valve"))),
        ('an "open end', Wanted(("an", "open", "end"))),
        ('"" -- "-" !', Wanted(())),
        ('"東京"', Wanted(("東京",), (("東", "東京", "京"),))),
        ("茶", Wanted(("茶",))),
        ("NEAR(a b) col:x* ^y AND OR NOT 'q' & | ! <-> \\ :*", Wanted(
            ("near", "a", "b", "col", "x", "y", "and", "or", "not", "q")
        )),
    ],
)  # fmt: skip
def test_what_a_question_wants(question: str, expected: Wanted) -> None:
    assert wanted(question) == expected


@pytest.mark.parametrize(
    ("question", "left"),
    [
        ("pump -basin", "pump "),
        ('-"third basin" the "pump -seal" -valve', ' the "pump -seal" '),
        ("well-known -3 degrees", "well-known -3 degrees"),
        ("-pump", "-pump"),
        ("", ""),
    ],
)
def test_what_is_excluded_is_no_part_of_what_is_asked_for(question: str, left: str) -> None:
    assert without_excluded(question) == left


def test_a_question_has_limits() -> None:
    asked = wanted(" ".join(f'w{number} "p{number} p" -x{number}' for number in range(10_000)))
    assert (len(asked.words), len(asked.phrases), len(asked.excluded)) == (MOST_WORDS, MOST_PHRASES, MOST_PHRASES)
    assert [len(phrase) for phrase in wanted(f'"{"a b " * 10_000}"').phrases] == [MOST_WORDS]


@given(TEXTS)
def test_any_question_can_be_read(question: str) -> None:
    asked = wanted(question)
    assert len(asked.words) == len(set(asked.words))
    assert all(asked.phrases)
    assert all(asked.excluded)
