"""PDF through PDFium: about a thousand pages a second on one core, ten times as many as pypdf.

PDFium is not thread-safe: one process, one call at a time. Every handle is closed here in
the reverse order of its opening.
"""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pypdfium2
import pypdfium2.raw as pdfium_c

from pipeline.core.errors import Broken, Encrypted
from pipeline.ingest.extract.pdfium_page import read_page
from pipeline.ingest.extract.places import PagePlaces
from pipeline.ingest.extract.reading import OutlineItem, PdfReading, named_metadata

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.ingest.extract.reading import Step

ENGINE = "pdfium"

_OUTLINE_AT_MOST = 20_000

# pypdfium2 logs what is odd about an outline. Without any handler Python would print that on stderr.
logging.getLogger("pypdfium2").addHandler(logging.NullHandler())


def read_with_pdfium(data: bytes, passwords: Sequence[str], step: Step) -> PdfReading:
    """Read one PDF; `step` is called for each page.

    Raises:
        Encrypted: neither the empty password nor any of `passwords` opens it.
        Broken: PDFium finds no document in it.
    """
    with closing(opened(data, passwords)) as document:
        outline = _outline(document, len(document))
        pages: list[str] = []
        places: list[PagePlaces] = []
        unreadable: list[int] = []
        for index in range(len(document)):
            try:
                text, where = read_page(document, index, letters=not outline)
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 - whatever is wrong with one page, the others may be sound
                text, where = "", PagePlaces(0, 0, ())
                unreadable.append(index + 1)
            pages.append(text)
            places.append(where)
            step(1)
        return PdfReading(
            engine=ENGINE,
            pages=pages,
            places=places,
            outline=outline,
            metadata=_metadata(document),
            unreadable=unreadable,
            blank=not any(pages) and _blank(document),
        )


def opened(data: bytes, passwords: Sequence[str]) -> Any:
    """PDFium's document, to be closed. Raises Encrypted or Broken."""
    for password in (None, *passwords):
        try:
            return pypdfium2.PdfDocument(data, password=password)
        except pypdfium2.PdfiumError as error:
            if error.err_code == pdfium_c.FPDF_ERR_PASSWORD:
                continue
            if error.err_code == pdfium_c.FPDF_ERR_SECURITY:
                raise Encrypted(
                    "protected by an encryption that PDFium does not know: save a copy without protection"
                ) from error
            raise Broken("damaged: the PDF's cross-reference table cannot be read") from error
    raise Encrypted("needs a password" if not passwords else "needs a password, and none of those given fits")


def _blank(document: Any) -> bool:
    for index in range(len(document)):
        try:
            with closing(document[index]) as page:
                if pdfium_c.FPDFPage_CountObjects(page):
                    return False
        except pypdfium2.PdfiumError:
            continue
    return True


def _outline(document: Any, page_count: int) -> list[OutlineItem]:
    items: list[OutlineItem] = []
    try:
        for bookmark in document.get_toc():
            if len(items) == _OUTLINE_AT_MOST:
                break
            destination = bookmark.get_dest()
            page = None if destination is None else destination.get_index()
            if page is not None and page < page_count:
                items.append(OutlineItem(bookmark.level + 1, bookmark.get_title(), page))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - the outline is an extra: the text is there without it
        return items
    return items


def _metadata(document: Any) -> dict[str, str]:
    try:
        return named_metadata(document.get_metadata_dict(skip_empty=True))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - metadata is an extra: the text is there without it
        return {}
