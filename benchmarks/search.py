"""Search by vectors on SQLite: `python -m benchmarks.search --rows 1000000`.

A database of this program's tables, ten chunks of about 600 characters a document, is filled with unit vectors of 384
numbers. They are made of real ones: sentences of the standard library's documentation, embedded by the model that
ships, and for the rest one of these plus half the difference of two others, which keeps how they spread and cluster.
(Noise would be as far from everything as from everything else.) The questions are real ones that are not in the set.

Each way of nearest_chunks is asked the same questions, in one process, with its transaction and all it takes; the file
is in the page cache. The processor's time, of all threads together, says more than the clock where the machine is busy.
Recall is of the ten nearest that an exact search finds. The ceiling is a bare product of matrices by numpy over the
same vectors in memory, with the ten largest taken, which is no database at all.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import datetime as dt
import logging
import os
import random
import re
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.backends.embedding import EmbeddingBackend
from pipeline.backends.models import resolve
from pipeline.core.documents import DocumentState
from pipeline.core.vectors import normalise, similarities
from pipeline.runner.target import embedding_options, timeouts
from pipeline.settings import Settings
from pipeline.store import library, models
from pipeline.store.bulk import insert_rows, new_ids
from pipeline.store.database import Database
from pipeline.store.nearest import quantized, shelves, sqlite
from pipeline.store.nearest.copies import folder_of
from pipeline.store.nearest.copying import Copying
from pipeline.store.tables import ChunkRow, ContentRow, DocumentRow, EmbeddingRow
from pipeline.store.view import View, view_of

GGUF = Path(__file__).parents[1] / "data" / "models" / "all-MiniLM-L6-v2-F16.gguf"
CHUNKS_A_DOCUMENT = 10
AT_ONCE = 20_000
"""Rows in a transaction."""

AT_A_TIME = 64
"""Sentences in a request."""

K = 10
SENTENCE = "The pump of the third basin was serviced in March, and its seals were replaced by ones of another make. "

Matrix = NDArray[np.float32]
Search = Callable[[Session, Matrix, View], list[tuple[int, float]] | None]


def main() -> None:
    """Fill a database, ask, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="vectors in the database (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=50, help="questions for each way (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=8000, help="sentences that are embedded (default: %(default)s)")
    parser.add_argument("--numpy-queries", type=int, default=5, help="of them for numpy (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the database is made (default: the temporary folder)")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(prefix="nightshift-bench-", dir=given.folder) as folder:
        began = time.perf_counter()
        print(f"embedding {given.texts:,} sentences ...", flush=True)
        real = asyncio.run(embedded(sentences(given.texts), Path(folder)))
        questions, real = real[: given.queries], real[given.queries :]
        print(f"{len(real):,} sentences embedded in {time.perf_counter() - began:.0f} s", flush=True)
        vectors = made(real, given.rows)
        with Database.open(f"sqlite:///{Path(folder) / 'search.db'}") as store:
            began = time.perf_counter()
            model_id = fill(store, vectors)
            size = (Path(folder) / "search.db").stat().st_size
            print(f"{given.rows:,} chunks stored in {time.perf_counter() - began:.0f} s, {size / 2**20:,.0f} MiB")
            measure(store, model_id, questions, vectors, given.numpy_queries)


def measure(store: Database, model_id: int, questions: Matrix, vectors: Matrix, slow: int) -> None:
    """Print what each way takes, and what it finds."""
    print(f"{os.cpu_count()} processors seen, {len(os.sched_getaffinity(0))} to use; load {os.getloadavg()[0]:.1f}\n")
    print(f"| {'nearest_chunks, k = 10':44} | p50 ms | p95 ms | processor ms | recall@10 |\n|---|---|---|---|---|")

    def read(session: Session, question: Matrix, view: View) -> list[tuple[int, float]]:
        return sqlite.by_numpy(session, question, shelves.chunks(view), K)

    truth, times = list[set[int]](), Taken()
    for question in questions:
        with times.taken():
            np.argpartition(vectors @ question, -K)[-K:]
        exact = similarities(vectors, question)
        truth.append({int(place) + 1 for place in np.lexsort((np.arange(len(exact)), -exact))[:K]})
    times.show("bare numpy product in memory (the ceiling)", 1.0)
    ask(store, model_id, questions[:slow], truth, "exact, by numpy out of the database", read)
    began = time.perf_counter()
    Copying(store, "on").run()
    took = time.perf_counter() - began
    ask(
        store,
        model_id,
        questions,
        truth,
        "quantized first",
        lambda session, asked, view: quantized.nearest(session, asked, view, K),
    )
    files = [path for path in folder_of(str(store.engine.url.database)).iterdir() if path.is_file()]
    print(f"\nquantized copy made in {took:.1f} s, {sum(path.stat().st_size for path in files) / 2**20:,.0f} MiB")


def ask(store: Database, model_id: int, questions: Matrix, truth: list[set[int]], name: str, search: Search) -> None:
    """Ask one way all questions, the first of them once more before that, and print a row."""
    times, found = Taken(), 0
    for number, question in enumerate([questions[0], *questions]):
        kept = times if number else Taken()
        with kept.taken(), store.snapshot() as session:
            hits = search(session, question, view_of(session, model_id))
        if hits is None:
            sys.exit(f"{name}: there is nothing to search by")
        if number:
            found += len(truth[number - 1] & {chunk_id for chunk_id, _ in hits})
    times.show(name, found / (K * len(questions)))


class Taken:
    """Milliseconds, by the clock and of the processor, all threads together."""

    def __init__(self) -> None:
        self._clock: list[float] = []
        self._processor: list[float] = []

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take the time of the block."""
        clock, processor = time.perf_counter(), time.process_time()
        yield
        self._clock.append(1000 * (time.perf_counter() - clock))
        self._processor.append(1000 * (time.process_time() - processor))

    def show(self, name: str, recall: float) -> None:
        """Print a row."""
        p50, p95 = np.percentile(self._clock, [50, 95])
        used = np.percentile(self._processor, 50)
        print(f"| {name:44} | {p50:.1f} | {p95:.1f} | {used:.1f} | {recall:.4f} |", flush=True)


def made(real: Matrix, count: int) -> Matrix:
    """Vectors [count, d] that lie as these do, which are the first of them."""
    made_of, vectors = np.random.default_rng(7), np.empty((count, real.shape[1]), np.float32)
    vectors[: len(real)] = real[:count]
    for begin in range(len(real), count, AT_ONCE):
        size = min(AT_ONCE, count - begin)
        one, plus, minus = (real[made_of.integers(0, len(real), size)] for _ in range(3))
        vectors[begin : begin + size] = normalise(one + 0.5 * (plus - minus))
    made_of.shuffle(vectors)
    return vectors


def fill(store: Database, vectors: Matrix) -> int:
    """Store documents that are done, with these vectors; chunk n has vector n - 1. Returns the model's number."""
    now, text = dt.datetime.now(dt.UTC), (SENTENCE * 6)[:600]
    with store.begin() as session:
        source = library.ensure_source(session, "/documents", now)
        model_id = models.ensure_model(
            session, fingerprint="f", name="m", path="/m", size=1, mtime_ns=1, dimension=vectors.shape[1], now=now
        ).id
    for begin in range(0, len(vectors), AT_ONCE):
        some = vectors[begin : begin + AT_ONCE]
        contents = range(begin // CHUNKS_A_DOCUMENT + 1, (begin + len(some) - 1) // CHUNKS_A_DOCUMENT + 2)
        with store.begin() as session:
            insert_rows(session, ContentRow, [_content(number, model_id) for number in contents])
            insert_rows(session, DocumentRow, [_document(number, source) for number in contents])
            ids = new_ids(session, ChunkRow.id, len(some))
            insert_rows(session, ChunkRow, [_chunk(number, text) for number in ids])
            insert_rows(session, EmbeddingRow, list(_vectors(ids, some, model_id)))
    with store.begin() as session:
        models.choose(session, model_id, anyway=True)
    return model_id


def _content(number: int, model_id: int) -> dict[str, Any]:
    counted = {"page_count": 4, "characters": 6000, "chunk_count": CHUNKS_A_DOCUMENT, "token_count": 1280}
    return counted | {
        "id": number,
        "sha256": f"{number:064x}",
        "kind": "pdf",
        "model_id": model_id,
        "recipe": "recipe",
        "state": DocumentState.EMBEDDED,
        "title": "A report",
        "details": {},
        "embedded_count": CHUNKS_A_DOCUMENT,
        "created_at": dt.datetime.now(dt.UTC),
    }


def _document(number: int, source: int) -> dict[str, Any]:
    path = f"{number // 10_000:03}/{number // 100 % 100:02}/report {number:07} of the archive.pdf"
    known = {"source_id": source, "path": path, "size": 250_000, "mtime_ns": 10**18 + number}
    return known | {"sha256": f"{number:064x}", "current_id": number, "found_at": dt.datetime.now(dt.UTC)}


def _chunk(number: int, text: str) -> dict[str, Any]:
    content, ordinal = divmod(number - 1, CHUNKS_A_DOCUMENT)
    places = {"start_char": ordinal * len(text), "end_char": (ordinal + 1) * len(text)}
    return places | {
        "id": number,
        "content_id": content + 1,
        "ordinal": ordinal,
        "page_first": ordinal // 3 + 1,
        "page_last": ordinal // 3 + 1,
        "headings": ["Maintenance", "Basins"],
        "token_count": 128,
        "text": text,
    }


def _vectors(ids: list[int], vectors: Matrix, model_id: int) -> Iterator[dict[str, Any]]:
    for number, vector in zip(ids, vectors, strict=True):
        content = (number - 1) // CHUNKS_A_DOCUMENT + 1
        yield {"chunk_id": number, "content_id": content, "model_id": model_id, "vector": vector.tobytes()}


def sentences(count: int) -> list[str]:
    """So many sentences out of the standard library's documentation, in an order of their own."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            found.update(dict.fromkeys(_sentences(path)))
    listed = list(found)
    random.Random(7).shuffle(listed)
    return listed[:count]


def _sentences(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", node.value):
                sentence = " ".join(part.split())
                if 30 <= len(sentence) <= 200 and sentence.count(" ") >= 4:
                    yield sentence


async def embedded(texts: list[str], folder: Path) -> Matrix:
    """Their vectors, by the model that ships."""
    settings = Settings(data_dir=folder)
    options, file = embedding_options(settings, str(GGUF)), resolve(str(GGUF), folder)
    async with EmbeddingBackend(options, file, folder / "logs", timeouts=timeouts(settings)) as backend:
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        vectors = np.empty((len(texts), backend.info.dimension), np.float32)
        for begin in range(0, len(order), AT_A_TIME):
            places = order[begin : begin + AT_A_TIME]
            vectors[places] = await backend.embed([texts[place] for place in places])
        return vectors


if __name__ == "__main__":
    main()
