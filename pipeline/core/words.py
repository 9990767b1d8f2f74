"""What a word is, for search: the same on every database, because it is decided here and nowhere else.

Letters of any case and with any accent are the same; letters and digits make words, and everything else separates them.
Scripts without spaces between words (Chinese, Japanese, Thai, ...) are cut into single characters and pairs. Nothing is
stemmed, for that needs to know the language.

Each character becomes its piece by itself, whatever stands beside it. So what is found can be shown in the text as it
was written, character for character.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

BORDER = "\u241f"
"""Stands between texts that are indexed together, so that no phrase reaches from one into the next. It is no word."""

LONGEST = 128
"""Characters of a word; what is longer is cut, in the index as in the question. A SHA-512 in hexadecimal has 128."""

MOST_BYTES = 700_000
"""Of a chunk's words together; words after that are not found. PostgreSQL takes 1 MB for them, positions included."""

MOST_WORDS = 64
"""Different words of a question that are looked for, and words of a phrase; those after that are not."""

MOST_PHRASES = 16
"""Phrases of a question, and as many that are excluded."""

_LETTERS = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ħ": "h", "ŧ": "t", "ı": "i", "æ": "ae", "œ": "oe"})  # noqa: RUF001  # that is the letter meant
"""Letters that people leave the accent off, too, though Unicode takes it for a part of the letter."""

_ZERO_WIDTH_SPACE = "\u200b"
_VARIATION = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")

_UNSPACED = re.compile(
    "[\u3005-\u3007\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3105-\u312f\u31a0-\u31bf"  # Chinese
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff]+"  # Thai, Lao, Burmese, Khmer
)


class _Pieces(dict[int, str]):
    """What each character becomes: nothing, a part of a word, or a space."""

    def __missing__(self, code: int) -> str:
        piece = self[code] = _piece(chr(code))
        return piece


def _piece(character: str) -> str:
    category = unicodedata.category(character)
    if _VARIATION.match(character) or (category == "Cf" and character != _ZERO_WIDTH_SPACE):
        return ""  # a soft hyphen, a joiner, a mark of direction
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold().translate(_LETTERS))
    piece = "".join(_kept(one) for one in folded)
    return f" {piece} " if category[0] == "S" else piece


def _kept(character: str) -> str:
    kind = unicodedata.category(character)[0]
    if kind == "M":
        return "" if _is_accent(character) else character
    return character if character.isalnum() or kind in "LN" else " "


def _is_accent(mark: str) -> bool:
    """Whether a mark may be left off: the vowels of Indian scripts, and what voices a kana, may not."""
    kind = unicodedata.combining(mark)
    return kind == 1 or 10 <= kind <= 36 or kind >= 200


_pieces = _Pieces()


def _runs(text: str) -> list[str]:
    """Normalized words, those of scripts without spaces not yet cut."""
    pieces = text.translate(_pieces)
    return (pieces if pieces.isascii() else unicodedata.normalize("NFC", pieces)).split()


def _cut(run: str, *, singles: bool) -> Iterator[tuple[str, int, int]]:
    """The words of a run, each with from where to before where it is in it.

    singles: single characters of scripts without spaces, too, beside pairs of them.
    """
    if run.isascii():
        yield run[:LONGEST], 0, len(run)
        return
    if not any(map(str.isalnum, run)):
        return
    at = 0
    for part in _UNSPACED.finditer(run):
        start, end = part.span()
        if at < start:
            yield run[at : min(start, at + LONGEST)], at, start
        for place in range(start, end):
            if singles or end - start == 1:
                yield run[place], place, place + 1
            if place + 1 < end:
                yield run[place : place + 2], place, place + 2
        at = end
    if at < len(run):
        yield run[at : at + LONGEST], at, len(run)


def _words(text: str, *, singles: bool) -> list[str]:
    runs = _runs(text)
    if text.isascii() and max(map(len, runs), default=0) <= LONGEST:
        return runs
    return [word for run in runs for word, _, _ in _cut(run, singles=singles)]


def indexed(texts: Iterable[str]) -> str:
    """All words of a chunk's texts in their order, as they are stored: with a space between them.

    Empty texts are left out; between two others is `BORDER`. At most `MOST_BYTES`, in UTF-8 and with their positions.
    """
    joined = f" {BORDER} ".join(" ".join(_words(text, singles=True)) for text in texts if text)
    if 4 * len(joined) + 12 * joined.count(" ") <= MOST_BYTES:
        return joined
    kept, left = list[str](), MOST_BYTES
    for word in joined.split():
        left -= len(word.encode()) + 12
        if left < 0:
            break
        kept.append(word)
    return " ".join(kept)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a question wants: one of the words, or all phrases where there are some, and nothing that is excluded.

    words: each once, in their order, those of the phrases among them. phrases, excluded: each the words that follow
    each other, as they are stored.
    """

    words: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...] = ()
    excluded: tuple[tuple[str, ...], ...] = ()


_QUOTED = "|".join(
    f"{first}([^{first}{last}]*){last}"
    for first, last in (('"', '"'), ("\u201c", "\u201d"), ("\u201e", "\u201c"), ("«", "»"))
)
_PART = re.compile(rf"(?<!\S)(-?)(?:{_QUOTED})(?!\w)|(?<!\S)-([^\W\d_]\S*)")
"""A phrase in quotation marks, with a minus or not, or a word with one; each stands after a space, or first."""


def wanted(question: str) -> Wanted:
    """Read a question: words, "phrases" in quotation marks, and -words or -"phrases" that are not wanted.

    A minus before a digit, or within a word, is none; nor is a mark of inches a quotation mark.
    """
    phrases, excluded, said, at = list[tuple[str, ...]](), list[tuple[str, ...]](), list[str](), 0
    for part in _PART.finditer(question):
        said.append(question[at : part.start()])
        at = part.end()
        quoted = next((group for group in part.groups()[1:] if group is not None), "")
        phrase = tuple(_words(quoted, singles=True))[:MOST_WORDS]
        if not phrase:
            continue
        if part.group().startswith("-"):
            excluded.append(phrase)
            continue
        said.append(quoted)
        if len(phrase) > 1:
            phrases.append(phrase)
    said.append(question[at:])
    words = tuple(dict.fromkeys(_words(" ".join(said), singles=False)))
    return Wanted(words[:MOST_WORDS], tuple(phrases[:MOST_PHRASES]), tuple(excluded[:MOST_PHRASES]))


def without_excluded(question: str) -> str:
    """What a question asks for, without the words and phrases that it excludes: these would be a part of its meaning.

    All of it where nothing else is left.
    """
    said = _PART.sub(lambda part: "" if part.group().startswith("-") else part.group(), question)
    return said if said.strip() else question


def terms(text: str) -> list[str]:
    """The words that a question wants, each once, in their order."""
    return list(wanted(text).words)


def occurrences(text: str, terms: Collection[str]) -> list[tuple[str, int, int]]:
    """Where words stand in a text: each with its first character and the one after its last, in their order."""
    sought, found = frozenset(terms), list[tuple[str, int, int]]()
    if not sought:
        return found
    for run, places in _placed_runs(text):
        for word, start, end in _cut(run, singles=True):
            if word in sought:
                found.append((word, places[start][0], _after_accents(text, places[end - 1][1])))
    return found


def _placed_runs(text: str) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """As `_runs`, each with what of `text` each of its characters is made of: from where to before where."""
    letters, places = list[str](), list[int]()
    for place, character in enumerate(text):
        for letter in _pieces[ord(character)]:
            if letter != " ":
                letters.append(letter)
                places.append(place)
            elif letters:
                yield _composed("".join(letters), places)
                letters, places = [], []
    if letters:
        yield _composed("".join(letters), places)


def _composed(run: str, places: list[int]) -> tuple[str, list[tuple[int, int]]]:
    composed = unicodedata.normalize("NFC", run)
    made_of, at = list[tuple[int, int]](), 0
    for character in composed:
        parts = places[at : at + len(unicodedata.normalize("NFD", character))]
        made_of.append((min(parts), max(parts) + 1))
        at += len(parts)
    return composed, made_of


def _after_accents(text: str, end: int) -> int:
    while end < len(text) and unicodedata.category(text[end])[0] == "M" and not _pieces[ord(text[end])]:
        end += 1
    return end


def spans(text: str, terms: Collection[str]) -> list[tuple[int, int]]:
    """What of a text to highlight: from which character to before which, in their order, apart from each other."""
    merged = list[tuple[int, int]]()
    for _, start, end in sorted(occurrences(text, terms), key=lambda found: found[1:]):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def excerpt(text: str, terms: Collection[str], length: int) -> tuple[int, int]:
    """The window of a text, at most `length` characters, with most of the words: most different ones, then most of all.

    It is around what it holds, and begins and ends between words where there are spaces nearby. The first of its kind.
    """
    if len(text) <= length:
        return 0, len(text)
    found = occurrences(text, terms)
    first, last = _densest(found, length) if found else (0, 0)
    start = max(0, min(first - max(0, length - (last - first)) // 2, len(text) - length))
    return _between_words(text, start, start + length, first, min(last, start + length))


def _densest(found: list[tuple[str, int, int]], length: int) -> tuple[int, int]:
    """From the first word to after the last of the best window."""
    best, chosen, stop = (0, 0), found[0][1:], 0
    inside: dict[str, int] = {}
    for number, (word, start, end) in enumerate(found):
        while stop < len(found) and found[stop][2] - start <= length:
            inside[found[stop][0]] = inside.get(found[stop][0], 0) + 1
            stop += 1
        if stop <= number:  # longer than the window by itself
            stop = number + 1
            continue
        if (score := (len(inside), stop - number)) > best:
            best, chosen = score, (start, max(end, found[stop - 1][2]))
        inside[word] -= 1
        if not inside[word]:
            del inside[word]
    return chosen


def _between_words(text: str, start: int, end: int, first: int, last: int) -> tuple[int, int]:
    """The window without the parts of words at its ends, which keeps what is from `first` to before `last`."""
    if start > 0 and not text[start - 1].isspace():
        space = next((place for place in range(start, first) if text[place].isspace()), None)
        start = start if space is None else space
    if end < len(text) and not text[end].isspace():
        space = next((place for place in range(end - 1, last - 1, -1) if text[place].isspace()), None)
        end = end if space is None else space
    while start < first and text[start].isspace():
        start += 1
    while end > max(last, start) and text[end - 1].isspace():
        end -= 1
    return start, end
