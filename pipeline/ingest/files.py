"""The discover stage's eyes: lists folders. Blocking; call it on a thread that may be left behind.

An error while listing is kept, never swallowed: a folder that nobody could look into is not empty.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import os
import shlex
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.core.changes import Found
from pipeline.core.documents import DocumentKind
from pipeline.core.errors import SourceMissing
from pipeline.core.globs import PathFilter
from pipeline.core.kinds import is_passed_over, kind_of_name
from pipeline.ingest.names import first_of, may_be_alike, real_path, spelled_out, stored_name
from pipeline.store.library import UnreadableFile

LARGEST_FILE = 4 << 30
"""Bytes. More is no document of words, and may be a hole of any size that takes days to read."""

LONGEST_INDEXED = 2600
"""Bytes of a document's path that PostgreSQL's index over paths surely takes; its own limit is 2,704 for the row."""

LONGEST_SHOWN = 200
"""Characters of a path that stand for one that is too long."""

_AWAY = frozenset(
    getattr(errno, name)
    for name in (
        *("ESTALE", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ETIMEDOUT", "ENETDOWN", "ENETUNREACH", "ENETRESET"),
        *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EREMOTEIO", "ENOLINK", "ENODEV", "ENXIO", "ESHUTDOWN"),
    )
    if hasattr(errno, name)
)
"""What a file system says that has lost its server or its disk: it says nothing about the file."""


@dataclass(slots=True)
class Scan:
    """What a scan saw; all paths as they are stored.

    listed: the folders that were listed. unlisted: those that could not be, with why. unreadable: files without a size.
    away: files whose server or disk does not answer, with why. dangling: links to nothing that may have been folders.
    passed_over: how many files and folders are there that an exclude or include glob keeps out; none of the texts that
    were handed in, which are no files of anybody's folder.
    """

    found: list[Found] = field(default_factory=list)
    listed: set[str] = field(default_factory=set)
    unlisted: dict[str, str] = field(default_factory=dict)
    unreadable: list[UnreadableFile] = field(default_factory=list)
    away: dict[str, str] = field(default_factory=dict)
    dangling: dict[str, str] = field(default_factory=dict)
    passed_over: int = 0


def is_away(error: OSError) -> bool:
    """Whether an error says that the file system is away, and nothing about the file."""
    return error.errno in _AWAY


def reason(error: OSError) -> str:
    """An error of the system in its own words."""
    return error.strerror or str(error)


def scan(
    root: str,
    folder: str = "",
    wanted: PathFilter | None = None,
    beat: Callable[[], None] = lambda: None,
    *,
    longest: int | None = None,
) -> Scan:
    """Find the documents in `folder` (or the one file of that path) of the source at `root`.

    Links are followed, after all that is really there; a folder that was already entered is not entered again, so that
    loops end and nothing is two documents. beat: called for each folder. longest: bytes of a path that can be stored.

    Raises:
        SourceMissing: the root is not there, cannot be listed, or was replaced meanwhile.
    """
    looking = _Looking(root, folder, wanted or PathFilter(), beat, longest)
    top = str(real_path(root, folder))
    try:
        if not os.path.isdir(real_path(root, "")):  # noqa: PTH112 - says no for a broken mount too
            raise SourceMissing(root, f"the folder {root} is not there: is it mounted? {_kept(root)}")
        if folder and os.path.isfile(top):  # noqa: PTH113
            looking.note_file(folder, os.stat(top))  # noqa: PTH116
            return looking.result
    except OSError as error:
        raise SourceMissing(root, f"the folder {root} cannot be read ({reason(error)}); nothing was deleted") from error
    looking.walk(top)
    looking.check_mounts()
    looking.result.found.sort(key=lambda file: file.path)
    return looking.result


@dataclass(slots=True)
class _Looking:
    """One scan. mounts: folders on another device than the one around them, and what they were when listed."""

    root: str
    folder: str
    wanted: PathFilter
    beat: Callable[[], None]
    longest: int | None = None
    result: Scan = field(default_factory=Scan)
    entered: set[tuple[int, int]] = field(default_factory=set)
    mounts: dict[str, tuple[str, tuple[int, int]]] = field(default_factory=dict)

    def walk(self, top: str) -> None:
        """Look into the folder at `top`, and into all below it."""
        folders: list[tuple[str, str, int]] = [(top, self.folder, -1)]
        links: list[tuple[str, str, int]] = []  # a heap, by path: of two links to one folder the first counts
        while folders or links:
            if folders:
                path, relative, device = folders.pop()
            else:
                relative, path, device = heapq.heappop(links)
            self.beat()
            for entry, below, inside in self._entries(path, relative, device):
                if entry.is_symlink():
                    heapq.heappush(links, (below, entry.path, inside))
                else:
                    folders.append((entry.path, below, inside))

    def _entries(self, path: str, relative: str, device: int) -> list[tuple[os.DirEntry[str], str, int]]:
        """Note the files of a folder; returns the folders in it, with the device that this one is on."""
        name = stored_name(relative)
        try:
            info = os.stat(path)  # noqa: PTH116 - a Path for each of 100,000 names is slow
            identity = (info.st_dev, info.st_ino)
            if info.st_ino and identity in self.entered:
                return []
            self.entered.add(identity)
            with os.scandir(path) as entries:
                # By name: some file systems of other systems list an entry twice.
                listed = {entry.name: entry for entry in entries}
        except OSError as error:
            self._not_listed(path, relative, error)
            return []
        if info.st_dev != device:
            self.mounts[relative] = (path, identity)
        self.result.listed.add(name)
        folders = []
        shadowed = self._shadowed(listed, relative)
        for entry in listed.values():
            if entry.name in shadowed or is_passed_over(entry.name):
                continue
            below = f"{relative}/{entry.name}" if relative else entry.name
            if self._is_folder(entry, below):
                if self.wanted.wants_below(stored_name(below)):
                    folders.append((entry, below, info.st_dev))
                else:
                    self.result.passed_over += 1
        return folders

    def _shadowed(self, entries: Mapping[str, os.DirEntry[str]], relative: str) -> set[str]:
        """The names in a folder that are stored like another one in it. Their files and folders count as unreadable."""
        alike: dict[str, list[str]] = {}
        for name in filter(may_be_alike, entries):
            alike.setdefault(stored_name(name), []).append(name)
        shadowed: set[str] = set()
        for names in alike.values():
            first = first_of(names)
            for name in sorted(set(names) - {first}):
                shadowed.add(name)
                below = stored_name(f"{relative}/{name}" if relative else name)
                if is_passed_over(name) or not self._is_wanted(entries[name], below):
                    continue
                told = spelled_out(name)
                while told in entries:  # a file that is really called so
                    told = f"_{told}"
                problem = f"its name is stored like that of {spelled_out(first)} beside it: rename it"
                self.result.unreadable.append(UnreadableFile(below.removesuffix(stored_name(name)) + told, 0, problem))
        return shadowed

    def _is_wanted(self, entry: os.DirEntry[str], below: str) -> bool:
        if kind_of_name(entry.name) is not None:
            return self.wanted.wants_file(below)
        return os.path.isdir(entry.path) and self.wanted.wants_below(below)  # noqa: PTH112 - raises nothing

    def _is_folder(self, entry: os.DirEntry[str], below: str) -> bool:
        """Whether an entry is a folder; where it is a document, it is noted."""
        try:
            if entry.is_dir():
                return True
        except OSError as error:
            if error.errno != errno.ELOOP:  # perhaps a folder, and nobody could look into it
                self.result.unlisted[stored_name(below)] = reason(error)
                return False
        kind = kind_of_name(entry.name)
        if kind is None:
            if entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
                self.result.dangling[stored_name(below)] = "a link to nothing"
        elif kind is not DocumentKind.TEXT and not self.wanted.wants_file(stored_name(below)):
            self.result.passed_over += 1
        else:
            self._note_entry(entry, below)
        return False

    def _note_entry(self, entry: os.DirEntry[str], below: str) -> None:
        name = stored_name(below)
        try:
            info = entry.stat()
        except OSError as error:
            if is_away(error):
                self.result.away[name] = reason(error)
            elif entry.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP):
                self.result.unreadable.append(UnreadableFile(name, 0, "a link to nothing"))
            elif error.errno != errno.ENOENT:  # else it went while we looked
                self.result.unreadable.append(UnreadableFile(name, 0, f"cannot be read: {reason(error)}"))
            return
        self.note_file(name, info)

    def note_file(self, name: str, info: os.stat_result) -> None:
        """Note a file by its stored path and what the system says of it."""
        if self.longest is not None and len(name.encode()) > self.longest:
            problem = f"its path is longer than {self.longest:,} bytes: rename it, or a folder above it"
            digest = hashlib.sha256(name.encode()).hexdigest()
            name = f"{name[:LONGEST_SHOWN]}... ({digest[:12]})"
        elif not stat.S_ISREG(info.st_mode):
            problem = "is not a file but a device, a pipe or a socket"
        elif info.st_size > LARGEST_FILE:
            problem = f"larger than {LARGEST_FILE >> 30} GiB: no document that could be read"
        else:
            self.result.found.append(Found(name, info.st_size, info.st_mtime_ns))
            return
        self.result.unreadable.append(UnreadableFile(name, 0, problem))

    def _not_listed(self, path: str, relative: str, error: OSError) -> None:
        gone = isinstance(error, FileNotFoundError | NotADirectoryError)
        if relative == self.folder:
            if gone:
                raise SourceMissing(self.root, f"{path} is not there. {_kept(path)}") from error
            raise SourceMissing(self.root, f"{path} cannot be listed ({reason(error)}); nothing was deleted") from error
        if not gone:  # else it went while we looked, and so did what was in it
            self.result.unlisted[stored_name(relative)] = reason(error)

    def check_mounts(self) -> None:
        """What was unmounted while we looked left folders that seem to be gone, or empty: nothing of it was seen."""
        for relative, (path, identity) in self.mounts.items():
            try:
                info = os.stat(path)  # noqa: PTH116
                same = (info.st_dev, info.st_ino) == identity
            except OSError:
                same = False
            if same:
                continue
            if relative == self.folder:
                raise SourceMissing(self.root, f"{path} went away while it was looked at; nothing was deleted")
            self.result.unlisted[stored_name(relative)] = "it went away while it was looked at"


def _kept(path: str) -> str:
    forget = f"`python -m pipeline documents forget {shlex.quote(path)}`"
    return f"Nothing was deleted; if it is gone for good: {forget}"


def look_again(root: str, path: str) -> Found | None:
    """The file of a stored path as it is now; None where there is none that can be read."""
    try:
        info = os.stat(real_path(root, path))  # noqa: PTH116
    except OSError:
        return None
    return Found(path, info.st_size, info.st_mtime_ns) if stat.S_ISREG(info.st_mode) else None
