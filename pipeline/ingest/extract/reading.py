"""What either PDF library hands over: plain values, before anything is made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.ingest.extract.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pipeline.ingest.extract.places import PagePlaces

_DATE = re.compile(
    r"D?:?(?P<year>\d{4})(?P<month>\d\d)?(?P<day>\d\d)?(?P<hour>\d\d)?(?P<minute>\d\d)?(?P<second>\d\d)?"
    r"(?:(?P<utc>Z)|(?P<sign>[+-])(?P<offset_hour>\d\d)'?(?P<offset_minute>\d\d)?)?"
)
_KEYS = {
    "Title": "title",
    "Author": "author",
    "Subject": "subject",
    "Keywords": "keywords",
    "Creator": "creator",
    "Producer": "producer",
    "CreationDate": "created",
    "ModDate": "modified",
}
# What writers put there when nobody gave a value.
_PLACEHOLDERS = frozenset({"untitled", "(untitled)", "anonymous", "(anonymous)", "unspecified", "(unspecified)"})


if TYPE_CHECKING:
    Step = Callable[[int], None]
    """Called with the number of pages that were read since the call before."""


def unheard(_pages: int) -> None:
    """The `Step` where nobody asks how far the reading is."""


@dataclass(frozen=True, slots=True)
class OutlineItem:
    """One bookmark: `level` is 1 for the outermost, `page` counts from 0."""

    level: int
    title: str
    page: int


@dataclass(frozen=True, slots=True)
class PdfReading:
    """One PDF.

    pages: the raw text of each page, in order; lines end with a newline, and text.HYPHEN_MARK stands
        for a hyphen at a line end.
    outline: in the order of the file.
    metadata: by `named_metadata`.
    unreadable: numbers (from 1) of the pages that could not be read; their text is empty.
    blank: whether it is known that nothing at all is drawn on any page.
    places: where the lines of each page stand; empty where the engine does not say.
    """

    engine: str
    pages: list[str]
    outline: list[OutlineItem] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    unreadable: list[int] = field(default_factory=list)
    blank: bool = False
    places: list[PagePlaces] = field(default_factory=list)


def named_metadata(information: Mapping[str, str]) -> dict[str, str]:
    """The entries of a PDF's information dictionary (keys as in ISO 32000-1, table 317) that say something."""
    named: dict[str, str] = {}
    for key, value in information.items():
        name = _KEYS.get(key)
        line = one_line(value)
        if name is None or not line or line.casefold() in _PLACEHOLDERS:
            continue
        named[name] = iso_date(line) if name in ("created", "modified") else line
    return named


def iso_date(date: str) -> str:
    """`D:20240229101500+09'00'` becomes `2024-02-29T10:15:00+09:00`; what is no PDF date is returned as it is."""
    match = _DATE.match(date)
    if match is None:
        return date
    part = match.groupdict(default="")
    if not part["day"]:
        return "-".join(_given(part[name] for name in ("year", "month")))
    iso = f"{part['year']}-{part['month']}-{part['day']}"
    if not part["hour"]:
        return iso
    iso += f"T{part['hour']}:{part['minute'] or '00'}:{part['second'] or '00'}"
    if part["utc"]:
        return iso + "Z"
    return iso + (f"{part['sign']}{part['offset_hour']}:{part['offset_minute'] or '00'}" if part["sign"] else "")


def _given(values: Iterable[str]) -> list[str]:
    return [value for value in values if value]
