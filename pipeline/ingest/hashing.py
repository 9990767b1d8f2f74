"""Reads files for their hashes. Blocking; call it on a thread that may be left behind."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.changes import Found, settled_mtime
from pipeline.core.kinds import HEAD_BYTES, kind_of_content, kind_of_name
from pipeline.ingest.files import is_away, reason
from pipeline.ingest.names import real_path
from pipeline.store.library import ReadFile, UnreadableFile

_BLOCK = 1 << 20

_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EAGAIN", "EINTR", "EBUSY", "ETXTBSY", "EDEADLK", "ENOLCK"),
        *("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"),
    )
)
"""What a disk that stumbles says, or a file that somebody else has locked, or a host that is short of something."""


@dataclass(frozen=True, slots=True)
class StillWritten:
    """A file that changed while it was read: its hash is of something that never was. file: as it is now."""

    file: Found


@dataclass(frozen=True, slots=True)
class BusyFile:
    """A file that could not be read now, and what the system says; it may be readable in a moment."""

    file: Found
    problem: str


@dataclass(frozen=True, slots=True)
class AwayFile:
    """A file whose server or disk does not answer, and what the system says."""

    path: str
    problem: str


def read_files(
    root: str, files: Sequence[Found], beat: Callable[[], None] = lambda: None
) -> Iterator[ReadFile | UnreadableFile | StillWritten | BusyFile | AwayFile]:
    """Read files' hashes, one after the other; those that went meanwhile are left out. beat: called for each block."""
    buffer = bytearray(_BLOCK)
    for file in files:
        beat()
        try:
            read = _read(real_path(root, file.path), file.path, buffer, beat)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if is_away(error):
                yield AwayFile(file.path, reason(error))
            elif error.errno in _PASSING:
                yield BusyFile(file, f"cannot be read: {reason(error)}")
            else:
                yield UnreadableFile(file.path, file.size, f"cannot be read: {reason(error)}")
            continue
        yield read


def _read(
    path: Path, stored: str, buffer: bytearray, beat: Callable[[], None]
) -> ReadFile | UnreadableFile | StillWritten:
    # Where a pipe took the file's place, opening it would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as opened:
        read_at = time.time_ns()
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            return UnreadableFile(stored, 0, "is not a file but a device, a pipe or a socket")
        digest = hashlib.sha256()
        head, size, view = b"", 0, memoryview(buffer)
        # No further than it was long: one that grows as fast as it is read has no end.
        while size <= before.st_size and (count := opened.readinto(buffer)):
            head = head or bytes(view[: min(count, HEAD_BYTES)])
            size += count
            digest.update(view[:count])
            beat()
        after = os.fstat(descriptor)
    if size != before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return StillWritten(Found(stored, after.st_size, after.st_mtime_ns))
    named = kind_of_name(path.name)
    assert named is not None, stored
    mtime_ns = settled_mtime(after.st_mtime_ns, read_at)
    return ReadFile(stored, kind_of_content(head, named), size, mtime_ns, digest.hexdigest())
