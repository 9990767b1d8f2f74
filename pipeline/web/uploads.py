"""Documents that come by HTTP: what they may be called, and how they get into the inbox whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import SourceError, UsageError
from pipeline.core.kinds import KINDS
from pipeline.web.shapes import Uploaded

LONGEST_NAME = 200
"""Bytes in UTF-8: file systems take 255, and the name of the unfinished file is longer than the name."""

_WRITTEN_AT_ONCE = 2**20


def checked_name(name: str) -> str:
    """The name of a document without folders, in Unicode's composed form.

    A name is never mended, because two names would then be one file.

    Raises:
        UsageError: no document can be called that.
    """
    name = unicodedata.normalize("NFC", name)
    endings = tuple(KINDS)
    if not name.lower().endswith(endings):
        raise UsageError(f"{name!r}: only documents are taken, whose names end in {', '.join(endings)}")
    if name.startswith(".") or any(character in "/\\:" or not character.isprintable() for character in name):
        raise UsageError(f"{name!r}: a file name is wanted, without folders, hidden or control characters")
    if "\ufffd" in name:
        # What stands for bytes that are no text stands for any: one file would take another's place.
        raise UsageError(f"{name!r}: a file name in UTF-8 is wanted")
    if len(name.encode()) > LONGEST_NAME:
        raise UsageError(f"the file name is longer than {LONGEST_NAME} bytes")
    return name


@dataclass(frozen=True, slots=True)
class UploadFolder:
    """The folder that uploads are written to."""

    path: Path

    async def write(self, name: str, parts: AsyncIterator[bytes]) -> Uploaded:
        """Write a document. Whoever looks at the folder sees the old file or the whole new one.

        Raises:
            UsageError: the name is none for a document.
            SourceError: the folder or the file cannot be written.
        """
        target = self.path / checked_name(name)
        if await asyncio.to_thread(target.is_dir):
            raise UsageError(f"{name!r}: the inbox has a folder of that name")
        # No document's name ends so: a run that looks in meanwhile passes it by.
        unfinished = self.path / f".{secrets.token_hex(8)}.part"
        try:
            size, sha256 = await _write(unfinished, parts)
            replaced = await asyncio.to_thread(_put_in_place, unfinished, target)
        except OSError as error:
            away = "" if self.path.is_dir() else f"; the inbox {self.path} is not there: is it mounted?"
            raise SourceError(str(self.path), f"{target.name} cannot be written: {error.strerror}{away}") from error
        finally:
            unfinished.unlink(missing_ok=True)
        return Uploaded(file=str(target), size=size, sha256=sha256, replaced=replaced)


async def _write(path: Path, parts: AsyncIterator[bytes]) -> tuple[int, str]:
    """Write `parts` to a new file; returns its size and SHA-256."""
    digest = hashlib.sha256()
    size = 0
    held = bytearray()
    file = await asyncio.to_thread(path.open, "xb")

    def write(piece: bytes) -> None:
        digest.update(piece)
        file.write(piece)

    def close() -> None:
        file.flush()
        os.fsync(file.fileno())
        file.close()

    try:
        async for part in parts:
            held += part
            if len(held) >= _WRITTEN_AT_ONCE:
                size += len(held)
                await asyncio.to_thread(write, bytes(held))
                held.clear()
        size += len(held)
        await asyncio.to_thread(write, bytes(held))
        await asyncio.to_thread(close)
    finally:
        file.close()
    return size, digest.hexdigest()


def _put_in_place(unfinished: Path, target: Path) -> bool:
    replaced = target.exists()
    unfinished.replace(target)
    return replaced
