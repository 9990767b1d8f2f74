"""Reads the header of a GGUF file, without llama.cpp and without trusting the file.

Source: the GGUF specification of ggml (magic, version, metadata, tensor infos; little-endian).
Large arrays are stepped over. Every count and length is checked against the file's size, so
that a damaged or hostile file costs a clear error and neither memory nor time.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

MAX_METADATA = 65_536
MAX_TENSORS = 1_000_000
MAX_KEY = 65_535
MAX_DIMENSIONS = 8
MAX_NESTING = 4

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}

_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
"""Tensor type: (numbers in a block, bytes of a block), from ggml's type traits."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF says about itself; None where it says nothing.

    pooling: none, mean, cls, last or rank. file_type: llama.cpp's number for the quantisation.
    context_length: in tokens. embedding_length: numbers in a vector. tensors: how many.
    parts: files that the model was split into.
    """

    architecture: str
    name: str | None
    context_length: int | None
    embedding_length: int | None
    pooling: str | None
    file_type: int | None
    tensors: int
    parts: int


def read_header(path: Path) -> GgufHeader:
    """The header of the GGUF at `path`. Raises ModelError: not there, no GGUF, damaged, or cut short."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{path} is no GGUF model: it does not begin with GGUF; give a .gguf file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _Reader(view, size, path).header()
    except FileNotFoundError as error:
        raise ModelError(f"there is no model at {path}") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error


class _Reader:
    """A cursor over the mapped file that never leaves it."""

    def __init__(self, view: mmap.mmap, size: int, path: Path) -> None:
        self._view = view
        self._size = size
        self._path = path
        self._at = 4

    def header(self) -> GgufHeader:
        version = self._number("I")
        if version not in (2, 3):
            raise ModelError(
                f"{self._path} is a GGUF of version {version}; versions 2 and 3 in little-endian order are read:"
                " convert it again with a current llama.cpp"
            )
        tensors = self._count("Q", MAX_TENSORS, "tensors")
        metadata: dict[str, Any] = {}
        for _ in range(self._count("Q", MAX_METADATA, "metadata entries")):
            key = self._string(MAX_KEY)
            metadata[key] = self._value(self._number("I"), depth=0)
        self._check_tensors(tensors, metadata.get("general.alignment"))
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise self._damaged("it names no architecture")
        pooling = _integer(metadata.get(f"{architecture}.pooling_type"))
        name = metadata.get("general.name")
        return GgufHeader(
            architecture=architecture,
            name=name if isinstance(name, str) else None,
            context_length=_integer(metadata.get(f"{architecture}.context_length")),
            embedding_length=_integer(metadata.get(f"{architecture}.embedding_length")),
            pooling=None if pooling is None else _POOLING.get(pooling),
            file_type=_integer(metadata.get("general.file_type")),
            tensors=tensors,
            parts=_integer(metadata.get("split.count")) or 1,
        )

    def _check_tensors(self, count: int, alignment: object) -> None:
        end = 0
        for _ in range(count):
            self._string(MAX_KEY)
            numbers = 1
            for _ in range(self._count("I", MAX_DIMENSIONS, "dimensions")):
                numbers *= self._number("Q")
            kind, offset = self._number("I"), self._number("Q")
            block, width = _BLOCKS.get(kind, (1, 0))
            end = max(end, offset + -(-numbers // block) * width)
        step = alignment if isinstance(alignment, int) and alignment > 0 else 32
        start = -(-self._at // step) * step
        if count and start + end > self._size:
            missing = start + end - self._size
            raise ModelError(f"{self._path} is cut short: {missing} bytes are missing; download or copy it again")

    def _value(self, kind: int, depth: int) -> Any:
        """A metadata value; None for an array, which is stepped over."""
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string(self._size)
        if kind != _ARRAY or depth > MAX_NESTING:
            raise self._damaged(f"a metadata value has the unknown type {kind}")
        item = self._number("I")
        count = self._count("Q", self._size, "array items")
        if item in _SCALARS:
            self._skip(count * struct.calcsize("<" + _SCALARS[item]))
        else:
            for _ in range(count):
                if item == _STRING:
                    self._skip(self._number("Q"))
                else:
                    self._value(item, depth + 1)
        return None

    def _number(self, code: str) -> Any:
        start = self._at
        self._skip(struct.calcsize("<" + code))
        return struct.unpack_from("<" + code, self._view, start)[0]

    def _count(self, code: str, most: int, what: str) -> int:
        count: int = self._number(code)
        if count > most:
            raise self._damaged(f"it claims {count} {what}")
        return count

    def _string(self, most: int) -> str:
        length = self._count("Q", most, "bytes in one string")
        start = self._at
        self._skip(length)
        return self._view[start : self._at].decode("utf-8", errors="replace")

    def _skip(self, length: int) -> None:
        if length > self._size - self._at:
            raise ModelError(f"{self._path} is cut short or damaged within its header; download or copy it again")
        self._at += length

    def _damaged(self, what: str) -> ModelError:
        return ModelError(f"{self._path} is damaged: {what}; download or copy it again")


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
