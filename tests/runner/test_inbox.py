"""The default inbox is made where it is needed, and a folder that is away never looks like an empty one."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from pipeline.core.changes import Moves
from pipeline.core.documents import DocumentKind
from pipeline.core.errors import SourceError, SourceMissing
from pipeline.core.schedule import Job
from pipeline.daemon.documents import StoredDocuments
from pipeline.runner.inbox import make_inbox, never_looked_at
from pipeline.runner.untold import this_process
from pipeline.scheduler.jobs import load_jobs
from pipeline.settings import Settings
from pipeline.store import library, runs
from pipeline.store.database import Database
from pipeline.store.library import ReadFile
from pipeline.store.models import Target, ensure_model

NOW = dt.datetime(2026, 3, 1, 2, tzinfo=dt.UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "data").mkdir()
    return Settings(data_dir=tmp_path / "data")


async def parts() -> AsyncIterator[bytes]:
    yield b"%PDF-1.7"


async def note_a_document(store: Database, folder: Path) -> None:
    def note(session: Session) -> None:
        model = ensure_model(session, fingerprint="f", name="m", path="m", size=1, mtime_ns=1, dimension=2, now=NOW)
        source = library.ensure_source(session, str(folder), NOW)
        file = ReadFile("a.pdf", DocumentKind.PDF, 1, 1, "0" * 64)
        library.register(session, source, [file], Moves([]), Target(model.id, "r"), NOW)

    await store.write(note)


async def note_a_run(store: Database, name: str, state: str, *sources: Path) -> None:
    def note(session: Session) -> None:
        me = this_process(store.host)
        runs.start_run(session, name, me, [str(source) for source in sources], NOW, lambda _: False)
        runs.finish_run(session, name, state, None, NOW)

    await store.write(note)


def jobs(folder: Path, **sources: str) -> list[Job]:
    folder.mkdir()
    for name, path in sources.items():
        (folder / f"{name}.toml").write_text(
            f'cron = "0 2 * * *"\nuntil = "08:00"\nmode = "embedding"\ntask = "ingest"\nsources = ["{path}"]\n'
        )
    return list(load_jobs(folder).jobs)


async def test_whoever_needs_the_default_inbox_makes_it(settings: Settings, store: Database) -> None:
    uploaded = await StoredDocuments(store, settings).upload("a.pdf", parts())
    assert Path(uploaded.file) == settings.inbox / "a.pdf"
    await make_inbox(settings, store)
    assert (settings.inbox / "a.pdf").is_file()


async def test_an_inbox_of_ones_own_is_not_made(settings: Settings, store: Database, tmp_path: Path) -> None:
    elsewhere = settings.model_copy(update={"inbox": tmp_path / "share"})
    await make_inbox(elsewhere, store)
    with pytest.raises(SourceError, match=f"the inbox {elsewhere.inbox} is not there: is it mounted"):
        await StoredDocuments(store, elsewhere).upload("a.pdf", parts())
    assert not elsewhere.inbox.exists()


async def test_an_inbox_that_held_documents_is_not_made_anew(settings: Settings, store: Database) -> None:
    await note_a_document(store, settings.inbox)
    await make_inbox(settings, store)
    assert not settings.inbox.exists()


async def test_a_link_to_a_share_that_is_away_stays(settings: Settings, store: Database, tmp_path: Path) -> None:
    settings.inbox.symlink_to(tmp_path / "share")
    await make_inbox(settings, store)
    assert settings.inbox.is_symlink()
    assert not (tmp_path / "share").exists()


async def test_a_data_folder_that_is_gone_is_an_error(settings: Settings, store: Database) -> None:
    settings.data_dir.rmdir()
    with pytest.raises(SourceMissing, match=f"{settings.inbox} is not there and cannot be made: No such file"):
        await make_inbox(settings, store)


async def test_what_no_run_has_looked_at_is_named(settings: Settings, store: Database, tmp_path: Path) -> None:
    papers, minutes = tmp_path / "papers", tmp_path / "minutes"
    known = jobs(tmp_path / "jobs", first=str(papers), second=str(minutes / "2026"))
    inbox = str(settings.inbox)

    async def unseen() -> list[str]:
        return await store.read(never_looked_at, settings, known)

    assert await unseen() == [inbox, str(papers), str(minutes / "2026")]
    await note_a_run(store, "1", "failed", papers, settings.inbox)
    assert len(await unseen()) == 3
    await note_a_run(store, "2", "complete", minutes)
    assert await unseen() == [inbox, str(papers)]
    # One file of a folder is not the folder.
    await note_a_run(store, "3", "complete", papers / "a.pdf", settings.inbox)
    assert await unseen() == [str(papers)]
    await note_a_document(store, papers)
    assert await unseen() == []


async def test_a_link_and_the_folder_behind_it_are_one(settings: Settings, store: Database, tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    settings.inbox.symlink_to(tmp_path / "share")
    await note_a_run(store, "1", "complete", tmp_path / "share")
    assert await store.read(never_looked_at, settings, []) == []
