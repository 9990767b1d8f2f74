"""File names as text that any database takes.

A name on disk is bytes. Python shows those that are not UTF-8 as lone surrogates, which no database
stores. Here they become private-use characters, one for one, and are turned back when the file is opened.
Two names in one folder may so be stored alike. Only the one that `real_path` opens is then a document.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

_SHIFT = 0xF780 - 0xDC80
_TO_STORED = {code: code + _SHIFT for code in range(0xDC80, 0xDD00)}
_TO_REAL = {stored: real for real, stored in _TO_STORED.items()}
_AMBIGUOUS = re.compile("[\udc80-\udcff\uf780-\uf7ff]")


def stored_name(path: str) -> str:
    """`path` as Python has it from the file system -> as it is stored."""
    return path if path.isascii() else path.translate(_TO_STORED)


def real_path(root: str, stored: str) -> Path:
    """The file that a stored path means. Each part is the name that `first_of` prefers in its folder."""
    path = Path(root, stored)
    if not _AMBIGUOUS.search(str(path)):
        return path
    real = Path(path.anchor)
    for part in path.relative_to(real).parts:
        real = _real_part(real, part)
    return real


def _real_part(folder: Path, part: str) -> Path:
    """The entry of a folder that is stored as `part`; it need not be there."""
    literal, bytewise = folder / part, folder / part.translate(_TO_REAL)
    if os.path.lexists(literal):
        return literal
    if os.path.lexists(bytewise):
        return bytewise
    try:  # a name that holds both: bytes that are no text, and characters that stand for such
        alike = [name for name in os.listdir(folder) if stored_name(name) == part]  # noqa: PTH208 - names, not paths
    except OSError:
        alike = []
    return folder / first_of(alike) if alike else bytewise


def first_of(alike: Iterable[str]) -> str:
    """Of names that are stored alike, the one that is a document: one all in characters, then one all in bytes."""
    return min(alike, key=lambda name: (name != stored_name(name), name != stored_name(name).translate(_TO_REAL), name))


def may_be_alike(name: str) -> bool:
    """Whether another name could be stored as this one is."""
    return not name.isascii() and _AMBIGUOUS.search(name) is not None


def spelled_out(name: str) -> str:
    """A name with an escape for each byte or character by which it could be taken for another."""
    return _AMBIGUOUS.sub(lambda found: f"\\{_code(found[0])}", name)


def _code(character: str) -> str:
    code = ord(character)
    return f"x{code - 0xDC00:02x}" if code < 0xE000 else f"u{code:04x}"
