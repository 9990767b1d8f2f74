"""One PDF: which library reads it, and what becomes of what it read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, assert_never

from pipeline.core.errors import Broken, Encrypted, ExtractionError, NoText
from pipeline.ingest.extract.layout import laid_out
from pipeline.ingest.extract.scans import read_scans
from pipeline.ingest.extract.text import has_text
from pipeline.ingest.extract.with_pdfium import read_with_pdfium

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.documents import Extracted
    from pipeline.ingest.extract.reading import PdfReading, Step
    from pipeline.ingest.extract.scans import Recogniser

PdfEngine = Literal["auto", "pdfium", "pypdf"]

# Readers look for the end-of-file mark in the last kilobyte (ISO 32000-1, annex H, note 18).
_END_MARK_WITHIN = 1024


def read_pdf(
    data: bytes, engine: PdfEngine, passwords: Sequence[str], step: Step, ocr: Recogniser | None = None
) -> Extracted:
    """Text, pages, headings and metadata of one PDF. Raises Encrypted, NoText, Broken, or Unstable for `ocr`."""
    try:
        reading = _reading(data, engine, passwords, step)
    except Broken as error:
        if b"%%EOF" in data[-_END_MARK_WITHIN:]:
            raise
        raise Broken("damaged: the end of the PDF is missing, so a copy or download was probably cut short") from error
    count = len(reading.pages)
    if count == 0:
        raise Broken("damaged: no pages can be found in the PDF")
    if len(reading.unreadable) == count:
        raise Broken(f"damaged: {_of_pages('none', count)} can be read")
    extracted = laid_out(reading)
    if ocr is not None and not reading.blank:
        extracted = _with_scans(extracted, reading, data, passwords, step, ocr)
    if not has_text(extracted.text):
        raise _without_text(extracted, count, blank=reading.blank)
    return extracted


def _with_scans(
    extracted: Extracted, reading: PdfReading, data: bytes, passwords: Sequence[str], step: Step, ocr: Recogniser
) -> Extracted:
    """The document, laid out anew where OCR finds text on pages that have none."""
    wanted = [
        page.number
        for page in extracted.pages
        if page.number not in reading.unreadable and not has_text(extracted.text[page.start : page.end])
    ]
    if not wanted:
        return extracted
    texts, recognition = read_scans(data, passwords, wanted, ocr, step)
    if not texts:
        return replace(extracted, ocr=recognition)
    pages, places = list(reading.pages), list(reading.places)
    for number, (text, where) in texts.items():
        pages[number - 1] = text
        if places:
            places[number - 1] = where
    return replace(laid_out(replace(reading, pages=pages, places=places)), ocr=recognition)


def _without_text(extracted: Extracted, count: int, *, blank: bool) -> ExtractionError:
    if blank:
        return NoText(f"no text on {_of_pages('any', count)}: nothing is drawn there, or the content is damaged")
    if extracted.ocr is None:
        return NoText(f"no text on {_of_pages('any', count)}: it seems to be scanned and needs OCR", count)
    if extracted.ocr.failed:
        number, reason = next(iter(extracted.ocr.failed.items()))
        return Broken(f"no text on {_of_pages('any', count)}, and OCR failed on page {number}: {reason}")
    return NoText(f"no text on {_of_pages('any', count)}, and OCR for {extracted.ocr.languages} finds none")


def _reading(data: bytes, engine: PdfEngine, passwords: Sequence[str], step: Step) -> PdfReading:
    match engine:
        case "pdfium":
            return read_with_pdfium(data, passwords, step)
        case "pypdf":
            return read_with_pypdf(data, passwords, step)
        case "auto":
            return _first_that_opens(data, passwords, step)
        case _:
            assert_never(engine)


def _first_that_opens(data: bytes, passwords: Sequence[str], step: Step) -> PdfReading:
    try:
        reading = read_with_pdfium(data, passwords, step)
    except ExtractionError as error:
        return _second_opinion(data, passwords, step, error)
    if not reading.unreadable:
        return reading
    try:
        other = read_with_pypdf(data, passwords, step)
    except ExtractionError:
        return reading
    return other if len(other.unreadable) < len(reading.unreadable) else reading


def read_with_pypdf(data: bytes, passwords: Sequence[str], step: Step) -> PdfReading:
    """What pypdf reads. It is imported by the first PDF that needs it, which few do."""
    from pipeline.ingest.extract import with_pypdf

    return with_pypdf.read_with_pypdf(data, passwords, step)


def _second_opinion(data: bytes, passwords: Sequence[str], step: Step, first: ExtractionError) -> PdfReading:
    try:
        return read_with_pypdf(data, passwords, step)
    except Encrypted:
        raise
    except ExtractionError as second:
        # "Needs a password" helps more than what the other library says about a file that it did not decrypt.
        raise (first if isinstance(first, Encrypted) else second) from second


def _of_pages(quantifier: str, count: int) -> str:
    if count > 1:
        return f"{quantifier} of its {count} pages"
    return "its only page" if quantifier == "any" else "not even its only page"
