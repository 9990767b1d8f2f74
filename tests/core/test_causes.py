"""A thousand like failures are one line."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.causes import EXAMPLES, LONGEST, MOST_CAUSES, OTHER, Causes, group, normalise


def test_reasons_that_differ_in_names_and_numbers_are_one_cause() -> None:
    failures = [
        (
            f"old/{number}.pdf",
            "failed",
            f"took longer than {number}.5 s at '/srv/a {number}/{number}.pdf' (0x{number:x})",
        )
        for number in range(1000)
    ]
    (cause,) = group([*failures])
    assert (cause.count, cause.state, cause.cause) == (1000, "failed", "took longer than N s at … (…)")
    assert cause.reason == failures[0][2]
    assert cause.examples == ["old/0.pdf", "old/1.pdf", "old/2.pdf"]
    assert len(cause.examples) == EXAMPLES


def test_other_words_and_other_states_are_other_causes() -> None:
    found = group(
        [
            ("a", "failed", "no end of the file"),
            ("b", "failed", "no page tree"),
            ("c", "encrypted", "no page tree"),
            ("d", "failed", "no page tree"),
        ]
    )
    assert [(cause.count, cause.state, cause.cause) for cause in found] == [
        (2, "failed", "no page tree"),
        (1, "encrypted", "no page tree"),
        (1, "failed", "no end of the file"),
    ]


def test_paths_hashes_and_counts_are_left_open() -> None:
    assert normalise("/srv/x/a.pdf: permission denied") == normalise("/home/y.pdf: permission denied")
    assert normalise("no text on any of its 2 pages: OCR") == normalise("no text on any of its 1,234 pages: OCR")
    digests = [f"content {digest} is damaged" for digest in ("deadbeef01234567", "0123456789abcdef")]
    assert normalise(digests[0]) == normalise(digests[1])
    assert normalise("first line\nTraceback ...") == "first line"
    assert normalise(" \n ") == "no reason is known"


def test_reasons_beyond_number_do_not_fill_the_memory() -> None:
    causes = Causes()
    letters = "abcdefghij"
    for number in range(3 * MOST_CAUSES):
        word = "".join(letters[int(digit)] for digit in str(number))
        causes.add(f"{number}.pdf", "failed", f"reason {word}")
    found = causes.most_first()
    assert len(found) == MOST_CAUSES + 1
    assert (found[0].cause, found[0].count) == (OTHER, 2 * MOST_CAUSES)
    assert sum(cause.count for cause in found) == 3 * MOST_CAUSES


@given(st.text() | st.text(alphabet="ab/'\"` 0x9…\n", max_size=400))
@example("a" * 500)
def test_a_cause_is_one_short_line(reason: str) -> None:
    cause = normalise(reason)
    assert 0 < len(cause) <= LONGEST
    assert len(cause.splitlines()) == 1
