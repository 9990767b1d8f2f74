"""The discover stage: compares folders with what is stored, and queues what is new or changed."""

from __future__ import annotations

import asyncio
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import structlog

from pipeline.core.changes import (
    Changes,
    Found,
    Known,
    Moves,
    ancestors,
    classify_changes,
    emptied_folders,
    is_mass_deletion,
)
from pipeline.core.errors import SourceEmptied, SourceError
from pipeline.ingest.files import Scan, read_files, scan
from pipeline.ingest.work import Place, Work, utc_now
from pipeline.store import library, overview, queue
from pipeline.store.library import ReadFile, UnreadableFile
from pipeline.store.scopes import Scope

log = structlog.get_logger(__name__)

BATCH_FILES = 128
BATCH_BYTES = 64 << 20
"""Files are hashed and noted in batches of at most so many, so that the next stage soon has something to do."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What was seen at one place. hashes: of the documents known there, by path; None of what could not be read."""

    place: Place
    seen: Scan
    changes: Changes
    hashes: Mapping[str, str | None]


async def discover(work: Work) -> None:
    """Queue what is to be done: documents of another recipe, then what the folders hold.

    All folders are looked at before anything is queued, and all is queued before anything is deleted,
    so that a file that moved from one to another is known again.
    """
    touched = 0
    while changed := await work.store.write(library.retarget, work.scopes, work.target, utc_now()):
        touched += changed
    waiting = await work.store.read(queue.backlog, work.scopes, work.target)
    progress = work.progress
    progress.documents_total += waiting.contents
    progress.documents_read += waiting.extracted
    progress.chunks_total += waiting.chunks
    progress.resumed = (await work.store.read(overview.count_chunks, work.scopes))["embedded"] > 0
    if waiting.contents:
        _wake(work)
    looks = [look for place in work.places if (look := await _look(work, place)) is not None]
    moves = Moves([document for look in looks for document in look.changes.missing])
    for look in looks:
        touched += await _queue(work, look, moves)
    left = {document.id for document in moves.unclaimed()}
    progress.changes.moved = sum(len(look.changes.missing) for look in looks) - len(left)
    progress.changes.new -= progress.changes.moved
    gone = [d for look in looks for d in _surely_gone(work, look, [d for d in look.changes.missing if d.id in left])]
    progress.changes.removed = len(gone)
    if gone:
        await work.store.write(library.forget, gone)
    elif touched:
        await work.store.write(library.drop_leftovers)
    # Counted anew: what was replaced or forgotten on the way is no longer waited for.
    waiting = await work.store.read(queue.backlog, work.scopes, work.target)
    progress.documents_total = progress.documents_done + progress.documents_failed + waiting.contents
    progress.phase = "working"
    work.to_extract.close()


async def _look(work: Work, place: Place) -> _Look | None:
    """What is at a place; None where it cannot be trusted, which is then among the run's errors."""
    try:
        seen = await asyncio.to_thread(scan, place.root, place.folder)
        known = await work.store.read(library.known_documents, Scope(place.source_id, place.folder))
        changes = await asyncio.to_thread(
            classify_changes, seen.found, known, seen.unlisted, [file.path for file in seen.unreadable]
        )
        if changes.emptied:
            raise SourceEmptied(
                place.root,
                f"{place.root} held {len(known)} documents and now holds none; nothing was deleted. If it is "
                f"mounted and really empty: `python -m pipeline documents forget {shlex.quote(place.root)}`",
            )
    except SourceError as error:
        log.info("a source was left alone", source=place.root, error=str(error))
        work.errors.append(error)
        return None
    for folder, why in seen.unlisted.items():
        message = f"{place.root}/{folder} cannot be listed ({why}): it was left as it was"
        log.info("a folder was left alone", folder=folder, error=why)
        work.errors.append(SourceError(place.root, message))
    return _Look(place, seen, changes, {document.path: document.sha256 for document in known})


def _surely_gone(work: Work, look: _Look, gone: list[Known]) -> list[Known]:
    """What may be deleted of what is gone. What a person should confirm first is among the run's errors instead."""
    if work.confirm_deletions:
        return gone
    root = look.place.root
    doubtful = emptied_folders(gone, look.seen.found, look.seen.listed)
    for folder, count in doubtful.items():
        message = (
            f"{root}/{folder} is there, but the {count} documents that it held are not: is a disk missing? "
            "Nothing of it was deleted; if they are really gone: --confirm-deletions"
        )
        work.errors.append(SourceEmptied(root, message))
    sure = [document for document in gone if doubtful.keys().isdisjoint(ancestors(document.path))]
    if not is_mass_deletion(len(sure), len(look.hashes)):
        return sure
    message = (
        f"{len(sure)} of the {len(look.hashes)} documents of {root} are gone; none of them was deleted. "
        "If that is meant: --confirm-deletions"
    )
    work.errors.append(SourceEmptied(root, message))
    return []


async def _queue(work: Work, look: _Look, moves: Moves) -> int:
    """Queue what is new or changed at a place; returns how many files that were."""
    place = look.place
    await work.store.write(library.note_unreadable, place.source_id, look.seen.unreadable, utc_now())
    _count_unreadable(work, look, look.seen.unreadable)
    work.progress.changes.unchanged += look.changes.unchanged
    for batch in _batches(look.changes.to_read):
        results = await asyncio.to_thread(lambda files: list(read_files(place.root, files)), batch)
        read = [r for r in results if isinstance(r, ReadFile)]
        unreadable = [r for r in results if isinstance(r, UnreadableFile)]
        added = await work.store.write(library.register, place.source_id, read, moves, work.target, utc_now())
        await work.store.write(library.note_unreadable, place.source_id, unreadable, utc_now())
        _count_unreadable(work, look, unreadable)
        _count_read(work, look, read)
        work.progress.documents_total += added
        if read:
            # Even where nothing was added: what another scope left waiting is wanted by this one now.
            _wake(work)
    return len(look.changes.to_read)


def _count_read(work: Work, look: _Look, files: Sequence[ReadFile]) -> None:
    """Those that only moved count as new here, until all folders were looked at."""
    changes = work.progress.changes
    for file in files:
        if file.path not in look.hashes:
            changes.new += 1
        elif look.hashes[file.path] == file.sha256:
            changes.unchanged += 1
        else:
            changes.changed += 1


def _count_unreadable(work: Work, look: _Look, files: Sequence[UnreadableFile]) -> None:
    """Only those that could be read before, or are new: the others failed in an earlier run."""
    failed = [file for file in files if look.hashes.get(file.path, "") is not None]
    work.progress.documents_total += len(failed)
    for file in failed:
        work.progress.document_failed(file.path, "failed", file.problem)


def _wake(work: Work) -> None:
    # The embed stage hears it too, and starts its server while the first documents are still read.
    work.to_extract.ring()
    work.to_embed.ring()


def _batches(files: Sequence[Found]) -> Iterator[list[Found]]:
    batch: list[Found] = []
    size = 0
    for file in itertools.chain(files):
        batch.append(file)
        size += file.size
        if len(batch) >= BATCH_FILES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
