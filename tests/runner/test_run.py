"""A run whose database is taken away under it."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.core.errors import StoreError
from pipeline.ingest.progress import Progress
from pipeline.runner.run import Run, carry_out
from pipeline.store.backup import back_up
from pipeline.store.database import Database
from tests.filled import INBOX, settings_for
from tests.ingest.test_flow import Instant

DIMENSION = 384


class Interrupted(Instant):
    """A model server before whose first answer something happens."""

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__()
        self._happens: Callable[[], object] | None = happens

    async def embed(self, inputs: Sequence[Sequence[int]] | Sequence[str], /) -> NDArray[np.float32]:
        if self._happens is not None:
            self._happens()
            self._happens = None
        return np.tile(np.eye(1, DIMENSION, dtype=np.float32), (len(inputs), 1))


@pytest.mark.parametrize("what", ["deleted", "replaced by another one"])
async def test_a_run_whose_database_goes_away_fails_and_says_so(tmp_path: Path, what: str) -> None:
    file = tmp_path / "nightshift.db"
    settings = settings_for(tmp_path, f"sqlite:///{file}")
    documents = tmp_path / "documents"
    documents.mkdir()
    shutil.copy(INBOX / "mountain-huts-supply-agreement.docx", documents)
    with Database.open(settings.database_url) as store:
        back_up(file, tmp_path / "other.db")
        happens = file.unlink if what == "deleted" else lambda: (tmp_path / "other.db").replace(file)
        progress = Progress(started_monotonic=time.monotonic())
        run = Run(settings, store, [documents], progress, asyncio.Event(), Interrupted(happens))
        with pytest.raises(StoreError, match=f"was {what} while it was in use"):
            await carry_out(run)
    assert file.exists() is (what != "deleted")
