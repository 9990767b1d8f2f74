"""Words on PostgreSQL: a tsvector made of them without its parser, and a GIN index.

It knows in which chunks a word is, and where, but neither how rare it is nor how long chunks are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.orm import Session

from pipeline.core.words import Wanted
from pipeline.store.lexemes import as_tsvector
from pipeline.store.tables import ChunkRow, ChunkWordsRow

COUNTED = 10_000
"""Chunks with a word are counted up to so many; above that, what the planner takes for true is near enough."""

_INSERT = sa.text(
    "INSERT INTO chunk_words (chunk_id, words) SELECT id, CAST(words AS tsvector) "
    "FROM unnest(CAST(:ids AS bigint[]), CAST(:words AS text[])) AS given (id, words)"
)
_COUNT = sa.text(
    "SELECT COUNT(*) FROM (SELECT 1 FROM chunk_words WHERE words @@ CAST(:query AS tsquery) LIMIT :most) AS found"
)
_EXPLAIN = sa.text("EXPLAIN (FORMAT JSON) SELECT 1 FROM chunk_words WHERE words @@ CAST(:query AS tsquery)")


def insert(session: Session, words: Mapping[int, str]) -> None:
    """As `words_sqlite.insert`."""
    if words:
        session.execute(_INSERT, {"ids": list(words), "words": [as_tsvector(some) for some in words.values()]})


def holding(session: Session, words: Sequence[str], chunks: int) -> dict[str, int]:
    """As `words_sqlite.holding`; above `COUNTED`, the planner's estimate."""
    return {word: _holding(session, _quoted(word), chunks) for word in words}


def _holding(session: Session, query: str, chunks: int) -> int:
    counted: int = session.scalar(_COUNT, {"query": query, "most": COUNTED}) or 0
    if counted < COUNTED:
        return counted
    plan: Any = session.scalar(_EXPLAIN, {"query": query})
    return max(counted, min(int(plan[0]["Plan"]["Plan Rows"]), chunks))


def candidates(
    session: Session, asked: Wanted, sought: Mapping[str, float], within: sa.Select[int] | None, limit: int
) -> list[int]:
    """As `words_sqlite.candidates`.

    By what each word is worth, times what `ts_rank` makes of it alone: 1, 1.25, 1.36... for one that stands there once,
    twice, three times, much as BM25 has it.
    """
    words = ChunkWordsRow.words
    each = sa.literal("{1,1,1,1}").cast(sa.ARRAY(sa.REAL))
    rank = sum(
        (worth * sa.func.ts_rank(each, words, _tsquery(_quoted(word))) for word, worth in sought.items()),
        start=sa.literal(0.0),
    )
    query = sa.select(ChunkWordsRow.chunk_id).where(words.op("@@")(_tsquery(_match(asked, sought))))
    if within is not None:
        query = query.join(ChunkRow, ChunkRow.id == ChunkWordsRow.chunk_id).where(ChunkRow.content_id.in_(within))
    return list(session.scalars(query.order_by(rank.desc(), ChunkWordsRow.chunk_id).limit(limit)))


def _match(asked: Wanted, sought: Mapping[str, float]) -> str:
    positive = [" <-> ".join(map(_quoted, phrase)) for phrase in asked.phrases]
    wanted = " & ".join(f"({phrase})" for phrase in positive) or " | ".join(map(_quoted, sought))
    return f"({wanted})" + "".join(f" & !({' <-> '.join(map(_quoted, phrase))})" for phrase in asked.excluded)


def _quoted(word: str) -> str:
    """A word in tsquery's language. Words are letters, digits and marks: within quotes none of them is a part of it."""
    return f"'{word}'"


def _tsquery(query: str) -> sa.Cast[Any]:
    return sa.cast(sa.literal(query, sa.Text), TSQUERY)
