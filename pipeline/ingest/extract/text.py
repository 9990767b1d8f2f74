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
# Typesetters' ligatures, the shapes of Arabic letters, and the radicals that some PDF writers use in place of the same
# Chinese characters. Not everything is folded: x\u00b2 is not x2, and fullwidth punctuation belongs to its script.
_FOLDED = re.compile("[\u2f00-\u2fd5\ufb00-\ufb06\ufb13-\ufb17\ufb50-\ufbb1\ufbd3-\ufd3d\ufd50-\ufdc7\ufe70-\ufefc]")
# Characters without a meaning that everybody shares, and the mark for one that could not be read.
_PRIVATE = re.compile("[\ue000-\uf8ff\ufffd\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
_UNREADABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ue000-\uf8ff\ufffd\U000f0000-\U0010fffd]")
# What fonts that many programs use have there: bullets of Symbol and Wingdings, and Adobe's old-style figures and
# small capitals (Adobe's corporate-use subarea).
_KNOWN_PRIVATE = {
    "\uf0b7": "\u2022",
    "\uf0a7": "\u25aa",
    "\uf0a8": "\u25ab",
    "\uf06e": "\u25a0",
    "\uf0d8": "\u27a2",
    "\uf0e0": "\u2192",
    "\uf0fc": "\u2713",
    "\uf02d": "-",
    **{chr(0xF730 + digit): str(digit) for digit in range(10)},
    **{chr(0xF761 + letter): chr(ord("a") + letter) for letter in range(26)},
}
_LONGEST_WORD = 60
_AROUND_WORD = ".,;:!?()[]{}<>\"'\u00ab\u00bb\u2018\u2019\u201c\u201d"
_LAST_WORD = re.compile(r"\w*\Z")
_CUT_WORD = re.compile(r"([^\W\d_]+)[-\u2010]\Z")
_FIRST_WORD = re.compile(r"\w*")
_END_OF_WORD = re.compile(r"\A(\S{1,60}) +(?=\S)")
# After a hyphen, these begin another word; English ones end words as well, but not before another compound.
_SUSPENDED = re.compile(r"(?:und|oder|bzw\.?|sowie|bis|och|eller)\s|(?:and|or|to)\s+\w+-\w")


def clean(text: str) -> str:
    """NFC, newlines for all line ends, single spaces, none at the ends of lines, at most one blank line together."""
    text = _NEWLINE.sub("\n", text)
    text = _UNSEEN.sub("", text)
    if not text.isascii():
        text = _PRIVATE.sub(lambda match: _KNOWN_PRIVATE.get(match[0], ""), text)
        text = _FOLDED.sub(lambda match: unicodedata.normalize("NFKC", match[0]).strip(), text)
        text = unicodedata.normalize("NFC", text)
    text = _SPACES.sub(" ", text)
    text = _AROUND_NEWLINE.sub("\n", text)
    return _BLANK_LINES.sub("\n\n", text).strip()


def is_garbage(text: str) -> bool:
    """Whether at least half of what can be seen stands for no character: the font does not say what its glyphs mean."""
    unreadable = sum(1 for match in _UNREADABLE.finditer(text) if match[0] not in _KNOWN_PRIVATE)
    return unreadable > 0 and unreadable * 2 >= len("".join(text.split()))


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
    """Resolve each `HYPHEN_MARK`: the word moves to the line on which it began.

    The hyphen goes, as it does in most words that were broken at a line end. It stays where the
    document writes the same word with it elsewhere (`known`), after a single letter, before a
    capital or a digit, and where it stands for a word that two share ("pre- and post-war").
    """
    first, *others = text.split(HYPHEN_MARK)
    pieces = [first]
    for piece in others:
        if _is_suspended(piece):
            pieces += ["-\n", piece]
            continue
        keep = _keeps_hyphen(_word_at(_LAST_WORD, pieces[-1][-_LONGEST_WORD:]), _word_at(_FIRST_WORD, piece), known)
        pieces += ["-" if keep else "", _END_OF_WORD.sub(r"\1\n", piece, count=1)]
    return "".join(pieces)


def joined_across(before: str, after: str, known: frozenset[str]) -> str | None:
    """`before` without the hyphen at its end, where a word of it goes on in `after`, the next page; else None."""
    match = _CUT_WORD.search(before, max(0, len(before) - _LONGEST_WORD))
    if match is None or not after[:1].islower() or _is_suspended(after):
        return None
    keep = _keeps_hyphen(match[1], _word_at(_FIRST_WORD, after[:_LONGEST_WORD]), known)
    return before if keep else before[: match.end(1)]


def _is_suspended(after: str) -> bool:
    return _SUSPENDED.match(after, 0, 2 * _LONGEST_WORD) is not None


def _keeps_hyphen(before: str, after: str, known: frozenset[str]) -> bool:
    if len(before) <= 1 or not after or not after[0].isalpha() or after[0].isupper():
        return True
    return f"{before}-{after}".casefold() in known


def _word_at(place: re.Pattern[str], text: str) -> str:
    match = place.search(text)
    return match[0] if match else ""
