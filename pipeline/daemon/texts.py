"""The texts of `POST /embed`: a bounded queue of files, ingested like any document.

A text is on disk before it is acknowledged, so that it outlives the daemon; from then on it is a
document of the source `<data_dir>/texts`, and the database knows what became of it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.core.documents import DocumentState
from pipeline.core.errors import SourceError, TextQueueFull
from pipeline.ingest.work import utc_now
from pipeline.store import library, overview
from pipeline.store.database import Database
from pipeline.store.scopes import Scope
from pipeline.web.shapes import TextState, TextTaken

WAITING = (DocumentState.DISCOVERED, DocumentState.EXTRACTED)


@dataclass(slots=True)
class Texts:
    """The folder of texts. changed: called when there is a new one. most: that may wait."""

    folder: Path
    store: Database
    most: int
    changed: Callable[[], None]
    waiting: int = 0

    async def count(self) -> dict[str, int]:
        """Texts by state; those on disk that no run has seen yet are queued."""
        on_disk = await asyncio.to_thread(lambda: {path.name for path in self._files()})
        states = {line.file.rpartition("/")[2]: line.state for line in await self._lines()}
        embedded = sum(state is DocumentState.EMBEDDED for state in states.values())
        queued = len(on_disk - states.keys()) + sum(state in WAITING for state in states.values())
        self.waiting = queued
        return {
            "queued": queued,
            "embedded": embedded,
            "failed": len(states) - embedded - sum(s in WAITING for s in states.values()),
        }

    async def take(self, text: str, metadata: dict[str, Any]) -> TextTaken:
        """Queue a text. Raises TextQueueFull, and SourceError where it cannot be written."""
        if self.waiting >= self.most:
            await self.count()
        if self.waiting >= self.most:
            raise TextQueueFull(self.most)
        self.waiting += 1
        text_id = f"{utc_now():%Y%m%dT%H%M%S}-{secrets.token_hex(6)}"
        try:
            await asyncio.to_thread(self._write, text_id, json.dumps({"text": text, "metadata": metadata}))
        except OSError as error:
            self.waiting -= 1
            raise SourceError(str(self.folder), f"the text cannot be written: {error.strerror}") from error
        self.changed()
        return TextTaken(id=text_id, waiting=self.waiting)

    async def state(self, text_id: str) -> TextState | None:
        """What became of a text; None where there is none of that id."""
        if not re.fullmatch(r"\d{8}T\d{6}-[0-9a-f]{12}", text_id):
            return None
        path = self._path(text_id)
        line = next((line for line in await self._lines() if line.file.rpartition("/")[2] == path.name), None)
        if line is None:
            exists = await asyncio.to_thread(path.exists)
            return TextState(id=text_id, status="queued", queued_at=_when(text_id)) if exists else None
        view = await self.store.read(overview.show_document, line.id)
        status: Literal["queued", "embedded", "failed"] = "failed"
        if line.state is DocumentState.EMBEDDED or line.state in WAITING:
            status = "queued" if line.state in WAITING else "embedded"
        return TextState(
            id=text_id,
            status=status,
            queued_at=_when(text_id),
            embedded_at=view.embedded_at if view else None,
            attempts=view.attempts if view else 0,
            error=line.reason,
        )

    async def _lines(self) -> list[overview.DocumentLine]:
        root = str(self.folder)
        known = await self.store.read(library.sources)
        inside = library.enclosing_source(known, root)
        if inside is None:
            return []
        scope = Scope(known[inside], root.removeprefix(inside).lstrip("/"))
        return await self.store.read(overview.list_documents, None, [scope])

    def _files(self) -> list[Path]:
        return list(self.folder.glob("*.text")) if self.folder.is_dir() else []

    def _path(self, text_id: str) -> Path:
        return self.folder / f"{text_id}.text"

    def _write(self, text_id: str, body: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f".{text_id}.part"
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(self._path(text_id))
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise


def _when(text_id: str) -> dt.datetime:
    return dt.datetime.strptime(text_id.partition("-")[0], "%Y%m%dT%H%M%S").replace(tzinfo=dt.UTC)
