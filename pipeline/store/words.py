"""Search by words: what the database finds by its index, ranked by BM25, with the same answers on every database.

What a word is, and what a question wants, is decided in `core.words`; what the words of a chunk weigh, in `core.bm25`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core import bm25
from pipeline.core.words import Wanted, indexed, wanted
from pipeline.store import words_postgres, words_sqlite
from pipeline.store.contents import IN_CLAUSE
from pipeline.store.tables import HAS_CHUNKS, ChunkRow, ContentRow
from pipeline.store.view import View, searched_contents

CANDIDATES = 300
"""At least so many of the chunks that the database ranks first are ranked by BM25."""

FOR_EACH = 4
"""Chunks that are ranked for each that is wanted, and that hold the words that are looked for at first."""

FEW = 2_000
"""In so many chunks, no word is common."""


@dataclass(frozen=True, slots=True)
class TextMatch:
    """A chunk that holds words of a question. terms: what each of them adds to its score.

    coverage: how much of the question they are, from 0 to 1, each word by its rarity; one that no chunk has is the
    rarest. Of a question with phrases all: who has these has what was asked for.
    """

    chunk_id: int
    score: float
    terms: Mapping[str, float]
    coverage: float


@dataclass(frozen=True, slots=True)
class _Statistics:
    """Of all chunks that there are, whatever is searched. length: in tokens, of one on average."""

    chunks: int
    length: float
    holding: Mapping[str, int]

    def rarities(self, words: Sequence[str]) -> dict[str, float]:
        return {word: bm25.rarity(self.chunks, self.holding[word]) for word in words}


def store_words(session: Session, texts: Mapping[int, Sequence[str]]) -> None:
    """Make chunks found by the words of their texts: headings, prefix, text. By their ids."""
    _of(session).insert(session, {chunk_id: indexed(some) for chunk_id, some in texts.items()})


def matching_chunks(session: Session, question: str, view: View, k: int) -> list[TextMatch]:
    """The `k` chunks in view that answer best to the words of a question, best first; among equals the smallest id.

    A chunk answers that has one of the words; or, where the question has phrases, all of these; and nothing that it
    excludes. Words of more than half of all chunks do not count for that where there are others.
    """
    asked = wanted(question)
    if k < 1 or not asked.words:
        return []
    known = _statistics(session, asked.words)
    words = [word for word in sorted(asked.words, key=lambda word: (known.holding[word], word)) if known.holding[word]]
    if not words:
        return []
    if asked.phrases:
        return _best(session, asked, words, words, known, view, k)
    rare = [word for word in words if known.holding[word] <= max(FEW, known.chunks) / 2] or words
    sought = 1
    while True:  # the rarest words first: the others hardly ever bring up a chunk that has none of these
        while sought < len(rare) and sum(known.holding[word] for word in rare[:sought]) < FOR_EACH * k:
            sought += 1
        found = _best(session, asked, rare[:sought], words, known, view, k)
        left_out = bm25.most(known.rarities([word for word in words if word not in rare[:sought]]))
        if sought == len(rare) or (len(found) == k and found[-1].score > left_out):
            return found
        sought += 1


def _best(
    session: Session, asked: Wanted, sought: Sequence[str], words: Sequence[str], known: _Statistics, view: View, k: int
) -> list[TextMatch]:
    """The best of the chunks that hold one of the words `sought`, or the phrases; scored by all `words`."""
    rarities = known.rarities(words)
    all_of_it = sum(known.rarities(asked.words).values())

    def coverage(held: Iterable[str]) -> float:
        return 1.0 if asked.phrases else min(1.0, sum(rarities[word] for word in held) / all_of_it)

    found = [
        TextMatch(chunk_id, sum(shares.values()), shares, coverage(shares))
        for chunk_id, length, texts in _candidates(
            session, asked, known.rarities(sought), view, max(CANDIDATES, FOR_EACH * k)
        )
        if (shares := bm25.shares(Counter(indexed(texts).split()), rarities, length, known.length))
    ]
    return sorted(found, key=lambda match: (-match.score, match.chunk_id))[:k]


def _candidates(
    session: Session, asked: Wanted, sought: Mapping[str, float], view: View, limit: int
) -> list[tuple[int, int, list[str]]]:
    """Chunks in view, each with its length and its texts.

    Most of what is found is in view, mostly: to look at each match would take far longer than to rank them.
    """
    find = _of(session).candidates
    if view.filter.wants_all:
        ids = find(session, asked, sought, None, 2 * limit)
        seen = _in_view(session, ids, view)
        if len(ids) < 2 * limit or len(seen) >= limit:
            return _read(session, [chunk_id for chunk_id in ids if chunk_id in seen][:limit])
    return _read(session, find(session, asked, sought, searched_contents(view), limit))


def _in_view(session: Session, ids: Sequence[int], view: View) -> set[int]:
    """Those of some chunks whose contents are searched: these are looked up, not all contents that are."""
    of = dict[int, int]()
    for some in _parts(ids):
        found = session.execute(sa.select(ChunkRow.id, ChunkRow.content_id).where(ChunkRow.id.in_(some)))
        of |= {chunk_id: content_id for chunk_id, content_id in found}  # noqa: C416  # dict() takes a result for a mapping
    searched = set[int]()
    for some in _parts(sorted(set(of.values()))):
        searched.update(session.scalars(searched_contents(view).where(ContentRow.id.in_(some))))
    return {chunk_id for chunk_id, content_id in of.items() if content_id in searched}


def _read(session: Session, ids: Sequence[int]) -> list[tuple[int, int, list[str]]]:
    rows = list[tuple[int, int, list[str]]]()
    query = sa.select(ChunkRow.id, ChunkRow.token_count, ChunkRow.headings, ChunkRow.prefix, ChunkRow.text)
    for some in _parts(ids):
        for chunk_id, length, headings, prefix, text in session.execute(query.where(ChunkRow.id.in_(some))):
            rows.append((chunk_id, length, [*headings, prefix, text]))
    return rows


def _parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + IN_CLAUSE] for start in range(0, len(ids), IN_CLAUSE))


def _statistics(session: Session, words: Sequence[str]) -> _Statistics:
    measured = ContentRow.token_count > 0
    chunks, of_known, tokens = session.execute(
        sa.select(
            sa.func.coalesce(sa.func.sum(ContentRow.chunk_count), 0),
            sa.func.coalesce(sa.func.sum(sa.case((measured, ContentRow.chunk_count), else_=0)), 0),
            sa.func.coalesce(sa.func.sum(ContentRow.token_count), 0),
        ).where(HAS_CHUNKS)
    ).one()
    holding = _of(session).holding(session, words, int(chunks))
    return _Statistics(int(chunks), int(tokens) / max(int(of_known), 1), holding)


def _of(session: Session) -> ModuleType:
    return words_postgres if session.get_bind().dialect.name == "postgresql" else words_sqlite
