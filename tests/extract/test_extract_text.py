from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.extract.text import (
    HYPHEN_MARK,
    clean,
    compounds,
    has_text,
    is_garbage,
    join_hyphenated,
    joined_across,
    one_line,
)


def test_line_ends_spaces_and_unseen_characters() -> None:
    assert clean("a\r\nb\rc\u2028d\x0ce") == "a\nb\nc\nd\ne"
    assert clean("  a \t\u00a0 b \n\n\n\n c\u3000d ") == "a b\n\nc d"
    assert clean("a\x00b\x07c\u200bd\ufeffe\u00adf\ud800g\ufffeh") == "abcdefgh"
    assert one_line(" a \n\n b ") == "a b"


def test_composed_characters_ligatures_and_radicals() -> None:
    assert clean(unicodedata.normalize("NFD", "한글 café")) == "한글 café"
    assert clean("e\ufb03cient \ufb01le") == "efficient file"
    assert clean("\u2f08\u2f26") == "人子"


def test_superscripts_and_fullwidth_forms_keep_what_they_say() -> None:
    assert clean("x\u00b2 \u2460 \u00bd \uff08\u5c71\uff09") == "x\u00b2 \u2460 \u00bd \uff08\u5c71\uff09"


def test_shapes_of_arabic_letters_become_the_letters() -> None:
    assert clean("\ufeb3\ufefc\ufee1") == "\u0633\u0644\u0627\u0645"
    assert (
        clean("\u0633\u0644\u0627\u0645 \u05e9\u05dc\u05d5\u05dd")
        == "\u0633\u0644\u0627\u0645 \u05e9\u05dc\u05d5\u05dd"
    )


def test_characters_of_nobody_s_go_but_for_those_of_well_known_fonts() -> None:
    assert clean("\uf0b7 one\n\uf0a7 two\n\uf0fc three") == "\u2022 one\n\u25aa two\n\u2713 three"
    assert clean("in \uf731\uf739\uf734\uf735 at \uf772ome") == "in 1945 at rome"
    assert clean("a\ue123b\ufffdc\U000f1234d") == "abcd"


def test_text_in_a_font_that_does_not_say_what_its_glyphs_mean_is_garbage() -> None:
    assert is_garbage("\ue001\ue002\ue003 a b")
    assert is_garbage("\ufffd\ufffd \x01\x02 ok")
    assert not is_garbage("\uf0b7 one \uf0b7")
    assert not is_garbage("a \ufffd word or two")
    assert not is_garbage("")


def test_a_word_over_two_pages_is_joined() -> None:
    known = compounds("a well-known fact")
    assert joined_across("the ferry was un-", "expected by", known) == "the ferry was un"
    assert joined_across("this was well-", "known by", known) == "this was well-"
    for before, after in [("a list -", "goes on"), ("New-", "York"), ("the end", "of it"), ("x-", "1"), ("un-", "")]:
        assert joined_across(before, after, known) is None


def test_joiners_that_shape_words_stay() -> None:
    for joiner in ("\u200c", "\u200d"):
        assert clean(f"क्{joiner}ष") == f"क्{joiner}ष"


@given(st.text(st.characters(codec=None), max_size=200))
def test_clean_text_can_be_stored_and_is_not_changed_again(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert clean(cleaned) == cleaned
    assert "\n\n\n" not in cleaned
    assert not any(unicodedata.category(character) == "Cc" for character in cleaned.replace("\n", ""))


@given(st.text(st.characters(categories=("L", "N"), max_codepoint=0x2EFF), max_size=200))
def test_letters_and_digits_are_never_lost(text: str) -> None:
    assert unicodedata.normalize("NFKC", clean(text)) == unicodedata.normalize("NFKC", text)


def test_hyphens_at_line_ends() -> None:
    known = compounds('The "well-known" facts, and Anglo-Saxon ones.')
    for text, expected in [
        ("exam@ple", "example"),
        ("well@known", "well-known"),
        ("Anglo@Saxon", "Anglo-Saxon"),
        ("New@York", "New-York"),
        ("e@mail", "e-mail"),
        ("CO@2", "CO-2"),
        ("a mis@under@standing of exam@ples.", "a misunderstanding\nof examples."),
        ("an exam@ple\nof this", "an example\nof this"),
        ("Betriebs@ und Nebenkosten", "Betriebs- und Nebenkosten"),
        ("Betriebs@und Nebenkosten", "Betriebs-\nund Nebenkosten"),
        ("im Ver@bund", "im Verbund"),
        ("pre@and post-war", "pre-\nand post-war"),
        ("the oper@and of it", "the operand\nof it"),
        ("@", "-"),
    ]:
        assert join_hyphenated(text.replace("@", HYPHEN_MARK), known) == expected


def test_what_counts_as_text() -> None:
    assert has_text("...\n한")
    assert not has_text(" \n-- • ● |")
