"""What the HTTP edge may do with documents: `DocumentsService`, over the store and the inbox."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.documents import DocumentState
from pipeline.ingest.links import link_to
from pipeline.runner.inbox import make_inbox
from pipeline.settings import Settings
from pipeline.store import overview
from pipeline.store.database import Database
from pipeline.store.retry import retry_documents
from pipeline.web import shapes
from pipeline.web.uploads import UploadFolder


@dataclass(frozen=True, slots=True)
class StoredDocuments:
    """The documents of the index, for the HTTP edge; see `web.services.DocumentsService`."""

    store: Database
    settings: Settings

    async def list(self, states: Sequence[DocumentState] | None, limit: int, offset: int) -> Sequence[Any]:
        """Documents by path."""
        lines = await self.store.read(overview.list_documents, states, None, limit + offset)
        return lines[offset:]

    async def show(self, document_id: int) -> shapes.DocumentDetail | None:
        """One document with its chunks, or None."""
        view = await self.store.read(overview.show_document, document_id)
        if view is None:
            return None
        whole = {f.name: getattr(view, f.name) for f in dataclasses.fields(view) if f.name not in ("line", "chunks")}
        return shapes.DocumentDetail.model_validate(
            dataclasses.asdict(view.line)
            | {"link": link_to(view.line.file, view.kind)}
            | whole
            | {"chunk_list": [dataclasses.asdict(c) for c in view.chunks]}
        )

    async def retry(self, document_ids: Sequence[int] | None, states: Sequence[DocumentState]) -> int:
        """Send documents back into the queue; returns how many."""
        if document_ids is None:
            lines = await self.store.read(overview.list_documents, states)
            document_ids = [line.id for line in lines]
        return await self.store.write(retry_documents, document_ids)

    async def upload(self, name: str, parts: AsyncIterator[bytes]) -> shapes.Uploaded:
        """Write a file into the inbox, whole or not at all; the default inbox is made where it is missing."""
        await make_inbox(self.settings, self.store)
        return await UploadFolder(self.settings.inbox).write(name, parts)
