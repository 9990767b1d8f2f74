"""Hashes the files that are new or changed and queues what they hold, once nobody writes to them any more."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import random
import time
from collections.abc import Iterator, Sequence

from pipeline.core.changes import Found, Moves, is_settled
from pipeline.core.documents import DocumentKind
from pipeline.core.errors import SourceMissing
from pipeline.core.kinds import kind_of_name
from pipeline.core.retrying import retry_delay
from pipeline.ingest.files import look_again
from pipeline.ingest.hashing import AwayFile, BusyFile, StillWritten, read_files
from pipeline.ingest.stages.look import Look, Waiting, distrust, note_away
from pipeline.ingest.watched import Silent, watched
from pipeline.ingest.work import Work, utc_now
from pipeline.store import library
from pipeline.store.library import ReadFile, UnreadableFile

BATCH_FILES = 128
BATCH_BYTES = 64 << 20
"""Files are hashed and noted in batches of at most so many, so that the next stage soon has something to do."""

SETTLED_LOOKS = 8
"""How often a file that is written to is looked at, in the time that it has to be left alone for."""

LONGEST_PAUSE = 5.0

BUSY_ATTEMPTS = 2
BUSY_PAUSE = dt.timedelta(seconds=1)
"""A file that is locked is tried again after a half to one second, then after four times as long."""


async def read_settled(work: Work, look: Look, moves: Moves) -> int:
    """Queue what is new or changed at a place; returns how many files that were."""
    settle_ns, now_ns = _settle_ns(work), time.time_ns()
    await _note_unreadable(work, look, look.seen.unreadable)
    work.progress.changes.unchanged += look.changes.unchanged
    settled: list[Found] = []
    for file in look.changes.to_read:
        # A text that was handed in is there as a whole at once.
        if is_settled(file, now_ns, now_ns, settle_ns) or kind_of_name(file.path) is DocumentKind.TEXT:
            settled.append(file)
        else:
            look.unsettled[file.path] = Waiting(file, time.monotonic_ns())
    await _read(work, look, settled, moves)
    return len(look.changes.to_read)


async def _read(work: Work, look: Look, files: Sequence[Found], moves: Moves) -> None:
    """Hash files and queue what they hold; those that change meanwhile are unsettled again."""
    place = look.place
    away: list[AwayFile] = []
    for batch in _batches(files):
        try:
            results = await watched(
                lambda beat, batch=batch: list(read_files(place.root, batch, beat)),  # type: ignore[misc]  # bound now
                work.looking.silence,
            )
        except Silent as silent:
            work.silent.add(place.root)
            distrust(work, SourceMissing(place.root, f"{place.root} gave {silent}: the rest of it was left as it was"))
            break
        read = [r for r in results if isinstance(r, ReadFile)]
        unreadable = [r for r in results if isinstance(r, UnreadableFile)]
        away += [r for r in results if isinstance(r, AwayFile)]
        seen_ns = time.monotonic_ns()
        look.unsettled.update({r.file.path: Waiting(r.file, seen_ns) for r in results if isinstance(r, StillWritten)})
        added = await work.store.write(
            library.register, place.source_id, read, moves, work.target, utc_now(), place.priority
        )
        look.busy.update({r.file.path: r for r in results if isinstance(r, BusyFile)})
        await _note_unreadable(work, look, unreadable)
        _count_read(work, look, read)
        work.progress.documents_total += added
        if read:
            # Even where nothing was added: what another scope left waiting is wanted by this one now.
            work.wake_readers()
    note_away(work, place, away)


async def read_busy(work: Work, looks: Sequence[Look], moves: Moves) -> None:
    """Try files again that were locked, or whose disk stumbled, with growing pauses; then they count as unreadable."""
    for attempt in range(BUSY_ATTEMPTS):
        if not any(look.busy for look in looks):
            return
        luck = random.random()  # noqa: S311 - spreads load, hides nothing
        await asyncio.sleep(retry_delay(attempt, luck, BUSY_PAUSE).total_seconds())
        for look in looks:
            files = [busy.file for busy in look.busy.values()]
            look.busy.clear()
            await _read(work, look, files, moves)
    for look in looks:
        left = [UnreadableFile(path, busy.file.size, busy.problem) for path, busy in look.busy.items()]
        await _note_unreadable(work, look, left)
        look.busy.clear()


async def _note_unreadable(work: Work, look: Look, files: Sequence[UnreadableFile]) -> None:
    await work.store.write(library.note_unreadable, look.place.source_id, files, utc_now())
    _count_unreadable(work, look, files)


async def settle(
    work: Work, looks: Sequence[Look], moves: Moves, seconds: float, *, while_at_work: bool = False
) -> int:
    """Read the files that were written to, as soon as they are left alone; returns how many these were.

    seconds: how long to wait for the others. while_at_work: that long after the run's last sign of other work.
    """
    read = 0
    pause = min(max(work.looking.settle / SETTLED_LOOKS, 0.05), LONGEST_PAUSE)
    began, done = time.monotonic(), _signs(work)
    while any(look.unsettled for look in looks) and time.monotonic() < began + seconds:
        await asyncio.sleep(pause)
        for look in looks:
            if settled := await _look_again(work, look):
                read += len(settled)
                await _read(work, look, settled, moves)
        if while_at_work and _signs(work) != done:
            began, done = time.monotonic(), _signs(work)
    return read


def _signs(work: Work) -> tuple[int, ...]:
    progress = work.progress
    return progress.documents_read, progress.documents_done, progress.documents_failed, progress.chunks_done


async def _look_again(work: Work, look: Look) -> list[Found]:
    """The files of a look that are settled by now; those that are gone are forgotten."""
    root, paths = look.place.root, list(look.unsettled)
    try:
        found = await watched(lambda _: [look_again(root, path) for path in paths], work.looking.silence)
    except Silent as silent:
        work.silent.add(root)
        distrust(work, SourceMissing(root, f"{root} gave {silent}: the rest of it was left as it was"))
        look.unsettled.clear()
        return []
    now_ns, seen_ns, settled = time.time_ns(), time.monotonic_ns(), []
    for path, file in zip(paths, found, strict=True):
        waiting = look.unsettled.pop(path)
        if file is None:
            continue
        since_ns = waiting.since_ns if file == waiting.file else seen_ns
        if is_settled(file, now_ns - (seen_ns - since_ns), now_ns, _settle_ns(work)):
            settled.append(file)
        else:
            look.unsettled[path] = Waiting(file, since_ns)
    return settled


def _settle_ns(work: Work) -> int:
    return int(work.looking.settle * 1e9)


def _count_read(work: Work, look: Look, files: Sequence[ReadFile]) -> None:
    """Those that only moved count as new here, until all folders were looked at."""
    changes = work.progress.changes
    for file in files:
        if file.path not in look.hashes:
            changes.new += 1
        elif look.hashes[file.path] == file.sha256:
            changes.unchanged += 1
        else:
            changes.changed += 1


def _count_unreadable(work: Work, look: Look, files: Sequence[UnreadableFile]) -> None:
    """Only those that could be read before, or are new: the others failed in an earlier run."""
    failed = [file for file in files if look.hashes.get(file.path, "") is not None]
    work.progress.documents_total += len(failed)
    for file in failed:
        work.progress.document_failed(file.path, "failed", file.problem)


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
