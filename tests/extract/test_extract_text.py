from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.extract.text import HYPHEN_MARK, clean, compounds, has_text, join_hyphenated, one_line


def test_line_ends_spaces_and_unseen_characters() -> None:
    assert clean("a\r\nb\rc\u2028d\x0ce") == "a\nb\nc\nd\ne"
    assert clean("  a \t\u00a0 b \n\n\n\n c\u3000d ") == "a b\n\nc d"
    assert clean("a\x00b\x07c\u200bd\ufeffe\u00adf\ud800g\ufffeh") == "abcdefgh"
    assert one_line(" a \n\n b ") == "a b"


def test_composed_characters_ligatures_and_radicals() -> None:
    assert clean(unicodedata.normalize("NFD", "한글 café")) == "한글 café"
    assert clean("e\ufb03cient \ufb01le") == "efficient file"
    assert clean("\u2f08\u2f26") == "人子"


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
        ("a mis@under@standing of exam@ples.", "a misunderstanding of examples."),
        ("@", "-"),
    ]:
        assert join_hyphenated(text.replace("@", HYPHEN_MARK), known) == expected


def test_what_counts_as_text() -> None:
    assert has_text("...\n한")
    assert not has_text(" \n-- • ● |")
