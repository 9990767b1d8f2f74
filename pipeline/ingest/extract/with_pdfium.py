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
from pipeline.ingest.extract.reading import OutlineItem, PdfReading, named_metadata
from pipeline.ingest.extract.text import HYPHEN_MARK

if TYPE_CHECKING:
    from collections.abc import Sequence

ENGINE = "pdfium"

_OUTLINE_AT_MOST = 20_000

# pypdfium2 logs what is odd about an outline. Without any handler Python would print that on stderr.
logging.getLogger("pypdfium2").addHandler(logging.NullHandler())


def read_with_pdfium(data: bytes, passwords: Sequence[str]) -> PdfReading:
    """Read one PDF.

    Raises:
        Encrypted: neither the empty password nor any of `passwords` opens it.
        Broken: PDFium finds no document in it.
    """
    with closing(_opened(data, passwords)) as document:
        pages: list[str] = []
        unreadable: list[int] = []
        for index in range(len(document)):
            try:
                pages.append(_page_text(document, index))
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 - whatever is wrong with one page, the others may be sound
                pages.append("")
                unreadable.append(index + 1)
        return PdfReading(
            engine=ENGINE,
            pages=pages,
            outline=_outline(document, len(pages)),
            metadata=_metadata(document),
            unreadable=unreadable,
            blank=not any(pages) and _blank(document),
        )


def _opened(data: bytes, passwords: Sequence[str]) -> Any:
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


def _page_text(document: Any, index: int) -> str:
    with closing(document[index]) as page, closing(page.get_textpage()) as textpage:
        text: str = textpage.get_text_range()
    # PDFium ends each line with \r\n; a \r alone is a glyph that has no character.
    text = text.replace("\r\n", "\n").replace("\r", "")
    return text.replace("\x02", HYPHEN_MARK)


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
