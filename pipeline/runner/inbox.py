"""The default inbox, which is made where it is needed, and the folders that no run has looked at yet."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from pipeline.core.changes import is_below
from pipeline.core.errors import SourceMissing
from pipeline.core.redaction import redacted
from pipeline.core.schedule import Job
from pipeline.ingest.files import reason
from pipeline.ingest.names import stored_name
from pipeline.settings import Settings
from pipeline.store import library, overview, runs
from pipeline.store.database import Database
from pipeline.store.scopes import Scope


async def make_inbox(settings: Settings, store: Database) -> None:
    """Make the default inbox, unless it is there.

    An inbox that is set to another folder is never made, and neither is one that held documents: a share that is
    not mounted must not look like an empty folder. A link that leads nowhere stays as it is.

    Raises SourceMissing where the folder cannot be made.
    """
    inbox = settings.inbox
    if inbox != settings.data_dir / "inbox" or await asyncio.to_thread(os.path.lexists, inbox):
        return
    if await store.read(_holds_documents, stored_name(os.path.abspath(inbox))):  # noqa: PTH100, ASYNC240
        return
    try:
        await asyncio.to_thread(inbox.mkdir, exist_ok=True)
    except OSError as error:
        raise SourceMissing(
            str(inbox), f"the inbox {inbox} is not there and cannot be made: {reason(error)}"
        ) from error


def never_looked_at(session: Session, settings: Settings, jobs: Sequence[Job]) -> list[str]:
    """The inbox and the sources of jobs that no run of this host has looked at yet."""
    ended = runs.looked_at_by_runs(session, here=True)
    found = []
    for folder in dict.fromkeys([settings.inbox, *_sources_of(jobs)]):
        # Without links only where it has to be: a link may lead to a share that does not answer.
        names = (stored_name(resolved(folder)) for resolved in (os.path.abspath, os.path.realpath))
        if not any(_is_known(session, name, ended) for name in names):
            found.append(redacted(str(folder)))
    return found


def _sources_of(jobs: Sequence[Job]) -> Iterator[Path]:
    for job in jobs:
        if job.enabled and job.task is not None:
            yield from map(Path, job.sources)


def _is_known(session: Session, path: str, ended: Collection[str]) -> bool:
    return any(is_below(path, source.rstrip("/")) for source in ended) or _holds_documents(session, path)


def _holds_documents(session: Session, path: str) -> bool:
    known = library.sources(session)
    root = library.enclosing_source(known, path)
    if root is None:
        return False
    scope = Scope(known[root], path.removeprefix(root).lstrip("/"))
    return bool(overview.count_documents(session, [scope])["total"])
