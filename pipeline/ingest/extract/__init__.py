"""Bytes become text with pages and headings, or one sentence that says why they do not.

Knows the two formats and nothing of files, settings, processes or the database. It may
be handed anything: whatever a hostile file does inside a library comes out as one of the
errors below. What it cannot stop is a native crash or a loop, so the caller runs it in a
process with a limit on time and memory.

The libraries for a format are imported by its first document: most processes see few formats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from pipeline.core.documents import DocumentKind, Extracted
from pipeline.core.errors import Broken, ExtractionError
from pipeline.ingest.extract.note import read_note
from pipeline.ingest.extract.reading import unheard
from pipeline.ingest.extract.sniff import check_content

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.ingest.extract.pdf import PdfEngine
    from pipeline.ingest.extract.reading import Step
    from pipeline.ingest.extract.scans import Recogniser

__all__ = ["PdfEngine", "extract"]


def extract(
    data: bytes,
    kind: DocumentKind,
    name: str,
    *,
    pdf_engine: PdfEngine = "auto",
    passwords: Sequence[str] = (),
    step: Step = unheard,
    ocr: Recogniser | None = None,
) -> Extracted:
    """Read one document.

    Args:
        data: the whole file.
        kind: what the file's name says it is.
        name: the file's name, for the message where its content is something else.
        pdf_engine: "pdfium", "pypdf", or "auto" (PDFium, and pypdf for what PDFium cannot open).
        passwords: tried in this order on encrypted PDFs, after the empty one.
        step: called as pages are read.
        ocr: what reads the pages of a PDF that have no text; None: nothing does.

    Raises:
        Encrypted: none of the passwords fits.
        NoText: it opened, but there are no letters or digits in it.
        Broken: it cannot be read, or is not what its name says; the library's error is the cause.
        Unstable: the program for OCR could not be started, or was ended from outside.
    """
    try:
        if kind is DocumentKind.TEXT:
            return read_note(data)
        match check_content(data, kind, name):
            case DocumentKind.PDF:
                from pipeline.ingest.extract.pdf import read_pdf

                return read_pdf(data, pdf_engine, passwords, step, ocr)
            case DocumentKind.DOCX:
                from pipeline.ingest.extract.docx import read_docx

                return read_docx(data)
            case DocumentKind.TEXT:  # no content says so of itself
                return read_note(data)
            case unknown:
                assert_never(unknown)
    except (ExtractionError, MemoryError):
        raise
    except Exception as error:
        raise Broken(f"damaged: its content cannot be read ({type(error).__name__})") from error
