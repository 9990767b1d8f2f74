"""What Word writes before a numbered paragraph: it stands nowhere in the file and has to be counted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.ingest.extract.docx_names import child_of, children_named, is_on, number_of, value_of

if TYPE_CHECKING:
    from pipeline.ingest.extract.docx_names import Element

BULLET = "-"

_PLACE = re.compile(r"%([1-9])")
_LEVELS = 9
_ROMAN = (
    (1000, "m"),
    (900, "cm"),
    (500, "d"),
    (400, "cd"),
    (100, "c"),
    (90, "xc"),
    (50, "l"),
    (40, "xl"),
    (10, "x"),
    (9, "ix"),
    (5, "v"),
    (4, "iv"),
    (1, "i"),
)
_LARGEST_ROMAN = 3999
_ALPHABETS = {
    "ganada": "가나다라마바사아자차카타파하",
    "chosung": "ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊㅋㅌㅍㅎ",
    "aiueoFullWidth": "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワヲン",
    "decimalEnclosedCircle": "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳",
}


@dataclass(frozen=True, slots=True)
class _Level:
    start: int
    form: str
    text: str
    legal: bool
    style: str | None


@dataclass(slots=True)
class _List:
    levels: dict[int, _Level]
    counts: dict[int, int] = field(default_factory=dict)


class Numbering:
    """The numbering part of a document, or none, and the counts so far."""

    def __init__(self, root: Element | None) -> None:
        self._lists: dict[int, _List] = {}
        self._overrides: dict[int, dict[int, int]] = {}
        if root is None:
            return
        abstract: dict[int, _List] = {}
        by_style: dict[str, _List] = {}
        links: dict[int, str] = {}
        for element in children_named(root, "abstractNum"):
            number = number_of(element, "abstractNumId")
            if number is None:
                continue
            abstract[number] = _List(_levels(element))
            style = value_of(child_of(element, "styleLink"))
            link = value_of(child_of(element, "numStyleLink"))
            if style is not None:
                by_style[style] = abstract[number]
            if link is not None:
                links[number] = link
        for number, link in links.items():
            abstract[number] = by_style.get(link, abstract[number])
        for element in children_named(root, "num"):
            self._add(element, abstract)

    def _add(self, element: Element, abstract: dict[int, _List]) -> None:
        number = number_of(element, "numId")
        target = abstract.get(number_of(child_of(element, "abstractNumId")) or 0)
        if number is None or target is None:
            return
        replaced: dict[int, _Level] = {}
        for override in children_named(element, "lvlOverride"):
            level = number_of(override, "ilvl") or 0
            start = number_of(child_of(override, "startOverride"))
            if start is not None:
                self._overrides.setdefault(number, {})[level] = start
            replaced.update(_levels(override))
        # Lists made from one definition go on counting together, unless one brings levels of its own.
        self._lists[number] = _List({**target.levels, **replaced}) if replaced else target

    def level_of_style(self, number: int, style: str) -> int:
        """The level that the list `number` ties to a paragraph style, or 0."""
        target = self._lists.get(number)
        levels = target.levels if target else {}
        return next((level for level, known in levels.items() if known.style == style), 0)

    def next_label(self, number: int, level: int) -> str:
        """Count one paragraph, and return what stands before it: "2.1", "c)", BULLET or nothing."""
        target = self._lists.get(number)
        if target is None or level not in target.levels:
            return ""
        start = self._overrides.get(number, {}).pop(level, None)
        counts = target.counts
        if start is not None:
            counts[level] = start
        else:
            counts[level] = counts.get(level, target.levels[level].start - 1) + 1
        for deeper in range(level + 1, _LEVELS):
            counts.pop(deeper, None)
        return _label(target, level)


def _levels(element: Element) -> dict[int, _Level]:
    levels: dict[int, _Level] = {}
    for level in children_named(element, "lvl"):
        start = number_of(child_of(level, "start"))
        levels[number_of(level, "ilvl") or 0] = _Level(
            0 if start is None else start,
            value_of(child_of(level, "numFmt")) or "decimal",
            value_of(child_of(level, "lvlText")) or "",
            is_on(child_of(level, "isLgl")),
            value_of(child_of(level, "pStyle")),
        )
    return levels


def _label(target: _List, level: int) -> str:
    own = target.levels[level]
    if own.form == "bullet":
        return BULLET
    if own.form == "none":
        return ""

    def counted(match: re.Match[str]) -> str:
        place = int(match[1]) - 1
        shown = target.levels.get(place, own)
        return formatted(target.counts.get(place, shown.start), "decimal" if own.legal else shown.form)

    return _PLACE.sub(counted, own.text).strip()


def formatted(count: int, form: str) -> str:
    """`count` in a number format of ECMA-376, part 1, 17.18.59; decimal for those that are not known here."""
    if form in ("lowerRoman", "upperRoman") and 0 < count <= _LARGEST_ROMAN:
        return _roman(count) if form == "lowerRoman" else _roman(count).upper()
    if form in ("lowerLetter", "upperLetter") and count > 0:
        # After z comes aa, then bb: the same letter again.
        letter = chr(ord("a") + (count - 1) % 26) * ((count - 1) // 26 % 26 + 1)
        return letter if form == "lowerLetter" else letter.upper()
    if form == "decimalZero":
        return f"{count:02d}"
    alphabet = _ALPHABETS.get(form, "")
    return alphabet[count - 1] if 0 < count <= len(alphabet) else str(count)


def _roman(count: int) -> str:
    digits = ""
    for value, digit in _ROMAN:
        times, count = divmod(count, value)
        digits += digit * times
    return digits
