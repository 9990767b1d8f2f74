# ruff: noqa: RUF001  (punctuation of other scripts is meant)

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.chunking import MIN_ROOM, chunk
from pipeline.core.documents import Chunk, Extracted, Heading, Page, Table
from pipeline.core.segmentation import may_cut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.documents import Tokenizer

PROSE = "The lamp burns all night. Nobody reads, and the rain goes on. Was it so? It was! "


class Words:
    """A token a word or mark, whitespace is free, two special tokens: like a BERT vocabulary."""

    def __init__(self) -> None:
        self.calls = 0
        self.characters = 0
        self.longest = 0

    def encode(self, text: str) -> list[int]:
        self.calls += 1
        self.characters += len(text)
        self.longest = max(self.longest, len(text))
        return [1, *(len(word) for word in re.findall(r"[a-zA-Z]+|[^a-zA-Z\s]", text)), 2]


class Bytes:
    """A token for each byte of UTF-8, one special token: whitespace is dear."""

    def encode(self, text: str) -> list[int]:
        return [256, *text.encode("utf-8", errors="replace")]


class Merging:
    """Runs of three characters become one token: together fewer than apart."""

    def encode(self, text: str) -> list[int]:
        return [0, *range(-(-len(text) // 3)), 0]


class Parting:
    """Only whole triples make a token, and a full stop inside makes four more: together more than apart."""

    def encode(self, text: str) -> list[int]:
        return [0] * (len(text) // 3 + 4 * text[:-2].count("."))


class Leading:
    """Three tokens before any text at all, none around nothing: apart far more than together."""

    def encode(self, text: str) -> list[int]:
        return [7, 7, 7, *(1 for _ in text.split())] if text else []


class Unknowing:
    """A word of more than eight characters is a single unknown token: longer can be fewer."""

    def encode(self, text: str) -> list[int]:
        return [0, *(i for word in text.split() for i in (range(1) if len(word) > 8 else range(len(word)))), 0]


TOKENIZERS: list[Tokenizer] = [Words(), Bytes(), Merging(), Parting(), Leading(), Unknowing()]

FRAGMENTS = [
    *("word", "Another ", "the ", "x", "12", ". ", ".", "! ", "? ", ", ", "; ", " ", "  ", "\n", "\n\n", "\n \n", "\t"),
    *(
        " | ",
        "- item\n",
        "다. ",
        "안녕하세요",
        "요.",
        "日本語です",
        "。",
        "、",
        "！」",
        "é",
        "e\u0301",
        "👩\u200d👧",
        "🇰🇷",
    ),
    *("internationalisation", "\u0301\u0301", "\0", "\r\n", "Dr. ", "3.14", PROSE, "a" * 40, " " * 30),
]
texts = st.one_of(st.lists(st.sampled_from(FRAGMENTS), max_size=60).map("".join), st.text(max_size=200))


@st.composite
def documents(draw: st.DrawFn) -> Extracted:
    text = draw(texts)
    offsets = draw(st.lists(st.integers(0, max(0, len(text) - 1)), max_size=5, unique=True))
    levels = draw(st.lists(st.integers(1, 3), min_size=len(offsets), max_size=len(offsets)))
    headings = [Heading(at, level, f"H{at}") for at, level in zip(sorted(offsets), levels, strict=True)]
    cuts = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=3))})
    pages = [Page(number, a, b) for number, (a, b) in enumerate(pairwise(cuts), start=1)]
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    tables = [Table(*three) for three in zip(places[::3], places[1::3], places[2::3], strict=False)]
    return Extracted(text, pages=pages, headings=headings, tables=tables)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: type(tokenizer).__name__)
@given(document=documents(), limit=st.integers(MIN_ROOM + 2, 60), share=st.floats(0, 0.49))
@settings(max_examples=120, deadline=None)
def test_guarantees(tokenizer: Tokenizer, document: Extracted, limit: int, share: float) -> None:
    text, overlap = document.text, int(limit * share)
    chunks = chunk(document, tokenizer, limit=limit, overlap=overlap)
    if not text.strip():
        assert chunks == []
        return
    assert [piece.ordinal for piece in chunks] == list(range(len(chunks)))
    assert chunks[0].start == 0
    assert chunks[-1].end == len(text)
    special = len(tokenizer.encode(""))
    for piece in chunks:
        assert piece.text == text[piece.start : piece.end]
        assert list(piece.tokens) == list(tokenizer.encode(piece.prefix + piece.text))
        assert len(piece.tokens) <= limit
        inside = [table for table in document.tables if table.body <= piece.start < table.end]
        assert piece.prefix in ["", *(text[table.start : table.body].rstrip() + "\n" for table in inside)]
    for before, after in pairwise(chunks):
        assert before.start < after.start <= before.end < after.end
        repeated = text[after.start : before.end]
        assert after.start == before.end or len(tokenizer.encode(repeated)) - special <= overlap
        assert not any(
            after.start < heading.offset <= before.end and not text[heading.offset].isspace()
            for heading in document.headings
            if may_cut(text, heading.offset)
        )
    for piece in chunks:
        if not piece.text.isspace():
            seen = [
                page.number
                for page in document.pages
                if text[max(page.start, piece.start) : min(page.end, piece.end)].strip()
            ]
            assert (piece.page_first, piece.page_last) == (seen[0], seen[-1])


def test_nothing_is_repeated_across_a_heading_after_dear_whitespace() -> None:
    document = Extracted(" " * 30 + "word", headings=[Heading(30, 1, "word")])
    for before, after in pairwise(chunk(document, Bytes(), limit=10, overlap=2)):
        assert not after.start < 30 <= before.end


@given(text=st.lists(st.sampled_from(["👩\u200d👧", "e\u0301", "🇰🇷", "각", "a", " "])).map("".join))
def test_no_chunk_begins_inside_a_character(text: str) -> None:
    for piece in chunk(Extracted(text), Words(), limit=30, overlap=5):
        assert may_cut(text, piece.start)


@given(document=documents())
def test_whitespace_belongs_to_what_it_follows(document: Extracted) -> None:
    chunks = chunk(document, Words(), limit=20, overlap=4)
    assert not any(piece.text[0].isspace() for piece in chunks[1:])


def test_long_whitespace_belongs_to_a_chunk_that_is_full() -> None:
    first, second, *_ = cut("山" * 18 + " " * 1000 + "x " * 30, 20)
    assert first.text == "山" * 18 + " " * 1000
    assert second.text.startswith("x")


def cut(text: str, limit: int, overlap: int = 0, headings: Sequence[Heading] = ()) -> list[Chunk]:
    return chunk(Extracted(text, headings=headings), Words(), limit=limit, overlap=overlap)


def texts_of(chunks: Sequence[Chunk]) -> list[str]:
    return [piece.text for piece in chunks]


def with_headings(*parts: str) -> Extracted:
    """The parts one after the other; one that begins with # marks is a heading of that level."""
    text, headings = "", []
    for part in parts:
        title = part.lstrip("#")
        if title != part:
            headings.append(Heading(len(text), len(part) - len(title), title))
        text += f"{title}\n\n"
    return Extracted(text, headings=headings)


def test_a_short_document_is_one_chunk() -> None:
    assert texts_of(cut("  One sentence.\n", 20)) == ["  One sentence.\n"]


@pytest.mark.parametrize("text", ["", " ", "\n\t \u2003\n"])
def test_whitespace_makes_no_chunk(text: str) -> None:
    assert cut(text, 20) == []


def test_headings_begin_chunks_and_name_them() -> None:
    document = with_headings(
        "Preface. " * 10, "#One", "Body of one. " * 10, "##Deeper", "More of it. " * 10, "#Two", "End. " * 10
    )
    chunks = chunk(document, Words(), limit=64, overlap=8)
    assert [piece.text.split("\n")[0].split(".")[0] for piece in chunks] == ["Preface", "One", "Deeper", "Two"]
    assert [piece.headings for piece in chunks] == [(), ("One",), ("One", "Deeper"), ("Two",)]


def test_a_heading_stays_with_its_text() -> None:
    document = with_headings("#One", "##Deeper", "Body of it. " * 20)
    first, *others = chunk(document, Words(), limit=40, overlap=0)
    assert first.text.startswith("One\n\nDeeper\n\nBody")
    assert {piece.headings for piece in (first, *others)} == {("One", "Deeper")}


def test_tiny_sections_share_a_chunk() -> None:
    parts = [part for number in range(12) for part in (f"#Question {number}", "Yes.")]
    chunks = chunk(with_headings(*parts), Words(), limit=128, overlap=0)
    assert 1 < len(chunks) < 6
    assert chunks[0].headings == ("Question 0",)


def test_a_paragraph_ends_a_chunk_that_is_half_full() -> None:
    first, second = "Alpha beta gamma delta. " * 4, "Omega psi chi phi. " * 5
    chunks = cut(f"{first}\n\n{second}", 32)
    assert texts_of(chunks) == [f"{first}\n\n", second]


def test_an_almost_empty_chunk_goes_on_with_part_of_the_next_sentence() -> None:
    first, *_ = cut("Short one.\n\n" + "Alpha beta gamma delta, " * 6 + "epsilon zeta end.", 38)
    assert first.text.startswith("Short one.\n\nAlpha")
    assert first.text.endswith("delta, ")


def test_a_tiny_section_does_not_take_the_next_heading_from_its_text() -> None:
    document = with_headings("#One", "Yes.", "#Two", "alpha " * 35 + "end.")
    first, second = chunk(document, Words(), limit=42, overlap=0)
    assert (first.text, first.headings) == ("One\n\nYes.\n\n", ("One",))
    assert (second.text[:11], second.headings) == ("Two\n\nalpha ", ("Two",))


def test_rows_are_not_parted() -> None:
    rows = [f"row {'x' * i} | cell | cell" for i in range(1, 40)]
    chunks = cut("\n".join(rows), 40)
    assert len(chunks) > 3
    for piece in chunks:
        assert set(piece.text.rstrip("\n").split("\n")) <= set(rows)


@pytest.mark.parametrize(
    ("sentence", "end"),
    [
        ("오늘은 날씨가 참 좋습니다. ", "다. "),
        ("今日は天気がとても良いです。", "。"),
        ("今天的天气非常好，我们去散步！", "！"),
    ],
)
def test_chunks_of_korean_japanese_and_chinese_end_with_sentences(sentence: str, end: str) -> None:
    chunks = cut(sentence * 12, 45)
    assert len(chunks) > 3
    assert all(piece.text.endswith(end) for piece in chunks)


def test_text_without_sentences_breaks_at_clauses_then_words_then_characters() -> None:
    assert all(piece.text.endswith("、") for piece in cut("天気、海岸、山脈、" * 20, 30)[:-1])
    assert all(piece.text.endswith("word ") for piece in cut("word " * 100, 30)[:-1])
    assert 24 <= max(len(piece.text) for piece in cut("山" * 300, 30)) <= 28


def test_the_overlap_is_whole_sentences() -> None:
    text = "".join(f"Sentence {letter * 3} is here. " for letter in "abcdefghijklmnopqrst")
    for before, after in pairwise(cut(text, 32, overlap=12)):
        repeated = text[after.start : before.end]
        assert repeated.startswith("Sentence")
        assert repeated.count(".") == 2


def test_the_overlap_of_a_long_sentence_is_a_clause_or_words() -> None:
    clauses = "alpha beta gamma delta epsilon, " * 20
    chunks = cut(clauses, 32, overlap=12)
    assert [clauses[b.start : a.end] for a, b in pairwise(chunks)] == ["alpha beta gamma delta epsilon, " * 2] * (
        len(chunks) - 1
    )
    words = "alpha " * 100
    assert words[cut(words, 32, overlap=12)[1].start :].startswith("alpha")


def test_the_overlap_does_not_begin_inside_a_sentence_where_a_whole_one_fits() -> None:
    text = "alpha beta gamma, " * 16 + "end. Short one here. Omega " + "psi " * 28 + "phi."
    *_, before, last = cut(text, 40, overlap=12)
    assert last.text.endswith("phi.")
    assert text[last.start : before.end] == "Short one here. "


def test_nothing_is_repeated_across_a_heading() -> None:
    document = with_headings("#One", "Body of one. " * 9, "#Two", "Body of two. " * 9)
    chunks = chunk(document, Words(), limit=48, overlap=20)
    assert all(piece.start == document.headings[1].offset for piece in chunks if piece.text.startswith("Two"))
    assert any(piece.text.startswith("Two") for piece in chunks)


def test_no_remnant_is_left_behind() -> None:
    chunks = cut("Alpha beta gamma delta. " * 21, 102)  # 105 tokens, room for 100
    assert len(chunks) == 2
    assert min(len(piece.tokens) for piece in chunks) > 30


def test_chunks_are_well_filled_even_if_pieces_alone_count_far_more() -> None:
    text = "A b c. D e f. " * 200
    chunks = chunk(Extracted(text), Leading(), limit=64, overlap=0)
    assert sum(len(piece.tokens) for piece in chunks[:-1]) / (len(chunks) - 1) > 50


def test_pages_span_the_text_and_not_the_space_around_it() -> None:
    text = "One two.\n\nThree four.\n\nFive six."
    pages = [Page(1, 0, 8), Page(2, 10, 10), Page(3, 10, 21), Page(4, 23, 32)]
    whole, *none = chunk(Extracted(text, pages=pages), Words(), limit=20, overlap=0)
    assert none == []
    assert (whole.page_first, whole.page_last) == (1, 4)
    assert [page.number for page in pages if page.start == page.end] == [2]
    assert (cut(text, 20)[0].page_first, cut(text, 20)[0].page_last) == (None, None)


@pytest.mark.parametrize(("limit", "overlap"), [(2, 0), (9, 0), (0, 0), (-5, 0), (20, 10), (20, -1)])
def test_a_limit_or_an_overlap_that_makes_no_sense_is_refused(limit: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=r"limit|overlap"):
        cut("text", limit, overlap)


class Greedy:
    """Every character is a dozen tokens."""

    def encode(self, text: str) -> list[int]:
        return [0] * (12 * len(text))


def test_a_character_beyond_the_limit_is_an_error_and_not_cut() -> None:
    with pytest.raises(ValueError, match="alone makes 12 tokens"):
        chunk(Extracted("ab"), Greedy(), limit=10, overlap=0)


@pytest.mark.parametrize("text", ["\u30c4" * 50_000, ("\u30c4" * 300 + " ") * 200])
def test_a_script_that_the_model_does_not_know_is_still_cut(text: str) -> None:
    chunks = chunk(Extracted(text), Unknowing(), limit=64, overlap=8)
    assert max(len(piece.text) for piece in chunks) < 64 * 20


def test_no_giant_is_counted_whole() -> None:
    tokenizer = Words()
    chunk(Extracted("山" * 100_000), tokenizer, limit=256, overlap=32)
    assert tokenizer.longest <= 256 * 8


MILLION = 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        "a" * MILLION,
        "山" * MILLION,
        "." * MILLION,
        ".)" * (MILLION // 2),
        "x" + "\n" * MILLION + "y",
        "\n \n" * (MILLION // 3) + "y",
        " " * MILLION + "y",
        "e" + "\u0301" * MILLION,
        "word " * (MILLION // 5),
        "a\t1\n" * (MILLION // 4),
    ],
    ids=lambda text: repr(text[1:4]),
)
def test_hostile_text_costs_linear_time(text: str) -> None:
    tokenizer = Words()
    chunks = chunk(Extracted(text), tokenizer, limit=256, overlap=32)
    assert sum(len(piece.text) for piece in chunks) < 1.5 * len(text)
    assert tokenizer.characters < 8 * len(text)
    assert tokenizer.calls < len(text) // 2


ROWS = "".join(f"Store {number} | {number * 7} crates | {number} barrels\n" for number in range(40))
HEADER = "Place | Dry goods | Wet goods\n"


def with_table(before: str, header: str, after: str) -> Extracted:
    """The rows under this header, between two texts."""
    start = len(before)
    return Extracted(
        f"{before}{header}{ROWS}{after}", tables=[Table(start, start + len(header), start + len(header + ROWS))]
    )


@pytest.mark.parametrize("overlap", [0, 12])
def test_a_table_over_many_chunks_repeats_its_header_before_each(overlap: int) -> None:
    document = with_table(PROSE * 3 + "\n\n", HEADER, "\n" + PROSE * 3)
    chunks = chunk(document, Words(), limit=60, overlap=overlap)
    rows = [piece for piece in chunks if "| 140 crates" in piece.text or piece.text.startswith("Store")]
    assert len(rows) > 4
    for piece in chunks:
        begins_inside = document.tables[0].body <= piece.start < document.tables[0].end
        assert piece.prefix == (HEADER if begins_inside else "")
        assert list(piece.tokens) == Words().encode(piece.prefix + piece.text)
        assert len(piece.tokens) <= 60
    assert "".join(document.text[piece.start : piece.end] for piece in chunks if not overlap) in ("", document.text)


def test_a_header_that_leaves_no_room_for_rows_is_not_repeated() -> None:
    document = with_table("", "Place in the " + "long and windy " * 8 + "valley | Dry | Wet\n", "")
    assert {piece.prefix for piece in chunk(document, Words(), limit=50, overlap=0)} == {""}


def test_no_chunk_of_a_table_ends_inside_a_row() -> None:
    for piece in chunk(with_table("", HEADER, ""), Words(), limit=60, overlap=0):
        assert piece.text.endswith("barrels\n")
