"""Where text may be broken, and how good each place is. Knows characters; knows no tokens.

A break stands after the whitespace that precedes it, so that whitespace belongs to what it
follows, and never between a base character and its combining marks. Every pattern is possessive
or starts at one character only: hostile text costs linear time.
"""

# ruff: noqa: RUF001, SIM905  (punctuation of other scripts is meant; words are read better as words)

from __future__ import annotations

import re
import unicodedata
from enum import IntEnum


class Break(IntEnum):
    """What a place between two characters parts; the smaller, the better to end there."""

    HEADING = 0
    PARAGRAPH = 1
    LINE = 2
    SENTENCE = 3
    CLAUSE = 4
    WORD = 5
    CHARACTER = 6


_NEWLINES = re.compile(r"[\n\u2028\u2029]\s*+")
_LIST_ITEM = re.compile(
    r"(?:[-*+\u2022\u2023\u2043\u25a0\u25aa\u25cb\u25cf\u25e6\u30fb\u2013\u2014]"  # bullets and dashes
    r"|[(\[]?(?:\d{1,3}|[A-Za-z가-하]|[ivxIVX]{1,5})[.)\]]"
    r"|[\u2460-\u249b\u3260-\u327b])"  # circled numbers and Hangul
    r"\s"
)
_CELL = re.compile(r"\t| \| ")

_LATIN_ENDS = ".!?\u2026\u203c\u2047\u2048\u2049"
# CJK, Arabic, Urdu, Devanagari, Armenian, Ethiopic, Khmer, Burmese: these need no space after them.
_OTHER_ENDS = "。！？｡．؟۔।॥։።។။"
_CLOSERS = "\"'”’»›)\\]}」』）】》〉〕］｝＂＇"
_SENTENCE_END = re.compile(rf"([{_LATIN_ENDS}{_OTHER_ENDS}]++)([{_CLOSERS}]*+)(\s*+)")
_CLAUSE_END = re.compile(r"[,;:\u2013\u2014][\"'”’»)\]]*+\s++|[、，；：､،؛]\s*+|[\n\u2028\u2029]\s*+")
_SPACES = re.compile(r"\s++")
_LAST_WORD = re.compile(r"[^\W_]+\Z")
_REACH = 24

_TITLES = frozenset(
    "al approx bsp bzw ca cf dr eds esp gov hon hr ibid messrs mme mr mrs ms mt prof rev st univ vgl viz vs".split()
)
_BEFORE_NUMBERS = frozenset(
    "abb abs apr art aug bd cap ch chap col dec ed eq eqs feb fig figs jan jul jun lt mar max min no nos nov nr oct op"
    " pp ref refs sec sect sep sept tab vol vols".split()
)

_JOINERS = frozenset("\u200d\u034f")
_FIRST_SPECIAL = "\u0300"  # below it every character stands alone


def may_cut(text: str, at: int) -> bool:
    """Whether text[:at] and text[at:] part at `at` without tearing a character that is several code points."""
    if not 0 < at < len(text) or text[at] < _FIRST_SPECIAL:
        return True
    after, before = text[at], text[at - 1]
    if after in _JOINERS or before in _JOINERS or unicodedata.category(after) in ("Mn", "Mc", "Me"):
        return False
    if "\u1160" <= after <= "\u11ff":  # a vowel or a final of a Hangul syllable spelt in jamo
        return not "\u1100" <= before <= "\u11ff"
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f":  # skin tones, flag tags
        return False
    if "\U0001f1e6" <= after <= "\U0001f1ff":  # flags are pairs of regional indicators
        return _indicators_before(text, at) % 2 == 0
    return True


def sentence_breaks(text: str) -> dict[int, Break]:
    """The breaks inside `text` by their offsets: paragraphs, lines of tables and lists, and sentences.

    A single line end that is neither in a table nor before a list item is only wrapped text,
    and no break here. Neither 0 nor the end of the text is a break.
    """
    found: dict[int, Break] = {}
    line = 0
    for match in _NEWLINES.finditer(text):
        gap = match.group()
        if gap.count("\n") > 1 or "\u2029" in gap:
            found[match.end()] = Break.PARAGRAPH
        elif _LIST_ITEM.match(text, match.end()) or _is_row(text, line, match):
            found[match.end()] = Break.LINE
        line = match.end()
    for match in _SENTENCE_END.finditer(text):
        if match.end() not in found and _ends_sentence(text, match):
            found[match.end()] = Break.SENTENCE
    return {at: kind for at, kind in found.items() if 0 < at < len(text) and may_cut(text, at)}


def clause_breaks(text: str, start: int, end: int) -> list[int]:
    """Offsets inside text[start:end], both ends excluded, where a clause or a wrapped line begins."""
    return _inside(text, _CLAUSE_END, start, end)


def word_breaks(text: str, start: int, end: int) -> list[int]:
    """Offsets inside text[start:end], both ends excluded, where a word begins after whitespace."""
    return _inside(text, _SPACES, start, end)


def character_breaks(text: str, start: int, end: int) -> list[int]:
    """Offsets inside text[start:end], both ends excluded, that tear no character."""
    return [at for at in range(start + 1, end) if may_cut(text, at)]


def _inside(text: str, pattern: re.Pattern[str], start: int, end: int) -> list[int]:
    ends = (match.end() for match in pattern.finditer(text, start, end))
    return [at for at in ends if at < end and may_cut(text, at)]


def _indicators_before(text: str, at: int) -> int:
    """How many regional indicators stand right before `at`, looking no further back than matters."""
    count = 0
    while count < 64 and count < at and "\U0001f1e6" <= text[at - 1 - count] <= "\U0001f1ff":
        count += 1
    return count


def _is_row(text: str, line: int, newline: re.Match[str]) -> bool:
    """Whether the line text[line:newline] has cells, or the one after it begins with some."""
    if _CELL.search(text, line, newline.start() + 1):
        return True
    following = text.find("\n", newline.end(), newline.end() + 400)
    return _CELL.search(text, newline.end(), following if following >= 0 else newline.end() + 400) is not None


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    marks, closers, gap = match.groups()
    start, after = match.start(), match.end()
    if after == len(text):
        return False
    if any(mark in _OTHER_ENDS for mark in marks):
        decimal = marks == "．" and not gap and text[after].isdecimal() and text[start - 1 : start].isdecimal()
        return not decimal
    if not gap:  # Korean prose often leaves the space out; a name or a number never ends like this
        return marks == "." and not closers and text[start - 1 : start] in ("다", "요") and "가" <= text[after] <= "힣"
    if text[after].islower():
        return False
    return marks != "." or bool(closers) or not _is_abbreviation(text, start, after)


def _is_abbreviation(text: str, dot: int, after: int) -> bool:
    """Whether the full stop at `dot` follows an abbreviation, an initial, or the number of a list item."""
    word = _LAST_WORD.search(text, max(0, dot - _REACH), dot)
    if word is None:
        return False
    last = word.group()
    if last.isdecimal():
        return len(last) <= 3 and text[max(0, word.start() - 1) : word.start()] in ("", "\n")
    if len(last) == 1:
        return last.isupper() or text[word.start() - 1 : word.start()] == "."
    last = last.lower()
    return last in _TITLES or (last in _BEFORE_NUMBERS and text[after].isdecimal())
