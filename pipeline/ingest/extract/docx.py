"""One DOCX: its parts are read, its body walked, and the blocks become one text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.documents import Extracted
from pipeline.core.errors import NoText
from pipeline.ingest.extract.docx_blocks import Block, Joined, joined
from pipeline.ingest.extract.docx_names import W, child_of, children_named, is_on, value_of
from pipeline.ingest.extract.docx_numbering import Numbering
from pipeline.ingest.extract.docx_package import DocxParts, opened
from pipeline.ingest.extract.docx_styles import Styles
from pipeline.ingest.extract.docx_walk import Walker
from pipeline.ingest.extract.text import has_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENGINE = "python-docx"


def read_docx(data: bytes) -> Extracted:
    """Text, headings and metadata of one DOCX; pages where Word left marks of them.

    Headers stand before the body and footers behind it, each distinct text once. Footnotes and text
    boxes follow the paragraph that they belong to, endnotes the body. Deleted and hidden text and
    comments are left out.

    Raises:
        Encrypted: its ZIP container is encrypted.
        NoText: there are no letters or digits in it.
        Broken: its parts cannot be read, or are larger than any document.
    """
    parts = opened(data)
    document = joined(_blocks(parts))
    if not has_text(document.text):
        pictures = f" (only {parts.pictures} pictures)" if parts.pictures > 1 else ""
        pictures = " (only a picture)" if parts.pictures == 1 else pictures
        advice = ": it seems to be scanned and needs OCR" if parts.pictures else ""
        raise NoText(f"no text in the document{pictures}{advice}", parts.pictures)
    metadata = dict(parts.metadata)
    return Extracted(
        text=document.text,
        pages=document.pages,
        headings=document.headings,
        title=metadata.pop("title", None) or _title(document),
        metadata=metadata,
        engine=ENGINE,
        tables=document.tables,
    )


def _title(document: Joined) -> str | None:
    if document.titled is not None:
        return document.titled
    return next((heading.title for heading in document.headings if heading.level == 1), None)


def _blocks(parts: DocxParts) -> Iterator[Block]:
    styles = Styles(parts.related("styles"))
    numbering = Numbering(parts.related("numbering"))

    footnotes, endnotes = parts.related("footnotes"), parts.related("endnotes")

    def walker() -> Walker:
        return Walker(styles, numbering, footnotes, endnotes)

    body = child_of(parts.document, "body")
    if body is None:
        return
    seen: set[str] = set()
    yield from _margins(parts, "headerReference", walker, seen)
    main = walker()
    yield from main.blocks(body)
    yield from main.endnotes()
    yield from _margins(parts, "footerReference", walker, seen)


def _margins(parts: DocxParts, reference: str, walker: Callable[[], Walker], seen: set[str]) -> Iterator[Block]:
    """The headers or footers that are shown. A section without a reference repeats the one before it."""
    settings = parts.related("settings")
    even_shown = settings is not None and any(map(is_on, children_named(settings, "evenAndOddHeaders")))
    for section in parts.document.iter(W + "sectPr"):
        first_shown = any(map(is_on, children_named(section, "titlePg")))
        for child in children_named(section, reference):
            kind = value_of(child, "type")
            if (kind == "first" and not first_shown) or (kind == "even" and not even_shown):
                continue
            root = parts.by_relationship(child)
            blocks = [] if root is None else [block.as_margin() for block in walker().blocks(root)]
            text = joined(blocks).text
            # A page number alone says nothing in a text that has no place for it.
            if any(character.isalpha() for character in text) and text not in seen:
                seen.add(text)
                yield from blocks
