from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.documents import DocumentKind
from pipeline.core.errors import NoText
from pipeline.ingest.extract import extract
from pipeline.ingest.extract.margins import marginal_lines
from pipeline.ingest.extract.places import PagePlaces, Place
from tests.extract.sample_documents import Drawn, body, drawn_pdf, pdf, prose

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.core.documents import Extracted
    from pipeline.ingest.extract import PdfEngine

ROMAN = ["i", "ii", "iii", "iv", "v", "vi", "vii"]


def read(data: bytes, engine: PdfEngine = "pdfium") -> Extracted:
    return extract(data, DocumentKind.PDF, "a.pdf", pdf_engine=engine)


def pages_with(
    margins: Callable[[int], Sequence[tuple[float, float, str]]], count: int = 6, *, size: float = 10
) -> bytes:
    """Pages of different prose with these lines (x, y from the upper edge, text) around it."""
    lines = prose(50 * count)
    return drawn_pdf(
        [
            [
                *((x, y, text, "Times-Roman", size) for x, y, text in margins(number)),
                *body(lines[50 * (number - 1) : 50 * number]),
            ]
            for number in range(1, count + 1)
        ]
    )


def texts_of(document: Extracted) -> list[str]:
    return [document.text[page.start : page.end] for page in document.pages]


@pytest.mark.parametrize(
    "footer",
    [
        lambda n: f"{n}",
        lambda n: f"- {n} -",
        lambda n: f"Page {n} of 6",
        lambda n: f"Seite {n}",
        lambda n: f"{n} / 6",
        lambda n: f"[{n + 40}]",
        lambda n: ROMAN[n - 1],
        lambda n: ROMAN[n - 1].upper(),
        lambda n: f"p. {n}",
    ],
)
def test_page_numbers_go_from_all_pages(footer: Callable[[int], str]) -> None:
    plain = read(pages_with(lambda _: []))
    document = read(pages_with(lambda n: [(290, 815, footer(n))]))
    assert document.text == plain.text
    assert [len(text) for text in texts_of(document)] == [len(text) for text in texts_of(plain)]


def test_a_running_title_stays_where_it_stands_first() -> None:
    document = read(pages_with(lambda n: [(60, 50, f"Report on the islands   {n}")]))
    assert document.text.count("Report on the islands") == 1
    assert texts_of(document)[0].startswith("Report on the islands 1\n")
    assert not any("Report" in text for text in texts_of(document)[1:])


def test_a_running_title_that_the_text_holds_goes_everywhere() -> None:
    pages = [
        [(60, 50, f"{number}   Islands", "Times-Roman", 10), *body(["Islands" if number == 1 else "", *prose(40)])]
        for number in range(1, 6)
    ]
    document = read(drawn_pdf(pages))
    assert document.text.count("Islands") == 1
    assert document.text.startswith("Islands\n")


def test_left_and_right_pages_and_chapters_have_headers_of_their_own() -> None:
    def header(number: int) -> list[tuple[float, float, str]]:
        chapter = "The harbour" if number <= 8 else "The winter"
        return [(60, 50, f"{number}  A history of nets") if number % 2 == 0 else (350, 50, f"{chapter}  {number}")]

    document = read(pages_with(header, 16))
    for title in ("A history of nets", "The harbour", "The winter"):
        assert document.text.count(title) == 1


def test_a_document_of_two_pages_keeps_everything() -> None:
    document = read(pages_with(lambda n: [(60, 50, "Report"), (290, 815, f"{n}")], 2))
    assert document.text.count("Report") == 2
    assert ["1" in texts_of(document)[0].splitlines(), "2" in texts_of(document)[1].splitlines()] == [True, True]


def test_numbers_that_do_not_count_pages_stay() -> None:
    for values in ([7, 7, 7, 7, 7, 7], [3, 11, 4, 90, 2, 5]):
        document = read(pages_with(lambda n, values=values: [(290, 815, f"{values[n - 1]}")]))  # type: ignore[misc]
        assert all(str(value) in text.splitlines() for value, text in zip(values, texts_of(document), strict=True))


@pytest.mark.parametrize(
    "line",
    [
        "Invoice No. {}",
        "Invoice No.:      {}",
        "Order #{}",
        "Certificate {}",
        "Born: {} May 1990",
        "{} May 1990, Thursday",
        "Berth: {}",
    ],
)
@pytest.mark.parametrize("engine", ["pdfium", "pypdf"])
def test_what_numbers_a_form_on_each_page_stays(line: str, engine: PdfEngine) -> None:
    forms = [[(60, 60, line.format(number), "Times-Roman", 10), *body(prose(9))] for number in range(11, 17)]
    document = read(drawn_pdf(forms), engine)
    for number, text in zip(range(11, 17), texts_of(document), strict=True):
        assert " ".join(line.format(number).split()) in " ".join(text.split())


def test_a_number_below_its_name_stays() -> None:
    pages = pages_with(lambda n: [(60, 50, "Customer no."), (60, 62, f"{n + 40}")])
    assert all(str(number + 40) in text.splitlines() for number, text in enumerate(texts_of(read(pages)), 1))


@pytest.mark.parametrize(
    "header",
    [
        lambda n: [(60, 50, f"Islands | {n + 30}")],
        lambda n: [(60, 50, f"{n + 30} \u2013 Islands")],
        lambda n: [(60, 50, f"Islands, page {n + 30} of 90")],
        lambda n: [(60, 50, f"{n + 30} of 90 Islands")],
        lambda n: [(60, 50, "Islands"), (480, 50, f"{n + 30}")],
        lambda n: [(60, 50, f"Islands {n}")],
    ],
)
def test_a_title_with_the_number_of_its_page_goes(header: Callable[[int], Sequence[tuple[float, float, str]]]) -> None:
    assert read(pages_with(header)).text.count("Islands") == 1


def table_page(number: int, *, top: float) -> list[Drawn]:
    rows = [f"Store {number}-{row}      {row * 17}      {row * 3} kg" for row in range(40)]
    return body(["Place      Pieces      Weight", *rows], top=top, step=16)


@pytest.mark.parametrize("top", [60, 110, 300])
def test_the_header_row_of_a_table_stays_on_every_page(top: float) -> None:
    pages = [
        [(60, 30, f"Inventory {number}", "Times-Roman", 10), *table_page(number, top=top)] for number in range(1, 6)
    ]
    document = read(drawn_pdf(pages))
    assert document.text.count("Place Pieces Weight") == 5
    assert document.text.count("Inventory") == 1


def test_the_titles_of_slides_stay() -> None:
    pages = [[(60, 60, f"Exercise {number}", "Helvetica-Bold", 26), *body(prose(9), top=160)] for number in range(1, 8)]
    assert read(drawn_pdf(pages)).text.count("Exercise") == 7


def test_captions_above_a_figure_on_each_page_stay() -> None:
    document = read(pages_with(lambda n: [(60, 60, f"Table {n}: Islands and their names")]))
    assert document.text.count("Islands and their names") == 6


def test_a_scan_with_a_stamp_on_each_page_is_without_text_but_for_one_stamp() -> None:
    document = read(drawn_pdf([[(60, 50, "Scanned by the archive", "Times-Roman", 10)] for _ in range(5)]))
    assert texts_of(document) == ["Scanned by the archive", "", "", "", ""]
    with pytest.raises(NoText, match="needs OCR"):
        read(drawn_pdf([[(290, 815, str(number), "Times-Roman", 10)] for number in range(1, 6)]))


def test_a_page_with_nothing_but_its_number_has_no_text() -> None:
    lines = prose(150)
    pages = [
        [
            (290, 815, str(number), "Times-Roman", 10),
            *(body(lines[30 * number : 30 * number + 30]) if number != 3 else []),
        ]
        for number in range(1, 5)
    ]
    assert [not text for text in texts_of(read(drawn_pdf(pages)))] == [False, False, True, False]


@pytest.mark.parametrize("rotate", [90, 180, 270])
def test_headers_are_found_on_turned_pages(rotate: int) -> None:
    pages = [
        [
            (60, 50, f"Report on the islands {number}", "Times-Roman", 10),
            *body(prose(300)[50 * number : 50 * number + 50]),
        ]
        for number in range(5)
    ]
    document = read(drawn_pdf(pages, rotate=rotate))
    assert document.text.count("Report on the islands") == 1
    assert document.text == read(drawn_pdf(pages)).text


def test_pypdf_knows_no_places_and_goes_by_the_outermost_lines() -> None:
    lines = prose(200)
    pages = [["Report on the islands", *lines[20 * n : 20 * n + 20], str(n)] for n in range(1, 7)]
    document = read(pdf(pages), "pypdf")
    assert document.text.count("Report on the islands") == 1
    assert not any(text.splitlines()[-1].isdecimal() for text in texts_of(document))


lines = st.lists(
    st.sampled_from(["A title", "7", "8", "9", "iv", "Page 3 of 9", "the text goes on", "", "\n"]), max_size=8
)


@given(pages=st.lists(lines, max_size=9), placed=st.booleans())
def test_any_pages_give_lines_that_there_are(pages: list[list[str]], placed: bool) -> None:
    places = [
        PagePlaces(600, 800, [Place(50, 100 * row, 300, 100 * row + 10) for row in range(len(page))]) for page in pages
    ]
    removed = marginal_lines(pages, places if placed else [])
    assert len(removed) == len(pages)
    for page, gone in zip(pages, removed, strict=True):
        assert all(0 <= index < len(page) and page[index].strip() for index in gone)
    if len(pages) <= 2:
        assert not any(removed)
