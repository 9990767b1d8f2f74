"""Reads a model's files into the page cache ahead of its load, so that the load waits for no disk."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import psutil
import structlog

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger(__name__)

PIECE = 8 * 2**20
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


async def read_ahead(path: Path) -> int:
    """Read the GGUF, or the weights in the directory, at `path`; returns how many bytes were read.

    Reads nothing where memory has no room for it: that would push out the pages of the model that
    still serves. Errors cost nothing but a log line. Ends soon when cancelled.
    """
    give_up = threading.Event()
    try:
        return await asyncio.to_thread(_read, path, give_up)
    finally:
        give_up.set()


def _read(path: Path, give_up: threading.Event) -> int:
    done = 0
    try:
        files = sorted({file for pattern in WEIGHTS for file in path.glob(pattern)}) if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files)
        if size > psutil.virtual_memory().available:
            log.info("The model is not read ahead: it is larger than the free memory", path=str(path), bytes=size)
            return 0
        piece = bytearray(PIECE)
        for file in files:
            with file.open("rb", buffering=0) as source:
                while not give_up.is_set() and (count := source.readinto(piece)):
                    done += count
    except OSError as error:
        log.warning("The model could not be read ahead", path=str(path), error=str(error))
    return done
