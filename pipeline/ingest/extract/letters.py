"""The headings of a PDF without an outline, by the size and the weight of its letters. Pure.

Conservative: a wrong heading stands above every passage that follows it, and a missing one costs little.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from pipeline.ingest.extract.places import PagePlaces, Place
from pipeline.ingest.extract.reading import OutlineItem
from pipeline.ingest.extract.text import HYPHEN_MARK, join_hyphenated, one_line

# Below this there is no telling which size is that of the text.
_CHARACTERS_AT_LEAST = 600
_BODY_SHARE = 0.5
_LARGER = 1.14
_LONGEST = 120
_LINES_AT_MOST = 3
_LEVELS_AT_MOST = 4
# More headings than this share of all lines: a poster, slides, a table of large numbers.
_SHARE_AT_MOST = 0.15
# Of headings, no more than this share begin with a small letter, and half are no longer than this.
_SMALL_BEGINNINGS = 0.3
_TYPICAL_AT_MOST = 60
_LETTERS_AT_LEAST = 3
_LETTERS_SHARE = 0.6
_LETTERS = frozenset({"Lu", "Ll", "Lt", "Lo", "Mn", "Mc"})
# So many lines with a number at their ends are a table of contents.
_ENTRIES_AT_LEAST = 3
# Sizes are told apart in half points.
_STEPS = 2

_NUMBERED = re.compile(r"(?:(\d{1,2}(?:\.\d{1,2}){0,4})\.?|[A-Z]\.|[IVX]{1,5}\.|§ ?\d+)\s+\S")
_WITH_PAGE_NUMBER = re.compile(r"(.*?\S)[ .\u2026]*[ .\u2026]\d{1,4}$")
_NO_HEADING_ENDS = (".", ",", ";", ":", "-", HYPHEN_MARK)


@dataclass(slots=True)
class _Group:
    """Lines of the same letters right below each other: one heading, if it is one."""

    page: int
    size: float
    bold: bool
    texts: list[str]
    place: Place

    @property
    def title(self) -> str:
        lines = (text if text.endswith(("\n", HYPHEN_MARK)) else f"{text}\n" for text in self.texts)
        return one_line(join_hyphenated("".join(lines), frozenset()))


def headings_by_letters(
    pages: Sequence[Sequence[str]], places: Sequence[PagePlaces], marginal: Sequence[set[int]]
) -> list[OutlineItem]:
    """The headings in the order of the document; none where sizes are not known or tell nothing.

    pages, places, marginal: the lines of each page, where they stand, and which of them are headers.
    A line is a heading where its letters are larger than the text's, or bold after a number, and others like it
    stand on other pages; what is largest of all on the first page is the title.
    """
    body = _body_size(pages, places)
    if not body:
        return []
    groups = [
        group
        for page, (lines, where, gone) in enumerate(zip(pages, places, marginal, strict=True))
        for group in _groups(page, lines, where, gone, body)
        if len(group.texts) <= _LINES_AT_MOST and _is_title(group.title)
    ]
    groups = _of_a_kind(groups, body)
    if not groups or sum(len(group.texts) for group in groups) > sum(map(len, pages)) * _SHARE_AT_MOST:
        return []
    levels = _levels(groups, body)
    return [OutlineItem(level, group.title, group.page) for group, level in zip(groups, levels, strict=True)]


def _rounded(size: float) -> float:
    return round(size * _STEPS) / _STEPS


def _body_size(pages: Sequence[Sequence[str]], places: Sequence[PagePlaces]) -> float:
    """The size of most characters in points, or 0 where none has a clear majority."""
    characters: Counter[float] = Counter()
    for lines, where in zip(pages, places, strict=False):
        for line, place in zip(lines, where.lines, strict=False):
            if place is not None and place.size:
                characters[_rounded(place.size)] += len(line)
    total = characters.total()
    if total < _CHARACTERS_AT_LEAST:
        return 0.0
    size = characters.most_common(1)[0][0]
    near = sum(count for other, count in characters.items() if abs(other - size) <= 1 / _STEPS)
    return size if near >= total * _BODY_SHARE else 0.0


def _groups(page: int, lines: Sequence[str], where: PagePlaces, gone: set[int], body: float) -> Iterator[_Group]:
    group: _Group | None = None
    for index, (line, place) in enumerate(zip(lines, where.lines, strict=False)):
        if index in gone or place is None or not line.strip():
            continue
        if group is not None:
            if _goes_on(group, line, place):
                group.texts.append(line)
                group.place = place
                continue
            yield group
            group = None
        numbered = place.bold and place.size >= body * 0.95 and _NUMBERED.match(line.strip()) is not None
        if place.upright and (place.size >= body * _LARGER or numbered):
            group = _Group(page, _rounded(place.size), place.bold, [line], place)
    if group is not None:
        yield group


def _goes_on(group: _Group, line: str, place: Place) -> bool:
    """Whether the line at `place` belongs to the heading: the same letters, less than a line below it or beside it."""
    if _rounded(place.size) != group.size or (place.bold != group.bold and not line.lstrip()[:1].islower()):
        return False
    return place.top - group.place.bottom < group.size * 0.8 and place.bottom > group.place.top


def _is_title(title: str) -> bool:
    if len(title) > _LONGEST:
        return False
    letters = sum(unicodedata.category(character) in _LETTERS for character in title)
    visible = sum(not character.isspace() for character in title)
    if letters < _LETTERS_AT_LEAST or letters < visible * _LETTERS_SHARE:
        return False
    return not title.endswith(_NO_HEADING_ENDS)


def _of_a_kind(groups: Sequence[_Group], body: float) -> list[_Group]:
    """Those whose letters are found on two pages at least, and the title: the largest, on the first page, once."""
    alike: dict[tuple[float, bool], list[_Group]] = defaultdict(list)
    for group in groups:
        alike[group.size, group.bold].append(group)
    largest = max((group.size for group in groups), default=0.0)
    titles = [group for group in groups if group.size == largest]
    title = titles[0] if len(titles) == 1 and titles[0].page == 0 and largest >= body * _LARGER else None
    kinds = {kind for kind, found in alike.items() if len({group.page for group in found}) > 1 and not _is_prose(found)}
    # Where there are bold headings of a size, the other lines of that size are names and dates below the title.
    kinds -= {(size, False) for size, bold in kinds if bold}
    kept = [group for group in groups if group is title or (group.size, group.bold) in kinds]
    names = {group.title for group in kept}
    named = Counter((group.page, group.title) for group in kept)
    entries = Counter(group.page for group in kept if _page_number_cut(group.title))
    return [
        group
        for group in kept
        if named[group.page, group.title] == 1
        and (
            (name := _page_number_cut(group.title)) is None
            or (name not in names and entries[group.page] < _ENTRIES_AT_LEAST)
        )
    ]


def _is_prose(groups: Sequence[_Group]) -> bool:
    """Whether they are lines of a text in larger letters: many begin in the middle of a sentence, or are long."""
    begun = sum(group.title[:1].islower() for group in groups)
    return begun > len(groups) * _SMALL_BEGINNINGS or median(len(group.title) for group in groups) > _TYPICAL_AT_MOST


def _page_number_cut(title: str) -> str | None:
    """What a line of a table of contents says without its page number; None for any other line."""
    match = _WITH_PAGE_NUMBER.match(title)
    return match[1] if match is not None else None


def _levels(groups: Sequence[_Group], body: float) -> list[int]:
    """By size; among those of one size, by how deep their numbers go."""
    sizes = sorted({group.size for group in groups if group.size >= body * _LARGER}, reverse=True)
    levels: list[int] = []
    for group in groups:
        if group.size in sizes:
            levels.append(min(sizes.index(group.size) + 1, _LEVELS_AT_MOST))
            continue
        match = _NUMBERED.match(group.title)
        depth = match[1].count(".") if match is not None and match[1] else 0
        levels.append(min(len(sizes) + 1 + depth, _LEVELS_AT_MOST + 2))
    return levels
