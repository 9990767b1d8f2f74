"""Blocks of a DOCX (paragraphs, list items, table rows) become one text with pages and headings. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pipeline.core.documents import Heading, Page, Table
from pipeline.ingest.extract.text import clean, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HARD_BREAK = "\f"
"""A page break that the author set. XML cannot hold this character, so a document cannot forge it."""

RENDERED_BREAK = "\v"
"""Where Word began a page when it last laid the document out."""

BREAKS = re.compile(f"([{HARD_BREAK}{RENDERED_BREAK}])")


@dataclass(frozen=True, slots=True)
class Block:
    """One paragraph, list item or table row.

    text: raw, with the break marks above where a page begins.
    prefix: stands before it as it is: an indentation, a bullet, a number.
    level: of a heading, else None.
    title: whether it is the document's own title.
    aside: whether it is a note or a text box, which must not stand inside a table row.
    margin: whether it is part of a header or footer.
    header: whether it is a row that says what the columns of the rows below it mean.
    """

    text: str
    kind: Literal["paragraph", "item", "row"] = "paragraph"
    prefix: str = ""
    level: int | None = None
    title: bool = False
    aside: bool = False
    margin: bool = False
    header: bool = False

    def as_margin(self) -> Block:
        """The same in a header or footer, where there are no headings and no pages."""
        return replace(self, text=BREAKS.sub(" ", self.text), level=None, title=False, margin=True, header=False)

    def as_aside(self) -> Block:
        """The same in a note or a text box, where there are no headings."""
        return replace(self, level=None, title=False, aside=True, header=False)


@dataclass(frozen=True, slots=True)
class Joined:
    """The text of all blocks; `titled` is what the first block of the title style says."""

    text: str
    pages: Sequence[Page]
    headings: Sequence[Heading]
    titled: str | None
    tables: Sequence[Table] = ()


@dataclass(frozen=True, slots=True)
class _Finished:
    """A block's text, its page breaks as (offset in that text, mark), and the marks behind its last word."""

    text: str
    breaks: list[tuple[int, str]]
    trailing: list[str]


def joined(blocks: Iterable[Block]) -> Joined:
    """Paragraphs are parted by blank lines; list items and table rows that belong together by line ends."""
    pieces: list[str] = []
    headings: list[Heading] = []
    breaks: list[tuple[int, str]] = []
    waiting: list[str] = []
    titled: str | None = None
    body_begins: int | None = None
    before: Block | None = None
    tables = _Tables()
    length = 0
    for block in blocks:
        finished = _finished(block)
        if not finished.text:
            waiting += finished.trailing
            continue
        if before is not None:
            gap = "\n" if before.kind == block.kind != "paragraph" and before.aside == block.aside else "\n\n"
            pieces.append(gap)
            length += len(gap)
        if body_begins is None and not block.margin:
            body_begins = length
        breaks += [(length, mark) for mark in waiting]
        breaks += [(length + offset, mark) for offset, mark in finished.breaks]
        waiting = finished.trailing
        if block.level is not None:
            headings.append(Heading(length, block.level, finished.text))
            if block.title and titled is None:
                titled = finished.text
        tables.add(block, length)
        pieces.append(finished.text)
        length += len(finished.text)
        before = block
    tables.end(length)
    return Joined("".join(pieces), _pages(breaks, body_begins or 0, length), headings, titled, tables.found)


class _Tables:
    """The tables with a header among the blocks that are added one by one."""

    def __init__(self) -> None:
        self.found: list[Table] = []
        self._start: int | None = None
        self._body: int | None = None

    def add(self, block: Block, at: int) -> None:
        """`block` begins at this offset."""
        if block.kind != "row" or block.aside or (block.header and self._body is not None):
            self.end(at)
        if block.header and self._start is None:
            self._start = at
        elif not block.header and self._start is not None and self._body is None:
            self._body = at

    def end(self, at: int) -> None:
        """What follows from this offset on belongs to no table so far."""
        if self._start is not None and self._body is not None:
            self.found.append(Table(self._start, self._body, at))
        self._start = self._body = None


def _finished(block: Block) -> _Finished:
    """The block on one line where it is a heading or a row; a page that begins in it begins with a word."""
    flat = block.level is not None or block.kind == "row"
    text = ""
    breaks: list[tuple[int, str]] = []
    waiting: list[str] = []
    spaced = False
    for token in BREAKS.split(block.text):
        if token in (HARD_BREAK, RENDERED_BREAK):
            waiting.append(token)
            continue
        part = one_line(token) if flat else clean(token)
        if part:
            if not text:
                gap = block.prefix
            elif HARD_BREAK in waiting and not flat:
                gap = "\n\n"
            else:
                gap = " " if flat or spaced or token[0].isspace() else ""
            # A page that begins with the block begins before its bullet.
            offset = len(text + gap) if text else 0
            breaks += [(offset, mark) for mark in waiting]
            waiting = []
            text += gap + part
        spaced = token[-1:].isspace() if part else spaced or token.isspace()
    return _Finished(text, breaks, waiting)


def _pages(breaks: Sequence[tuple[int, str]], begin: int, end: int) -> list[Page]:
    """Pages that touch and cover the text; none where Word never laid the document out.

    Word marks the page that follows a hard break, too, so a mark with no word since the break before
    it does not count. Nor does one before the first word of the body, at offset `begin`.
    """
    if all(mark != RENDERED_BREAK for _, mark in breaks):
        return []
    starts = [0]
    last: int | None = None
    for offset, mark in breaks:
        if mark == HARD_BREAK or (offset != last and offset > begin):
            starts.append(offset)
        last = offset
    return [
        Page(number, start, stop)
        for number, (start, stop) in enumerate(zip(starts, [*starts[1:], end], strict=True), 1)
    ]
