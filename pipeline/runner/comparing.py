"""Whether the files on disk are those that the database says: what is there, its size and time, and its bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.orm import Session

from pipeline.core.changes import UNSETTLED, Changes, Found, Known, classify_changes, is_settled
from pipeline.core.errors import SourceError, SourceMissing, UsageError
from pipeline.core.verifying import Disagreement, Tally, is_below_any, spread_sample
from pipeline.ingest.files import LONGEST_INDEXED, Scan, look_again, scan
from pipeline.ingest.hashing import AwayFile, BusyFile, StillWritten, read_files
from pipeline.ingest.watched import Silent, watched
from pipeline.ingest.work import Looking
from pipeline.runner.places import look_at_paths
from pipeline.store import absent, library
from pipeline.store.database import Database
from pipeline.store.hosts import sources_of_others
from pipeline.store.library import ReadFile, UnreadableFile
from pipeline.store.runs import looked_at_by_runs
from pipeline.store.scopes import Scope

BATCH = 64
"""Files hashed between two signs of life."""


@dataclass(slots=True)
class Compared:
    """What came of it. errors: what could not be looked at. places: where a run would look, that is there.

    files: how many were found as they should be, and `hashed` of them byte for byte. unsettled: files that are being
    written to, of which nothing is said. unasked: sources that no run was told to look at, as imported ones are.
    """

    tally: Tally
    errors: list[str] = field(default_factory=list)
    places: list[Path] = field(default_factory=list)
    files: int = 0
    hashed: int = 0
    unsettled: int = 0
    elsewhere: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Place:
    """A source, or what of it was named. asked: the folders and files in it that somebody wanted in the index."""

    source_id: int
    root: str
    folder: str
    asked: Sequence[str]

    def absolute(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}"


@dataclass(frozen=True, slots=True)
class _Seen:
    place: _Place
    scan: Scan
    known: Sequence[Known]
    changes: Changes


async def compare_files(
    store: Database,
    paths: Sequence[Path] | None,
    looking: Looking,
    tally: Tally,
    *,
    sample: int | None,
    seed: int,
    tell: Callable[[str, int, int], None],
) -> Compared:
    """Compare what lies at `paths`, or in every source.

    sample: of files whose size and time are as stored, so many are hashed; None: all of them.

    Raises:
        UsageError: a path is in no source.
    """
    compared = Compared(tally)
    elsewhere = frozenset[int]() if paths is not None else await store.read(sources_of_others)
    for place in await _places(store, paths, looking):
        tell(f"files in {place.absolute(place.folder).rstrip('/') or '/'}", 0, 0)
        try:
            seen = await _look(store, place, looking)
        except Silent as silent:
            compared.errors.append(f"{place.root} gave {silent}: its documents were not looked at")
            continue
        except SourceError as error:
            (compared.elsewhere if place.source_id in elsewhere else compared.errors).append(str(error))
            continue
        compared.errors += [
            f"{place.absolute(folder)} cannot be listed ({why}): its documents were not looked at"
            for folder, why in seen.scan.unlisted.items()
        ]
        compared.errors += [f"{place.absolute(path)} is away ({why})" for path, why in seen.scan.away.items()]
        if seen.changes.emptied:
            where = place.absolute(place.folder).rstrip("/")
            compared.errors.append(
                f"{where} is there, and none of its {len(seen.changes.missing)} documents is: is a disk missing?"
            )
            continue
        compared.places += [Path(path) for path in place.asked]
        if not place.asked:
            compared.unasked.append(place.root)
        await _compare(store, seen, looking, compared, sample, seed, tell)
    return compared


async def same_bytes(root: str, path: str, sha256: str, looking: Looking) -> bool:
    """Whether the file of a document is there with these bytes."""
    try:
        file = await watched(lambda _: look_again(root, path), looking.silence)
        if file is None:
            return False
        read = await watched(lambda beat: list(read_files(root, [file], beat)), looking.silence)
    except Silent:
        return False
    return any(isinstance(one, ReadFile) and one.sha256 == sha256 for one in read)


async def _places(store: Database, paths: Sequence[Path] | None, looking: Looking) -> list[_Place]:
    if paths is None:
        return await store.read(_known_places)
    named = await look_at_paths(paths, looking.silence)
    known = await store.read(library.sources)
    found: list[_Place] = []
    for one in named:
        root = library.enclosing_source(known, one.full)
        if root is None:
            raise UsageError(f"{one.path}: no source holds it; `python -m pipeline run-now` adds one")
        found.append(_Place(known[root], root, one.full.removeprefix(root).lstrip("/"), [one.full]))
    return found


def _known_places(session: Session) -> list[_Place]:
    """Every source, with what runs were told to look at in it: nothing, where it was imported."""
    looked_at = looked_at_by_runs(session)
    return [
        _Place(source_id, root, "", sorted(path for path in looked_at if is_below_any(path, [root])))
        for root, source_id in sorted(library.sources(session).items())
    ]


async def _look(store: Database, place: _Place, looking: Looking) -> _Seen:
    known = await store.read(library.known_documents, Scope(place.source_id, place.folder))
    longest = LONGEST_INDEXED if store.is_shared else None
    try:
        seen = await watched(
            lambda beat: scan(place.root, place.folder, looking.wanted, beat, longest=longest), looking.silence
        )
    except SourceMissing:
        if not known and not place.folder:  # a folder that is gone, and nothing of it was ever known
            return _Seen(place, Scan(), [], classify_changes([], []))
        raise
    there = [*(file.path for file in seen.unreadable), *seen.away]
    changes = await asyncio.to_thread(classify_changes, seen.found, known, seen.unlisted, there, seen.passed_over)
    return _Seen(place, seen, known, changes)


async def _compare(
    store: Database,
    seen: _Seen,
    looking: Looking,
    compared: Compared,
    sample: int | None,
    seed: int,
    tell: Callable[[str, int, int], None],
) -> None:
    place, by_path = seen.place, {document.path: document for document in seen.known}
    waiting = await store.read(absent.waiting_in, Scope(place.source_id, place.folder))
    compared.tally.add(_gone(place, seen.changes.missing, waiting))
    was_read = [file for file in seen.scan.unreadable if file.path in by_path and by_path[file.path].sha256 is not None]
    compared.tally.add(_unreadable(place, by_path[file.path], file.problem) for file in was_read)
    now_ns = time.time_ns()
    settle_ns = int(looking.settle * 1e9)
    changed, new = list[Found](), list[Found]()
    for file in seen.changes.to_read:
        if not is_settled(file, now_ns, now_ns, settle_ns) and file.path not in by_path:
            compared.unsettled += 1
        else:
            (changed if file.path in by_path else new).append(file)
    compared.tally.add(
        Disagreement("file-new", "in no row", "a document", {}, place.absolute(file.path))
        for file in new
        if is_below_any(place.absolute(file.path), place.asked)
    )
    read = {file.path for file in changed}
    same = [file for file in seen.scan.found if file.path in by_path and file.path not in read]
    chosen = same if sample is None else [same[i] for i in spread_sample(range(len(same)), sample, seed)]
    compared.files += len(same) + len(changed)
    done = 0
    for batch in _batches([*changed, *chosen]):
        tell(f"bytes of files in {place.root}", done, len(changed) + len(chosen))
        await _hash(seen, batch, by_path, looking, compared)
        done += len(batch)


async def _hash(
    seen: _Seen, files: Sequence[Found], by_path: dict[str, Known], looking: Looking, compared: Compared
) -> None:
    root = seen.place.root
    try:
        results = await watched(lambda beat: list(read_files(root, files, beat)), looking.silence)
    except Silent as silent:
        compared.errors.append(f"{root} gave {silent}: the rest of it was not looked at")
        return
    as_listed = {file.path: file for file in files}
    for result in results:
        match result:
            case ReadFile():
                compared.hashed += 1
                compared.tally.add(_judged(seen.place, as_listed[result.path], result, by_path[result.path]))
            case UnreadableFile():
                known = by_path[result.path]
                compared.tally.add([_unreadable(seen.place, known, result.problem)] if known.sha256 else [])
            case StillWritten():
                compared.unsettled += 1
            case BusyFile():
                compared.errors.append(f"{seen.place.absolute(result.file.path)}: {result.problem}")
            case AwayFile():
                compared.errors.append(f"{seen.place.absolute(result.path)} is away ({result.problem})")


def _judged(place: _Place, listed: Found, read: ReadFile, known: Known) -> Iterator[Disagreement]:
    where, ids = place.absolute(read.path), _ids(known)
    if known.sha256 is None:
        yield Disagreement("file-changed", "it can be read", "it could not be read", ids, where)
    elif read.sha256 != known.sha256:
        unchanged = (listed.size, listed.mtime_ns) == (known.size, known.mtime_ns)
        found, expected = f"bytes {read.sha256[:12]}...", f"bytes {known.sha256[:12]}..."
        yield Disagreement("file-bytes" if unchanged else "file-changed", found, expected, ids, where)
    elif listed.mtime_ns != known.mtime_ns and known.mtime_ns != UNSETTLED:
        yield Disagreement("file-touched", "another time", "the one that is stored", ids, where)


def _unreadable(place: _Place, document: Known, problem: str) -> Disagreement:
    return Disagreement("file-unreadable", problem, "as it was read", _ids(document), place.absolute(document.path))


def _gone(place: _Place, missing: Sequence[Known], waiting: Collection[str]) -> Iterator[Disagreement]:
    for document in missing:
        if document.path in waiting:
            found = "it is not there, and its deletion waits for a person: run-now with --confirm-deletions"
        else:
            found = "it is not there, or a setting keeps it out"
        yield Disagreement("file-gone", found, "there", _ids(document), place.absolute(document.path))


def _ids(document: Known) -> dict[str, int | str]:
    return {"document": document.id}


def _batches(files: Sequence[Found]) -> Iterator[Sequence[Found]]:
    for start in range(0, len(files), BATCH):
        yield files[start : start + BATCH]
