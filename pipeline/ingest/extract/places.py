"""Where the lines of a page stand. Plain values; all lengths in points, from the upper left corner as a reader sees it.

A line is what stands between two newlines, or between a newline and `text.HYPHEN_MARK`, of a page's raw text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.ingest.extract.text import HYPHEN_MARK

_LINE = re.compile(f"[^\n{HYPHEN_MARK}]*(?:[\n{HYPHEN_MARK}]|\\Z)")


class Place(NamedTuple):
    """The box of one line; `bottom` is below `top`. size: of its letters, 0 where nobody asked. bold: its letters are.

    Whether letters are bold is not known of lines that are long or begin with a small letter: these are not.
    upright: it runs from left to right or from right to left. gaps: how many are in it that no space makes.
    """

    left: float
    top: float
    right: float
    bottom: float
    size: float = 0.0
    bold: bool = False
    upright: bool = True
    gaps: int = 0


@dataclass(frozen=True, slots=True)
class PagePlaces:
    """The size of a page and the place of each of its lines; None for a line that has none."""

    width: float
    height: float
    lines: Sequence[Place | None]


def lines_of(page: str) -> Iterator[str]:
    """The lines of a page's raw text, each with the mark that ends it."""
    return (match[0] for match in _LINE.finditer(page) if match[0])
