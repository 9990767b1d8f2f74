"""Which parts of a text are computed in one go: every chunk once, with context where there is room."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pipeline.backends.llama_cpp.tokenizer import GgufTokenizer
from pipeline.core.chunking import chunk
from pipeline.core.documents import Chunk, Extracted
from pipeline.core.stretches import (
    WHOLE,
    Extent,
    late_stretches,
    plan_stretches,
    special_tokens,
    whole_document,
)
from tests.conftest import DEFAULT_MODEL

PROSE = " ".join(f"The {n}th keeper of the lamp wrote down what she saw. It was a ship, she said." for n in range(40))


class Letters:
    """A token for each letter, and special tokens around them."""

    def __init__(self, front: Sequence[int] = (1,), back: Sequence[int] = (2,)) -> None:
        self.front, self.back = list(front), list(back)

    def encode(self, text: str) -> list[int]:
        return [*self.front, *(100 + ord(letter) for letter in text), *self.back]


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[Extent], int]:
    """Chunks that follow each other, each repeating some of the one before."""
    extents = [Extent(0, draw(st.integers(1, 60)))]
    for _ in range(draw(st.integers(0, 30))):
        start = extents[-1].end - draw(st.integers(0, (extents[-1].end - extents[-1].start) // 2))
        extents.append(Extent(start, max(extents[-1].end, start) + draw(st.integers(1, 60))))
    return extents, extents[-1].end


@given(texts(), st.integers(8, 200))
def test_each_chunk_is_cut_out_of_one_stretch_that_holds_it(text: tuple[list[Extent], int], room: int) -> None:
    extents, length = text
    plans = plan_stretches(extents, length, room)
    taken = [number for plan in plans for number in range(plan.first, plan.last)]
    assert taken == [n for n, extent in enumerate(extents) if extent.end - extent.start <= room]
    for plan in plans:
        assert 0 <= plan.start < plan.end <= length
        assert plan.end - plan.start <= room
        for number in range(plan.first, plan.last):
            assert plan.start <= extents[number].start < extents[number].end <= plan.end


@given(texts(), st.integers(8, 200))
def test_no_stretch_leaves_room_unused_while_there_is_text(text: tuple[list[Extent], int], room: int) -> None:
    extents, length = text
    for plan in plan_stretches(extents, length, room):
        assert plan.end - plan.start == min(room, length)


def test_what_fits_is_one_stretch_with_the_document_itself() -> None:
    tokenizer = Letters()
    chunks = _pieces("aaaabbbbcccc", 4)
    (stretch,) = late_stretches("aaaabbbbcccc", chunks, tokenizer, 14)
    assert stretch.tokens == tokenizer.encode("aaaabbbbcccc")
    # The special tokens go with the first chunk and the last one.
    assert [tuple(span) for span in stretch.spans] == [(0, 0, 5), (1, 5, 9), (2, 9, 14), (WHOLE, 0, 14)]


def test_a_longer_text_has_more_context_before_its_chunks_than_behind() -> None:
    text = "".join(letter * 10 for letter in "abcdefgh")
    stretches = late_stretches(text, _pieces(text, 10), Letters(), 42)
    assert [span.ordinal for stretch in stretches for span in stretch.spans] == list(range(8))
    second = next(stretch for stretch in stretches if stretch.spans[0].ordinal == 3)
    assert second.tokens == Letters().encode(text[23:63])
    assert [tuple(span) for span in second.spans] == [(3, 8, 18), (4, 18, 28), (5, 28, 38)]


def test_a_chunk_below_the_header_of_a_table_is_in_no_stretch() -> None:
    chunks = _pieces("aaaabbbbccccdddd", 4)
    for below in (2, 3):
        tokens = Letters().encode("head" + chunks[below].text)
        chunks[below] = dataclasses.replace(chunks[below], prefix="head", tokens=tokens)
    (stretch,) = late_stretches("aaaabbbbccccdddd", chunks, Letters(), 18)
    assert [tuple(span) for span in stretch.spans] == [(0, 0, 5), (1, 5, 9), (WHOLE, 0, 18)]
    assert [s.spans for s in late_stretches("aaaabbbbccccdddd", chunks, Letters(), 12)] == [((0, 0, 5), (1, 5, 9))]


def test_overlaps_and_headers_of_tables_do_not_keep_a_document_from_its_vector() -> None:
    chunks = _pieces("abcdefgh" * 4, 4)
    heavy = [dataclasses.replace(c, prefix="p" * 20, tokens=Letters().encode("p" * 20 + c.text)) for c in chunks[1:]]
    assert whole_document("abcdefgh" * 4, [chunks[0], *heavy], Letters(), 34) is not None


def test_one_chunk_is_the_document_already() -> None:
    assert late_stretches("abcd", _pieces("abcd", 4), Letters(), 100) == []
    assert whole_document("abcd", _pieces("abcd", 4), Letters(), 100) is None


def test_a_document_is_computed_whole_up_to_the_limit() -> None:
    chunks = _pieces("abcdefgh", 4)
    stretch = whole_document("abcdefgh", chunks, Letters(), 10)
    assert stretch is not None
    assert (stretch.tokens, stretch.spans) == (Letters().encode("abcdefgh"), ())
    assert whole_document("abcdefgh", chunks, Letters(), 9) is None


def test_special_tokens_before_and_behind_are_told_apart() -> None:
    assert special_tokens(Letters([1, 5], [2])) == ([1, 5], [2])
    assert special_tokens(Letters([], [2])) == ([], [2])
    assert special_tokens(Letters([1], [])) == ([1], [])
    assert special_tokens(Letters([], [])) == ([], [])


def test_the_models_own_tokens_are_cut_at_the_chunks() -> None:
    with GgufTokenizer(DEFAULT_MODEL) as tokenizer:
        chunks = chunk(Extracted(PROSE), tokenizer, limit=64, overlap=12)
        found = {
            span.ordinal: list(stretch.tokens[span.start : span.end])
            for stretch in late_stretches(PROSE, chunks, tokenizer, 512)
            for span in stretch.spans
        }
    assert len(chunks) > 10
    for piece in chunks:
        first, last = (0 if piece is chunks[0] else 1), (None if piece is chunks[-1] else -1)
        assert found[piece.ordinal] == list(piece.tokens)[first:last]


def _pieces(text: str, size: int) -> list[Chunk]:
    starts = range(0, len(text), size)
    return [
        Chunk(n, at, at + size, text[at : at + size], None, None, (), Letters().encode(text[at : at + size]))
        for n, at in enumerate(starts)
    ]
