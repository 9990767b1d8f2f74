"""The index of words: whether every chunk is in it, and a sample of them with its own words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.verifying import Disagreement, spread_sample
from pipeline.core.words import indexed
from pipeline.store.contents import IN_CLAUSE
from pipeline.store.lexemes import as_tsvector
from pipeline.store.tables import ChunkRow, ChunkWordsRow
from pipeline.store.words import store_words

BLOCK = 4096
SAMPLE = 1000
"""Chunks whose words are made again, to be compared with those that are kept."""

_sizes = sa.table("chunk_words_index_docsize", sa.column("id", sa.BigInteger))
"""Of SQLite's FTS5: a row for each chunk that is in the index."""


def indexed_chunks(session: Session) -> Iterator[Disagreement]:
    """Every chunk has its words, and nothing else has; what SQLite has indexed is just that."""
    words, chunks, sizes = ChunkWordsRow.chunk_id, ChunkRow.id, _sizes.c.id
    for chunk_id in _without(session, chunks, words):
        yield Disagreement("text-index", "no words are kept", "those of the chunk", {"chunk": chunk_id})
    for chunk_id in _without(session, words, chunks):
        yield Disagreement("text-index", "words of no chunk", "none", {"chunk": chunk_id})
    if _is_sqlite(session):
        for chunk_id in _without(session, words, sizes):
            yield Disagreement("text-index", "is not in the index", "in the index", {"chunk": chunk_id})
        for chunk_id in _without(session, sizes, words):
            yield Disagreement("text-index", "the index has a chunk that is not there", "none", {"chunk": chunk_id})


def words_of_chunks(session: Session, size: int, seed: int) -> Iterator[Disagreement]:
    """Of a sample of chunks: the words that are kept are those of its text, and the index leads to it by them."""
    ids = spread_sample(list(session.scalars(sa.select(ChunkRow.id).order_by(ChunkRow.id))), size, seed)
    for start in range(0, len(ids), IN_CLAUSE):
        for chunk_id, texts in _texts(session, ids[start : start + IN_CLAUSE]):
            words = indexed(texts)
            if not _kept(session, chunk_id, words):
                yield Disagreement("text-index", "other words are kept", "those of its text", {"chunk": chunk_id})
            elif _is_sqlite(session) and not _leads_to(session, chunk_id, words):
                yield Disagreement("text-index", "is not found by its own words", "found", {"chunk": chunk_id})


def mend_words(session: Session, chunk_ids: Sequence[int]) -> None:
    """Make SQLite's index anew, of the words that are kept; then keep those of these chunks anew."""
    if _is_sqlite(session):
        session.execute(sa.text("INSERT INTO chunk_words_index (chunk_words_index) VALUES ('rebuild')"))
    for start in range(0, len(chunk_ids), IN_CLAUSE):
        some = list(chunk_ids[start : start + IN_CLAUSE])
        session.execute(sa.delete(ChunkWordsRow).where(ChunkWordsRow.chunk_id.in_(some)))
        store_words(session, dict(_texts(session, some)))


def _without(session: Session, wanted: Any, other: Any) -> Iterator[int]:
    """The values of one column that another one has not."""
    query = sa.select(wanted).where(~sa.exists().where(other == wanted)).order_by(wanted)
    yield from session.scalars(query.execution_options(yield_per=BLOCK))


def _texts(session: Session, ids: Sequence[int]) -> list[tuple[int, list[str]]]:
    """Chunks with what words are kept of."""
    query = sa.select(ChunkRow.id, ChunkRow.headings, ChunkRow.prefix, ChunkRow.text).where(ChunkRow.id.in_(ids))
    rows = session.execute(query.order_by(ChunkRow.id)).all()
    return [(chunk_id, [*headings, prefix, text]) for chunk_id, headings, prefix, text in rows]


def _kept(session: Session, chunk_id: int, words: str) -> bool:
    """Whether these words are kept of a chunk; of one without a row that is told of elsewhere."""
    same = sa.text(f"SELECT words = {_value(session)} FROM chunk_words WHERE chunk_id = :id")  # noqa: S608
    value = words if _is_sqlite(session) else as_tsvector(words)
    return session.scalar(same, {"id": chunk_id, "words": value}) in (True, 1, None)


def _leads_to(session: Session, chunk_id: int, words: str) -> bool:
    longest = max(words.split(), key=len, default="")
    if not longest.isalnum():
        return True
    found = sa.text("SELECT 1 FROM chunk_words_index WHERE chunk_words_index MATCH :word AND rowid = :id")
    return session.scalar(found, {"word": f'"{longest}"', "id": chunk_id}) is not None


def _value(session: Session) -> str:
    return ":words" if _is_sqlite(session) else "CAST(:words AS tsvector)"


def _is_sqlite(session: Session) -> bool:
    return session.get_bind().dialect.name == "sqlite"
