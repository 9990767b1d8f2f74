"""Which sections, headings, pages and tables the places of a document belong to. Knows offsets; knows no tokens."""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from pipeline.core.segmentation import may_cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.core.documents import Extracted

_SPACES = re.compile(r"\s*+")


class Section(NamedTuple):
    """text[start:end] from one heading to the next. The heading's own line ends at `line_end`, or at `start`."""

    start: int
    line_end: int
    end: int


class Outline:
    """The outline of `document`. Its `sections` cover the text; there is one at least.

    A heading begins at the first character that is no whitespace; one with no text after it is none.
    """

    def __init__(self, document: Extracted) -> None:
        text = document.text
        self._pages = document.pages
        self._page_starts = [page.start for page in document.pages]
        self._offsets: list[int] = []
        self._line_ends: list[int] = []
        self._paths: list[tuple[str, ...]] = []
        stack: list[tuple[int, str]] = []
        for heading in sorted(document.headings, key=lambda heading: heading.offset):
            offset = max(heading.offset, self._offsets[-1] if self._offsets else 0)
            offset = _skip_spaces(text, offset)
            if offset >= len(text):
                break
            while stack and stack[-1][0] >= heading.level:
                stack.pop()
            stack.append((heading.level, heading.title))
            known = self._line_ends[-1] if self._line_ends else 0
            self._line_ends.append(known if known > offset else _line_end(text, offset))
            self._offsets.append(offset)
            self._paths.append(tuple(title for _, title in stack))
        line_ends = {at: end for at, end in zip(self._offsets, self._line_ends, strict=True) if may_cut(text, at)}
        self._breaks = list(line_ends)
        self.sections = list(_sections(text, line_ends))

    def heading_before(self, at: int) -> int:
        """Where the last heading at or before `at` begins, or 0."""
        index = bisect_right(self._breaks, at)
        return self._breaks[index - 1] if index else 0

    def path(self, first: int, last: int) -> tuple[str, ...]:
        """The titles, outermost first, above most of the text of [first, last] that is no heading.

        Where there are only headings, the titles down to the last of them.
        """
        index = bisect_right(self._offsets, first) - 1
        best, most = self._paths[index] if index >= 0 else (), 0
        while True:
            begin = max(first, self._line_ends[index] if index >= 0 else 0)
            following = self._offsets[index + 1] if index + 1 < len(self._offsets) else last + 1
            length = min(following, last + 1) - begin
            if length > most or not most:
                best, most = self._paths[index] if index >= 0 else (), max(length, 0)
            if following > last:
                return best
            index += 1

    def pages(self, first: int, last: int) -> tuple[int | None, int | None]:
        """The numbers of the pages that hold the characters at `first` and `last`; None without pages."""
        if not self._pages:
            return None, None
        return self._page(first), self._page(last)

    def _page(self, at: int) -> int:
        return self._pages[max(0, bisect_right(self._page_starts, at) - 1)].number


class Prefixes:
    """What a chunk of `document` needs before it to be understood: the header of the table that it begins inside of."""

    def __init__(self, document: Extracted) -> None:
        self._text = document.text
        self._tables = document.tables
        self._starts = [table.start for table in document.tables]
        self._left_out: set[int] = set()

    def at(self, start: int) -> str:
        """The header's lines, a newline after each; empty where text[start:] begins in no table's body."""
        index = bisect_right(self._starts, start) - 1
        if index < 0 or start in self._left_out:
            return ""
        table = self._tables[index]
        return self._text[table.start : table.body].rstrip() + "\n" if table.body <= start < table.end else ""

    def leave_out(self, start: int) -> None:
        """From now on, nothing stands before a chunk that begins at `start`: there is no room."""
        self._left_out.add(start)


def _sections(text: str, line_ends: Mapping[int, int]) -> Iterator[Section]:
    """`line_ends` holds the end of the line of each heading by its offset, in order."""
    starts = list(line_ends)
    if not starts or text[: starts[0]].strip():
        yield Section(0, 0, starts[0] if starts else len(text))
    elif starts[0] > 0:  # whitespace before the first heading follows nothing
        yield Section(0, line_ends[starts[0]], starts[1] if len(starts) > 1 else len(text))
        del starts[0]
    for start, end in pairwise([*starts, len(text)]):
        yield Section(start, line_ends[start], end)


def _line_end(text: str, at: int) -> int:
    """Where the text goes on after the line that holds `at`."""
    newline = text.find("\n", at)
    return len(text) if newline < 0 else _skip_spaces(text, newline)


def _skip_spaces(text: str, at: int) -> int:
    match = _SPACES.match(text, at)
    return match.end() if match else at
