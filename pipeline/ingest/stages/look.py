"""What there is at a place, and what of it can be trusted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from pipeline.core.changes import Changes, Found, Known, ancestors, classify_changes
from pipeline.core.errors import SourceError, SourceMissing
from pipeline.ingest.files import LONGEST_INDEXED, Scan, scan
from pipeline.ingest.hashing import AwayFile, BusyFile
from pipeline.ingest.watched import Silent, watched
from pipeline.ingest.work import Place, Work
from pipeline.store import library
from pipeline.store.scopes import Scope

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file that may still be written to, and since when it has been as it is: ns, by a clock that nobody sets."""

    file: Found
    since_ns: int


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one place.

    hashes: of the documents known there, by path; None of what could not be read. of_source: how many documents the
    whole source has. unsettled: files that are not to be read yet, by path. busy: files that could not be read when it
    was tried, by path.
    """

    place: Place
    seen: Scan
    changes: Changes
    hashes: Mapping[str, str | None]
    of_source: int
    unsettled: dict[str, Waiting] = field(default_factory=dict)
    busy: dict[str, BusyFile] = field(default_factory=dict)


async def look_at(work: Work, place: Place) -> Look | None:
    """What is at a place; None where it cannot be trusted, which is then among the run's errors."""
    looking = work.looking
    try:
        longest = LONGEST_INDEXED if work.store.is_shared else None
        seen = await watched(
            lambda beat: scan(place.root, place.folder, looking.wanted, beat, longest=longest), looking.silence
        )
        known = await work.store.read(library.known_documents, Scope(place.source_id, place.folder))
        for folder in _hidden_by_links(seen, known):
            seen.unlisted[folder] = seen.dangling[folder]
        there = [*(file.path for file in seen.unreadable), *seen.away]
        changes = await asyncio.to_thread(classify_changes, seen.found, known, seen.unlisted, there, seen.passed_over)
    except Silent as silent:
        work.silent.add(place.root)
        distrust(work, SourceMissing(place.root, f"{place.root} gave {silent}: nothing of it was deleted"))
        return None
    except SourceError as error:
        distrust(work, error)
        return None
    for folder, why in seen.unlisted.items():
        message = f"{place.root}/{folder} cannot be listed ({why}): it was left as it was"
        distrust(work, SourceError(place.root, message))
    note_away(work, place, [AwayFile(path, why) for path, why in seen.away.items()])
    hashes = {document.path: document.sha256 for document in known}
    of_source = len(known) if not place.folder else await work.store.read(library.count_documents_of, place.source_id)
    return Look(place, seen, changes, hashes, of_source)


def distrust(work: Work, error: SourceError) -> None:
    """Note what cannot be trusted: nothing of it is deleted, and the run says so."""
    log.info("a source, or a part of one, was left alone", source=error.root, error=str(error))
    work.errors.append(error)


def _hidden_by_links(seen: Scan, known: Sequence[Known]) -> list[str]:
    """Links to nothing at or below which documents are known: what they led to is away."""
    if not seen.dangling:
        return []
    folders = {folder for document in known for folder in ancestors(document.path)}
    return [path for path in seen.dangling if path in folders]


def note_away(work: Work, place: Place, files: Sequence[AwayFile]) -> None:
    """Note files whose server or disk does not answer, all in one sentence."""
    if not files:
        return
    first = f"{files[0].path}: {files[0].problem}"
    more = f"and {len(files) - 1} more files " if len(files) > 1 else ""
    message = f"{place.root} is away in part ({first}) {more}".rstrip()
    distrust(work, SourceError(place.root, f"{message}: left as it was, and tried again by the next run"))
