from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.documents import DocumentKind
from pipeline.ingest.extract import extract
from tests.extract.sample_documents import Drawn, body, drawn_pdf, prose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.documents import Extracted
    from pipeline.ingest.extract import PdfEngine

LINES = prose(400)


def read(pages: Sequence[Sequence[Drawn]], engine: PdfEngine = "pdfium") -> Extracted:
    return extract(drawn_pdf(pages), DocumentKind.PDF, "a.pdf", pdf_engine=engine)


def page(number: int, *headings: tuple[str, str, float]) -> list[Drawn]:
    """A page of prose on which each heading (text, font, size) stands above fifteen lines."""
    lines: list[Drawn] = []
    for section, (text, font, size) in enumerate(headings):
        top = 110 + 230 * section
        lines.append((60, top - 20, text, font, size))
        lines += body(LINES[60 * number + 15 * section : 60 * number + 15 * section + 15], top=top)
    return lines


def headings_of(document: Extracted) -> list[tuple[int, str]]:
    return [(heading.level, heading.title) for heading in document.headings]


BOOK = [
    page(0, ("A book of harbours", "Helvetica-Bold", 24), ("1 Ferries", "Helvetica-Bold", 15)),
    page(1, ("1.1 By night", "Helvetica-Bold", 12), ("1.2 By day", "Helvetica-Bold", 12)),
    page(2, ("2 Nets", "Helvetica-Bold", 15), ("2.1 How they are mended", "Helvetica-Bold", 12)),
]


def test_a_hyphenated_heading_is_one_word_again() -> None:
    book = [
        page(0, ("tation of piers shows", "Helvetica-Bold", 15)),
        page(1, ("2 Nets", "Helvetica-Bold", 15)),
        page(2, ("3 Paint", "Helvetica-Bold", 15)),
    ]
    book[0].insert(0, (60, 73, "1 What the instrumen-", "Helvetica-Bold", 15))
    assert headings_of(read(book))[0] == (1, "1 What the instrumentation of piers shows")


def test_larger_letters_are_headings_and_their_size_is_the_level() -> None:
    document = read(BOOK)
    assert headings_of(document) == [
        (1, "A book of harbours"),
        (2, "1 Ferries"),
        (3, "1.1 By night"),
        (3, "1.2 By day"),
        (2, "2 Nets"),
        (3, "2.1 How they are mended"),
    ]
    assert document.title == "A book of harbours"
    for heading in document.headings:
        assert document.text[heading.offset :].startswith(f"{heading.title}\n\n")


def test_numbered_bold_lines_are_headings_by_the_depth_of_their_numbers() -> None:
    pages = [
        page(0, ("1. Ferries", "Times-Bold", 10), ("1.1 By night", "Times-Bold", 10)),
        page(1, ("1.1.1 In winter", "Times-Bold", 10), ("2. Nets", "Times-Bold", 10)),
    ]
    assert headings_of(read(pages)) == [(1, "1. Ferries"), (2, "1.1 By night"), (3, "1.1.1 In winter"), (1, "2. Nets")]


def test_a_bold_line_alone_is_no_heading() -> None:
    pages = [page(number, ("Nobody knew why", "Times-Bold", 10)) for number in range(3)]
    assert headings_of(read(pages)) == []


def test_a_heading_over_two_lines_is_one() -> None:
    wrapped = page(0, ("What the harbour master found on", "Helvetica-Bold", 15))
    wrapped.insert(1, (60, 104, "the deck of the ferry", "Helvetica-Bold", 15))
    wrapped[2:] = [(x, y + 20, *rest) for x, y, *rest in wrapped[2:]]  # type: ignore[misc]
    pages = [wrapped, page(1, ("Nets", "Helvetica-Bold", 15))]
    assert headings_of(read(pages)) == [
        (1, "What the harbour master found on the deck of the ferry"),
        (1, "Nets"),
    ]


def test_names_and_dates_under_a_title_are_none() -> None:
    first = page(0, ("A book of harbours", "Helvetica-Bold", 24), ("1 Ferries", "Helvetica-Bold", 15))
    first.insert(1, (60, 104, "Solveig Aune", "Helvetica", 13))
    pages = [first, page(1, ("2 Nets", "Helvetica-Bold", 15))]
    assert headings_of(read(pages)) == [(1, "A book of harbours"), (2, "1 Ferries"), (2, "2 Nets")]


def test_a_table_of_contents_gives_none() -> None:
    contents = [
        (60.0, 100.0 + 20 * row, f"{row + 1} Chapter on {name} {row * 9 + 3}", "Helvetica-Bold", 12.0)
        for row, name in enumerate(("ferries", "nets", "paint", "rain"))
    ]
    pages = [
        [*contents, *body(LINES[:20], top=300)],
        page(1, ("1 Chapter on ferries", "Helvetica-Bold", 12)),
        page(2, ("2 Chapter on nets", "Helvetica-Bold", 12)),
    ]
    document = read(pages)
    assert headings_of(document) == [(1, "1 Chapter on ferries"), (1, "2 Chapter on nets")]
    assert document.headings[0].offset > document.pages[1].start - 1


def test_an_initial_a_formula_and_a_quotation_are_none() -> None:
    odd: list[Drawn] = [
        (60, 60, "W", "Times-Roman", 40),
        (60, 400, "x = 3 + 4 * 7", "Times-Roman", 14),
        *((60, 450 + 20 * row, f"{line[:50]}", "Times-Italic", 14) for row, line in enumerate(LINES[:6])),
    ]
    pages = [[*body(LINES[20 * number : 20 * number + 20]), *odd] for number in range(3)]
    assert headings_of(read(pages)) == []


def test_slides_and_short_texts_tell_nothing() -> None:
    slides = [
        [(60, 100, f"Slide {n}", "Helvetica-Bold", 30), (60, 200, "Few words here", "Times-Roman", 20)]
        for n in range(9)
    ]
    assert headings_of(read(slides)) == []


def test_pypdf_knows_no_sizes() -> None:
    assert headings_of(read(BOOK, "pypdf")) == []
