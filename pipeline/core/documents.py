"""What a document is made of, from bytes to chunks. Plain values, no behaviour to speak of.

All offsets are indices into `Extracted.text` (Python characters, end exclusive).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class DocumentKind(StrEnum):
    """What a document's name says it is."""

    PDF = "pdf"
    DOCX = "docx"
    TEXT = "text"
    """A text that was handed in as such: a JSON object with `text` and `metadata`."""


class DocumentState(StrEnum):
    """Where a document stands. The last three end its way; `retry` sends it back."""

    DISCOVERED = "discovered"
    EXTRACTED = "extracted"
    EMBEDDED = "embedded"
    EMPTY = "empty"
    ENCRYPTED = "encrypted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Page:
    """Page `number` (1-based) is `text[start:end]`; pages follow each other without overlap."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading whose own line begins at `offset`; `level` is 1 for the outermost."""

    offset: int
    level: int
    title: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a header: its rows are `text[start:end]`, and those before `body` say what the columns mean."""

    start: int
    body: int
    end: int


@dataclass(frozen=True, slots=True)
class Recognition:
    """What OCR made of the pages without text.

    engine: the program and its version. languages: those it looked for. pages: the numbers of those whose text it gave.
    confidence: its own, 0 to 100, as the mean over the characters of these; None without any. failed: why it said
    nothing about a page, by the page's number.
    """

    engine: str
    languages: str
    pages: Sequence[int] = ()
    confidence: float | None = None
    failed: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Extracted:
    """The text of one document.

    text: paragraphs are parted by blank lines, table rows by line ends.
    pages: empty where the format knows no pages.
    headings: in the order of their offsets.
    title: what the document calls itself, or None.
    metadata: author, subject, dates and so on, as the file has them.
    engine: the library that read it.
    tables: those whose header is known, in order; none lies in another.
    ocr: None where it was not asked for, or there was no need.
    """

    text: str
    pages: Sequence[Page] = ()
    headings: Sequence[Heading] = ()
    title: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    engine: str = ""
    tables: Sequence[Table] = ()
    ocr: Recognition | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document that becomes one vector: `text == document.text[start:end]`.

    page_first, page_last: 1-based and inclusive; None where the format knows no pages.
    headings: the titles above it, outermost first.
    tokens: the ids of `prefix + text`, special tokens included, never more than the limit.
    prefix: the header of the table that it begins inside of, which its rows would mean nothing without.
    """

    ordinal: int
    start: int
    end: int
    text: str
    page_first: int | None
    page_last: int | None
    headings: tuple[str, ...]
    tokens: Sequence[int]
    prefix: str = ""


class Tokenizer(Protocol):
    """A model's own tokenizer."""

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of `text`, with the special tokens that the model wants around it."""
        ...
