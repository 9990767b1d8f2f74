"""Paragraph styles: which are headings, and which put a number or a bullet before the paragraph."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.ingest.extract.docx_names import child_of, children_named, is_on, number_of, value_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.ingest.extract.docx_names import Element

BODY_TEXT_LEVEL = 9
"""An outline level that says "no heading" (ECMA-376, part 1, 17.3.1.20)."""

_HEADING_NAME = re.compile(r"heading\s*([1-9])$", re.IGNORECASE)
_TITLE_NAME = "title"


@dataclass(frozen=True, slots=True)
class _Style:
    identity: str
    name: str
    based_on: str | None
    outline: int | None
    numbering: int | None
    numbering_level: int | None


class Styles:
    """The styles part of a document, or none."""

    def __init__(self, root: Element | None) -> None:
        self._styles: dict[str, _Style] = {}
        self._default: str | None = None
        for element in () if root is None else children_named(root, "style"):
            if value_of(element, "type") not in (None, "paragraph"):
                continue
            identity = value_of(element, "styleId") or ""
            properties = child_of(element, "pPr")
            self._styles[identity] = _Style(
                identity,
                (value_of(child_of(element, "name")) or "").strip(),
                value_of(child_of(element, "basedOn")),
                number_of(child_of(properties, "outlineLvl")),
                number_of(child_of(properties, "numPr", "numId")),
                number_of(child_of(properties, "numPr", "ilvl")),
            )
            if value_of(element, "default") in ("1", "true", "on"):
                self._default = identity

    def heading_level(self, style: str | None) -> int | None:
        """1 to 9, or None for what is no heading. The name of a heading style is the same in every language."""
        for known in self._chain(style):
            if known.outline is not None:
                return None if known.outline >= BODY_TEXT_LEVEL else known.outline + 1
            match = _HEADING_NAME.match(known.name)
            if match:
                return int(match[1])
            if known.name.casefold() == _TITLE_NAME:
                return 1
        return None

    def is_title(self, style: str | None) -> bool:
        """Whether a paragraph of this style is the document's title."""
        return any(known.name.casefold() == _TITLE_NAME for known in self._chain(style))

    def numbering(self, style: str | None) -> tuple[int, int | None, str] | None:
        """(numbering, its level where the style says it, the style that says so)."""
        for known in self._chain(style):
            if known.numbering is not None:
                return known.numbering, known.numbering_level, known.identity
        return None

    def _chain(self, style: str | None) -> Iterator[_Style]:
        identity = style if style in self._styles else self._default
        seen: set[str] = set()
        while identity is not None and identity not in seen and identity in self._styles:
            seen.add(identity)
            yield self._styles[identity]
            identity = self._styles[identity].based_on


def own_outline(properties: Element | None) -> int | None:
    """The outline level that a paragraph itself sets, from 0."""
    return number_of(child_of(properties, "outlineLvl"))


def starts_page(properties: Element | None) -> bool:
    """Whether the paragraph begins a page by its own setting."""
    return is_on(child_of(properties, "pageBreakBefore"))
