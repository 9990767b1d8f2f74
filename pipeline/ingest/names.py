"""File names as text that any database takes.

A name on disk is bytes. Python shows those that are not UTF-8 as lone surrogates, which no database
stores; here they become private-use characters, one for one, and are turned back when the file is opened.
"""

from __future__ import annotations

import os
from pathlib import Path

_SHIFT = 0xF780 - 0xDC80
_TO_STORED = {code: code + _SHIFT for code in range(0xDC80, 0xDD00)}
_TO_REAL = {stored: real for real, stored in _TO_STORED.items()}


def stored_name(path: str) -> str:
    """`path` as Python has it from the file system -> as it is stored."""
    return path if path.isascii() else path.translate(_TO_STORED)


def real_path(root: str, stored: str) -> Path:
    """The file that a stored path means. A name that really holds such private-use characters wins."""
    literal = Path(root, stored)
    return literal if os.path.lexists(literal) else Path(root.translate(_TO_REAL), stored.translate(_TO_REAL))
