"""Which lines of a document are headers and footers that repeat from page to page. Pure.

A line is one of them only at the edge of its page, and only where neighbouring pages have the same at the same height:
the same words, or the same words with a number that counts as the pages do. What repeats in the middle of pages, such
as the first row of a table, stays; so does a row at the top of a page that is as close to the next one as rows are.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

from pipeline.ingest.extract.places import PagePlaces, Place

# With fewer pages there is nothing to tell a header from a line that is there twice.
_PAGES_AT_LEAST = 3
_TIMES_NUMBERS = 2
_TIMES_WORDS = 3
# Left and right pages alternate, and the first page of a chapter has no header.
_PAGES_APART = 4
# Shares of a page's height: how far margins reach, and how much a header may be moved from page to page.
_BAND = 0.15
_MOVED = 0.015
_LINES_A_BAND = 4
# Without places, only the outermost lines come into question.
_LINES_WITHOUT_PLACES = 2
_SHARE_WITHOUT_PLACES = 0.5
# A header stands off from the text by more than its lines from each other, and its letters are no larger.
_APART = 1.25
_LARGER = 1.25
# A header that never changes has a left and a right part; more parts are a row of a table.
_GAPS_AT_MOST = 1
_LETTERS_AT_LEAST = 4
_CAPTION = re.compile(r"(?:table|tab|figure|fig|listing|tabelle|abbildung|abb|tableau|tabla|figura|tabella)\b")
_LONGEST = 200
_LONGEST_LABEL = 40

_DIGITS = re.compile(r"\d{1,9}")
_ROMAN = re.compile(r"(?<![^\W_])(?=[ivxlc])(?:xc|xl|l?x{0,3})(?:ix|iv|v?i{0,3})(?![^\W_])")
_ROMAN_VALUES = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
_NUMBER = "#"
# Words that say that the number beside them is a page's, in the languages in which they are most often printed.
_PAGE_WORDS = re.compile(
    r"\b(?:pages?|pg|pp?|seiten?|blatt|página|pagina|págs?|pág|strona|str|sida|side|sivu|страница|стр|sayfa|of|von|van|de"
    r"|di|sur|av|af|av|z|из|от)\b|[第页頁共페이지쪽ページの中]"
)
# What stands right before and right behind a number that is a page's, whatever else is on the line.
_BEFORE_PAGE = re.compile(
    r"(?:(?:^|[\W_])(?:pages?|pg|pp?|s|seiten?|blatt|página|pagina|págs?|pág|strona|str|sida|side|sivu|страница|стр|sayfa)"
    r"\b[\W_]*|[第페])$"
)
_BEHIND_PAGE = re.compile(r"\s*(?:(?:of|von|van|de|di|sur|av|af|z|из|от|/)\s*$|[頁页共페쪽ペ])")
# A number behind one of these is that of a form, an order, a date of birth; a title is parted from a page's number so.
_LABEL = re.compile(r"(?:[:#№]|\b(?:no|nr|num|n°|nº|id)\.?|\b(?:number|nummer|numéro|numero|número))\s*$")
_PARTING = "|\u2013\u2014\u00b7\u2022-/"
_LETTER = re.compile(r"[^\W\d_]")
_SPACES = re.compile(r"\s+")

_Edge = Literal["top", "bottom"]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A line at the edge of a page. numbers: those in it. height: where it stands, as a share of the page's height.

    apart: it stands off from the text. large: its letters are larger than those of the text. gaps: wide ones in it.
    labelled: the line before it ends as if it were a name for this one.
    """

    page: int
    line: int
    words: str
    exact: str
    numbers: tuple[int, ...]
    height: float
    apart: bool
    large: bool
    gaps: int
    labelled: bool


def marginal_lines(pages: Sequence[Sequence[str]], places: Sequence[PagePlaces]) -> list[set[int]]:
    """For each page, the lines of it (by their index) that are headers or footers to be left out.

    pages: the lines of each page. places: where they stand, or empty.

    Of each header that is not only a page number, the first one stays, unless its words are a line of the text, too: a
    title that stands nowhere else must still be found.
    """
    removed: list[set[int]] = [set() for _ in pages]
    if len(pages) < _PAGES_AT_LEAST:
        return removed
    repeated = [run for group in _groups(pages, places) for run in _runs(group) if _is_margin(run, len(pages), places)]
    for run in repeated:
        for candidate in run:
            removed[candidate.page].add(candidate.line)
    _keep_first(repeated, pages, removed)
    return removed


def _left(lines: Sequence[str], gone: set[int]) -> Iterator[str]:
    return (line for index, line in enumerate(lines) if index not in gone)


def _groups(pages: Sequence[Sequence[str]], places: Sequence[PagePlaces]) -> Iterable[Sequence[_Candidate]]:
    """Candidates of the same edge and the same words, in the order of their pages."""
    groups: dict[tuple[_Edge, str], list[_Candidate]] = defaultdict(list)
    for number, lines in enumerate(pages):
        found = _placed(number, lines, places[number]) if places else _unplaced(number, lines)
        for edge, candidate in found:
            groups[edge, candidate.words].append(candidate)
    return groups.values()


def _unplaced(page: int, lines: Sequence[str]) -> Iterator[tuple[_Edge, _Candidate]]:
    filled = [index for index, line in enumerate(lines) if line.strip()]
    if len(filled) <= _LINES_WITHOUT_PLACES:
        edges: list[tuple[_Edge, Sequence[int]]] = [("bottom", filled)]
    else:
        edges = [("top", filled[:_LINES_WITHOUT_PLACES]), ("bottom", filled[-_LINES_WITHOUT_PLACES:])]
    for edge, indices in edges:
        for index in indices:
            if candidate := _candidate(page, index, lines, 0.0, apart=True):
                yield edge, candidate


def _placed(page: int, lines: Sequence[str], where: PagePlaces) -> Iterator[tuple[_Edge, _Candidate]]:
    height = where.height
    if height <= 0:
        return
    placed = [
        (place, index)
        for index, (place, _) in enumerate(zip(where.lines, lines, strict=False))
        if place is not None and place.upright
    ]
    upper = [found for found in placed if found[0].bottom <= height * _BAND]
    lower = [found for found in placed if found[0].top >= height * (1 - _BAND)]
    if not upper and not lower:
        return
    letters = median(place.bottom - place.top for place, _ in placed)
    upper = sorted(upper, key=lambda found: found[0].top)[:_LINES_A_BAND]
    lower = sorted(lower, key=lambda found: -found[0].bottom)[:_LINES_A_BAND]
    tops = sorted({round(place.top, 1) for place, _ in placed})
    steps = [below - above for above, below in pairwise(tops) if below - above > letters / 2]
    pitch = median(steps) if steps else letters
    edges: list[tuple[_Edge, list[tuple[Place, int]]]] = [("top", upper), ("bottom", lower)]
    for edge, found in edges:
        apart = _stand_off(edge, [place for place, _ in found], tops, pitch)
        for (place, index), parted in zip(found, apart, strict=True):
            stands_off = parted and place.gaps <= _GAPS_AT_MOST
            large = place.bottom - place.top > letters * _LARGER
            where_on_page = place.top / height
            if candidate := _candidate(
                page, index, lines, where_on_page, apart=stands_off, large=large, gaps=place.gaps
            ):
                yield edge, candidate


def _stand_off(edge: _Edge, places: Sequence[Place], tops: Sequence[float], pitch: float) -> list[bool]:
    """For each line whether a wide gap parts it, or it and one more row, from what is further inside."""
    gaps: list[tuple[float, bool]] = []
    for place in places:
        own = round(place.top, 1)
        if edge == "top":
            at = bisect_right(tops, own + pitch / 4)
            gap = tops[at] - own if at < len(tops) else None
        else:
            at = bisect_left(tops, own - pitch / 4)
            gap = own - tops[at - 1] if at else None
        gaps.append((own, gap is None or gap > pitch * _APART))
    result: list[bool] = []
    for number, (own, wide) in enumerate(gaps):
        inner = next((other for top, other in gaps[number + 1 :] if abs(top - own) > pitch / 4), False)
        result.append(wide or inner)
    return result


def _candidate(
    page: int, line: int, lines: Sequence[str], height: float, *, apart: bool, large: bool = False, gaps: int = 0
) -> _Candidate | None:
    text = lines[line]
    if len(text) > _LONGEST:
        return None
    exact = _SPACES.sub(" ", text).strip().casefold()
    if not exact:
        return None
    numbers = tuple(int(match) for match in _DIGITS.findall(exact))
    words = _DIGITS.sub(_NUMBER, exact)
    if not numbers:
        words, numbers = _without_roman(exact)
    before = lines[line - 1].rstrip()[-_LONGEST_LABEL:].casefold() if line else ""
    labelled = _LABEL.search(before) is not None
    return _Candidate(page, line, words, exact, numbers, height, apart, large, gaps, labelled)


def _without_roman(text: str) -> tuple[str, tuple[int, ...]]:
    """A Roman number at either end of a line stands for the page; a lone letter in the middle is a word."""
    found = [match for match in _ROMAN.finditer(text) if match[0]]
    for match in found[::-1]:
        if match.start() == 0 or match.end() == len(text) or not _LETTER.search(text.replace(match[0], "", 1)):
            return text[: match.start()] + _NUMBER + text[match.end() :], (_roman(match[0]),)
    return text, ()


def _roman(digits: str) -> int:
    values = [_ROMAN_VALUES[digit] for digit in digits]
    following = [*values[1:], 0]
    return sum(-value if value < after else value for value, after in zip(values, following, strict=True))


def _runs(group: Sequence[_Candidate]) -> Iterator[list[_Candidate]]:
    """The stretches of near pages on which the line stands at the same height."""
    open_runs: list[list[_Candidate]] = []
    for candidate in group:
        yield from (run for run in open_runs if run[-1].page < candidate.page - _PAGES_APART)
        open_runs = [run for run in open_runs if run[-1].page >= candidate.page - _PAGES_APART]
        for run in open_runs:
            last = run[-1]
            if candidate.page != last.page and abs(candidate.height - last.height) <= _MOVED:
                run.append(candidate)
                break
        else:
            open_runs.append([candidate])
    yield from open_runs


def _is_margin(run: Sequence[_Candidate], page_count: int, places: Sequence[PagePlaces]) -> bool:
    counted = _counts_pages(run)
    if _only_numbers(run[0]):
        labelled = sum(candidate.labelled for candidate in run) * 2 > len(run)
        return counted and len(run) >= _TIMES_NUMBERS and not labelled
    words = run[0].words
    if len(run) < _TIMES_WORDS or _CAPTION.match(words):
        return False
    if not places and len(run) < page_count * _SHARE_WITHOUT_PLACES:
        return False
    if sum(candidate.large for candidate in run) * 2 > len(run):
        return False  # the title of a slide, such as "Exercise 3" over the third one
    if len({candidate.exact for candidate in run}) > 1:
        return counted
    if sum(character.isalpha() for character in words) < _LETTERS_AT_LEAST:
        return False
    return sum(candidate.apart for candidate in run) * 2 > len(run)


def _only_numbers(candidate: _Candidate) -> bool:
    return bool(candidate.numbers) and not _LETTER.search(_PAGE_WORDS.sub("", candidate.words))


def _counts_pages(run: Sequence[_Candidate]) -> bool:
    """Whether one of the numbers goes up by one with every page and no other changes, nearly everywhere in the run.

    That number must stand where a page's does: forms are numbered, too.
    """
    count = min(len(candidate.numbers) for candidate in run)
    for place in range(count):
        steps = sum(_is_step(before, after, place) for before, after in pairwise(run))
        if steps and steps >= (len(run) - 1) * 3 // 4 and (_only_numbers(run[0]) or _is_page_number(run[0], place)):
            return True
    return False


def _is_step(before: _Candidate, after: _Candidate, place: int) -> bool:
    changed = [
        number for number, pair in enumerate(zip(before.numbers, after.numbers, strict=False)) if len({*pair}) > 1
    ]
    return changed == [place] and after.numbers[place] - before.numbers[place] == after.page - before.page


def _is_page_number(candidate: _Candidate, place: int) -> bool:
    """Whether this number of the line can be that of its page: by the words beside it, or at the line's end.

    There, it is parted from the words, or no larger than the count of pages so far: bills begin with any number.
    """
    parts = candidate.words.split(_NUMBER)
    if len(parts) != len(candidate.numbers) + 1:
        return False  # the line itself holds such a sign
    before, behind = parts[place], parts[place + 1]
    if _BEFORE_PAGE.search(before) or _BEHIND_PAGE.match(behind):
        return True
    if _LABEL.search(before):
        return False
    first = not _LETTER.search("".join(parts[: place + 1]))
    last = not _LETTER.search("".join(parts[place + 1 :]))
    if not first and not last:
        return False
    inner = before.rstrip()[-1:] if last else behind.lstrip()[:1]
    parted = candidate.gaps > 0 or (inner != "" and inner in _PARTING)
    return parted or candidate.numbers[place] <= candidate.page + 1


def _keep_first(
    repeated: Sequence[Sequence[_Candidate]], pages: Sequence[Sequence[str]], removed: Sequence[set[int]]
) -> None:
    named = [run for run in repeated if not _only_numbers(run[0])]
    if not named:
        return
    kept = {
        _bare(line)
        for lines, gone in zip(pages, removed, strict=True)
        for line in _left(lines, gone)
        if len(line) < _LONGEST
    }
    for run in sorted(named, key=lambda run: run[0].page):
        bare = _bare(run[0].words.replace(_NUMBER, " "))
        if bare and bare not in kept:
            kept.add(bare)
            removed[run[0].page].discard(run[0].line)


def _bare(line: str) -> str:
    """The words of a line, without the numbers and marks before and behind them."""
    return line.casefold().strip(" \t\r\n0123456789.:-|/\u2013\u2014\u00b7\u2022\ufffe")
