"""The pages of a PDF become one text: headers left out, paragraphs parted, headings found, page spans kept. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.documents import Extracted, Heading, Page
from pipeline.ingest.extract.letters import headings_by_letters
from pipeline.ingest.extract.margins import marginal_lines
from pipeline.ingest.extract.places import lines_of
from pipeline.ingest.extract.text import (
    HYPHEN_MARK,
    clean,
    compounds,
    is_garbage,
    join_hyphenated,
    joined_across,
    one_line,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.ingest.extract.reading import OutlineItem, PdfReading

# The marks that end a sentence, in Latin and in Chinese, Japanese and Korean text, and what may close after them.
_SENTENCE_ENDS = (".", "!", "?", "\u2026", "\u3002", "\uff01", "\uff1f", "\uff0e")
_CLOSING = "\"')]\u00bb\u2019\u201d\u300d\u300f\uff09"
_NOT_IN_KEY = re.compile(r"[\W_]+")
# A paragraph's last line is shorter than the others. In ragged text lines differ by a long word, so not just any less.
_SHORT_LINE = 0.8
_TYPICAL_QUANTILE = 0.8
_FEW_LINES = 4
# Japanese and Chinese typesetting sets a paragraph off by one ideographic space.
_IDEOGRAPHIC_INDENT = re.compile("\n\u3000(?=\\S)")
_TITLE_LINES_AT_MOST = 3
_LONGEST_NUMBERING = 30
_HYPHENS = ("-", "\u2010")
# Stands in a key for the rest of a line, so that it equals none.
_CUT = "\0"
_NUMBERING = re.compile(
    r"^(?:chapter|section|appendix|part|제)?\s*(?:(?:\d+|[ivxlc]+|[a-z])(?:\.\d+)*)?\s*[.):장절章節]?\s+", re.IGNORECASE
)
_OFFICE_TITLE = re.compile(r"^Microsoft (?:Word|PowerPoint|Excel) - ")


@dataclass(frozen=True, slots=True)
class _Found:
    """A heading on lines [first, last) of a page; `whole`: nothing but the heading stands there."""

    item: OutlineItem
    first: int
    last: int
    whole: bool


def laid_out(reading: PdfReading) -> Extracted:
    """One text of all pages; their spans touch and cover it."""
    lines = [list(lines_of(page)) for page in reading.pages]
    marginal = marginal_lines(lines, reading.places)
    items = reading.outline or headings_by_letters(lines, reading.places, marginal)
    raw = [
        _IDEOGRAPHIC_INDENT.sub("\n\n", "".join(line for index, line in enumerate(page) if index not in gone))
        for page, gone in zip(lines, marginal, strict=True)
    ]
    raw = ["" if is_garbage(page) else page for page in raw]
    known: frozenset[str] = frozenset()
    if any(HYPHEN_MARK in page or page.rstrip().endswith(_HYPHENS) for page in raw):
        known = known.union(*(compounds(page) for page in raw))
        raw = [join_hyphenated(page, known) for page in raw]
    outline: dict[int, list[OutlineItem]] = {}
    for item in items:
        outline.setdefault(item.page, []).append(item)

    pieces: list[str] = []
    starts: list[int] = []
    placed: list[tuple[int, int, OutlineItem]] = []
    length = 0
    last_with_text = -1
    for index, page in enumerate(raw):
        text, found = _paged(clean(page), outline.get(index, ()))
        if text and pieces:
            gap = "\n\n" if _parted(pieces[-1], begins_with_heading=any(at == 0 for at, _ in found)) else "\n"
            whole = joined_across(pieces[-1], text, known) if pieces[-1].endswith(_HYPHENS) else None
            added = len(gap)
            if whole is not None:
                gap, added = "", len(whole) - len(pieces[-1])
                pieces[-1] = whole
            pieces.append(gap)
            # The gap belongs to the last page that has text: pages without any, after it, stay empty.
            for empty in range(last_with_text + 1, index):
                starts[empty] += added
            length += added
        starts.append(length)
        placed += [(index, at, item) for at, item in found]
        if text:
            pieces.append(text)
            length += len(text)
            last_with_text = index
    headings = [
        Heading(starts[index] + at, item.level, title) for index, at, item in placed if (title := one_line(item.title))
    ]
    ends = [*starts[1:], length]
    metadata = dict(reading.metadata)
    if reading.unreadable:
        metadata["unreadable_pages"] = ", ".join(map(str, reading.unreadable))
    return Extracted(
        text="".join(pieces),
        pages=[Page(number, start, end) for number, (start, end) in enumerate(zip(starts, ends, strict=True), 1)],
        headings=sorted(headings, key=lambda heading: heading.offset),
        title=_title(metadata.pop("title", ""), items),
        metadata=metadata,
        engine=reading.engine,
    )


def _parted(before: str, *, begins_with_heading: bool) -> bool:
    return begins_with_heading or _ends_sentence(before)


def _paged(text: str, items: Sequence[OutlineItem]) -> tuple[str, list[tuple[int, OutlineItem]]]:
    """The page with its paragraphs parted, and where in it each outline item's line begins."""
    lines = text.split("\n")
    found = _find_headings(lines, items)
    breaks = _paragraph_starts(lines)
    for heading in found:
        breaks.add(heading.first)
        if heading.whole:
            breaks.add(heading.last)
            breaks.difference_update(range(heading.first + 1, heading.last))
    offsets: list[int] = []
    pieces: list[str] = []
    length = 0
    for number, line in enumerate(lines):
        if number:
            gap = "\n\n" if number in breaks and line and lines[number - 1] else "\n"
            pieces.append(gap)
            length += len(gap)
        offsets.append(length)
        pieces.append(line)
        length += len(line)
    return "".join(pieces), [(offsets[heading.first], heading.item) for heading in found]


def _paragraph_starts(lines: Sequence[str]) -> set[int]:
    """The lines that follow a last line: one that ends a sentence well before the page's usual line end."""
    lengths = sorted(len(line) for line in lines if line)
    if len(lengths) < _FEW_LINES:
        return set()
    limit = lengths[int(len(lengths) * _TYPICAL_QUANTILE)] * _SHORT_LINE
    return {number for number, line in enumerate(lines[:-1], 1) if 0 < len(line) < limit and _ends_sentence(line)}


def _ends_sentence(text: str) -> bool:
    return text[-8:].rstrip(_CLOSING).endswith(_SENTENCE_ENDS)


def _find_headings(lines: Sequence[str], items: Sequence[OutlineItem]) -> list[_Found]:
    """Each item with its line; one that is not to be found stands where the item before it stood, or at the top."""
    if not items:
        return []
    longest = max(len(one_line(item.title)) for item in items) + _LONGEST_NUMBERING
    keys = [_line_keys(line, longest) for line in lines]
    found: list[_Found] = []
    for item in items:
        title = one_line(item.title)
        at = found[-1].first if found else 0
        after = found[-1].last if found else 0
        match = _match(keys, title, after) or (_match(keys, title, 0) if after else None)
        found.append(_Found(item, *match) if match else _Found(item, at, at, whole=False))
    return found


def _line_keys(line: str, longest: int) -> tuple[str, str]:
    """The line's key with and without its numbering. One too long for any title can only begin with one."""
    if len(line) > longest:
        return _key(line[:longest]) + _CUT, ""
    return _key(line), _key(_NUMBERING.sub("", line, count=1))


def _match(keys: Sequence[tuple[str, str]], title: str, start: int) -> tuple[int, int, bool] | None:
    """(first line, line after, whole) of the best match from line `start` on.

    The whole line first, then one without or with another numbering, then a title over several
    lines, then a line that only begins with the title.
    """
    whole, bare = _key(title), _key(_NUMBERING.sub("", title, count=1))
    if not whole:
        return None
    for number in range(start, len(keys)):
        if keys[number][0] == whole:
            return number, number + 1, True
    for number in range(start, len(keys)):
        if bare and bare in keys[number]:
            return number, number + 1, True
    for number in range(start, len(keys)):
        joined = keys[number][0]
        for last in range(number + 1, min(number + _TITLE_LINES_AT_MOST, len(keys))):
            joined += keys[last][0]
            if keys[number][0] and keys[last][0] and joined == whole:
                return number, last + 1, True
    for number in range(start, len(keys)):
        if keys[number][0].startswith(whole):
            return number, number + 1, False
    return None


def _key(text: str) -> str:
    return _NOT_IN_KEY.sub("", text.casefold())


def _title(given: str, outline: Sequence[OutlineItem]) -> str | None:
    """The title in the metadata, else the outline's only outermost item where there are others below it."""
    named = _OFFICE_TITLE.sub("", given).strip()
    if named:
        return named
    outermost = [item for item in outline if item.level == 1]
    return one_line(outermost[0].title) or None if len(outermost) == 1 and len(outline) > 1 else None
