from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING

import pytest
from reportlab.pdfgen.canvas import Canvas

from pipeline.core.documents import DocumentKind, Extracted
from pipeline.core.errors import Broken, Encrypted, NoText
from pipeline.ingest.extract import extract
from pipeline.ingest.extract.layout import laid_out
from pipeline.ingest.extract.reading import OutlineItem, PdfReading, iso_date, named_metadata
from tests.extract.sample_documents import encrypted_pdf, pdf

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.ingest.extract import PdfEngine

ENGINES: tuple[PdfEngine, ...] = ("auto", "pdfium", "pypdf")

LONG = "This line is about as long as the other lines of the page, which are set in one column"
REPORT = [
    ["1 Introduction", LONG, "and it ends early.", LONG, LONG + " and ends late.", "1.1 Scope", LONG, LONG],
    [],
    ["goes on here without a full stop before.", LONG, "2", "Methods and", "Materials", LONG, "The end."],
]
OUTLINE = [(0, "1 Introduction", 0), (1, "1.1 Scope", 0), (0, "2 Methods and Materials", 2)]


def read(data: bytes, engine: PdfEngine = "auto", passwords: Sequence[str] = ()) -> Extracted:
    return extract(data, DocumentKind.PDF, "a.pdf", pdf_engine=engine, passwords=passwords)


def check_pages(document: Extracted) -> None:
    position = 0
    for number, page in enumerate(document.pages, 1):
        assert (page.number, page.start) == (number, position)
        assert page.start <= page.end
        position = page.end
    assert position == len(document.text)


@pytest.mark.parametrize("engine", ENGINES)
def test_pages_touch_and_cover_the_text_and_an_empty_page_keeps_its_number(engine: PdfEngine) -> None:
    document = read(pdf(REPORT), engine)
    check_pages(document)
    first, second, third = document.pages
    assert document.text[first.start : first.end].startswith("1 Introduction\n")
    assert second.start == second.end
    assert document.text[third.start :].startswith("goes on here")
    assert document.engine == ("pypdf" if engine == "pypdf" else "pdfium")


@pytest.mark.parametrize("engine", ENGINES)
def test_headings_come_from_the_outline_and_stand_alone(engine: PdfEngine) -> None:
    document = read(pdf(REPORT, outline=OUTLINE), engine)
    assert [(heading.level, heading.title) for heading in document.headings] == [
        (1, "1 Introduction"),
        (2, "1.1 Scope"),
        (1, "2 Methods and Materials"),
    ]
    introduction, scope, methods = (heading.offset for heading in document.headings)
    assert introduction == 0
    assert document.text[introduction:].startswith("1 Introduction\n\nThis line")
    assert document.text[scope - 2 :].startswith("\n\n1.1 Scope\n\nThis line")
    assert document.text[methods - 2 :].startswith("\n\n2\nMethods and\nMaterials\n\nThis line")


def test_a_title_that_is_not_on_its_page_stands_where_the_one_before_it_stood() -> None:
    document = read(pdf(REPORT, outline=[(0, "Nowhere", 0), (0, "Scope", 0), (1, "Elsewhere", 0), (0, "Far", 2)]))
    scope = document.text.index("1.1 Scope")
    assert [heading.offset for heading in document.headings] == [0, scope, scope, document.pages[2].start]


def test_paragraphs_are_parted_where_a_sentence_ends_early() -> None:
    text = read(pdf(REPORT)).text
    assert "and it ends early.\n\nThis line" in text
    assert "and ends late.\n1.1 Scope" in text


def test_the_gap_between_pages_follows_the_sentence() -> None:
    ending = read(pdf([["The end."], ["Next"]]))
    assert ending.text == "The end.\n\nNext"
    assert ending.pages[0].end == ending.pages[1].start == len("The end.\n\n")
    assert read(pdf([["no end"], ["Next"]])).text == "no end\nNext"
    assert read(pdf([["no end"], ["Next"]], outline=[(0, "Next", 1)])).text == "no end\n\nNext"


@pytest.mark.parametrize("engine", ENGINES)
def test_hyphens_at_line_ends_are_joined(engine: PdfEngine) -> None:
    text = read(pdf([["A well-known exam-", "ple of a well-", "known thing."]]), engine).text
    assert " ".join(text.split()) == "A well-known example of a well-known thing."


@pytest.mark.parametrize("engine", ENGINES)
def test_joined_words_leave_the_lines_as_they_are(engine: PdfEngine) -> None:
    lines = [
        "The ferry to the islands was not ex-",
        "pected in such a wind and in that",
        "rain. And then it came.",
        "Who saw",
    ]
    text = read(pdf([[*lines, "it first was the harbour master at his"]]), engine).text
    assert text.split("\n")[:4] == [
        "The ferry to the islands was not expected",
        "in such a wind and in that",
        "rain. And then it came.",
        "",
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_hyphen_that_stands_for_a_shared_word_stays(engine: PdfEngine) -> None:
    text = read(pdf([["die Verwaltungs-", "und Betriebskosten, first-", "and second-order"]]), engine).text
    assert " ".join(text.split()) == "die Verwaltungs- und Betriebskosten, first- and second-order"
    over = read(pdf([["die Verwaltungs-"], ["und Betriebskosten"]]), engine).text
    assert " ".join(over.split()) == "die Verwaltungs- und Betriebskosten"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_word_over_two_pages_is_joined_and_pages_still_touch(engine: PdfEngine) -> None:
    document = read(pdf([["The ferry was un-"], [], ["expected by all."]]), engine)
    assert document.text == "The ferry was unexpected by all."
    check_pages(document)
    assert document.text[document.pages[2].start :] == "expected by all."
    assert document.pages[1].start == document.pages[1].end


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("font", "text"),
    [
        ("HYSMyeongJo-Medium", "안녕하세요. 공동 장비 안내서입니다."),
        ("HeiseiMin-W3", "図書館は夜も開いています。"),
        ("STSong-Light", "这是一份关于夜间图书馆的报告。"),
    ],
)
def test_korean_japanese_and_chinese(engine: PdfEngine, font: str, text: str) -> None:
    document = read(pdf([[text]], font=font, information={"Title": text}), engine)
    assert document.text == text
    assert document.title == text


def test_an_indented_line_begins_a_paragraph_in_japanese() -> None:
    assert laid_out(PdfReading("pdfium", ["一行目です\n\u3000二行目"])).text == "一行目です\n\n二行目"


@pytest.mark.parametrize("engine", ENGINES)
def test_title_and_metadata(engine: PdfEngine) -> None:
    information = {"Title": "Annual report", "Author": "Ann", "Subject": "Numbers", "Keywords": "a, b"}
    document = read(pdf([["Hello"]], information=information), engine)
    assert document.title == "Annual report"
    assert {key: document.metadata[key] for key in ("author", "subject", "keywords")} == {
        "author": "Ann",
        "subject": "Numbers",
        "keywords": "a, b",
    }
    assert document.metadata["created"] == "2000-01-01T00:00:00+00:00"
    bare = read(pdf([["Hello"]]), engine)
    assert bare.title is None
    assert "author" not in bare.metadata


def test_dates_and_titles_as_programs_write_them() -> None:
    assert iso_date("D:20240229101500+09'00'") == "2024-02-29T10:15:00+09:00"
    assert iso_date("D:20240229101500Z") == "2024-02-29T10:15:00Z"
    assert iso_date("D:202402") == "2024-02"
    assert iso_date("last Tuesday") == "last Tuesday"
    assert named_metadata({"Title": "untitled", "Author": " \x00", "Trapped": "True"}) == {}
    assert laid_out(PdfReading("", ["x"], metadata={"title": "Microsoft Word - plan.doc"})).title == "plan.doc"
    outline = [OutlineItem(1, "The book", 0), OutlineItem(2, "One", 0)]
    assert laid_out(PdfReading("", ["x"], outline)).title == "The book"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pdf_without_text_needs_ocr(engine: PdfEngine) -> None:
    with pytest.raises(NoText) as caught:
        read(pdf([[], [], []]), engine)
    assert caught.value.reason == "no text on any of its 3 pages: it seems to be scanned and needs OCR"
    assert caught.value.pages == 3
    with pytest.raises(NoText, match="no text on its only page"):
        read(pdf([["- \u2022 -"]]), engine)


@pytest.mark.parametrize("algorithm", ["RC4-40", "RC4-128", "AES-128", "AES-256"])
@pytest.mark.parametrize("engine", ENGINES)
def test_passwords(engine: PdfEngine, algorithm: str) -> None:
    plain = pdf([["Secret plan"]], outline=[(0, "Secret plan", 0)])
    locked = encrypted_pdf(plain, "sesame", "owner", algorithm)
    with pytest.raises(Encrypted) as caught:
        read(locked, engine)
    assert caught.value.reason == "needs a password"
    with pytest.raises(Encrypted, match="none of those given fits"):
        read(locked, engine, ["wrong", "Sesame"])
    document = read(locked, engine, ["wrong", "sesame"])
    assert document.text == "Secret plan"
    assert [heading.title for heading in document.headings] == ["Secret plan"]
    assert read(encrypted_pdf(plain, "", "owner", algorithm), engine).text == "Secret plan"


def test_a_pdf_that_was_cut_short_is_read_or_said_to_be_cut_short() -> None:
    whole = pdf(REPORT)
    with pytest.raises(Broken) as caught:
        read(whole[:200])
    assert caught.value.reason == "damaged: the end of the PDF is missing, so a copy or download was probably cut short"
    assert caught.value.__cause__ is not None


def test_a_pdf_of_which_nothing_can_be_read_is_damaged() -> None:
    for engine in ENGINES:
        with pytest.raises(Broken, match=r"damaged: (the PDF's cross-reference table cannot be read|no pages)"):
            read(b"%PDF-1.7\n" + b"garbage " * 50 + b"\nstartxref\n0\n%%EOF", engine)


def test_one_page_that_cannot_be_read_costs_only_itself() -> None:
    whole = pdf([["First page"], ["Second page"], ["Third page"]])
    kids = whole.index(b"/Kids [") + len(b"/Kids [")
    end = whole.index(b"]", kids)
    references = whole[kids:end].split(b" R")
    references[1] = b" 9999 0".ljust(len(references[1]))
    document = read(whole[:kids] + b" R".join(references) + whole[end:], "pdfium")
    assert document.text == "First page\nThird page"
    check_pages(document)
    assert document.metadata["unreadable_pages"] == "2"
    assert document.pages[2].number == 3


def test_a_pdf_with_nothing_drawn_on_it_is_not_called_a_scan() -> None:
    with pytest.raises(NoText, match="on its only page: nothing is drawn there, or the content is damaged"):
        read(pdf([[]], rule=False))


def test_pypdf_reads_what_pdfium_cannot_open() -> None:
    # PDFium gives up where the trailer names no catalog; pypdf looks for one.
    rootless = pdf([["Hello there"]]).replace(b"/Root", b"/Roof")
    with pytest.raises(Broken):
        read(rootless, "pdfium")
    document = read(rootless)
    assert (document.text, document.engine) == ("Hello there", "pypdf")


def test_a_thousand_pages_take_seconds_not_minutes() -> None:
    target = io.BytesIO()
    canvas = Canvas(target, invariant=1)
    for page in range(1000):
        for row in range(40):
            canvas.drawString(50, 800 - 14 * row, f"Page {page} and row {row} of a text that is long")
        canvas.showPage()
    canvas.save()
    started = time.perf_counter()
    assert len(read(target.getvalue()).pages) == 1000
    assert time.perf_counter() - started < 60
