"""Tesseract's table becomes lines, and the pages that are drawn for it."""

from __future__ import annotations

import io
from contextlib import closing
from typing import TYPE_CHECKING

import pypdfium2
import pypdfium2.raw as pdfium_c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.documents import DocumentKind, Extracted
from pipeline.core.errors import Broken, NoText, NotRecognised, Unstable
from pipeline.ingest.extract import extract
from pipeline.ingest.extract.places import lines_of
from pipeline.ingest.extract.recognised import recognised
from pipeline.ingest.extract.text import HYPHEN_MARK
from tests.extract.sample_documents import encrypted_pdf, pdf
from tests.ingest.scanned import scanned

if TYPE_CHECKING:
    from pipeline.ingest.extract import PdfEngine
    from pipeline.ingest.extract.scans import Recogniser

HEAD = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext"
TEXT = [f"Line {number} of a page that has text in it." for number in range(12)]


def table(*lines: str, confidence: float = 96.0, paragraphs: bool = False) -> str:
    """Each line with its words, one below the other."""
    rows = [HEAD, "1\t1\t0\t0\t0\t0\t0\t0\t2480\t3508\t-1\t"]
    for number, line in enumerate(lines):
        block = number if paragraphs else 0
        for at, word in enumerate(line.split(" ")):
            rows.append(
                f"5\t1\t1\t{block}\t{number}\t{at}\t{300 + 200 * at}\t{300 * number}\t150\t50\t{confidence}\t{word}"
            )
    return "\n".join(rows) + "\n"


def test_lines_have_their_places() -> None:
    page = recognised(table("The night train", "is late."), 300, 595, 842)
    assert page is not None
    assert page.text == "The night train\nis late.\n\n"
    assert (page.characters, page.confidence) == (20, 96.0)
    assert (page.places.width, page.places.height) == (595, 842)
    first, second, blank = page.places.lines
    assert first is not None
    assert (first.left, first.top, first.right, first.bottom) == (72.0, 0.0, 204.0, 12.0)
    assert first.upright
    assert second is not None
    assert second.top == 72.0
    assert blank is None


def test_paragraphs_are_parted_and_words_that_were_cut_are_marked() -> None:
    page = recognised(table("the acceler-", "ator by day-", "12 it is 4-", "5"), 300, 595, 842)
    assert page is not None
    assert page.text == f"the acceler{HYPHEN_MARK}ator by day{HYPHEN_MARK}12 it is 4-\n5\n\n"
    page = recognised(table("the acceler-", "Another", paragraphs=True), 300, 595, 842)
    assert page is not None
    assert page.text == "the acceler-\n\nAnother\n\n"


def test_chinese_and_japanese_have_no_spaces() -> None:
    page = recognised(table("夜 行 列車 は JR の 4 番"), 300, 595, 842)
    assert page is not None
    assert page.text == "夜行列車は JR の 4 番\n\n"


def test_a_line_that_it_does_not_believe_in_is_none() -> None:
    assert recognised(table("KAAABAA DW KAKAMAAA", confidence=42.0), 300, 595, 842) is None
    drawing = "5\t1\t9\t1\t1\t1\t300\t900\t150\t50\t12.0\tKAAABAA\n"
    page = recognised(table("A caption") + drawing, 300, 595, 842)
    assert page is not None
    assert page.text == "A caption\n\n"


def test_a_line_that_runs_upwards_is_not_upright() -> None:
    rows = [HEAD, *(f"5\t1\t1\t1\t1\t{at}\t100\t{900 - 300 * at}\t50\t280\t95\tword" for at in range(3))]
    page = recognised("\n".join(rows), 300, 595, 842)
    assert page is not None
    assert page.places.lines[0] is not None
    assert not page.places.lines[0].upright


cells = st.one_of(st.integers(-5, 10**400).map(str), st.floats().map(str), st.text(max_size=8))
rows = st.lists(cells, min_size=11, max_size=13).map("\t".join)
words = st.tuples(st.integers(0, 3), st.integers(0, 10**6), st.text(max_size=8)).map(
    lambda found: f"5\t1\t1\t1\t{found[0]}\t1\t{found[1]}\t1\t1\t1\t90\t{found[2]}"
)


@given(st.lists(st.one_of(rows, rows.map("5\t{}".format), words)))
def test_a_table_may_hold_anything(found: list[str]) -> None:
    page = recognised("\n".join(found), 300, 595, 842)
    if page is not None:
        assert len(list(lines_of(page.text))) == len(page.places.lines)
        assert 50 <= page.confidence <= 100


class Reads:
    """A recogniser at the seam: it says the same of each picture, and remembers them."""

    engine = "reader 1.0"
    languages = "eng"
    dpi = 100

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.images: list[tuple[bytes, int]] = []

    def __call__(self, image: bytes, dpi: int) -> str:
        self.images.append((image, dpi))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def read(data: bytes, ocr: Recogniser, engine: PdfEngine = "auto", passwords: tuple[str, ...] = ()) -> Extracted:
    return extract(data, DocumentKind.PDF, "a.pdf", pdf_engine=engine, passwords=passwords, ocr=ocr)


def text_of(document: Extracted, number: int) -> str:
    page = document.pages[number - 1]
    return document.text[page.start : page.end].strip()


@pytest.mark.parametrize("engine", ["pdfium", "pypdf"])
def test_only_pages_without_text_are_read_and_stand_in_their_place(engine: PdfEngine) -> None:
    ocr = Reads(table("A stamp, and a signature."))
    document = read(scanned(pdf([TEXT, TEXT, TEXT[:5]]), {2}), ocr, engine)
    assert len(ocr.images) == 1
    assert text_of(document, 2) == "A stamp, and a signature."
    assert "Line 11" in text_of(document, 1)
    assert "Line 4" in text_of(document, 3)
    assert document.ocr is not None
    assert (document.ocr.engine, document.ocr.languages) == ("reader 1.0", "eng")
    assert (list(document.ocr.pages), document.ocr.confidence, document.ocr.failed) == ([2], 96.0, {})
    ((image, dpi),) = ocr.images
    assert dpi == 100
    magic, size, most, pixels = image.split(b"\n", 3)
    width, height = map(int, size.split())
    assert (magic, most) == (b"P5", b"255")
    assert width == pytest.approx(595 * 100 / 72, abs=3)
    assert height == pytest.approx(842 * 100 / 72, abs=3)
    assert len(pixels) == width * height


def test_a_document_that_has_text_everywhere_needs_no_ocr() -> None:
    ocr = Reads(table("never"))
    assert read(pdf([TEXT, TEXT]), ocr).ocr is None
    assert ocr.images == []


def test_pages_that_look_the_same_are_read_once_and_blank_ones_not_at_all() -> None:
    ocr = Reads(table("The same."))
    document = read(scanned(pdf([TEXT, [], TEXT], rule=False)), ocr)
    assert len(ocr.images) == 1
    assert document.ocr is not None
    assert list(document.ocr.pages) == [1, 3]
    assert [text_of(document, number) for number in (1, 2, 3)] == ["The same.", "", "The same."]


def test_a_page_without_words_stays_without_text() -> None:
    with pytest.raises(NoText, match="on any of its 2 pages, and OCR for eng finds none"):
        read(scanned(pdf([TEXT, TEXT])), Reads(HEAD + "\n"))
    document = read(scanned(pdf([TEXT, TEXT]), {2}), Reads(HEAD + "\n"))
    assert text_of(document, 2) == ""
    assert document.ocr is not None
    assert (list(document.ocr.pages), document.ocr.confidence) == ([], None)


def test_where_nothing_is_drawn_nobody_looks() -> None:
    ocr = Reads(table("never"))
    with pytest.raises(NoText, match="nothing is drawn there"):
        read(pdf([[], []], rule=False), ocr)
    assert ocr.images == []


def test_a_page_that_failed_costs_that_page() -> None:
    pages = [[f"page {number}"] for number in range(1, 4)]
    document = read(scanned(pdf(pages)), Reads(table("One."), NotRecognised("it hung"), table("Three.")))
    assert document.ocr is not None
    assert (list(document.ocr.pages), document.ocr.failed) == ([1, 3], {2: "it hung"})
    assert text_of(document, 2) == ""


def test_it_gives_up_where_page_after_page_fails() -> None:
    ocr = Reads(NotRecognised("it hung"))
    with pytest.raises(Broken, match="on any of its 9 pages, and OCR failed on page 1: it hung"):
        read(scanned(pdf([[f"page {number}"] for number in range(9)])), ocr)
    assert len(ocr.images) == 3


def test_what_is_not_the_pages_doing_is_tried_again_later() -> None:
    with pytest.raises(Unstable, match="out of memory"):
        read(scanned(pdf([TEXT, TEXT]), {2}), Reads(Unstable("out of memory")))


def test_a_scan_behind_a_password() -> None:
    data = encrypted_pdf(scanned(pdf([TEXT])), "open sesame", "owner", "AES-256")
    document = read(data, Reads(table("Found.")), passwords=("open sesame",))
    assert document.text == "Found."


@pytest.mark.parametrize("size", [(14_400, 14_400), (14_400, 3), (3, 14_400)])
def test_a_page_of_any_size_is_drawn_no_larger_than_can_be_read(size: tuple[int, int]) -> None:
    target = io.BytesIO()
    with closing(pypdfium2.PdfDocument.new()) as made, closing(made.new_page(*size)) as page:
        square = pdfium_c.FPDFPageObj_CreateNewRect(1, 1, 1, 1)
        pdfium_c.FPDFPageObj_SetFillColor(square, 0, 0, 0, 255)
        pdfium_c.FPDFPath_SetDrawMode(square, pdfium_c.FPDF_FILLMODE_ALTERNATE, False)
        pdfium_c.FPDFPage_InsertObject(page, square)
        page.gen_content()
        made.save(target)
    ocr = Reads(table("A dot."))
    ocr.dpi = 600
    assert read(target.getvalue(), ocr).text == "A dot."
    ((image, _),) = ocr.images
    width, height = map(int, image.split(b"\n")[1].split())
    assert max(width, height) <= 32_001
    assert width * height <= 51_000_000
