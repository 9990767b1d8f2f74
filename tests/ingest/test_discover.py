"""Folders that change between runs: what is read again, what moves, what is deleted, and what waits for a person."""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from reportlab.pdfgen.canvas import Canvas

from pipeline.core.globs import PathFilter, path_filter
from pipeline.ingest.flow import ingest
from pipeline.ingest.passwords import mark_of
from pipeline.ingest.pool import ExtractionPool
from pipeline.ingest.progress import Changed, Progress
from pipeline.ingest.work import Looking, Place, Work, utc_now
from pipeline.store import absent, library, models, overview, retry, runs
from pipeline.store.database import Database
from pipeline.store.models import Target
from pipeline.store.runs import Process
from pipeline.store.scopes import Scope
from tests.conftest import DEFAULT_MODEL
from tests.ingest.test_flow import DIMENSION, Instant


def pdf(text: str) -> bytes:
    """One page, and one chunk."""
    target = io.BytesIO()
    canvas = Canvas(target, invariant=1)
    canvas.drawString(72, 700, f"This page is about {text} and nothing else.")
    canvas.save()
    return target.getvalue()


ONE_DATABASE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what takes long, and has nothing to do with the kind of database."""


@dataclass
class World:
    """A database, workers, and a folder `docs`; `run` is one run over it, or over the folders that are named."""

    store: Database
    pool: ExtractionPool
    docs: Path
    embedder: Instant = field(default_factory=Instant)
    numbers: Callable[[], int] = field(default_factory=lambda: itertools.count().__next__)
    target: Target | None = None

    def put(self, name: str, text: str = "") -> Path:
        path = self.docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pdf(text or name))
        return path

    def begin(
        self, *folders: Path, looking: Looking | None = None, confirm: bool = False, mark: str | None = None
    ) -> Work:
        run_id = f"run{self.numbers()}"
        with self.store.begin() as session:
            runs.start_run(session, run_id, Process("here", 1, 0.0), [], utc_now(), lambda process: False)
            model = models.ensure_model(
                session, fingerprint="f", name="m", path="/m", size=1, mtime_ns=1, dimension=DIMENSION, now=utc_now()
            )
            roots = [str(folder) for folder in folders or [self.docs]]
            places = [Place(library.ensure_source(session, root, utc_now()), root) for root in roots]
        return Work(
            run_id,
            self.store,
            places,
            [Scope(place.source_id) for place in places],
            Target(model.id, "r"),
            self.pool,
            self.embedder,
            Progress(started_monotonic=time.monotonic()),
            asyncio.Event(),
            confirm_deletions=confirm,
            looking=looking or Looking(),
            passwords_tried=mark,
        )

    async def run(self, *folders: Path, looking: Looking | None = None, confirm: bool = False) -> Work:
        work = self.begin(*folders, looking=looking, confirm=confirm)
        await self.finish(work)
        return work

    async def finish(self, work: Work) -> None:
        await ingest(work)
        await self.finish_only(work)

    async def finish_only(self, work: Work) -> None:
        with self.store.begin() as session:
            runs.finish_run(session, work.run_id, "complete", None, utc_now())
            models.activate_when_complete(session, work.target)

    def states(self, *folders: Path) -> dict[str, str]:
        """Path below the docs' parent -> state, with `!` where search finds nothing of it."""
        with self.store.snapshot() as session:
            lines = overview.list_documents(session)
        above = f"{self.docs.parent}/"
        return {line.file.removeprefix(above): line.state.value + ("" if line.searched else "!") for line in lines}

    @property
    def embedded(self) -> int:
        """Chunks sent to the model server so far."""
        return sum(self.embedder.requests)


@pytest.fixture
async def world(store: Database, tmp_path: Path) -> AsyncIterator[World]:
    (tmp_path / "docs").mkdir()
    pool = ExtractionPool(1, model_path=DEFAULT_MODEL, limit=64, overlap=8, pdf_engine="auto", passwords=["two", "one"])
    async with pool:
        yield World(store, pool, tmp_path / "docs")


def old(*paths: Path) -> None:
    """Give files a time that vouches for them, each another one."""
    for number, path in enumerate(paths):
        os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))


async def test_what_other_settings_make_anew_is_said_once(world: World) -> None:
    old(world.put("a.pdf"), world.put("b.pdf"))
    first = await world.run()
    finer = Target(first.target.model_id, "finer")
    seen = []
    for _ in range(2):
        work = world.begin()
        work.target = finer
        await world.finish(work)
        seen.append(work.progress.changes)
    assert seen == [Changed(unchanged=2, remade=2), Changed(unchanged=2)]
    assert world.states() == {"docs/a.pdf": "embedded", "docs/b.pdf": "embedded"}


async def test_whatever_moves_is_not_embedded_again(world: World, tmp_path: Path) -> None:
    docs, other = world.docs, tmp_path / "other"
    names = ["a.pdf", "b.pdf", "Case.pdf", "old/c.pdf", "old/d.pdf", "linked/e.pdf", "f.pdf", "g.pdf"]
    old(*[world.put(name) for name in names])
    other.mkdir()
    first = await world.run(docs, other)
    assert first.progress.changes == Changed(new=8)
    count = world.embedded
    assert count == 8

    (docs / "a.pdf").rename(docs / "x")
    (docs / "b.pdf").rename(docs / "a.pdf")
    (docs / "x").rename(docs / "b.pdf")  # the two have swapped names
    (docs / "Case.pdf").rename(docs / "case.PDF")
    (docs / "old").rename(docs / "new")
    (docs / "linked").rename(tmp_path / "away")
    (docs / "linked").symlink_to(tmp_path / "away")
    (docs / "f.pdf").rename(other / "f.pdf")  # to another source
    (docs / "g.pdf").rename(docs / "g.docx")  # a wrong suffix is as good as the right one
    second = await world.run(docs, other)
    assert second.errors == []
    assert world.embedded == count
    assert second.progress.changes == Changed(changed=2, moved=5, unchanged=1)
    assert world.states() == dict.fromkeys(
        [
            *("docs/a.pdf", "docs/b.pdf", "docs/case.PDF", "docs/g.docx", "docs/linked/e.pdf"),
            *("docs/new/c.pdf", "docs/new/d.pdf", "other/f.pdf"),
        ],
        "embedded",
    )


async def test_one_file_takes_the_name_of_another_that_moved(world: World) -> None:
    docs = world.docs
    old(world.put("a.pdf"), world.put("b.pdf"))
    await world.run()
    (docs / "a.pdf").rename(docs / "c.pdf")
    world.put("a.pdf", "something new")
    old(docs / "a.pdf")
    count = world.embedded
    work = await world.run()
    assert world.embedded == count + 1
    assert world.states() == dict.fromkeys(["docs/a.pdf", "docs/b.pdf", "docs/c.pdf"], "embedded")
    assert work.errors == []


async def test_what_was_moved_by_copying_is_known_again(world: World) -> None:
    """The copy is young, and its old file is gone already: it is waited for before anything is deleted."""
    path = world.put("a.pdf")
    old(path)
    await world.run()
    count = world.embedded
    shutil.copyfile(path, world.docs / "b.pdf")
    path.unlink()
    work = await world.run(looking=Looking(settle=0.3))
    assert (work.progress.changes.moved, work.progress.unsettled) == (1, [])
    assert (world.embedded, world.states()) == (count, {"docs/b.pdf": "embedded"})


async def test_a_file_that_is_written_to_is_read_once_it_is_left_alone(world: World) -> None:
    old(world.put("good.pdf"))
    data = pdf("what was long in coming")
    path = world.docs / "growing.pdf"
    path.write_bytes(data[:100])
    work = world.begin(looking=Looking(settle=0.5))
    running = asyncio.create_task(world.finish(work))
    while world.embedded == 0 and not running.done():  # the good one does not wait for it
        await asyncio.sleep(0.01)
        with path.open("ab") as file:
            file.write(b" ")
    path.write_bytes(data)
    await running
    assert work.progress.unsettled == []
    assert world.states() == {"docs/good.pdf": "embedded", "docs/growing.pdf": "embedded"}
    assert work.progress.documents_failed == 0


@ONE_DATABASE
async def test_a_file_that_is_never_left_alone_is_left_for_later(world: World) -> None:
    old(world.put("good.pdf"))
    path = world.put("busy.pdf")

    async def write() -> None:
        # On the loop that looks, so that each look comes after another write, however slow the machine is; the time
        # is far ahead, so that no pause makes it old.
        for later in itertools.count(int(time.time()) + 10**6):
            os.utime(path, (later, later))
            await asyncio.sleep(0.01)

    writing = asyncio.create_task(write())
    await asyncio.sleep(0)
    work = await world.run(looking=Looking(settle=1.0))
    writing.cancel()
    assert work.progress.unsettled == [str(path)]
    assert (work.errors, work.progress.documents_failed) == ([], 0)
    assert world.states() == {"docs/good.pdf": "embedded"}
    assert (await world.run()).progress.unsettled == []
    assert world.states() == {"docs/good.pdf": "embedded", "docs/busy.pdf": "embedded"}


async def test_an_mtime_in_the_future_holds_a_file_up_no_longer_than_any(world: World) -> None:
    path = world.put("tomorrow.pdf")
    os.utime(path, (time.time() + 86_400, time.time() + 86_400))
    work = await world.run(looking=Looking(settle=0.2))
    assert (work.progress.unsettled, world.states()) == ([], {"docs/tomorrow.pdf": "embedded"})


async def test_names_that_are_stored_alike_cost_one_file_until_it_is_renamed(world: World) -> None:
    byte, character = os.fsdecode(b"\x80"), "\uf780"
    for name in (f"{byte}.pdf", f"{character}.pdf", "other.pdf"):
        world.put(name, f"text of {name.encode(errors='replace')!r}")
    work = await world.run()
    assert work.errors == []
    assert world.states() == {
        f"docs/{character}.pdf": "embedded", "docs/other.pdf": "embedded", "docs/\\x80.pdf": "failed!",
    }  # fmt: skip
    (failure,) = work.progress.failures
    assert failure.path == "\\x80.pdf"
    assert "rename it" in failure.reason
    (world.docs / f"{byte}.pdf").rename(world.docs / "renamed.pdf")
    await world.run()
    assert world.states() == {f"docs/{name}.pdf": "embedded" for name in (character, "other", "renamed")}


async def test_a_path_longer_than_an_index_takes_costs_itself(world: World) -> None:
    # Digests, so that the database cannot pack it into less.
    parts = [hashlib.sha512(bytes([number])).hexdigest() for number in range(24)]
    world.put("/".join([*parts, "deep.pdf"]))
    world.put("other.pdf")
    work = await world.run()
    assert work.errors == []
    states = world.states()
    assert states.pop("docs/other.pdf") == "embedded"
    (deep,) = states.values()
    assert deep == ("failed!" if world.store.is_shared else "embedded")


def fill(world: World, count: int, folder: str = "") -> list[Path]:
    """Copies of one document: one content, and so many documents."""
    paths = [world.put(f"{folder}{number:03}.pdf", "the same") for number in range(count)]
    old(*paths)
    return paths


async def test_the_brake_holds_where_too_much_is_gone_and_all_else_goes_on(world: World) -> None:
    paths = fill(world, 105)
    await world.run()
    for path in paths[:11]:
        path.unlink()
    world.put("new.pdf")
    for known in (105, 106):  # it goes on waiting
        work = await world.run()
        (error,) = work.errors
        assert str(error).startswith(f"11 of the {known} documents of {world.docs} are gone; none")
        assert "--confirm-deletions" in str(error)
        assert len(world.states()) == 106
        assert set(world.states().values()) == {"embedded"}
    confirmed = await world.run(confirm=True)
    assert (confirmed.errors, confirmed.progress.changes.removed, len(world.states())) == ([], 11, 95)


async def test_what_waits_for_a_yes_is_known_until_it_is_said_or_the_files_are_back(
    world: World, tmp_path: Path
) -> None:
    docs, other = world.docs, tmp_path / "other"
    other.mkdir()
    paths = fill(world, 30)
    await world.run()

    async def waiting() -> list[tuple[str, int]]:
        return [(one.root, one.documents) for one in await world.store.read(absent.waiting_deletions)]

    assert await waiting() == []
    for path in paths[:12]:
        path.unlink()
    await world.run()
    assert await waiting() == [(str(docs), 12)]
    (first,) = await world.store.read(absent.waiting_deletions)
    assert (await world.run(other)).errors == []  # a run over something else is no answer
    paths[0].write_bytes(pdf("the same"))  # as it was
    world.put("001.pdf", "something else")
    paths[-1].unlink()
    world.put("sub/moved.pdf", "the same")  # one of those that were gone turned up elsewhere
    work = await world.run()
    # However few are left of them, they wait; what is gone since then is no mass, and goes.
    assert (len(work.errors), work.progress.changes.removed) == (1, 1)
    assert await world.store.read(absent.waiting_deletions) == [replace(first, documents=9)]
    with world.store.snapshot() as session:
        (line,) = overview.find_documents(session, "005.pdf")
        view = overview.show_document(session, line.id)
    assert view is not None
    assert (view.gone_at, view.method, line.searched) == (first.since, "model", True)
    await world.run(confirm=True)
    assert (await waiting(), len(world.states())) == ([], 20)


async def test_an_emptied_source_waits_for_a_yes_like_any_other(world: World, tmp_path: Path) -> None:
    """Its files may have moved to another one, and one that is not there cannot be confirmed away."""
    docs, other = world.docs, tmp_path / "other"
    other.mkdir()
    paths = fill(world, 2)
    await world.run(docs, other)
    paths[0].rename(other / "000.pdf")
    paths[1].unlink()
    work = await world.run(docs, other)
    assert [str(error).partition(" If ")[0] for error in work.errors] == [
        f"{docs} held 2 documents and now holds none; nothing was deleted."
    ]
    assert world.states() == {"docs/001.pdf": "embedded", "other/000.pdf": "embedded"}
    assert [one.documents for one in await world.store.read(absent.waiting_deletions)] == [1]
    docs.rename(tmp_path / "away")
    (error,) = (await world.run(docs, confirm=True)).errors
    assert "is it mounted?" in str(error)
    assert len(world.states()) == 2
    (tmp_path / "away").rename(docs)
    work = await world.run(docs, confirm=True)
    assert (work.errors, work.progress.changes.removed, world.states()) == ([], 1, {"other/000.pdf": "embedded"})
    assert await world.store.read(absent.waiting_deletions) == []
    (other / "000.pdf").rename(docs / "back.pdf")
    work = await world.run(docs, other)  # all of it moved: nothing to confirm
    assert (work.errors, world.states()) == ([], {"docs/back.pdf": "embedded"})


async def test_the_brake_lets_a_tenth_go_and_ten_of_any(world: World) -> None:
    paths = fill(world, 110)
    few = fill(world, 12, "few/")
    await world.run()
    for path in paths[:11]:
        path.unlink()
    work = await world.run()
    assert (work.errors, work.progress.changes.removed) == ([], 11)
    for path in paths[11:-1]:
        path.rename(path.with_suffix(".PDF"))  # renames never count
    for path in few[:10]:
        path.unlink()
    work = await world.run()
    assert (work.errors, work.progress.changes.removed, work.progress.changes.moved) == ([], 10, 98)


async def test_the_brake_counts_the_whole_source_whatever_part_is_looked_at(world: World) -> None:
    many, some = fill(world, 100, "many/"), fill(world, 20, "some/")
    await world.run()
    for path in [*some[:6], *many[:6]]:
        path.unlink()
    work = world.begin()
    (whole,) = work.places
    work.places = [Place(whole.source_id, whole.root, "some"), Place(whole.source_id, whole.root, "many")]
    await world.finish(work)
    # 6 of 20 and 6 of 100 are 12 of 120: no more than a tenth.
    assert (work.errors, work.progress.changes.removed) == ([], 12)
    for path in [*some[6:12], *many[6:12]]:
        path.unlink()
    work = world.begin()
    work.places = [Place(whole.source_id, whole.root, "some"), Place(whole.source_id, whole.root, "many")]
    await world.finish(work)
    assert [str(error).partition(" are gone")[0] for error in work.errors] == [
        f"12 of the 108 documents of {world.docs}"
    ]
    assert len(world.states()) == 108


async def test_what_a_changed_glob_keeps_out_leaves_the_index_under_the_same_brake(world: World) -> None:
    fill(world, 12, "drafts/")
    world.put("good.pdf")
    world.put("good-old.pdf")
    await world.run()
    without = Looking(path_filter((), ["*-old.pdf"]))
    work = await world.run(looking=without)
    assert (work.errors, work.progress.changes.removed) == ([], 1)
    without = Looking(path_filter((), ["*-old.pdf", "drafts/"]))
    work = await world.run(looking=without)
    (error,) = work.errors
    assert "12 of the 13 documents" in str(error)
    assert "(12 of them kept out by sources.include and sources.exclude)" in str(error)
    assert len(world.states()) == 13
    work = await world.run(looking=without, confirm=True)
    assert (work.errors, world.states()) == ([], {"docs/good.pdf": "embedded"})


async def test_a_source_none_of_whose_documents_is_wanted_any_more_was_not_emptied(world: World) -> None:
    old(world.put("a.pdf"))
    await world.run()
    work = await world.run(looking=Looking(path_filter(["*.docx"])))
    assert (work.errors, world.states()) == ([], {})


async def test_a_share_that_is_away_behind_a_link_keeps_its_documents(world: World, tmp_path: Path) -> None:
    share = tmp_path / "share"
    world.put("sub/a.pdf")
    (world.docs / "sub").rename(share)
    (world.docs / "sub").symlink_to(share)
    old(world.put("b.pdf"), share / "a.pdf")
    await world.run()
    share.rename(tmp_path / "unplugged")
    work = await world.run()
    assert [str(error) for error in work.errors] == [
        f"{world.docs}/sub cannot be listed (a link to nothing): it was left as it was"
    ]
    assert world.states() == {"docs/b.pdf": "embedded", "docs/sub/a.pdf": "embedded"}
    (tmp_path / "unplugged").rename(share)
    assert (await world.run()).errors == []


async def test_a_folder_that_cannot_be_looked_into_is_an_error_and_keeps_its_documents(world: World) -> None:
    """A link whose end has a name that no system takes: not even root can say what is there."""
    old(world.put("sub/a.pdf"), world.put("b.pdf"))
    await world.run()
    shutil.rmtree(world.docs / "sub")
    (world.docs / "sub").symlink_to("n" * 300)
    work = await world.run()
    assert [str(error) for error in work.errors] == [
        f"{world.docs}/sub cannot be listed (File name too long): it was left as it was"
    ]
    assert world.states() == {"docs/b.pdf": "embedded", "docs/sub/a.pdf": "embedded"}


@ONE_DATABASE
async def test_a_source_that_does_not_answer_is_an_error_and_holds_no_other_up(world: World, tmp_path: Path) -> None:
    share = tmp_path / "share"
    (share / "dead").mkdir(parents=True)
    shutil.copy(world.put("a.pdf"), share / "b.pdf")
    old(world.docs / "a.pdf", share / "b.pdf")
    await world.run(share, world.docs)
    (share / "b.pdf").unlink()
    world.put("c.pdf")
    over = threading.Event()

    class DeadShare(PathFilter):
        """Stands where a look at the folder `dead` would be stuck in the kernel, until the test is over."""

        def wants_below(self, folder: str) -> bool:
            return over.wait() if folder == "dead" else True

    try:
        work = await world.run(share, world.docs, looking=Looking(DeadShare(), silence=3.0))
    finally:
        over.set()
    assert [str(error) for error in work.errors] == [f"{share} gave no answer for 3 s: nothing of it was deleted"]
    assert world.states() == dict.fromkeys(["docs/a.pdf", "docs/c.pdf", "share/b.pdf"], "embedded")


async def test_encrypted_documents_are_tried_again_when_the_passwords_are_others(world: World) -> None:
    from pypdf import PdfReader, PdfWriter

    for name, password in (("one.pdf", "one"), ("other.pdf", "not in the list")):
        writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf(name))))
        writer.encrypt(user_password=password, algorithm="AES-256")
        writer.write(world.docs / name)
    old(world.docs / "one.pdf", world.docs / "other.pdf")
    with_passwords, world.pool = (
        world.pool,
        ExtractionPool(1, model_path=DEFAULT_MODEL, limit=64, overlap=8, pdf_engine="auto"),
    )
    async with world.pool:
        await world.run()
        assert world.states() == {"docs/one.pdf": "encrypted!", "docs/other.pdf": "encrypted!"}
    world.pool = with_passwords
    await world.run()  # without a mark nothing is tried again
    assert set(world.states().values()) == {"encrypted!"}
    mark = mark_of(["two", "one"])
    assert mark is not None
    await world.finish(world.begin(mark=mark))
    assert world.states() == {"docs/one.pdf": "embedded", "docs/other.pdf": "encrypted!"}
    work = world.begin(mark=mark)
    known = await world.store.read(retry.tried_passwords, work.scopes, work.target)
    assert known == {mark}
    assert await world.store.write(retry.retry_encrypted, work.scopes, work.target, mark) == 0
    assert await world.store.write(retry.retry_encrypted, work.scopes, work.target, "another") == 1
    assert world.states()["docs/other.pdf"] == "discovered!"
    await world.finish(work)
    with world.store.snapshot() as session:
        (line,) = overview.find_documents(session, "other.pdf")
        view = overview.show_document(session, line.id)
    assert view is not None
    assert mark not in repr(view)


def test_a_mark_fits_its_list_in_any_order_and_no_other() -> None:
    mark = mark_of(["a", "b"])
    assert mark is not None
    assert mark_of(["b", "a", "a"], [mark]) == mark
    assert mark_of(["ab"], [mark]) != mark
    assert mark_of(["a", "b"]) != mark  # salted: two databases do not show that they know the same
    assert mark_of([], [mark]) is None
