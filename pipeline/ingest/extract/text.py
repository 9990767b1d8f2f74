"""Text as it comes out of a file becomes text that can be stored, searched and compared.

Knows characters, not formats. What is changed: line ends, spaces, what cannot be seen
or stored, ligatures, and hyphens at line ends. Nothing that a reader would see is lost.
"""

from __future__ import annotations

import re
import unicodedata

HYPHEN_MARK = "\ufffe"
"""Stands where a word was hyphenated at a line end: a noncharacter, so no text can hold it."""

_NEWLINE = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SPACES = re.compile("[\t \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_AROUND_NEWLINE = re.compile(" *\n *")
_BLANK_LINES = re.compile("\n{3,}")
# Controls, soft hyphens, zero-width and direction marks (the two joiners change how words
# look in Persian and Hindi, so they stay), noncharacters, and halves of surrogate pairs,
# which no database encodes.
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f"
    "\ud800-\udfff\ufdd0-\ufdef\ufeff\ufff0-\ufffb\ufffe\uffff\U0001fffe\U0001ffff\U000e0000-\U000e007f]"
)
# Typesetters' ligatures, and the radicals that some PDF writers use in place of the same Chinese characters.
_FOLDED = re.compile("[\u2f00-\u2fd5\ufb00-\ufb06]")
_LONGEST_WORD = 60
_AROUND_WORD = ".,;:!?()[]{}<>\"'\u00ab\u00bb\u2018\u2019\u201c\u201d"
_LAST_WORD = re.compile(r"\w*\Z")
_FIRST_WORD = re.compile(r"\w*")


def clean(text: str) -> str:
    """NFC, newlines for all line ends, single spaces, none at the ends of lines, at most one blank line together."""
    text = _NEWLINE.sub("\n", text)
    text = _UNSEEN.sub("", text)
    if not text.isascii():
        text = _FOLDED.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
        text = unicodedata.normalize("NFC", text)
    text = _SPACES.sub(" ", text)
    text = _AROUND_NEWLINE.sub("\n", text)
    return _BLANK_LINES.sub("\n\n", text).strip()


def one_line(text: str) -> str:
    """The same, on a single line."""
    return " ".join(clean(text).split())


def has_text(text: str) -> bool:
    """Whether there is any letter or digit in any script."""
    return any(character.isalnum() for character in text)


def compounds(text: str) -> frozenset[str]:
    """Every hyphenated word of `text`, case folded."""
    return frozenset(word.strip(_AROUND_WORD).casefold() for word in text.split() if "-" in word)


def join_hyphenated(text: str, known: frozenset[str]) -> str:
    """Resolve each `HYPHEN_MARK`.

    The hyphen goes, as it does in most words that were broken at a line end. It stays where the
    document writes the same word with it elsewhere (`known`), after a single letter, and before a
    capital or a digit.
    """
    first, *others = text.split(HYPHEN_MARK)
    pieces = [first]
    for piece in others:
        keep = _keeps_hyphen(_word_at(_LAST_WORD, pieces[-1][-_LONGEST_WORD:]), _word_at(_FIRST_WORD, piece), known)
        pieces += ["-", piece] if keep else [piece]
    return "".join(pieces)


def _keeps_hyphen(before: str, after: str, known: frozenset[str]) -> bool:
    if len(before) <= 1 or not after or not after[0].isalpha() or after[0].isupper():
        return True
    return f"{before}-{after}".casefold() in known


def _word_at(place: re.Pattern[str], text: str) -> str:
    match = place.search(text)
    return match[0] if match else ""
