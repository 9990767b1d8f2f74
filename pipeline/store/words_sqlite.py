"""Words on SQLite: FTS5, which has BM25 of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.words import Wanted
from pipeline.store.bulk import insert_rows
from pipeline.store.tables import ChunkRow, ChunkWordsRow

_index = sa.table("chunk_words_index", sa.column("rowid", sa.Integer), sa.column("rank", sa.Float))
_terms = sa.table("chunk_words_terms", sa.column("term", sa.Text), sa.column("doc", sa.Integer))


def insert(session: Session, words: Mapping[int, str]) -> None:
    """Store the words of chunks, by their ids."""
    insert_rows(session, ChunkWordsRow, [{"chunk_id": chunk_id, "words": some} for chunk_id, some in words.items()])


def holding(session: Session, words: Sequence[str], chunks: int) -> dict[str, int]:
    """How many chunks hold each word, of `chunks` that there are."""
    query = sa.select(_terms.c.doc).where(_terms.c.term == sa.bindparam("word"))
    return {word: session.scalar(query, {"word": word}) or 0 for word in words}


def candidates(
    session: Session, asked: Wanted, sought: Mapping[str, float], within: sa.Select[int] | None, limit: int
) -> list[int]:
    """The chunks that rank first of those that hold one of the words `sought`, or all phrases.

    sought: with what each is worth. within: contents that they have to be of.
    """
    matching = sa.text("chunk_words_index MATCH :match").bindparams(match=_match(asked, sought))
    if within is None:
        query = sa.select(_index.c.rowid).where(matching).order_by(_index.c.rank)
    else:
        # The index is read once, and first: a sum is no column that another index could begin with.
        found = sa.select(_index.c.rowid, _index.c.rank).where(matching).cte("found").prefix_with("MATERIALIZED")
        of_view = (ChunkRow.content_id + 0).in_(within)
        query = sa.select(found.c.rowid).join(ChunkRow, ChunkRow.id == found.c.rowid).where(of_view)
        query = query.order_by(found.c.rank)
    return list(session.scalars(query.limit(limit)))


def _match(asked: Wanted, sought: Mapping[str, float]) -> str:
    """In FTS5's language. Words are letters, digits and marks: within quotation marks none of them is a part of it."""
    positive = [" ".join(phrase) for phrase in asked.phrases]
    wanted = " AND ".join(f'"{phrase}"' for phrase in positive) or " OR ".join(f'"{word}"' for word in sought)
    return f"({wanted})" + "".join(f' NOT "{" ".join(phrase)}"' for phrase in asked.excluded)
