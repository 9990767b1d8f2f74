"""A folder in Qdrant's local mode: whose it is, and what makes it quick and safe."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import MirrorAway

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_LOCK = ".nightshift.lock"
_LISTED = "meta.json"


def hold(path: Path) -> int:
    """Hold a folder before any of it is read: the local mode reads it first, and takes its own lock after that.

    Returns the open file that holds it.

    Raises:
        MirrorAway: it cannot be used, or another process has it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise MirrorAway(f"Qdrant's folder {path} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise MirrorAway(
            f"Qdrant's folder {path} is in use by another process, and only one may have it: "
            "stop the daemon first, or use a Qdrant server (qdrant.url)"
        ) from error
    _clear_unfinished(path / _LISTED)
    return descriptor


def hasten(client: QdrantClient) -> None:
    """The local mode commits each point by itself. Let the disk wait for many, and see `make_durable`."""
    for storage in _storages(client).values():
        storage.execute("PRAGMA journal_mode = WAL").fetchone()
        storage.execute("PRAGMA synchronous = NORMAL")


def make_durable(client: QdrantClient, collection: str) -> None:
    """What was written to a collection before this returns is there after a power cut."""
    storage = _storages(client).get(collection)
    if storage is not None:
        storage.execute("PRAGMA wal_checkpoint(FULL)").fetchone()


def _clear_unfinished(listed: Path) -> None:
    """A process that died as it made the list of collections left it empty, and nothing would ever open it again."""
    try:
        if listed.stat().st_size == 0:
            listed.unlink()
    except OSError:
        return  # it is not there, or opening the folder says what is the matter


def _storages(client: QdrantClient) -> dict[str, sqlite3.Connection]:
    """The files of the local mode's collections. Nothing public leads to them; without them it is as safe, and slow."""
    collections = getattr(getattr(client, "_client", None), "collections", {})
    found = {name: getattr(getattr(one, "storage", None), "storage", None) for name, one in collections.items()}
    return {name: storage for name, storage in found.items() if isinstance(storage, sqlite3.Connection)}
