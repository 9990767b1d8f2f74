# ruff: noqa: RUF001  (punctuation of other scripts is meant)

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.segmentation import (
    Break,
    character_breaks,
    clause_breaks,
    may_cut,
    sentence_breaks,
    word_breaks,
)


def parts(text: str, kinds: tuple[Break, ...] = (Break.PARAGRAPH, Break.LINE, Break.SENTENCE)) -> list[str]:
    places = [0, *sorted(at for at, kind in sentence_breaks(text).items() if kind in kinds), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


@pytest.mark.parametrize(
    "expected",
    [
        ["It rained. ", "We stayed in! ", "Did you? ", "Yes\u2026 ", "No."],
        ['He said: "Go home." ', "Then he left."],
        ["It is so (see below.) ", "Then it is not."],
        ["He asked \u201cWhy?\u201d ", "She knew."],
        ["Pi is 3.14 and e is 2.72, as in Fig. 3 of Dr. J. Smith et al. (2020). ", "See No. 5."],
        ["The answer is no. ", "Nothing helps."],
        ["Use e.g. this one, i.e. the first. ", "Then stop."],
        ["1. Introduction\n"],
        ["See www.example.org. ", "Or ask."],
        ['"What?" he said. ', "Nobody knew."],
        ["오늘은 날씨가 좋습니다. ", "그래서 산책을 했어요. ", "끝."],
        ["붙여 썼다.", "그래도 나뉜다."],
        ["今日は晴れです。", "「明日は？」", "雨だ！", "終わり"],
        ["他说：“走吧。”", "然后离开了。", "结束"],
        ["圓周率是3．14。", "對嗎？ ", "對。"],
        ["यह एक वाक्य है। ", "यह दूसरा है।"],
        ["ما هذا؟ ", "هذا كتاب."],
    ],
)
def test_sentences(expected: list[str]) -> None:
    assert parts("".join(expected)) == expected


def test_paragraphs_and_wrapped_lines() -> None:
    assert parts("One line\nwraps here.\n\nTwo", (Break.PARAGRAPH,)) == ["One line\nwraps here.\n\n", "Two"]
    assert parts("One line\nwraps here", (Break.LINE,)) == ["One line\nwraps here"]


def test_rows_and_list_items_are_lines() -> None:
    assert parts("Name | Age\nAnn | 31\nBob | 4", (Break.LINE,)) == ["Name | Age\n", "Ann | 31\n", "Bob | 4"]
    assert parts("Needed:\n- salt\n- bread", (Break.LINE,)) == ["Needed:\n", "- salt\n", "- bread"]
    assert parts("a) first\nb) second\n가. 셋째", (Break.LINE,)) == ["a) first\n", "b) second\n", "가. 셋째"]


def test_clauses() -> None:
    text = "first, second; third: 1,000 of them、fourth，fifth"
    assert [text[at] for at in clause_breaks(text, 0, len(text))] == ["s", "t", "1", "f", "f"]


def test_words() -> None:
    text = "one  two\tthree "
    assert word_breaks(text, 0, len(text)) == [5, 9]


@pytest.mark.parametrize(
    "whole",
    ["e\u0301", "कि", "👩\u200d👩\u200d👧", "👍🏽", "🇰🇷", "한", "각", "❤\ufe0f", "🏴\U000e0067\U000e007f"],
)
def test_characters_of_several_code_points_stay_whole(whole: str) -> None:
    text = f"a{whole}{whole}b"
    assert character_breaks(text, 0, len(text)) == [1, 1 + len(whole), 1 + 2 * len(whole)]


@given(st.text(alphabet=st.sampled_from(" \n\t.!?。,a다가é\u0301\u200d🇰🇷\"')|-1")))
def test_no_break_tears_a_character_or_leads_with_whitespace(text: str) -> None:
    for at in sentence_breaks(text):
        assert 0 < at < len(text)
        assert may_cut(text, at)
        assert not text[at].isspace()
