"""PDF through pypdf: pure Python, slower, and at times able to read what PDFium cannot open."""

from __future__ import annotations

import io
import logging
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pypdf
from pypdf.errors import DependencyError, FileNotDecryptedError, PyPdfError

from pipeline.core.errors import Broken, Encrypted, ExtractionError
from pipeline.ingest.extract.reading import OutlineItem, PdfReading, named_metadata
from pipeline.ingest.extract.text import HYPHEN_MARK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.ingest.extract.reading import Step

ENGINE = "pypdf"

_OUTLINE_AT_MOST = 20_000
_DEPTH_AT_MOST = 15
_HYPHEN_AT_LINE_END = re.compile(r"(?<=[^\W\d_])[-\u00ad]\n(?=[^\W\d_])")

# pypdf logs each oddity of a file. Without any handler Python would print those on stderr.
logging.getLogger("pypdf").addHandler(logging.NullHandler())


def read_with_pypdf(data: bytes, passwords: Sequence[str], step: Step) -> PdfReading:
    """Read one PDF; `step` is called for each page.

    Raises:
        Encrypted: neither the empty password nor any of `passwords` opens it.
        Broken: pypdf finds no document in it.
    """
    try:
        with closing(pypdf.PdfReader(io.BytesIO(data))) as reader:
            _decrypt(reader, passwords)
            pages, unreadable = _page_texts(reader, step)
            return PdfReading(
                engine=ENGINE,
                pages=pages,
                outline=_outline(reader, len(pages)),
                metadata=_metadata(reader),
                unreadable=unreadable,
            )
    except (ExtractionError, MemoryError):
        raise
    except FileNotDecryptedError as error:
        raise Encrypted("needs a password") from error
    except (DependencyError, NotImplementedError) as error:
        raise Encrypted("protected by an encryption that is not supported: save a copy without protection") from error
    except PyPdfError as error:
        raise Broken("damaged: the PDF's cross-reference table cannot be read") from error
    except Exception as error:
        raise Broken(f"damaged: the PDF's structure cannot be read ({type(error).__name__})") from error


def _decrypt(reader: pypdf.PdfReader, passwords: Sequence[str]) -> None:
    if not reader.is_encrypted:
        return
    if not any(reader.decrypt(password) for password in ("", *passwords)):
        raise Encrypted("needs a password" if not passwords else "needs a password, and none of those given fits")


def _page_texts(reader: pypdf.PdfReader, step: Step) -> tuple[list[str], list[int]]:
    texts: list[str] = []
    unreadable: list[int] = []
    for number in range(1, len(reader.pages) + 1):
        try:
            text = reader.pages[number - 1].extract_text()
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - a damaged page raises anything; the others may be sound
            text = ""
            unreadable.append(number)
        texts.append(_HYPHEN_AT_LINE_END.sub(HYPHEN_MARK, text.replace("\r\n", "\n")))
        step(1)
    return texts, unreadable


def _outline(reader: pypdf.PdfReader, page_count: int) -> list[OutlineItem]:
    items: list[OutlineItem] = []
    try:
        for level, destination in _flattened(reader.outline, 1):
            if len(items) == _OUTLINE_AT_MOST:
                break
            page = reader.get_destination_page_number(destination)
            if page is not None and 0 <= page < page_count and isinstance(destination.title, str):
                items.append(OutlineItem(level, destination.title, page))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - the outline is an extra: the text is there without it
        return items
    return items


def _flattened(outline: Any, level: int) -> Iterator[tuple[int, Any]]:
    for item in outline:
        if not isinstance(item, list):
            yield level, item
        elif level < _DEPTH_AT_MOST:
            yield from _flattened(item, level + 1)


def _metadata(reader: pypdf.PdfReader) -> dict[str, str]:
    try:
        information: Mapping[str, object] = reader.metadata or {}
        return named_metadata({str(key).lstrip("/"): str(value) for key, value in information.items()})
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - metadata is an extra: the text is there without it
        return {}
