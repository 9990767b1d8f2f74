"""The files that search can find something of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.store.tables import ChunkRow, ContentRow
from pipeline.store.view import View, as_json, files_of, listed_ids, searched_contents


@dataclass(frozen=True, slots=True)
class SearchableFile:
    """A file with at least one vector. path: absolute. pages: how many it has, 0 where its kind has none."""

    path: str
    pages: int
    content_id: int


def searchable_files(session: Session, view: View) -> Sequence[SearchableFile]:
    """All of them in view, by path."""
    query = sa.select(ContentRow.id, ContentRow.page_count).where(
        ContentRow.embedded_count > 0, ContentRow.id.in_(searched_contents(view))
    )
    pages = {row.id: row.page_count for row in session.execute(query)}
    shown = files_of(session, view, pages)
    found = [SearchableFile(file.path, pages[content], content) for content, files in shown.items() for file in files]
    return sorted(found, key=lambda file: file.path)


def headings_of(session: Session, content_ids: Iterable[int]) -> dict[int, set[str]]:
    """All headings that passages of these contents stand under."""
    query = sa.select(ChunkRow.content_id, ChunkRow.headings).where(
        ChunkRow.content_id.in_(listed_ids(as_json(content_ids)))
    )
    found: dict[int, set[str]] = {}
    for content, headings in session.execute(query.execution_options(yield_per=10_000)):
        found.setdefault(content, set()).update(headings)
    return found
