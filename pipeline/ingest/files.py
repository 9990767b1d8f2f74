"""The discover stage's hands: lists folders and hashes files. Blocking; call it on a thread.

An error while listing is kept, never swallowed: a folder that nobody could look into is not empty.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.changes import Found, settled_mtime
from pipeline.core.documents import DocumentKind
from pipeline.core.errors import SourceMissing
from pipeline.ingest.names import real_path, stored_name
from pipeline.store.library import ReadFile, UnreadableFile

KINDS = {".pdf": DocumentKind.PDF, ".docx": DocumentKind.DOCX}
ALL_KINDS = KINDS | {".text": DocumentKind.TEXT}


@dataclass(slots=True)
class Scan:
    """What a scan saw.

    listed: the folders that were listed. unlisted: those that could not be, with why. unreadable: files without a size.
    """

    found: list[Found] = field(default_factory=list)
    listed: set[str] = field(default_factory=set)
    unlisted: dict[str, str] = field(default_factory=dict)
    unreadable: list[UnreadableFile] = field(default_factory=list)


def kind_of(name: str) -> DocumentKind | None:
    """What a file's name says it is; None for what is no document, is hidden, or is Word's lock file (`~$x.docx`)."""
    if name.startswith((".", "~$")):
        return None
    return ALL_KINDS.get(os.path.splitext(name)[1].lower())  # noqa: PTH122 - a Path for each of 100,000 names is slow


def scan(root: str, folder: str = "") -> Scan:
    """Find the documents in `folder` (or the one file of that path) of the source at `root`.

    Links are followed; a folder that was already entered is not entered again, so that loops end.

    Raises:
        SourceMissing: the root is not there or cannot be listed.
    """
    result = Scan()
    top = real_path(root, folder) if folder else Path(root)
    try:
        if not os.path.isdir(root):  # noqa: PTH112 - as above: says no for a broken mount too
            raise SourceMissing(root, f"the folder {root} is not there: is it mounted? {_kept(root)}")
        if folder and top.is_file():
            _note_file(result, top, folder)
            return result
    except OSError as error:
        raise SourceMissing(
            root, f"the folder {root} cannot be read ({error.strerror}); nothing was deleted"
        ) from error
    entered: set[tuple[int, int]] = set()
    folders = [(str(top), folder)]
    while folders:
        path, relative = folders.pop()
        try:
            info = os.stat(path)  # noqa: PTH116
            if (info.st_dev, info.st_ino) in entered:
                continue
            entered.add((info.st_dev, info.st_ino))
            with os.scandir(path) as entries:
                listed = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except FileNotFoundError as error:
            if relative in ("", folder):
                raise SourceMissing(root, f"{path} is not there. {_kept(path)}") from error
            continue  # it went while we looked: so did what was in it
        except OSError as error:
            if relative in ("", folder):
                raise SourceMissing(root, f"{path} cannot be listed ({error.strerror}); nothing was deleted") from error
            result.unlisted[stored_name(relative)] = error.strerror or str(error)
            continue
        result.listed.add(stored_name(relative))
        for entry in listed:
            below = f"{relative}/{entry.name}" if relative else entry.name
            try:
                is_folder = entry.is_dir()
            except OSError as error:  # perhaps a folder, and nobody could look into it
                result.unlisted[stored_name(below)] = error.strerror or str(error)
                continue
            if is_folder:
                if not entry.name.startswith("."):
                    folders.append((entry.path, below))
            elif kind_of(entry.name) is not None:
                _note_file(result, Path(entry.path), below)
    result.found.sort(key=lambda file: file.path)
    return result


def read_files(root: str, files: list[Found]) -> Iterator[ReadFile | UnreadableFile]:
    """Read files' hashes, one after the other."""
    for file in files:
        path = real_path(root, file.path)
        try:
            with path.open("rb") as opened:
                read_at = time.time_ns()
                before = os.fstat(opened.fileno())
                sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
                after = os.fstat(opened.fileno())
        except OSError as error:
            yield UnreadableFile(file.path, file.size, f"cannot be read: {error.strerror or error}")
            continue
        # Written to while it was read: the hash is of something that never was, and must not vouch for it.
        same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        mtime_ns = settled_mtime(after.st_mtime_ns, read_at if same else 0)
        kind = kind_of(path.name)
        assert kind is not None, file.path
        yield ReadFile(file.path, kind, after.st_size, mtime_ns, sha256)


def _kept(path: str) -> str:
    forget = f"`python -m pipeline documents forget {shlex.quote(path)}`"
    return f"Nothing was deleted; if it is gone for good: {forget}"


def _note_file(result: Scan, path: Path, relative: str) -> None:
    name = stored_name(relative)
    try:
        info = path.stat()
    except OSError as error:
        why = "a link to nothing" if path.is_symlink() else f"cannot be read: {error.strerror or error}"
        result.unreadable.append(UnreadableFile(name, 0, why))
        return
    if stat.S_ISREG(info.st_mode):
        result.found.append(Found(name, info.st_size, info.st_mtime_ns))
    else:
        result.unreadable.append(UnreadableFile(name, 0, "is not a file but a device, a pipe or a socket"))
