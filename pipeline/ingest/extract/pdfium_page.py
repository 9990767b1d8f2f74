"""One page through PDFium: its lines in reading order, and where each of them stands.

Each call into PDFium costs half a microsecond and more, and a page has thousands of characters, so only the first and
the last one of each line are asked for. The characters between are looked at on pages with merged columns alone.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pypdfium2.raw as pdfium_c

from pipeline.ingest.extract.columns import Segment, in_reading_order, may_be_merged
from pipeline.ingest.extract.places import PagePlaces, Place
from pipeline.ingest.extract.text import HYPHEN_MARK

# PDFium ends each line with \r\n, or with U+FFFE in place of a hyphen; a \r alone is a glyph that has no character.
_LINE = re.compile("[^\n\x02\ufffe]*(?:[\n\x02\ufffe]|\\Z)")
_NO_CHARACTER = "\u200b"
_ENDINGS = "\r\n\x02\ufffe"
# PDFium finds the hyphens at the ends of its own lines, where they are those of a keyboard.
_HYPHENATED = re.compile("(?<=[^\\W\\d_])[-\u2010]\n(?=[^\\W\\d_])")
# More pieces than this are single letters, and no cells or columns.
_PIECES_AT_MOST = 60
_BOLD = re.compile("bold|black|heavy|demi|cmbx|cmssbx|[-,]bd|sfbx|ecbx|lmroman\\d+-b", re.IGNORECASE)
# Only short lines can be headings, so only their font is asked for.
_LONGEST_HEADING = 120
_FONT_NAME = 128
# A line of less than this share of the page's width is part of one column; a gap is wider than this share of the
# height of letters. Of so many lines of a page the gaps are asked for, and of all where so many of these have some.
_WIDE = 0.35
_GAP = 0.75
_ASKED = 10
_GAPPED = 2
# What a file says of places and sizes may be anything.
_FARTHEST = 100_000.0
_LARGEST_LETTERS = 1000.0
_LONGEST_ROW = 1000

_loose_box = pdfium_c.FPDFText_GetLooseCharBox

_Upright = Callable[[float, float, float, float], tuple[float, float, float, float]]


def read_page(document: Any, index: int, *, letters: bool) -> tuple[str, PagePlaces]:
    """The raw text of a page as `PdfReading.pages` wants it, and its places.

    letters: whether the size and the weight of letters is wanted, too.
    """
    with closing(document[index]) as page, closing(page.get_textpage()) as textpage:
        text: str = textpage.get_text_range()
        if not text:
            return "", PagePlaces(0, 0, ())
        reader = _Page(page, textpage, text, letters=letters)
        return reader.read()


class _Page:
    def __init__(self, page: Any, textpage: Any, text: str, *, letters: bool) -> None:
        self.raw = textpage.raw
        self.text = text
        self.letters = letters
        # Where PDFium leaves a character out or puts one in, its two ways of counting part.
        self.shifted = len(text) != textpage.count_chars()
        self.width, self.height, self.upright = _turned(page)
        self.box = pdfium_c.FS_RECTF()
        self.box_reference = ctypes.byref(self.box)
        self.matrix = pdfium_c.FS_MATRIX()
        self.matrix_reference = ctypes.byref(self.matrix)
        self.font = ctypes.create_string_buffer(_FONT_NAME)
        self.sides = [ctypes.c_double() for _ in range(4)]
        self.sides_references = [ctypes.byref(side) for side in self.sides]

    def read(self) -> tuple[str, PagePlaces]:
        drawn = self._with_gaps([self._segment(match) for match in _LINE.finditer(self.text) if match[0]])
        segments = in_reading_order(drawn, self._parted) if may_be_merged(drawn) else drawn
        text = "".join(segment.text for segment in segments).removesuffix("\n")
        if "\u2010" in text or segments is not drawn:
            text = _HYPHENATED.sub(HYPHEN_MARK, text)
        return text, PagePlaces(self.width, self.height, [segment.place for segment in segments])

    def _segment(self, match: re.Match[str]) -> Segment:
        line, start = match[0], match.start()
        content = line.rstrip(_ENDINGS)
        mark = HYPHEN_MARK if line[-1] in "\x02\ufffe" else "\n"
        if "\r" in content:
            content = content.replace("\r", _NO_CHARACTER)
        stripped = content.strip()
        if not stripped:
            return Segment(content + mark, None, (), start)
        first = start + content.index(stripped)
        return Segment(content + mark, self._place(first, first + len(stripped) - 1, stripped), (), start)

    def _index(self, at: int) -> int:
        return pdfium_c.FPDFText_GetCharIndexFromTextIndex(self.raw, at) if self.shifted else at

    def _character(self, at: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of one character, upright."""
        if self.shifted:
            at = self._index(at)
        if not _loose_box(self.raw, at, self.box_reference):
            return 0.0, 0.0, 0.0, 0.0
        box = self.box
        return self.upright(box.left, box.top, box.right, box.bottom)

    def _place(self, first: int, last: int, text: str) -> Place | None:
        left, top, right, bottom = self._character(first)
        left_2, top_2, right_2, bottom_2 = self._character(last)
        size, bold = self._letters(first, last, text) if self.letters else (0.0, False)
        reach = (
            abs(left) + abs(left_2) + abs(top) + abs(top_2) + abs(right) + abs(right_2) + abs(bottom) + abs(bottom_2)
        )
        if not reach < _FARTHEST:
            return None  # also where one of them is not a number
        upright = abs(top - top_2) <= max(abs(left - left_2), 3 * (bottom - top))
        return Place(
            min(left_2, left),
            min(top_2, top),
            max(right_2, right),
            max(bottom_2, bottom),
            size,
            bold,
            upright,
        )

    def _letters(self, first: int, last: int, text: str) -> tuple[float, bool]:
        """Size in points, and whether the letters are bold, of the line's middle: a number may stand before it."""
        at = self._index((first + last) // 2 if len(text) < _LONGEST_HEADING else first)
        if not pdfium_c.FPDFText_GetMatrix(self.raw, at, self.matrix_reference):
            return 0.0, False
        size = pdfium_c.FPDFText_GetFontSize(self.raw, at) * math.hypot(self.matrix.c, self.matrix.d)
        if not 0 < size < _LARGEST_LETTERS:
            return 0.0, False
        if len(text) >= _LONGEST_HEADING or text[0].islower():
            return size, False
        length = pdfium_c.FPDFText_GetFontInfo(self.raw, at, self.font, _FONT_NAME, None)
        return size, 0 < length <= _FONT_NAME and _BOLD.search(self.font.value.decode("utf-8", "replace")) is not None

    def _with_gaps(self, segments: list[Segment]) -> list[Segment]:
        """The gaps of all lines, where those of some show that there are any; else of these alone."""
        wide = [
            number
            for number, segment in enumerate(segments)
            if segment.place is not None
            and segment.place.upright
            and segment.place.right - segment.place.left > self.width * _WIDE
        ]
        asked = (
            wide if len(wide) <= _ASKED else [*wide[:2], *wide[2 : -2 : (len(wide) - 4) // (_ASKED - 4)], *wide[-2:]]
        )
        gaps = {number: self._gaps(segments[number]) for number in asked}
        if len(asked) < len(wide) and sum(map(bool, gaps.values())) >= _GAPPED:
            gaps |= {number: self._gaps(segments[number]) for number in wide if number not in gaps}
        for number, found in gaps.items():
            place = segments[number].place
            if found and place is not None:
                segments[number] = segments[number]._replace(gaps=found, place=place._replace(gaps=len(found)))
        return segments

    def _gaps(self, segment: Segment) -> tuple[tuple[float, float], ...]:
        """Where the line is empty for longer than a space can be, as (left, right)."""
        place, content = segment.place, segment.text.rstrip()
        assert place is not None
        start = self._index(segment.start)
        count = pdfium_c.FPDFText_CountRects(self.raw, start, self._index(segment.start + len(content) - 1) - start + 1)
        if not 1 < count <= _PIECES_AT_MOST:
            return ()
        least = _GAP * (place.bottom - place.top)
        pieces = sorted(map(self._piece, range(count)))
        gaps: list[tuple[float, float]] = []
        end = pieces[0][1]
        for left, right in pieces:
            if left - end > least and place.left <= end and left <= place.right:
                gaps.append((end, left))
            end = max(end, right)
        return tuple(gaps)

    def _piece(self, number: int) -> tuple[float, float]:
        pdfium_c.FPDFText_GetRect(self.raw, number, *self.sides_references)
        left, top, right, bottom = self.sides
        turned = self.upright(left.value, top.value, right.value, bottom.value)
        return turned[0], turned[2]

    def _parted(self, segment: Segment, gap: tuple[float, float]) -> tuple[Segment, Segment] | None:
        """The two parts of a line left and right of a gap in it, or None where no space stands there."""
        assert segment.place is not None
        content = segment.text.rstrip(_ENDINGS)
        if len(content) > _LONGEST_ROW:
            return None
        middle = (gap[0] + gap[1]) / 2
        for match in re.finditer(" +(?=\\S)", content):
            if self._character(segment.start + match.end())[0] < middle:
                continue
            before, after = content[: match.start()], content[match.end() :]
            if not before.strip() or self._character(segment.start + match.start() - 1)[2] > middle + 1:
                return None
            place, inner = segment.place, tuple(other for other in segment.gaps if other != gap)
            start = segment.start + match.end()
            mark = segment.text[len(content) :]
            return (
                Segment(before + "\n", place._replace(right=gap[0]), tuple(g for g in inner if g < gap), segment.start),
                Segment(after + mark, place._replace(left=gap[1]), tuple(g for g in inner if g > gap), start),
            )
        return None


def _turned(page: Any) -> tuple[float, float, _Upright]:
    """Width and height of the page as it is shown, and how a box (left, top, right, bottom) on it is turned upright."""
    width, height = page.get_size()
    left, bottom, right, top = page.get_bbox()
    match page.get_rotation():
        case 90:
            return width, height, lambda a, t, b, u: (u - bottom, a - left, t - bottom, b - left)
        case 180:
            return width, height, lambda a, t, b, u: (right - b, u - bottom, right - a, t - bottom)
        case 270:
            return width, height, lambda a, t, b, u: (top - t, right - b, top - u, right - a)
        case _:
            return width, height, lambda a, t, b, u: (a - left, top - t, b - left, top - u)
