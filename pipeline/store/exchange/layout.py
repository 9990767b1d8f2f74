"""What an export is: its files, their columns, and the manifest that says it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import StoreError

if TYPE_CHECKING:
    from pyarrow import Schema

FORMAT = "nightshift-export"
VERSION = 1
"""Of the columns and of what they mean; another one is not imported."""

MANIFEST = "manifest.json"
LARGEST_MANIFEST = 1 << 20

TABLES = ("models", "documents", "contents", "chunks")

ROWS = 2048
"""In a row group: what is in memory at once."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """rows, sha256: of each file, by its table. program: the version that wrote it."""

    rows: Mapping[str, int]
    sha256: Mapping[str, str]
    program: str
    created_at: str

    def as_json(self) -> str:
        """The manifest's text."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "program": self.program,
            "created_at": self.created_at,
            "files": {
                name: {"file": file_of(name), "rows": self.rows[name], "sha256": self.sha256[name]} for name in TABLES
            },
        }
        return json.dumps(document, indent=2) + "\n"


def file_of(table: str) -> str:
    """The name of a table's file."""
    return f"{table}.parquet"


def arrow() -> Any:
    """The library. Raises StoreError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise StoreError("Parquet files need pyarrow: .venv/bin/pip install -e '.[parquet]'") from error
    return pyarrow


def schema(table: str) -> Schema:
    """The columns of a table, as `docs/operations.md` describes them."""
    pa = arrow()
    vector, moment = pa.list_(pa.field("element", pa.float32(), nullable=False)), pa.timestamp("us", tz="UTC")
    columns: Mapping[str, Mapping[str, tuple[Any, bool]]] = {
        "models": {
            "fingerprint": (pa.string(), False), "name": (pa.string(), False), "path": (pa.string(), False),
            "dimension": (pa.int32(), False), "active": (pa.bool_(), False),
        },
        "documents": {
            "source": (pa.string(), False), "path": (pa.string(), False), "size": (pa.int64(), False),
            "mtime_ns": (pa.int64(), False), "sha256": (pa.string(), True), "problem": (pa.string(), True),
            "found_at": (moment, False), "content": (pa.int64(), True), "shown": (pa.int64(), True),
        },
        "contents": {
            "content": (pa.int64(), False), "sha256": (pa.string(), False), "kind": (pa.string(), False),
            "fingerprint": (pa.string(), False), "recipe": (pa.string(), False), "state": (pa.string(), False),
            "stage": (pa.string(), True), "reason": (pa.string(), True), "title": (pa.string(), True),
            "details": (pa.string(), False), "page_count": (pa.int32(), False), "characters": (pa.int64(), False),
            "chunk_count": (pa.int32(), False), "token_count": (pa.int64(), False), "modified_ns": (pa.int64(), False),
            "created_at": (moment, False), "embedded_at": (moment, True), "method": (pa.string(), True),
            "vector": (vector, True),
        },
        "chunks": {
            "content": (pa.int64(), False), "ordinal": (pa.int32(), False), "file": (pa.string(), True),
            "title": (pa.string(), True), "page_first": (pa.int32(), True), "page_last": (pa.int32(), True),
            "headings": (pa.list_(pa.field("element", pa.string(), nullable=False)), False),
            "prefix": (pa.string(), False), "text": (pa.string(), False), "start_char": (pa.int64(), False),
            "end_char": (pa.int64(), False), "token_count": (pa.int32(), False), "error": (pa.string(), True),
            "digest": (pa.binary(), True), "model": (pa.string(), False), "fingerprint": (pa.string(), False),
            "vector": (vector, True),
        },
    }  # fmt: skip
    fields = [pa.field(name, kind, nullable=maybe) for name, (kind, maybe) in columns[table].items()]
    made: Schema = pa.schema(fields)
    return made


def hash_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an export, with its files as it says. Raises StoreError."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            raise StoreError(f"{path} is too large for a manifest")
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise StoreError(f"{folder} is no export of Nightshift")
        if document["version"] != VERSION:
            raise StoreError(
                f"{folder} is an export of version {document['version']!r}, and this program reads version {VERSION}"
            )
        rows = {name: document["files"][name]["rows"] for name in TABLES}
        hashes = {name: document["files"][name]["sha256"] for name in TABLES}
        if not all(isinstance(number, int) and number >= 0 for number in rows.values()):
            raise StoreError(f"{path} makes no sense: a number of rows is none")
        manifest = Manifest(rows, hashes, str(document["program"]), str(document["created_at"]))
    except FileNotFoundError as error:
        raise StoreError(f"{folder} is no export: it has no {MANIFEST}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} makes no sense: {error!r}") from error
    for name in TABLES:
        _check_file(folder / file_of(name), manifest.sha256[name])
    return manifest


def _check_file(path: Path, sha256: str) -> None:
    try:
        if not path.is_file() or hash_of(path) != sha256:
            raise StoreError(f"{path} is not the file that was exported: copy the folder again")
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
