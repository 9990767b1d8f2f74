"""Words as PostgreSQL stores them: a tsvector with the positions of each, made without its parser.

That parser takes file names, addresses and hyphenated words for one word each, and knows letters by the locale.
"""

from __future__ import annotations

from pipeline.core.words import BORDER

LAST_POSITION = 16_383
"""PostgreSQL knows no later one, and not more than 255 of one word: it forgets the others by itself."""


def as_tsvector(words: str) -> str:
    """The literal for words with spaces between them, as `core.words.indexed` makes them."""
    positions: dict[str, list[str]] = {}
    for position, word in enumerate(words.split(), start=1):
        if word != BORDER:
            positions.setdefault(word, []).append(str(min(position, LAST_POSITION)))
    # Words are letters, digits and marks: nothing in them has to be escaped.
    return " ".join(f"'{word}':{','.join(places)}" for word, places in positions.items())
