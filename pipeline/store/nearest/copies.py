"""Quantized copies of vectors, as files beside a SQLite database: a cache for its search, and never the truth.

A copy is of one model's vectors whose chunks have numbers up to `upto`. No number is used twice and no vector changes,
so a copy stays right for as long as it lies there: what is newer is looked at beside it, and what search no longer sees
falls out when candidates are compared exactly. A file is put in place whole, is checked when it is opened, and may be
deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.core.quantized import Bits, Rounded, words

FORMAT = "nightshift vectors 1"
HEADING_BYTES = 4096
ALIGNMENT = 64
UNFINISHED = ".new"


@dataclass(frozen=True, slots=True)
class Heading:
    """What a copy is of. last: the last number that any chunk had when it was made."""

    model: str
    dimension: int
    rows: int
    upto: int
    last: int


@dataclass(frozen=True, slots=True)
class Copy:
    """An open copy; its arrays are read from the file as they are needed.

    middle: float32[d]. chunk_ids: int64[n], ascending. content_ids: int64[n]. bits: as `core.quantized.signs`.
    """

    heading: Heading
    middle: NDArray[np.float32]
    chunk_ids: NDArray[np.int64]
    content_ids: NDArray[np.int64]
    rounded: Rounded
    bits: Bits


def folder_of(database: str) -> Path:
    """Where the copies of a database file are."""
    return Path(f"{database}-search")


def path_of(folder: Path, fingerprint: str) -> Path:
    """A model's copy."""
    return folder / f"{hashlib.sha256(fingerprint.encode()).hexdigest()[:32]}.vectors"


def open_copy(path: Path, fingerprint: str, dimension: int) -> Copy | None:
    """A model's copy; None where there is none, or none that can be used."""
    try:
        known = path.stat()
        copy = _open(path, known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return copy if (copy.heading.model, copy.heading.dimension) == (fingerprint, dimension) else None


@functools.lru_cache(maxsize=2)
def _open(path: Path, _device: int, _inode: int, size: int, _changed: int) -> Copy:
    with path.open("rb") as file:
        heading = _heading(file.read(HEADING_BYTES))
        layout = _Layout(heading)
        if size != layout.size:
            raise ValueError("a copy of another size")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    parts = {name: np.frombuffer(data, part.type, part.count, part.offset) for name, part in layout.parts.items()}
    ids = parts["chunk_ids"]
    if ids[0] < 1 or ids[-1] > heading.upto or (ids[1:] <= ids[:-1]).any() or parts["content_ids"].min() < 1:
        raise ValueError("numbers that are none")
    return Copy(
        heading,
        parts["middle"],
        parts["chunk_ids"],
        parts["content_ids"],
        Rounded(parts["numbers"].reshape(heading.rows, heading.dimension), parts["scales"]),
        parts["bits"].reshape(words(heading.dimension), heading.rows),
    )


def _heading(written: bytes) -> Heading:
    told = json.loads(written)
    if told.pop("format") != FORMAT:
        raise ValueError("not a copy of this form")
    heading = Heading(**told)
    if not isinstance(heading.model, str) or min(heading.dimension, heading.rows) < 1:
        raise ValueError("a copy of nothing")
    return heading


@dataclass(frozen=True, slots=True)
class _Part:
    type: str
    count: int
    offset: int


class _Layout:
    """Where in the file what lies: one array after another, each at a multiple of 64 bytes."""

    def __init__(self, heading: Heading) -> None:
        rows, dimension = heading.rows, heading.dimension
        self.parts: Mapping[str, _Part] = {}
        self.size = HEADING_BYTES
        for name, kind, count in (
            ("middle", "<f4", dimension),
            ("chunk_ids", "<i8", rows),
            ("content_ids", "<i8", rows),
            ("scales", "<f4", rows),
            ("bits", "<u8", rows * words(dimension)),
            ("numbers", "|i1", rows * dimension),
        ):
            self.parts = {**self.parts, name: _Part(kind, count, self.size)}
            taken = count * np.dtype(kind).itemsize
            self.size += -(-taken // ALIGNMENT) * ALIGNMENT


class Writer:
    """Writes a copy, block after block. It goes through a file, so that a full disk is an error and not a signal."""

    def __init__(self, file: BinaryIO, heading: Heading, middle: NDArray[np.float32]) -> None:
        self._file = file
        self._heading = heading
        self._middle = middle
        self._layout = _Layout(heading)
        self.written = 0
        file.truncate(self._layout.size)
        self._put("middle", 0, middle)

    def add(self, chunk_ids: NDArray[np.int64], content_ids: NDArray[np.int64], numbers: Rounded, sides: Bits) -> None:
        """Add the next vectors."""
        begin, rows = self.written, self._heading.rows
        if begin + len(chunk_ids) > rows:
            raise ValueError("more vectors than were counted")
        self._put("chunk_ids", begin, chunk_ids)
        self._put("content_ids", begin, content_ids)
        self._put("scales", begin, numbers.scales)
        self._put("numbers", begin * self._heading.dimension, numbers.numbers)
        for word, column in enumerate(sides):
            self._put("bits", word * rows + begin, column)
        self.written += len(chunk_ids)

    def finish(self) -> None:
        """Write the heading, without which it is no copy, and let all of it reach the disk."""
        if self.written != self._heading.rows:
            raise ValueError("fewer vectors than were counted")
        self._file.flush()
        os.fsync(self._file.fileno())
        told = json.dumps({"format": FORMAT, **asdict(self._heading)}).encode()
        self._file.seek(0)
        self._file.write(told.ljust(HEADING_BYTES))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _put(self, name: str, at: int, values: NDArray[Any]) -> None:
        part = self._layout.parts[name]
        kind = np.dtype(part.type)
        self._file.seek(part.offset + at * kind.itemsize)
        self._file.write(np.ascontiguousarray(values, kind).tobytes())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` at the end of the block; on an exception it is gone."""
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
