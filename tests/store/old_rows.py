"""What a database of each revision holds: a program at work, written down without that program's code.

A new revision adds one entry to `ROWS`: rows for its new tables, and values for its new columns; and one to `DROPPED`
where it drops some.
Old entries are never changed: they are what users have.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

Rows = Mapping[str, Sequence[Mapping[str, Any]]]

FIRST_NIGHT = dt.datetime(2026, 3, 29, 1, 59, 59, 123456, tzinfo=dt.UTC)
MODEL = hashlib.sha256(b"model").hexdigest()
DIMENSION = 4


def axis(number: int) -> bytes:
    """A unit vector along an axis."""
    vector: bytes = np.eye(DIMENSION, dtype="<f4")[number].tobytes()
    return vector


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _content(text: str, state: str, **more: Any) -> dict[str, Any]:
    blank = {
        "sha256": _hash(text), "kind": "pdf", "model_id": 1, "recipe": "r", "state": state, "stage": None,
        "reason": None, "attempts": 0, "retry_at": None, "claimed_by": None, "title": None, "details": {},
        "page_count": 0, "characters": 0, "chunk_count": 0, "embedded_count": 0, "failed_count": 0,
        "created_at": FIRST_NIGHT, "embedded_at": None, "priority": 0, "modified_ns": 0, "token_count": 0,
    }  # fmt: skip
    return blank | more


def _chunk(content_id: int, ordinal: int, text: str, error: str | None = None) -> dict[str, Any]:
    return {
        "content_id": content_id, "ordinal": ordinal, "start_char": 10 * ordinal, "end_char": 10 * ordinal + len(text),
        "page_first": 1, "page_last": None if ordinal else 2, "headings": ["Über", "§ 1"] if ordinal else [],
        "token_count": 4, "text": text, "error": error, "digest": bytes([ordinal]) * 16,
        "prefix": "Größe | Preis\n" if ordinal else "",
    }  # fmt: skip


def _document(path: str, text: str | None, current: int | None, pending: int | None, **more: Any) -> dict[str, Any]:
    blank = {
        "source_id": 1, "path": path, "size": 5 << 32, "mtime_ns": 1_774_749_599_123_456_789,
        "sha256": None if text is None else _hash(text), "current_id": current, "pending_id": pending,
        "problem": None, "found_at": FIRST_NIGHT, "gone_at": None,
    }  # fmt: skip
    return blank | more


def _run(run_id: str, state: str, **more: Any) -> dict[str, Any]:
    blank = {
        "id": run_id, "state": state, "host": "box", "pid": 4321, "process_started": 1774749590.25,
        "started_at": FIRST_NIGHT, "heartbeat_at": FIRST_NIGHT, "finished_at": None, "sources": ["/docs"],
        "chunks_embedded": 0, "error": None, "job": None, "window_start": None, "window_end": None, "stop_at": None,
        "task": "ingest", "fingerprint": MODEL, "device": "gpu", "documents_read": 3, "documents_done": 2,
        "pages_read": 40, "characters": 5 << 32, "tokens_embedded": 6 << 32, "extract_seconds": 1.5,
        "embed_seconds": 2.25, "request_seconds": 0.125, "report": {"outcome": "complete", "causes": ["größer"]},
    }  # fmt: skip
    return blank | more


_TWELFTH: Rows = {
    "models": [
        {
            "fingerprint": MODEL, "name": "m", "path": "/models/m.gguf", "size": 45_949_216, "mtime_ns": 7,
            "dimension": DIMENSION, "active": True, "created_at": FIRST_NIGHT, "set_aside": True,
        }
    ],
    "sources": [
        {"root": "/docs", "created_at": FIRST_NIGHT, "looked_at_by": "killed", "folder": None, "mark": "5eed"}
    ],
    "source_hosts": [
        {"source_id": 1, "host": "box", "looked_at": FIRST_NIGHT},
        {"source_id": 1, "host": "größer", "looked_at": FIRST_NIGHT},
    ],
    "runs": [
        _run("finished", "complete", finished_at=FIRST_NIGHT, chunks_embedded=3),
        _run("killed", "running", job="nightly", window_start=FIRST_NIGHT,
             window_end=FIRST_NIGHT + dt.timedelta(hours=6), stop_at=FIRST_NIGHT + dt.timedelta(hours=6)),
    ],
    # Ids are 1, 2, ... in this order.
    "contents": [
        _content("done", "embedded", title="Fähre", details={"engine": "pdfium", "metadata": {"Author": "Ada"}},
                 page_count=2, characters=20, chunk_count=2, embedded_count=2, embedded_at=FIRST_NIGHT),
        _content("old", "embedded", chunk_count=1, embedded_count=1, embedded_at=FIRST_NIGHT, priority=1,
                 modified_ns=1_774_749_599_123_456_789, token_count=4),
        _content("new", "extracted", chunk_count=2, embedded_count=1, claimed_by="killed", token_count=8),
        _content("waits", "discovered", attempts=1, reason="timed out", stage="extract", retry_at=FIRST_NIGHT),
        _content("partly", "failed", stage="embed", reason="1 of 2", chunk_count=2, embedded_count=1, failed_count=1,
                 embedded_at=FIRST_NIGHT),
    ],
    "documents": [
        _document("done.pdf", "done", 1, None, gone_at=FIRST_NIGHT),
        _document("copies/done.pdf", "done", 1, None),
        _document("changed.pdf", "new", 2, 3),
        _document("waits.pdf", "waits", None, 4),
        _document("partly.pdf", "partly", 5, None),
        _document("locked.pdf", None, None, None, problem="permission denied", mtime_ns=0),
    ],
    "chunks": [
        _chunk(1, 0, "first"), _chunk(1, 1, "zweiter Teil, größer"), _chunk(2, 0, "outdated"),
        _chunk(3, 0, "stored"), _chunk(3, 1, "queued"), _chunk(5, 0, "whole"), _chunk(5, 1, "broken", "too odd"),
    ],
    "embeddings": [
        {"chunk_id": chunk, "content_id": content, "model_id": 1, "vector": axis(chunk % DIMENSION)}
        for chunk, content in ((1, 1), (2, 1), (3, 2), (4, 3), (6, 5))
    ],
    "content_embeddings": [
        {"content_id": number, "method": "mean", "vector": axis(number % DIMENSION)} for number in (1, 2, 5)
    ],
    "chunk_words": [
        {"chunk_id": number, "words": words}
        for number, words in enumerate(
            ("first", "uber § 1 zweiter teil grosser", "outdated", "stored", "queued", "whole", "broken"), start=1
        )
    ],
    "pending_chunks": [
        {
            "chunk_id": 5, "content_id": 3, "tokens": np.asarray([101, 7, 30_000, 102], "<i4").tobytes(),
            "in_stretch": False,
        }
    ],
    # Of a document that was sent back to be read again.
    "pending_stretches": [
        {
            "content_id": 4, "tokens": np.asarray([101, 9, 7, 30_000, 102], "<i4").tobytes(),
            "spans": np.asarray([[8, 2, 5]], "<i8").tobytes(),
        }
    ],
    "deliveries": [
        {"run_id": "finished", "due_at": FIRST_NIGHT, "attempts": 2, "error": "refused", "delivered_at": None}
    ],
    "mode_switches": [
        {
            "from_mode": "generation", "to_mode": "embedding", "reason": "job", "detail": "nightly",
            "started_at": FIRST_NIGHT, "finished_at": FIRST_NIGHT + dt.timedelta(seconds=4), "outcome": "done",
            "phases": {"close": 0.001, "drain": 1.5, "open": 0.0}, "memory_before": 150 << 30, "memory_after": 1 << 20,
            "device": "GPU 0", "pids_before": [10], "pids_after": [11, 12], "in_flight": 3, "cut": 1, "error": None,
            "host": "box",
        },
        {
            "from_mode": "idle", "to_mode": "generation", "reason": "operator", "detail": None,
            "started_at": FIRST_NIGHT, "finished_at": None, "outcome": "running", "phases": {}, "memory_before": None,
            "memory_after": None, "device": None, "pids_before": [], "pids_after": [], "in_flight": 0, "cut": 0,
            "error": None, "host": "box",
        },
    ],
    "holds": [{"id": 1, "host": "box", "mode": "mixed", "until": None, "set_at": FIRST_NIGHT, "set_by": "ada"}],
    "loads": [
        {
            "host": "box", "fingerprint": MODEL, "kind": "llama-cpp", "device": "gpu", "seconds": 1.25,
            "seconds_max": 3.5, "count": 9, "measured_at": FIRST_NIGHT,
        }
    ],
    "job_states": [
        {
            "host": "box", "name": "nightly", "known_since": FIRST_NIGHT, "last_started": FIRST_NIGHT,
            "last_finished": None, "last_outcome": "failed", "failures": 1,
        }
    ],
    "tunings": [
        {
            "fingerprint": MODEL, "device": "A processor, 2 cores", "build": "llama-cpp-python 0.3.36 (CPU: AVX2)",
            "engine": "llama-cpp", "options": {"n_batch": 384, "flash_attn": "on"}, "tokens_per_second": 6320.5,
            "trials": [{"options": {}, "tokens_per_second": 5000.25}, {"options": {"n_batch": 8}, "problem": "größer"}],
            "measured_at": FIRST_NIGHT,
        }
    ],
    "mirrors": [
        {
            "name": "qdrant", "location": "http://qdrant:6333 nightshift", "created_at": FIRST_NIGHT, "attempts": 3,
            "error": "größer", "due_at": FIRST_NIGHT, "in_line_at": None, "looked_at": FIRST_NIGHT, "shown": MODEL,
        }
    ],
    "outbox": [
        {
            "fingerprint": MODEL, "sha256": _hash(text), "kind": "pdf", "recipe": "r", "attempts": tries,
            "error": error, "due_at": due,
        }
        for text, tries, error, due in (("done", 0, None, None), ("gone", 2, "too large", FIRST_NIGHT))
    ],
    "mirrored": [{"fingerprint": MODEL, "sha256": _hash("gone"), "kind": "pdf", "recipe": "r", "points": 2}],
}  # fmt: skip

DROPPED: Mapping[str, Mapping[str, set[str]]] = {"0013": {"deliveries": set()}}
"""What a revision drops: columns of tables, or a table with all of its columns."""

ROWS: Mapping[str, Rows] = {
    "0012": _TWELFTH,
    "0013": {table: rows for table, rows in _TWELFTH.items() if table != "deliveries"},
}
"""What a database holds, by its revision."""


def insert(engine: Engine, rows: Rows) -> None:
    """Put rows into the tables as they are now, parents before children. The database numbers them itself."""
    tables = sa.MetaData()
    tables.reflect(engine)
    with engine.begin() as connection:
        for table in tables.sorted_tables:
            for row in rows.get(table.name, ()):
                connection.execute(table.insert().values(row))


def dump(engine: Engine, columns: Mapping[str, Sequence[str]] | None = None) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, or of some columns of some, as the driver gives it."""
    with engine.connect() as connection:
        wanted = columns_of(connection) if columns is None else columns
        return {table: _all(connection, table, names) for table, names in wanted.items()}


def columns_of(connection: Connection) -> dict[str, list[str]]:
    """The columns of every table that holds the program's data."""
    inspector = sa.inspect(connection)
    # What is named after another table is an index over it, which SQLite keeps in tables of its own form.
    names = sorted(
        name for name in set(inspector.get_table_names()) - {"alembic_version"} if not name.startswith("chunk_words_")
    )
    return {name: [column["name"] for column in inspector.get_columns(name)] for name in names}


def kept(columns: Mapping[str, Sequence[str]], revision: str) -> dict[str, list[str]]:
    """Of the columns of a revision, those that no later one drops."""
    left = {table: list(names) for table, names in columns.items()}
    for later in (dropped for number, dropped in DROPPED.items() if number > revision):
        for table, gone in later.items():
            left[table] = [name for name in left[table] if gone and name not in gone]
    return {table: names for table, names in left.items() if names}


def _all(connection: Connection, table: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    listed = ", ".join(f'"{column}"' for column in columns)
    rows = connection.exec_driver_sql(f'SELECT {listed} FROM "{table}"')
    return sorted((tuple(map(_bytes_of_vector, row)) for row in rows), key=repr)


def _bytes_of_vector(value: Any) -> Any:
    """A vector of PostgreSQL, which writes it `[1,0.5]`, as the float32 that SQLite holds."""
    if isinstance(value, str) and re.fullmatch(r"\[-?\d[-+.,e\d]*\]", value):
        return np.asarray(json.loads(value), "<f4").tobytes()
    return value
