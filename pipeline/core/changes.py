"""What a scan of a folder means: which files are to be read, which are gone, which only moved."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

UNSETTLED = -1
"""An `mtime_ns` that no file has: the stored one cannot vouch for the bytes, read the file again."""

SETTLE_NS = 2_000_000_000
"""How old a file must be before its mtime vouches for it: FAT's clock ticks every two seconds."""


class Found(NamedTuple):
    """A file as a scan found it; `path` is relative to the source, with `/` between its parts."""

    path: str
    size: int
    mtime_ns: int


class Known(NamedTuple):
    """A document as the database knows it; `sha256` is None where it could not be read."""

    id: int
    path: str
    size: int
    mtime_ns: int
    sha256: str | None


FEW = 10
"""So many files may be gone without anybody wondering."""

FEW_IN_A_HUNDRED = 10
"""And so many percent of a source."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a scan found out.

    to_read: new or changed files. missing: documents whose files are gone, or are no longer wanted.
    unchanged: how many are as they were.
    emptied: documents were known here and not one file was found: nothing may be deleted because of that.
    """

    to_read: Sequence[Found]
    missing: Sequence[Known]
    unchanged: int
    emptied: bool


def settled_mtime(mtime_ns: int, read_at_ns: int) -> int:
    """The mtime to store for a file read at `read_at_ns`, or UNSETTLED for one that is too young.

    A file written twice within one tick of the file system's clock keeps its mtime, and may keep its size.
    """
    return mtime_ns if read_at_ns - mtime_ns >= SETTLE_NS else UNSETTLED


def is_settled(file: Found, first_seen_ns: int, now_ns: int, settle_ns: int) -> bool:
    """Whether nobody writes to a file any more, as far as can be told.

    first_seen_ns: when it was first seen with this size and mtime. Where the clock of another host runs ahead, its
    mtime says nothing, and only looking again does.
    """
    return now_ns - file.mtime_ns >= settle_ns or now_ns - first_seen_ns >= settle_ns


def is_below(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or inside it; the empty folder holds everything."""
    return not folder or path == folder or path.startswith(folder + "/")


def ancestors(path: str) -> Iterator[str]:
    """The folders that `path` is in, innermost first, down to the empty one that is the source itself."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def classify_changes(
    found: Iterable[Found],
    known: Iterable[Known],
    unlisted: Collection[str] = (),
    unreadable: Collection[str] = (),
    passed_over: int = 0,
) -> Changes:
    """Compare a scan with what is stored, by size and mtime.

    unlisted: folders that could not be listed; what is known below them is not missing, because nobody
    looked. unreadable: files that are there, but not to be read; they are not missing either.
    passed_over: how many files and folders are there, but excluded: what holds them was not emptied.
    """
    by_path = {document.path: document for document in known}
    blind, there = frozenset(unlisted), frozenset(unreadable)
    to_read: list[Found] = []
    seen = 0
    for file in found:
        seen += 1
        document = by_path.pop(file.path, None)
        same = (
            document is not None
            and document.sha256 is not None
            and (document.size, document.mtime_ns) == (file.size, file.mtime_ns)
        )
        if not same:
            to_read.append(file)
    missing = [
        document
        for path, document in by_path.items()
        if path not in there and path not in blind and blind.isdisjoint(ancestors(path))
    ]
    return Changes(to_read, missing, seen - len(to_read), emptied=seen + passed_over == 0 and bool(missing))


def emptied_folders(missing: Iterable[Known], found: Iterable[Found], listed: Collection[str]) -> dict[str, int]:
    """Folders that are still there, held more than a few documents and now hold none: outermost first, with how many.

    A folder that is gone was deleted; one that is there and empty may be a disk that is not mounted.
    """
    gone = Counter(folder for document in missing for folder in ancestors(document.path))
    alive = {folder for file in found for folder in ancestors(file.path)}
    empty = [folder for folder in gone if folder in listed and folder not in alive and gone[folder] > FEW]
    outermost: dict[str, int] = {}
    for folder in sorted(empty, key=len):
        if not any(is_below(folder, outer) for outer in outermost):
            outermost[folder] = gone[folder]
    return outermost


def is_mass_deletion(gone: int, known: int) -> bool:
    """Whether so many of a source's documents are gone at once that a person should say so.

    More than a few, and more than a few in a hundred. known: how many there were, those that are gone included.
    """
    return gone > FEW and 100 * gone > FEW_IN_A_HUNDRED * known


@dataclass(slots=True)
class Moves:
    """Pairs files that appeared with documents that vanished, by content: a rename is no new document.

    Each vanished document is given away once; what is left in `missing` at the end really is gone.
    """

    missing: Iterable[Known]
    _by_content: dict[str, list[Known]] = field(init=False)

    def __post_init__(self) -> None:
        self._by_content = defaultdict(list)
        for document in self.missing:
            if document.sha256 is not None:
                self._by_content[document.sha256].append(document)
        self.missing = list(self.missing)

    def claim(self, path: str, sha256: str) -> Known | None:
        """The vanished document that `path` with this content once was, or None. One of the same name first."""
        candidates = self._by_content.get(sha256)
        if not candidates:
            return None
        name = path.rpartition("/")[2]
        best = next((d for d in candidates if d.path.rpartition("/")[2] == name), candidates[0])
        candidates.remove(best)
        return best

    def unclaimed(self) -> list[Known]:
        """What vanished and did not turn up elsewhere."""
        left = {d.id for candidates in self._by_content.values() for d in candidates}
        return [d for d in self.missing if d.id in left or d.sha256 is None]
