"""The names of WordprocessingML (ECMA-376, part 1, clause 17) and how its values are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"

_OFF = frozenset({"0", "false", "off"})

Element = Any
"""An lxml element: neither lxml nor python-docx says its types."""


def children_named(element: Element, name: str) -> Iterator[Element]:
    """The children `w:name` of `element`."""
    return (child for child in element if child.tag == W + name)


def child_of(element: Element | None, *names: str) -> Element | None:
    """The first `w:` child by the first name, that one's first by the second, and so on."""
    for name in names:
        if element is None:
            return None
        element = next(children_named(element, name), None)
    return element


def value_of(element: Element | None, attribute: str = "val") -> str | None:
    """The attribute `w:attribute`."""
    if element is None:
        return None
    value: str | None = element.get(W + attribute)
    return value


def number_of(element: Element | None, attribute: str = "val") -> int | None:
    """The same as a number, or None where it is none."""
    value = value_of(element, attribute)
    try:
        return None if value is None else int(value)
    except ValueError:
        return None


def is_on(element: Element | None) -> bool:
    """Whether a toggle is there and not switched off (ECMA-376, part 1, 17.17.4)."""
    return element is not None and value_of(element) not in _OFF
