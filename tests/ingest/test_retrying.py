"""What may work later is tried later: in the same run where that is soon, in another where it is not."""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.core.changes import Moves
from pipeline.core.documents import DocumentState
from pipeline.core.errors import BackendStartFailed
from pipeline.core.retrying import FIRST
from pipeline.ingest import pool as pools
from pipeline.ingest.files import scan
from pipeline.ingest.flow import ingest
from pipeline.ingest.hashing import read_files
from pipeline.ingest.pool import ExtractionPool
from pipeline.ingest.stages import extract as stage
from pipeline.ingest.work import utc_now
from pipeline.store import library, overview, queue
from pipeline.store.library import ReadFile
from pipeline.store.overview import DocumentView
from pipeline.store.retry import next_retry, retry_documents
from pipeline.store.scopes import Scope
from tests.conftest import DEFAULT_MODEL
from tests.ingest.test_discover import ONE_DATABASE, World, old, pdf
from tests.ingest.test_discover import world as world


def view_of(world: World, name: str) -> DocumentView:
    with world.store.snapshot() as session:
        (line,) = overview.find_documents(session, name)
        view = overview.show_document(session, line.id)
    assert view is not None
    return view


async def note(world: World, *names: str) -> list[int]:
    """Files that were hashed, and wait to be extracted by a run that has not begun; returns their contents."""
    work = world.begin()
    (place,) = work.places
    files = [file for file in scan(place.root).found if file.path in names]
    read = [one for one in read_files(place.root, files) if isinstance(one, ReadFile)]
    await world.store.write(library.register, place.source_id, read, Moves([]), work.target, utc_now())
    claimed = await world.store.write(
        queue.claim_to_extract, work.run_id, work.scopes, work.target, utc_now(), len(names)
    )
    assert len(claimed) == len(names)
    await world.finish_only(work)
    return [content.content_id for content in claimed]


async def test_what_is_due_in_a_moment_is_waited_for_and_what_is_not_is_left(world: World) -> None:
    old(world.put("soon.pdf"))
    (soon,) = await note(world, "soon.pdf")
    due = utc_now() + dt.timedelta(seconds=1.5)
    await world.store.write(queue.postpone, soon, "an I/O error", due)
    old(world.put("late.pdf"))
    (late,) = await note(world, "late.pdf")
    in_hours = utc_now() + dt.timedelta(hours=5)
    await world.store.write(queue.postpone, late, "an I/O error", in_hours)
    work = world.begin()
    assert await world.store.read(next_retry, work.scopes, work.target) == due
    await world.finish(work)
    assert utc_now() >= due
    assert world.states() == {"docs/soon.pdf": "embedded", "docs/late.pdf": "discovered!"}
    late_view = view_of(world, "late.pdf")
    assert (late_view.attempts, late_view.retry_at, late_view.line.reason) == (1, in_hours, "an I/O error")
    with world.store.begin() as session:
        assert retry_documents(session, [late_view.line.id]) == 1
    await world.run()
    assert world.states()["docs/late.pdf"] == "embedded"


async def test_what_changes_between_hash_and_reading_is_tried_again_later(world: World) -> None:
    path = world.put("a.pdf")
    old(path)
    await note(world, "a.pdf")
    path.write_bytes(pdf("something else"))
    work = world.begin()
    work.places = []  # nobody looks: the run finds what it was told, and other bytes
    before = utc_now()
    running = asyncio.create_task(ingest(work))
    while not work.postponed and not running.done():  # noqa: ASYNC110 - the run tells nobody
        await asyncio.sleep(0.01)
    view = view_of(world, "a.pdf")
    assert (view.line.state, view.attempts) == (DocumentState.DISCOVERED, 1)
    assert view.retry_at is not None
    assert before + FIRST / 2 <= view.retry_at <= utc_now() + FIRST
    assert work.progress.documents_failed == 1
    path.write_bytes(pdf("a.pdf"))
    assert not running.done()  # it waits for it
    with world.store.begin() as session:
        retry_documents(session, [view.line.id])
    await running
    assert (work.progress.documents_failed, work.progress.documents_done) == (0, 1)


@pytest.fixture
def lock() -> Iterator[Callable[[Path, bool], Callable[[], object]]]:
    """Locks files against whoever opens them, as a file server does for its clients, for good or until one tried."""
    if not hasattr(fcntl, "F_SETLEASE"):
        pytest.skip("this system has no leases")
    held: list[int] = []
    given_up: list[int] = []

    def asked(*_: object) -> None:
        while given_up:
            fcntl.fcntl(given_up.pop(), fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def lease(path: Path, for_good: bool) -> Callable[[], object]:
        descriptor = os.open(path, os.O_RDWR)
        held.append(descriptor)
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"the file system of the tests gives no leases: {error}")
        if not for_good:
            given_up.append(descriptor)
        return lambda: fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    before = signal.signal(signal.SIGIO, asked)  # by which the kernel asks for a lease back
    yield lease
    for descriptor in held:
        os.close(descriptor)
    signal.signal(signal.SIGIO, before)


@ONE_DATABASE
async def test_a_file_that_is_locked_is_tried_again_in_the_same_run_and_in_the_next(
    world: World, lock: Callable[[Path, bool], Callable[[], object]]
) -> None:
    # In this order: the one that gives in is asked first.
    gives_in, holds = world.put("a.pdf"), world.put("b.pdf")
    old(gives_in, holds)
    await world.run()
    count = world.embedded
    for path in (gives_in, holds):
        path.write_bytes(pdf(f"{path.name} in another version"))
    old(holds, gives_in)
    lock(gives_in, False)
    unlock = lock(holds, True)
    work = await world.run()
    assert world.embedded == count + 1
    assert world.states() == {"docs/a.pdf": "embedded", "docs/b.pdf": "failed"}  # of which the old one is searched
    assert [(one.path, one.reason) for one in work.progress.failures] == [
        ("b.pdf", f"cannot be read: {os.strerror(errno.EAGAIN)}")
    ]
    unlock()
    await world.run()
    assert (world.embedded, world.states()["docs/b.pdf"]) == (count + 2, "embedded")


async def test_a_pipe_that_took_the_place_of_a_file_and_a_share_that_is_silent_are_tried_again_later(
    world: World,
) -> None:
    for name in ("pipe.pdf", "share.pdf"):
        old(world.put(name))
        await note(world, name)
    (world.docs / "pipe.pdf").unlink()
    os.mkfifo(world.docs / "pipe.pdf")
    for silent, name, reason in ((False, "pipe.pdf", "it is no file any more"), (True, "share.pdf", "gives no answer")):
        work = world.begin()
        work.places, work.scopes = [], [Scope(work.places[0].source_id, name)]
        work.silent = {str(world.docs)} if silent else set()
        running = asyncio.create_task(ingest(work))
        while not work.postponed and not running.done():  # noqa: ASYNC110 - the run tells nobody
            await asyncio.sleep(0.01)
        view = view_of(world, name)
        assert (view.line.state, reason in (view.line.reason or "")) == (DocumentState.DISCOVERED, True)
        assert view.attempts == (0 if silent else 1)  # nobody could say that the file is there
        assert view.retry_at is not None
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await world.finish_only(work)


async def test_what_can_never_be_read_is_not_tried_again(world: World) -> None:
    (world.docs / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    old(world.docs / "broken.pdf")
    work = await world.run()
    view = view_of(world, "broken.pdf")
    assert (view.line.state, view.attempts, view.retry_at) == (DocumentState.FAILED, 0, None)
    assert work.postponed == set()
    assert (await world.run()).progress.documents_failed == 0


@ONE_DATABASE
@pytest.mark.parametrize("failures", [pools.START_ATTEMPTS, 100])
async def test_workers_that_do_not_start_are_tried_again_for_a_while(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    left = tmp_path / "left"
    left.write_text("no\n" * failures)
    monkeypatch.setenv("STARTING_LATE", str(left))
    old(world.put("a.pdf"))
    async with ExtractionPool(
        1,
        model_path=DEFAULT_MODEL,
        limit=64,
        overlap=8,
        pdf_engine="auto",
        extractor="tests.ingest.starting_late:obey",
    ) as world.pool:
        if failures == 100:
            with pytest.raises(ExceptionGroup) as caught:
                await world.run()
            assert caught.group_contains(BackendStartFailed)
            tried = 100 - len(left.read_text().splitlines())
            assert tried == stage.START_ATTEMPTS * pools.START_ATTEMPTS
            assert view_of(world, "a.pdf").attempts == 0  # it says nothing against the document
        else:
            await world.run()
            assert world.states() == {"docs/a.pdf": "embedded"}
