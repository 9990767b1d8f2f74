"""Which passwords were tried on an encrypted document, without saying which they were.

A document that none of them opened keeps a mark: a salted hash of the whole list. When the list is another by then,
the marks do not fit it any more, and the documents are tried again.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence

_ROUNDS = 200_000
"""Of PBKDF2: whoever has the database should not find out a short password in an afternoon."""


def mark_of(passwords: Sequence[str], known: Iterable[str] = ()) -> str | None:
    """The mark of a list, whatever its order: one of the known marks where one fits; None for an empty list."""
    if not passwords:
        return None
    for mark in known:
        if _with_salt(passwords, mark.partition(":")[0]) == mark:
            return mark
    return _with_salt(passwords, secrets.token_hex(16))


def _with_salt(passwords: Sequence[str], salt: str) -> str:
    # Each with its length, so that no two lists are one text.
    parts = sorted({password.encode("utf-8", "surrogatepass") for password in passwords})
    text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return f"{salt}:{hashlib.pbkdf2_hmac('sha256', text, salt.encode(), _ROUNDS).hex()}"
