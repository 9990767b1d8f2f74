"""Which parts of a document's text the model computes in one go, and where in them the chunks are. Pure.

A chunk's vector may be made of its own tokens alone, or, in *late chunking*, of what its tokens came to
in a longer stretch of the text: the model then knows who "she" is, and the chunk is cut out of the token
vectors (Günther et al. 2024, "Late Chunking"; for texts beyond the model's context, its "long late
chunking"). A whole document is the longest stretch there is, and gives the document's own vector.

The special tokens at a stretch's ends are the model's and no text: the first chunk of the document
takes those in front with it and the last one those behind, so that a chunk that is the whole
document has the vector that it has by itself.

A chunk that begins inside a table is in no stretch: the table's header, which its rows would mean nothing
without, stands before it only where it is embedded by itself.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.documents import Chunk, Tokenizer

WHOLE = -1
"""In the place of a chunk's ordinal: the document itself."""

LONGEST = 32_768
"""Tokens of the longest text that is computed whole, whatever the model takes: its cost grows with the square."""

USUAL = 8192
"""Where no setting says it: what is computed whole on a CPU, and the longest stretch of late chunking anywhere."""

CONTEXT = 4
"""At least 1/CONTEXT of a stretch is there for what its chunks are about, where the text does not fit into one."""

BEFORE = 0.75
"""Of that context, the share that stands before the chunks: a text refers back more often than forward."""


class Span(NamedTuple):
    """Tokens `start` to before `end` of a stretch are chunk `ordinal`, or WHOLE."""

    ordinal: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """What is computed in one go: token ids, special tokens included, and what is cut out of the result.

    Without spans, the vector of all of it is the document's own, made as every vector is.
    """

    tokens: Sequence[int]
    spans: Sequence[Span] = ()


class Extent(NamedTuple):
    """Tokens of the document's text, without special ones: `start` to before `end`."""

    start: int
    end: int


class Plan(NamedTuple):
    """A stretch `start` to before `end`, and the chunks `first` to before `last` that are cut out of it."""

    start: int
    end: int
    first: int
    last: int


def whole_document(text: str, chunks: Sequence[Chunk], tokenizer: Tokenizer, limit: int) -> Stretch | None:
    """The document as one stretch; None where it is longer than `limit` tokens, or one chunk, which is the same."""
    # Overlaps are less than half of a chunk, and prefixes are not counted, so that this spares only texts that are
    # far too long.
    if len(chunks) < 2 or sum(len(chunk.tokens) for chunk in chunks if not chunk.prefix) > 3 * limit:
        return None
    tokens = tokenizer.encode(text)
    return Stretch(tokens) if len(tokens) <= limit else None


def late_stretches(text: str, chunks: Sequence[Chunk], tokenizer: Tokenizer, limit: int) -> list[Stretch]:
    """The document in stretches of at most `limit` tokens, each chunk in one of them where it fits and has no prefix.

    None for a document that is one chunk: it has no more context than itself. A document that is one
    stretch gives its own vector as well.
    """
    if len(chunks) < 2:
        return []
    front, back = special_tokens(tokenizer)
    tokens, places = _tokenized(text, chunks, tokenizer, len(front), len(back))
    late = [(chunk.ordinal, extent) for chunk, extent in zip(chunks, places, strict=True) if not chunk.prefix]
    extents = [extent for _, extent in late]
    room = limit - len(front) - len(back)
    stretches = []
    for plan in plan_stretches(extents, len(tokens), room):
        spans = [
            Span(
                ordinal=late[number][0],
                start=extents[number].start - plan.start + (len(front) if extents[number].start else 0),
                end=extents[number].end
                - plan.start
                + len(front)
                + (len(back) if extents[number].end == len(tokens) else 0),
            )
            for number in range(plan.first, plan.last)
            if extents[number].end > extents[number].start
        ]
        content = [*front, *tokens[plan.start : plan.end], *back]
        if plan.end - plan.start == len(tokens):
            spans.append(Span(WHOLE, 0, len(content)))
        stretches.append(Stretch(content, tuple(spans)))
    return stretches


def plan_stretches(extents: Sequence[Extent], length: int, room: int) -> list[Plan]:
    """Stretches of at most `room` tokens over a text of `length` tokens, for chunks at `extents` in their order.

    Everything at once where it fits. Else as many chunks as leave 1/CONTEXT of the room for context,
    and that around them, more of it before than behind. A chunk that is longer than the room is left out.
    """
    if length <= room:
        return [Plan(0, length, 0, len(extents))]
    plans = []
    first = 0
    while first < len(extents):
        start, end = extents[first]
        last = first + 1
        if end - start > room:
            first = last
            continue
        while last < len(extents) and extents[last].end - start <= room - room // CONTEXT:
            end = max(end, extents[last].end)
            last += 1
        spare = room - (end - start)
        before = min(start, int(spare * BEFORE))
        after = min(length - end, spare - before)
        before = min(start, spare - after)
        plans.append(Plan(start - before, end + after, first, last))
        first = last
    return plans


def special_tokens(tokenizer: Tokenizer) -> tuple[Sequence[int], Sequence[int]]:
    """What the tokenizer puts before and behind every text."""
    around, sample = tokenizer.encode(""), tokenizer.encode("a")
    for front in range(len(around), 0, -1):
        back = len(around) - front
        if list(sample[:front]) == list(around[:front]) and list(sample[len(sample) - back :]) == list(around[front:]):
            return around[:front], around[front:]
    return around[:0], around


def _tokenized(
    text: str, chunks: Sequence[Chunk], tokenizer: Tokenizer, front: int, back: int
) -> tuple[list[int], list[Extent]]:
    """The tokens of the text without special ones, and which of them each chunk is.

    The text is tokenized from cut to cut, so that every chunk begins and ends between two tokens.
    """
    cuts = sorted({chunk.start for chunk in chunks} | {chunk.end for chunk in chunks})
    tokens: list[int] = []
    places = [0]
    for start, end in pairwise(cuts):
        part = tokenizer.encode(text[start:end])
        tokens += part[front : len(part) - back]
        places.append(len(tokens))
    return tokens, [
        Extent(places[bisect_left(cuts, chunk.start)], places[bisect_left(cuts, chunk.end)]) for chunk in chunks
    ]
