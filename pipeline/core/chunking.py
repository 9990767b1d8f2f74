"""Cuts a document's text into chunks of at most so many tokens, at the best places there are.

The text is first parted into pieces (sentences; smaller where a sentence is too long), each of
which is counted once. Pieces are then put together greedily, section by section, and each
finished chunk is counted as a whole: a tokenizer may make more or fewer tokens of two pieces
together than of each alone, so the counts of pieces only guide and the count of the whole decides.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from pipeline.core.documents import Chunk, Extracted
from pipeline.core.outline import Outline, Prefixes
from pipeline.core.segmentation import (
    Break,
    character_breaks,
    clause_breaks,
    may_cut,
    sentence_breaks,
    word_breaks,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.core.documents import Tokenizer

MIN_ROOM = 8
"""Tokens that a limit must leave beside the special ones."""

CHARACTERS_PER_TOKEN = 16
"""A token stands for no more characters than this when pieces are weighed.

A word that the vocabulary does not know is one token however long it is; without this measure a
megabyte of such a script would be one chunk. Prose has three to six characters a token.
"""

TINY = 8
"""A section below 1/TINY of the limit shares a chunk with the next one."""

_UNCOUNTED = 8
"""A piece longer than this many characters a token of the limit is divided before it is counted."""

_PREFIX_SHARE = 3
"""The header of a table may take one part in so many of the room in a chunk; a longer one is not repeated."""

_LONGEST_CHARACTER = 32
"""Code points; families with skin tones and stacked vowel signs stay below it."""

_GOOD_FILL = {
    Break.HEADING: 0.5,
    Break.PARAGRAPH: 0.5,
    Break.LINE: 0.65,
    Break.SENTENCE: 0.65,
    Break.CLAUSE: 0.8,
    Break.WORD: 0.9,
    Break.CHARACTER: 1.0,
}
"""From which share of the room on a chunk ends at such a break rather than go on to a lesser one."""


class _Piece(NamedTuple):
    """text[start:end], the break before it, its weight in tokens, and whether it is a heading's line."""

    start: int
    end: int
    kind: Break
    weight: int
    heading: bool


def chunk(document: Extracted, tokenizer: Tokenizer, *, limit: int, overlap: int) -> list[Chunk]:
    """The chunks of `document` in order, ordinals from 0; none where there is only whitespace.

    limit: most tokens of a chunk as `tokenizer` counts them, special tokens included.
    overlap: most tokens, without special ones, that a chunk repeats of the one before it. Nothing
        is repeated across a heading, nor more than the one chunk before.

    Every character is in at least one chunk; whitespace belongs to what it follows. A chunk that
    begins among the rows of a table is counted, and later embedded, with the table's header before
    it, where that leaves room for rows. Raises
    ValueError where the limit leaves no room, the overlap is half the limit or more, or one
    character alone makes more tokens than fit.
    """
    room = limit - len(tokenizer.encode(""))
    if room < MIN_ROOM:
        raise ValueError(f"a limit of {limit} tokens leaves room for {room} beside the special ones, not {MIN_ROOM}")
    if not 0 <= overlap * 2 < limit:
        raise ValueError(f"an overlap of {overlap} tokens is not between 0 and half the limit of {limit}")
    if not document.text or document.text.isspace():
        return []
    return _Chunker(document, tokenizer, limit, room, overlap).run()


class _Chunker:
    def __init__(self, document: Extracted, tokenizer: Tokenizer, limit: int, room: int, overlap: int) -> None:
        self.text = document.text
        self.tokenizer = tokenizer
        self.limit = limit
        self.room = room
        self.special = limit - room
        self.overlap = overlap
        self.outline = Outline(document)
        self.chunks: list[Chunk] = []
        self.tables = Prefixes(document)
        self.prefix_tokens: dict[str, int] = {"": 0}

    def run(self) -> list[Chunk]:
        for group in self._groups():
            self._fill(deque(group))
        return self.chunks

    # Weighing

    def _encode(self, start: int, end: int) -> Sequence[int]:
        return self.tokenizer.encode(self.text[start:end])

    def _encode_whole(self, start: int, end: int) -> Sequence[int]:
        """As `_encode`, with what stands before a chunk that begins at `start`."""
        return self.tokenizer.encode(self._prefix(start) + self.text[start:end])

    def _prefix(self, start: int) -> str:
        prefix = self.tables.at(start)
        return prefix if self._tokens_of(prefix) * _PREFIX_SHARE <= self.room else ""

    def _tokens_of(self, prefix: str) -> int:
        if prefix not in self.prefix_tokens:
            self.prefix_tokens[prefix] = len(self.tokenizer.encode(prefix)) - self.special
        return self.prefix_tokens[prefix]

    def _count(self, start: int, end: int) -> int:
        return max(0, len(self._encode(start, end)) - self.special) if end > start else 0

    def _weight(self, start: int, end: int, count: int) -> int:
        return max(count, len(self.text[start:end].strip()) // CHARACTERS_PER_TOKEN)

    # Pieces

    def _groups(self) -> Iterator[list[_Piece]]:
        """The pieces of the sections; sections with little text of their own join the next one."""
        breaks = sentence_breaks(self.text)
        for section in self.outline.sections:
            breaks[section.start] = Break.HEADING
            if section.line_end < section.end:
                breaks[section.line_end] = min(Break.LINE, breaks.get(section.line_end, Break.LINE))
        starts = sorted(breaks.keys() | {0})
        group: list[_Piece] = []
        prose = 0
        for section in self.outline.sections:
            if prose * TINY >= self.limit:
                yield group
                group, prose = [], 0
            inside = starts[bisect_left(starts, section.start) : bisect_left(starts, section.end)]
            for start, end in pairwise([*inside, section.end]):
                pieces = self._pieces(start, end, breaks[start], heading=end <= section.line_end)
                prose += sum(piece.weight for piece in pieces if not piece.heading)
                group += pieces
        yield group

    def _pieces(self, start: int, end: int, kind: Break, *, heading: bool) -> list[_Piece]:
        """text[start:end] as one piece, or as many as it takes for each to fit."""
        if end - start <= self.limit * _UNCOUNTED:
            weight = self._weight(start, end, self._count(start, end))
            if weight <= self.room:
                return [_Piece(start, end, kind, weight, heading)]
        return self._divided(start, end, kind, heading=heading)

    def _divided(self, start: int, end: int, kind: Break, *, heading: bool) -> list[_Piece]:
        """text[start:end] in at least two pieces: by clauses, else by a few words, else by characters."""
        inner, places = Break.CLAUSE, clause_breaks(self.text, start, end)
        if not places:
            inner, places = Break.WORD, _spread(word_breaks(self.text, start, end), start, self.limit // 4)
        if not places:
            return self._torn(start, end, kind, heading=heading)
        pieces: list[_Piece] = []
        for a, b in pairwise([start, *places, end]):
            pieces += self._pieces(a, b, inner if pieces else kind, heading=heading)
        return pieces

    def _torn(self, start: int, end: int, kind: Break, *, heading: bool) -> list[_Piece]:
        """One word, cut between characters into pieces of an eighth of the room."""
        pieces: list[_Piece] = []
        target = max(1, self.room // 8)
        at, size = start, target
        while at < end:
            cut, weight = self._torn_end(at, min(end, at + size), end, target)
            pieces.append(_Piece(at, cut, Break.CHARACTER if pieces else kind, weight, heading))
            size = min(self.limit * _UNCOUNTED, max(1, (cut - at) * target // max(1, weight)), (cut - at) * 4)
            at = cut
        return pieces

    def _torn_end(self, at: int, cut: int, end: int, target: int) -> tuple[int, int]:
        """Where the piece that begins at `at` ends, `cut` at most save for what must stay together; its weight."""
        cut = _untorn(self.text, at, cut, end)
        while True:
            weight = self._weight(at, cut, self._count(at, cut))
            if weight <= target or (weight <= self.room and _untorn(self.text, at, cut - 1, end) >= cut):
                break
            if cut - at == 1:
                raise ValueError(
                    f"the character {self.text[at:cut]!r} alone makes {weight} tokens, and the limit leaves {self.room}"
                )
            smaller = at + max(1, min(cut - at - 1, (cut - at) * target // weight))
            untorn = _untorn(self.text, at, smaller, end)
            cut = untorn if untorn < cut else smaller
        if cut < end and end - cut <= self.limit and self.text[cut:end].isspace():
            whole = self._weight(at, end, self._count(at, end))
            if whole <= self.room:
                return end, whole
        return cut, weight

    # Chunks

    def _fill(self, pieces: deque[_Piece]) -> None:
        left = sum(piece.weight for piece in pieces)
        taken: list[_Piece] = []  # the pieces of the chunk before, of the same group
        while pieces:
            core = pieces[0].start
            start = self._overlap_start(taken, core) if taken else core
            repeated = self._count(start, core) + self._tokens_of(self._prefix(start))
            if repeated + pieces[0].weight > self.room:
                start, repeated = core, self._tokens_of(self._prefix(core))
            if repeated + pieces[0].weight > self.room:
                repeated = 0
                self.tables.leave_out(core)
            room = self.room - repeated
            if room < left < room + room // 4:
                room = min(room, left * 5 // 8)  # two even chunks, rather than a full one and a remnant
            number = _choose_end(pieces, room)
            while number < len(pieces) and (finer := self._finer(pieces, number, room)):
                left += sum(piece.weight for piece in finer) - pieces[number].weight
                pieces.rotate(-number)
                pieces.popleft()
                pieces.extendleft(reversed(finer))
                pieces.rotate(number)
                number = _choose_end(pieces, room)
            taken = self._emit(pieces, number, start, repeated)
            left -= sum(piece.weight for piece in taken)

    def _finer(self, pieces: deque[_Piece], number: int, room: int) -> list[_Piece]:
        """The parts of the piece after `number`, where that is so large that the chunk before it is almost empty."""
        head = [pieces[i] for i in range(number)]
        filled = sum(piece.weight for piece in head)
        following = pieces[number]
        too_little = filled * 4 < room or all(piece.heading for piece in head)
        if not too_little or filled + following.weight <= room or following.end - following.start < 2:
            return []
        finer = self._divided(following.start, following.end, following.kind, heading=following.heading)
        return finer if len(finer) > 1 else []

    def _emit(self, pieces: deque[_Piece], number: int, start: int, repeated: int) -> list[_Piece]:
        """Takes about `number` pieces for a chunk: as many as fit when they are counted together."""
        core = pieces[0].start
        weights = [pieces[i].weight for i in range(number)]
        guess = repeated + sum(weights)
        tokens = self._encode_whole(start, pieces[number - 1].end)
        actual = self._weight(start, pieces[number - 1].end, len(tokens) - self.special)
        if number < len(pieces) and actual * 5 < guess * 4:
            scaled = self.room * guess // max(1, actual, guess // 4) - repeated
            number, tokens = self._extended(pieces, number, start, scaled, tokens)
        room = sum(weights) - (len(tokens) - self.limit)
        while len(tokens) > self.limit:
            if number > 1:
                number = min(number - 1, _choose_end(pieces, room))
                room = room * 3 // 4
            elif start < core:
                start = core
            elif self._prefix(start):
                self.tables.leave_out(start)
            else:  # cannot be with a tokenizer that counts the same text alike each time
                raise ValueError(f"{self.text[start : start + 40]!r}... makes {len(tokens)} tokens now, fewer before")
            tokens = self._encode_whole(start, pieces[number - 1].end)
        taken = [pieces.popleft() for _ in range(number)]
        self._append(start, taken[-1].end, tokens)
        return taken

    def _extended(
        self, pieces: deque[_Piece], number: int, start: int, room: int, tokens: Sequence[int]
    ) -> tuple[int, Sequence[int]]:
        """More pieces, where together they make far fewer tokens than each alone; one try."""
        more = _choose_end(pieces, room)
        if more > number:
            longer = self._encode_whole(start, pieces[more - 1].end)
            if len(longer) <= self.limit:
                return more, longer
        return number, tokens

    def _overlap_start(self, taken: Sequence[_Piece], core: int) -> int:
        """Where the chunk after `taken` begins: whole sentences back, else clauses, words, characters."""
        if not self.overlap:
            return core
        lowest = max(
            taken[0].start,
            self.chunks[-1].start + 1,
            self.outline.heading_before(core),
            core - self.overlap * CHARACTERS_PER_TOKEN * 2,
        )
        for places in self._overlap_places(taken, lowest, core):
            index = bisect_left(places, x=True, key=lambda at: self._count(at, core) <= self.overlap)
            if index < len(places):
                return places[index]
        return core

    def _overlap_places(self, taken: Sequence[_Piece], lowest: int, core: int) -> Iterator[list[int]]:
        """Where an overlap may begin, the best kind of places first."""
        yield [piece.start for piece in taken if piece.kind <= Break.SENTENCE and piece.start >= lowest]
        yield clause_breaks(self.text, lowest, core)
        yield word_breaks(self.text, lowest, core)
        yield character_breaks(self.text, lowest, core)

    def _append(self, start: int, end: int, tokens: Sequence[int]) -> None:
        text = self.text[start:end]
        first, last = start, start
        if not text.isspace():
            first += len(text) - len(text.lstrip())
            last += len(text.rstrip()) - 1
        page_first, page_last = self.outline.pages(first, last)
        self.chunks.append(
            Chunk(
                ordinal=len(self.chunks),
                start=start,
                end=end,
                text=text,
                page_first=page_first,
                page_last=page_last,
                headings=self.outline.path(first, last),
                tokens=tokens,
                prefix=self._prefix(start),
            )
        )


def _spread(places: Sequence[int], start: int, distance: int) -> list[int]:
    """Those of `places` that are at least `distance` after the one before, or else all of them."""
    kept: list[int] = []
    last = start
    for place in places:
        if place - last >= distance:
            kept.append(place)
            last = place
    return kept or list(places)


def _untorn(text: str, at: int, cut: int, end: int) -> int:
    """The last place up to `cut`, else the first one soon after it, to part text[at:end] and tear no character.

    Where a character goes on for longer than any in use, `cut` it is, but after `at`.
    """
    for place in range(cut, at, -1):
        if place == end or may_cut(text, place):
            return place
    cut = max(cut, at + 1)
    for place in range(cut, min(end, cut + _LONGEST_CHARACTER)):
        if may_cut(text, place):
            return place
    return end if end <= cut + _LONGEST_CHARACTER else cut


def _choose_end(pieces: Sequence[_Piece] | deque[_Piece], room: int) -> int:
    """How many of `pieces`, at least one, make the next chunk of at most `room` tokens.

    All, where they fit. Else up to the latest break of the best kind that fills enough of the
    room, else as many as fit. A heading is not parted from what follows it where that can be helped.
    """
    filled, fitting = 0, 0
    best: tuple[Break, int] | None = None
    last_heading = False
    for number, piece in enumerate(pieces):
        if number and not last_heading:
            fitting = number
            if filled >= room * _GOOD_FILL[piece.kind] and (best is None or piece.kind <= best[0]):
                best = piece.kind, number
        if filled + piece.weight > room:
            return best[1] if best else max(1, fitting or number)
        filled += piece.weight
        last_heading = piece.heading
    return len(pieces)
