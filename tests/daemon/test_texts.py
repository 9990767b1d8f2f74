"""Texts that come by HTTP: counted as waiting once they are on disk, and not before."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import SourceError, TextQueueFull
from pipeline.daemon.texts import Texts
from pipeline.store.database import Database


async def test_a_text_that_cannot_be_written_is_refused_and_waits_nowhere(sqlite_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.write_text("a file where the folder should be")
    with Database.open(sqlite_url) as store:
        texts = Texts(folder, store, 1, lambda: None)
        for _ in range(3):  # more than may wait
            with pytest.raises(SourceError, match=r"the text cannot be written: (File exists|Not a directory)"):
                await texts.take("hello", {})
        folder.unlink()
        assert (await texts.take("hello", {})).waiting == 1
        with pytest.raises(TextQueueFull):
            await texts.take("hello", {})
    assert [path.suffix for path in folder.iterdir()] == [".text"]
