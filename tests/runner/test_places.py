"""From what somebody names to the sources that it lies in."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest

from pipeline.core.errors import UsageError
from pipeline.ingest.work import Place
from pipeline.runner.places import Named, check_paths, find_places, look_at_paths
from pipeline.store import library
from pipeline.store.database import Database

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)


async def test_what_is_named_lies_in_a_known_source_or_becomes_one(store: Database, tmp_path: Path) -> None:
    known, new = tmp_path / "known", tmp_path / "new"
    (known / "sub").mkdir(parents=True)
    new.mkdir()
    (known / "sub" / "a.pdf").touch()
    (tmp_path / "link").symlink_to(known / "sub")
    source = await store.write(library.ensure_source, str(known), NOW)
    named = await look_at_paths([tmp_path / "link", known / "sub" / "a.pdf", new, known], 60.0)
    assert [one.there for one in named] == ["folder", "file", "folder", "folder"]
    await store.read(check_paths, named)
    places = await store.write(find_places, named)
    assert [(place.root, place.folder) for place in places] == [
        *((str(known), "sub"), (str(known), "sub/a.pdf"), (str(new), ""), (str(known), ""))
    ]
    assert places[-1] == Place(source, str(known))


async def test_what_is_not_there_is_refused_unless_it_is_a_source(store: Database, tmp_path: Path) -> None:
    source = await store.write(library.ensure_source, str(tmp_path / "gone"), NOW)
    gone, never = await look_at_paths([tmp_path / "gone", tmp_path / "never"], 60.0)
    assert await store.write(find_places, [gone]) == [Place(source, str(tmp_path / "gone"))]
    with pytest.raises(UsageError, match="no such file or folder"):
        await store.read(check_paths, [never])


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 4000])
async def test_a_path_that_no_file_can_have_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(UsageError, match="File name too long") as refused:
        await look_at_paths([Path("/", name)], 60.0)
    assert len(str(refused.value)) < 250


async def test_a_folder_that_is_stored_like_another_is_never_taken_for_it(tmp_path: Path) -> None:
    in_bytes, in_characters = tmp_path / os.fsdecode(b"\x80"), tmp_path / "\uf780"
    in_bytes.mkdir()
    (one,) = await look_at_paths([in_bytes], 60.0)
    assert one.there == "folder"
    in_characters.mkdir()
    with pytest.raises(UsageError, match=r"\\x80: its name is stored like that of .*\\uf780, which is there too"):
        await look_at_paths([in_bytes], 60.0)
    (other,) = await look_at_paths([in_characters], 60.0)
    assert other.there == "folder"


async def test_what_gives_no_answer_is_a_place_where_it_is_known(store: Database) -> None:
    """As a share does whose server is gone; the scan then says so, and holds up no other."""
    source = await store.write(library.ensure_source, "/mnt/share", NOW)
    silent = Named(Path("/mnt/share/sub"), "/mnt/share/sub", "silent")
    assert await store.write(find_places, [silent]) == [Place(source, "/mnt/share", "sub")]
    with pytest.raises(UsageError, match="gives no answer"):
        await store.read(check_paths, [Named(Path("/mnt/other"), "/mnt/other", "silent")])
