"""How fast a tree of files is compared with what is stored: `python -m benchmarks.rescan --files 100000`.

Three times are taken on a tree of small files: the bare walk, which is `os.walk` and one `os.stat` a file and is what
the system itself takes; the rescan of a tree in which nothing changed, which is the scan, the reading of the rows and
their comparison; and the first scan, in which each file is hashed and noted. Ratios come first. Nothing is embedded,
and the tree goes when it is over.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.globs import path_filter
from pipeline.ingest.pool import ExtractionPool
from pipeline.ingest.progress import Progress
from pipeline.ingest.stages.discover import discover
from pipeline.ingest.stages.look import look_at
from pipeline.ingest.work import Looking, Place, Work, utc_now
from pipeline.settings import Settings
from pipeline.store import library, models
from pipeline.store.database import Database
from pipeline.store.models import Target

FILES_PER_FOLDER = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000, help="how many files the tree has (default: 100,000)")
    parser.add_argument("--bytes", type=int, default=4096, help="the size of each (default: 4096)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each time is taken (default: 3)")
    parser.add_argument("--folder", type=Path, help="where the tree is made (default: the system's temporary folder)")
    parser.add_argument("--database", help="SQLAlchemy's URL of an empty database (default: SQLite beside the tree)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        asyncio.run(_measure(Path(scratch), options.files, options.bytes, options.rounds, options.database))


async def _measure(scratch: Path, files: int, size: int, rounds: int, url: str | None) -> None:
    root = scratch / "tree"
    _write_tree(root, files, size)
    with Database.open(url or f"sqlite:///{scratch / 'rescan.db'}") as store:
        work = _work(store, root)
        (place,) = work.places
        began = time.perf_counter()
        await discover(work)
        first = time.perf_counter() - began
        walks, rescans = [], []
        for _ in range(rounds):
            walks.append(_seconds_of_a_bare_walk(root, files))
            began = time.perf_counter()
            look = await look_at(work, place)
            rescans.append(time.perf_counter() - began)
            assert look is not None
            assert (look.changes.unchanged, len(look.changes.to_read), len(look.changes.missing)) == (files, 0, 0)
        began = time.perf_counter()
        await discover(_work(store, root))
        whole = time.perf_counter() - began
    walk, rescan = statistics.median(walks), statistics.median(rescans)
    print(f"{files:,} files of {size:,} bytes in folders of {FILES_PER_FOLDER}; medians of {rounds} rounds")
    print(f"bare walk / rescan        {walk / rescan:8.2f}")
    print(f"rescan, seconds           {rescan:8.2f}   ({', '.join(f'{seconds:.2f}' for seconds in rescans)})")
    print(f"bare walk, seconds        {walk:8.2f}   ({', '.join(f'{seconds:.2f}' for seconds in walks)})")
    print(f"the whole stage, seconds  {whole:8.2f}   nothing changed, once")
    print(f"first scan, files/s       {files / first:8.0f}   hashed and noted, {first:.1f} s, once")


def _work(store: Database, root: Path) -> Work:
    with store.begin() as session:
        model = models.ensure_model(
            session, fingerprint="f", name="m", path="/m", size=1, mtime_ns=1, dimension=4, now=utc_now()
        )
        place = Place(library.ensure_source(session, str(root), utc_now()), str(root))
    settings = Settings()
    looking = Looking(path_filter(settings.sources.include, settings.sources.exclude), settings.sources.settle)
    # Never started: the discover stage opens no document.
    pool = ExtractionPool(1, model_path=Path("none.gguf"), limit=64, overlap=8, pdf_engine="auto")
    return Work(
        "rescan",
        store,
        [place],
        None,
        Target(model.id, "recipe"),
        pool,
        None,
        Progress(started_monotonic=time.monotonic()),
        asyncio.Event(),
        looking=looking,
    )


def _write_tree(root: Path, files: int, size: int) -> None:
    # Old enough that the time of each vouches for it.
    long_ago = time.time() - 86_400
    for number, path in enumerate(_paths(root, files)):
        if number % FILES_PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"%%PDF-1.7 %020d\n" % number + b"x" * (size - 31))
        os.utime(path, (long_ago, long_ago))


def _paths(root: Path, files: int) -> Iterator[Path]:
    for number in range(files):
        folder = number // FILES_PER_FOLDER
        yield root / f"{folder // 100:03}" / f"{folder % 100:02}" / f"report {number:06} of the archive.pdf"


def _seconds_of_a_bare_walk(root: Path, files: int) -> float:
    began = time.perf_counter()
    seen = 0
    for folder, _, names in os.walk(root):
        for name in names:
            os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118 - as bare as can be
            seen += 1
    assert seen == files
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
