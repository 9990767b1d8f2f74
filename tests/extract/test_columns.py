from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from reportlab.pdfgen.canvas import Canvas

from pipeline.core.documents import DocumentKind
from pipeline.ingest.extract import extract
from tests.extract.sample_documents import Drawn, drawn_pdf, prose

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS = 40
TITLE: Drawn = (150, 60, "Of ferries and of islands", "Times-Roman", 16)
ABSTRACT = [(60, 90 + 13 * row, line, "Times-Italic", 10) for row, line in enumerate(prose(3, 460))]


def columns(count: int, rows: int = ROWS) -> list[list[Drawn]]:
    """Columns of prose, each line in its place, over 475 points of the page."""
    width = (475 - 18 * (count - 1)) / count
    lines = prose(rows * count, width)
    return [
        [
            (60 + column * (width + 18), 150 + 13 * row, lines[column * rows + row], "Times-Roman", 10)
            for row in range(rows)
        ]
        for column in range(count)
    ]


def across(drawn: Sequence[Sequence[Drawn]]) -> list[Drawn]:
    """The same lines, drawn row by row."""
    return [column[row] for row in range(max(map(len, drawn))) for column in drawn if row < len(column)]


def text_of(drawn: Sequence[Drawn], rotate: int = 0) -> str:
    data = drawn_pdf([drawn], rotate=rotate)
    return " ".join(extract(data, DocumentKind.PDF, "a.pdf", pdf_engine="pdfium").text.split())


def lines_of(drawn: Sequence[Drawn]) -> str:
    return " ".join(line for _, _, line, _, _ in drawn)


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("count", [2, 3])
def test_columns_that_were_drawn_row_by_row_are_read_one_after_the_other(count: int, rotate: int) -> None:
    drawn = columns(count)
    assert text_of(across(drawn), rotate) == lines_of([line for column in drawn for line in column])


def test_what_spans_the_columns_stays_above_and_below_them() -> None:
    left, right = columns(2)
    footnote: Drawn = (
        60,
        790,
        "1 This note on the ferries is set over the whole of the page, below both columns.",
        "Times-Roman",
        8,
    )
    page = [TITLE, *ABSTRACT, *across([left, right]), footnote]
    assert text_of(page) == lines_of([TITLE, *ABSTRACT, *left, *right, footnote])


def test_a_heading_over_both_columns_parts_the_page() -> None:
    whole = columns(2, 30)
    upper = [column[:15] for column in whole]
    lower = [[(x, y + 50, line, font, size) for x, y, line, font, size in column[15:]] for column in whole]
    heading: Drawn = (
        60,
        370,
        "What the second winter brought to the harbour and to those who worked there",
        "Times-Roman",
        14,
    )
    page = [*across(upper), heading, *across(lower)]
    assert text_of(page) == lines_of([*upper[0], *upper[1], heading, *lower[0], *lower[1]])


def test_columns_that_end_at_different_heights() -> None:
    left, right = columns(2)
    assert text_of(across([left, right[:30]])) == lines_of([*left, *right[:30]])


def test_columns_that_are_drawn_one_after_the_other_stay_as_they_are() -> None:
    left, right = columns(2)
    assert text_of([*left, *right]) == lines_of([*left, *right])


def test_a_table_is_read_row_by_row() -> None:
    cells: list[list[Drawn]] = [
        [(60 + 160 * column, 150 + 13 * row, f"Item {column} of row {row}", "Times-Roman", 10) for row in range(ROWS)]
        for column in range(3)
    ]
    assert text_of(across(cells)) == lines_of(across(cells))


def test_a_table_of_long_names_is_read_row_by_row() -> None:
    cells: list[list[Drawn]] = [
        [
            (60 + 240 * column, 150 + 13 * row, f"{word} the ferry that came at {row} o'clock", "Times-Roman", 10)
            for row in range(ROWS)
        ]
        for column, word in enumerate(("Name of", "Owner of"))
    ]
    assert text_of(across(cells)) == lines_of(across(cells))


def test_a_table_of_names_and_descriptions_is_read_row_by_row() -> None:
    left, right = columns(2)
    names = left[::4]
    page = sorted([*names, *right], key=lambda line: (line[1], line[0]))
    assert text_of(page) == lines_of(page)


def test_a_word_that_is_hyphenated_in_a_column_is_joined() -> None:
    left, right = columns(2)
    x, y, _, font, size = left[10]
    left[10] = (x, y, "and there it stood, as if nobody had remem-", font, size)
    left[11] = (x, y + 13, "bered to carry it back to the boats again", font, size)
    assert "nobody had remembered to carry it back" in text_of(across([left, right]))


@pytest.mark.parametrize(
    "matrix", ["1e38 0 0 1e38 9e37 9e37", "1 0 0 1 1e9 700", "0 0 0 0 60 700", "-5e4 0 0 3e38 -9e9 1e-38"]
)
def test_places_that_no_page_has_cost_neither_the_text_nor_the_memory(matrix: str) -> None:
    target = io.BytesIO()
    canvas = Canvas(target, pageCompression=0)
    for _ in range(4):
        for row in range(12):
            canvas.setFont("Times-Roman", 10)
            canvas.drawString(60, 700 - 13 * row, "A line of words as on any other page of it")
            canvas.drawString(320, 700 - 13 * row, "and one more line of words to its right")
            canvas.addLiteral(f"BT /F1 12 Tf {matrix} Tm (somewhere {row}) Tj ET")
        canvas.showPage()
    canvas.save()
    document = extract(target.getvalue(), DocumentKind.PDF, "a.pdf", pdf_engine="pdfium")
    assert document.text.count("as on any other page") == 48
    assert "unreadable_pages" not in document.metadata
