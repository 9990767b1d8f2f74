"""One PDF: which library reads it, and what becomes of what it read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, assert_never

from pipeline.core.errors import Broken, Encrypted, ExtractionError, NoText
from pipeline.ingest.extract.layout import laid_out
from pipeline.ingest.extract.text import has_text
from pipeline.ingest.extract.with_pdfium import read_with_pdfium
from pipeline.ingest.extract.with_pypdf import read_with_pypdf

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.documents import Extracted
    from pipeline.ingest.extract.reading import PdfReading

PdfEngine = Literal["auto", "pdfium", "pypdf"]

# Readers look for the end-of-file mark in the last kilobyte (ISO 32000-1, annex H, note 18).
_END_MARK_WITHIN = 1024


def read_pdf(data: bytes, engine: PdfEngine, passwords: Sequence[str]) -> Extracted:
    """Text, pages, headings and metadata of one PDF. Raises Encrypted, NoText or Broken."""
    try:
        reading = _reading(data, engine, passwords)
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
    if not has_text(extracted.text):
        if reading.blank:
            raise NoText(f"no text on {_of_pages('any', count)}: nothing is drawn there, or the content is damaged")
        raise NoText(f"no text on {_of_pages('any', count)}: it seems to be scanned and needs OCR")
    return extracted


def _reading(data: bytes, engine: PdfEngine, passwords: Sequence[str]) -> PdfReading:
    match engine:
        case "pdfium":
            return read_with_pdfium(data, passwords)
        case "pypdf":
            return read_with_pypdf(data, passwords)
        case "auto":
            return _first_that_opens(data, passwords)
        case _:
            assert_never(engine)


def _first_that_opens(data: bytes, passwords: Sequence[str]) -> PdfReading:
    try:
        reading = read_with_pdfium(data, passwords)
    except ExtractionError as error:
        return _second_opinion(data, passwords, error)
    if not reading.unreadable:
        return reading
    try:
        other = read_with_pypdf(data, passwords)
    except ExtractionError:
        return reading
    return other if len(other.unreadable) < len(reading.unreadable) else reading


def _second_opinion(data: bytes, passwords: Sequence[str], first: ExtractionError) -> PdfReading:
    try:
        return read_with_pypdf(data, passwords)
    except Encrypted:
        raise
    except ExtractionError as second:
        # "Needs a password" helps more than what the other library says about a file that it did not decrypt.
        raise (first if isinstance(first, Encrypted) else second) from second


def _of_pages(quantifier: str, count: int) -> str:
    if count > 1:
        return f"{quantifier} of its {count} pages"
    return "its only page" if quantifier == "any" else "not even its only page"
