"""Columns whose lines a file holds row by row are read one after the other. Pure.

PDFium reads in the order in which a page was drawn, which nearly always is the order in which it is read: most programs
draw one column and then the next. What is mended here is a page that was drawn across its columns, a line of each in
turn. The evidence has to be plain, because a table looks much the same: see `_Columns`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from pipeline.ingest.extract.places import Place

# Fewer rows than this are no columns, but things that happen to stand side by side.
_ROWS_AT_LEAST = 6
_COLUMNS_AT_MOST = 3
# Points; the page is looked at in strips of this width.
_STRIP = 2.0
_GUTTER_AT_LEAST = 6.0
# In a gutter, a line may cross now and then: a title, a page number in the middle.
_CROSSING = 0.12
_FULL_WIDTH = 0.62
# Columns are prose: their lines are long, reach nearly from edge to edge, and stand beside each other.
_CHARACTERS_AT_LEAST = 20
_FILLED = 0.6
_BESIDE = 0.7
_INTERLEAVED = 0.5
# Of the lines of prose, no more than this begin with a capital or a digit, not even in German.
_BEGINNINGS = 0.7


class Segment(NamedTuple):
    """A line, or the part of one.

    text: with the mark that ends it. gaps: (left, right) of those that are too wide for a space. start: where it stood
    in the page's text.
    """

    text: str
    place: Place | None
    gaps: tuple[tuple[float, float], ...]
    start: int


Parted = Callable[[Segment, tuple[float, float]], tuple[Segment, Segment] | None]
"""Cuts a segment in two at one of its gaps."""


def may_be_merged(segments: Sequence[Segment]) -> bool:
    """Whether the page is worth a closer look. Says no to nearly all pages, at the price of a loop."""
    if len(segments) < _ROWS_AT_LEAST:
        return False
    if sum(1 for segment in segments if segment.gaps) >= _ROWS_AT_LEAST:
        return True
    beside = 0
    before: Segment | None = None
    for segment in segments:
        if len(segment.text) < _CHARACTERS_AT_LEAST:
            before = None
            continue
        if before is not None and _is_right_of(before.place, segment.place):
            beside += 1
        before = segment
    return beside >= _ROWS_AT_LEAST


def _is_right_of(one: Place | None, other: Place | None) -> bool:
    """Whether `other` stands in the same row as `one`, further right."""
    return one is not None and other is not None and other.left > one.right and other.top < (one.top + one.bottom) / 2


def in_reading_order(segments: list[Segment], parted: Parted) -> list[Segment]:
    """The segments column by column between lines of full width, or `segments` where there are no such columns."""
    upright = [segment for segment in segments if segment.place is not None and segment.place.upright]
    if len(upright) < _ROWS_AT_LEAST:
        return segments
    columns = _Columns(upright)
    if not columns.are_prose() or not columns.are_interleaved(upright):
        return segments
    pieces = [piece for segment in upright for piece in _split(segment, columns.gutters, parted)]
    if not columns.go_on(pieces):
        return segments
    rest = [segment for segment in segments if segment.place is not None and not segment.place.upright]
    return columns.read(pieces) + rest


def _split(segment: Segment, gutters: Sequence[float], parted: Parted) -> list[Segment]:
    """The segment cut at each gutter that lies in one of its gaps."""
    for gap in segment.gaps:
        if any(gap[0] <= gutter <= gap[1] for gutter in gutters):
            parts = parted(segment, gap)
            if parts is not None:
                return [parts[0], *_split(parts[1], gutters, parted)]
    return [segment]


class _Columns:
    """The columns of a page, as its gutters: places that hardly any line crosses."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._spans: list[tuple[float, float, float, int]] = []  # left, right, top, characters
        for segment in segments:
            assert segment.place is not None
            edges = [segment.place.left, *(edge for gap in segment.gaps for edge in gap), segment.place.right]
            width = sum(right - left for left, right in zip(edges[::2], edges[1::2], strict=True)) or 1.0
            for left, right in zip(edges[::2], edges[1::2], strict=True):
                characters = round(len(segment.text) * (right - left) / width)
                self._spans.append((left, right, segment.place.top, characters))
        self.left = min(span[0] for span in self._spans)
        self.right = max(span[1] for span in self._spans)
        self.height = median(s.place.bottom - s.place.top for s in segments if s.place) or 1.0
        self.gutters = self._gutters()

    def _gutters(self) -> list[float]:
        width = self.right - self.left
        count = int(width / _STRIP) + 1
        steps = [0] * (count + 1)
        for left, right, _, _ in self._spans:
            if right - left < width * _FULL_WIDTH:
                steps[max(0, int((left - self.left) / _STRIP))] += 1
                steps[min(count, int((right - self.left) / _STRIP) + 1)] -= 1
        covered: list[int] = []
        level = 0
        for step in steps[:count]:
            level += step
            covered.append(level)
        limit = sorted(covered)[count * 3 // 4] * _CROSSING
        gutters: list[float] = []
        begin: int | None = None
        for strip, level in enumerate(covered):
            if level <= limit:
                begin = strip if begin is None else begin
            elif begin is not None:
                if begin > 0 and (strip - begin) * _STRIP >= _GUTTER_AT_LEAST:
                    gutters.append(self.left + (begin + strip) * _STRIP / 2)
                begin = None
        return gutters

    def _column(self, left: float, right: float) -> int | None:
        """The column of a span, or None for one that belongs to more than one."""
        for gutter in self.gutters:
            if left < gutter - self.height and right > gutter + self.height:
                return None
        middle = (left + right) / 2
        return sum(1 for gutter in self.gutters if gutter < middle)

    def are_prose(self) -> bool:
        """Whether each column is full of long lines that have neighbours; the cells of a table are not."""
        if not 1 <= len(self.gutters) < _COLUMNS_AT_MOST:
            return False
        columns: list[list[tuple[float, float, float, int]]] = [[] for _ in range(len(self.gutters) + 1)]
        for span in self._spans:
            column = self._column(span[0], span[1])
            if column is not None:
                columns[column].append(span)
        for column_spans in columns:
            if len(column_spans) < _ROWS_AT_LEAST:
                return False
            width = max(span[1] for span in column_spans) - min(span[0] for span in column_spans)
            if median(span[3] for span in column_spans) < _CHARACTERS_AT_LEAST:
                return False
            if median(span[1] - span[0] for span in column_spans) < width * _FILLED:
                return False
        return all(self._stand_beside(one, other) for one, other in pairwise(columns))

    def _stand_beside(
        self, one: Sequence[tuple[float, float, float, int]], other: Sequence[tuple[float, float, float, int]]
    ) -> bool:
        """Whether nearly each line has one beside it. A cell of a table is often higher than its neighbour."""
        rows_one, rows_other = (sorted({round(span[2] / self.height) for span in spans}) for spans in (one, other))
        begin, end = max(rows_one[0], rows_other[0]), min(rows_one[-1], rows_other[-1])
        inside_one = {row for row in rows_one if begin <= row <= end}
        inside_other = {row for row in rows_other if begin <= row <= end}
        near = sum(1 for row in inside_one if inside_other & {row - 1, row, row + 1})
        most = max(len(inside_one), len(inside_other))
        return near >= _ROWS_AT_LEAST and min(len(inside_one), len(inside_other)) >= most * _BESIDE

    def are_interleaved(self, segments: Sequence[Segment]) -> bool:
        """Whether the page goes from column to column with every line."""
        across, along, upwards = 0, 0, 0
        before: int | None = None
        above: Place | None = None
        for segment in segments:
            assert segment.place is not None
            crossed = sum(1 for left, right in segment.gaps if any(left <= g <= right for g in self.gutters))
            across += crossed
            column = self._column(segment.place.left, segment.place.right) if not crossed else None
            if column is not None and before is not None:
                across += column != before
                along += column == before
            before = column
            upwards += above is not None and segment.place.bottom < above.top
            above = segment.place
        if upwards * 3 > len(segments):
            return False  # the page lies on its head
        return across >= _ROWS_AT_LEAST and across >= (across + along) * _INTERLEAVED

    def go_on(self, segments: Sequence[Segment]) -> bool:
        """Whether the lines of each column go on in the next one, rather than begin something every time."""
        total = [0] * (len(self.gutters) + 1)
        begun = [0] * (len(self.gutters) + 1)
        for segment in segments:
            assert segment.place is not None
            column = self._column(segment.place.left, segment.place.right)
            if column is not None:
                first = segment.text.lstrip()[:1]
                total[column] += 1
                begun[column] += first.isupper() or first.isdecimal()
        return all(some <= every * _BEGINNINGS for some, every in zip(begun, total, strict=True))

    def read(self, segments: Sequence[Segment]) -> list[Segment]:
        """From top to bottom; between two segments of full width, one column after the other."""
        ordered: list[Segment] = []
        waiting: list[list[Segment]] = [[] for _ in range(len(self.gutters) + 1)]
        for segment in sorted(segments, key=_height_on_page):
            assert segment.place is not None
            column = self._column(segment.place.left, segment.place.right)
            if column is not None:
                waiting[column].append(segment)
                continue
            for held in waiting:
                ordered += held
                held.clear()
            ordered.append(segment)
        for held in waiting:
            ordered += held
        return ordered


def _height_on_page(segment: Segment) -> tuple[float, float]:
    assert segment.place is not None
    return (segment.place.top + segment.place.bottom) / 2, segment.place.left
