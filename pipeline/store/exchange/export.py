"""Writes a database into a folder of Parquet files: one snapshot, a block of rows in memory at a time.

The folder is made aside and gets its name when all of it is on the disk. What belongs to a host or to the moment is
not in it: the queue, runs and their reports, the schedule, holds, tunings.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.core.errors import StoreError, UsageError
from pipeline.store.contents import TRIED
from pipeline.store.database import Database
from pipeline.store.exchange.layout import MANIFEST, ROWS, TABLES, Manifest, arrow, file_of, hash_of, schema
from pipeline.store.scopes import folder_of_source
from pipeline.store.tables import (
    ChunkRow,
    ContentEmbeddingRow,
    ContentRow,
    DocumentRow,
    EmbeddingRow,
    ModelRow,
    SourceRow,
)

ENDED = (DocumentState.EMBEDDED, DocumentState.EMPTY, DocumentState.ENCRYPTED, DocumentState.FAILED)
"""Of what is on its way nothing is exported but that it waits."""


@dataclass(frozen=True, slots=True)
class Exported:
    """How many rows of what were written."""

    folder: Path
    rows: dict[str, int]


def export(
    store: Database,
    folder: Path,
    *,
    program: str,
    now: dt.datetime,
    fingerprint: str | None = None,
    tell: Callable[[str, int, int], None] = lambda *_: None,
) -> Exported:
    """Write the export `folder`. fingerprint: only what this model made.

    Raises:
        UsageError: there is something at `folder` already.
        StoreError: pyarrow is not there, or the disk says no.
    """
    arrow()
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is there already: name a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            with store.snapshot() as session:
                rows = _write(session, aside, fingerprint, tell)
            hashes = {name: hash_of(aside / file_of(name)) for name in TABLES}
            manifest = Manifest(rows, hashes, program, now.isoformat())
            (aside / MANIFEST).write_text(manifest.as_json(), encoding="utf-8")
            for name in os.listdir(aside):  # noqa: PTH208
                _on_disk(aside / name)
            aside.chmod(0o755)
            _on_disk(aside)
            aside.rename(folder)
            _on_disk(folder.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    except (ValueError, TypeError) as error:
        raise StoreError(f"the database has values that cannot be read ({error}): `verify` names them") from error
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror or error}") from error
    return Exported(folder, rows)


def _write(
    session: Session, folder: Path, fingerprint: str | None, tell: Callable[[str, int, int], None]
) -> dict[str, int]:
    wanted = sa.select(ModelRow.id)
    if fingerprint is not None:
        wanted = wanted.where(ModelRow.fingerprint == fingerprint)
    model_ids = list(session.scalars(wanted))
    dimensions: dict[str, int] = dict(session.execute(sa.select(ModelRow.fingerprint, ModelRow.dimension)).all())
    makers: dict[str, Callable[[Session, Sequence[int]], Iterator[dict[str, Any]]]] = {
        "models": _models,
        "documents": _documents,
        "contents": _contents,
        "chunks": _chunks,
    }
    rows: dict[str, int] = {}
    for table, make in makers.items():
        rows[table] = 0
        with _Writer(folder / file_of(table), table, dimensions) as writer:
            for block in _blocks(make(session, model_ids)):
                writer.write(block)
                rows[table] += len(block)
                tell(table, rows[table], 0)
    return rows


_REPEATED = ("file", "title", "model", "fingerprint", "source", "kind", "state")
"""Columns whose values come again and again."""


class _Writer:
    """A Parquet file of a table, row group by row group. dimensions: of the models' vectors, by fingerprint."""

    def __init__(self, path: Path, table: str, dimensions: Mapping[str, int]) -> None:
        self._pa = arrow()
        self._dimensions = dimensions
        self._schema = schema(table)
        repeated = [name for name in _REPEATED if name in self._schema.names]
        self._writer = self._pa.parquet.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            use_dictionary=repeated or False,
            write_page_checksum=True,
        )

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Raises ValueError for a vector that no import would take."""
        columns = []
        for field in self._schema:
            values = [row[field.name] for row in rows]
            if field.name == "vector":
                for value, row in zip(values, rows, strict=True):
                    if value is not None and len(value) != 4 * self._dimensions[row["fingerprint"]]:
                        raise ValueError(f"a vector of content {row['content']} has {len(value)} bytes")
            columns.append(
                self._vectors(values, field) if field.name == "vector" else self._pa.array(values, field.type)
            )
        self._writer.write_batch(self._pa.record_batch(columns, schema=self._schema))

    def _vectors(self, values: Sequence[bytes | None], field: Any) -> Any:
        """Little-endian float32 as lists, without a Python object for each number."""
        sizes = [0 if value is None else len(value) // 4 for value in values]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        numbers = np.frombuffer(b"".join(value or b"" for value in values), "<f4").astype(np.float32)
        if not np.isfinite(numbers).all():
            raise ValueError("a vector holds what is no number")
        missing = self._pa.array([value is None for value in values])
        return self._pa.ListArray.from_arrays(
            self._pa.array(offsets), self._pa.array(numbers), type=field.type, mask=missing
        )


def _models(session: Session, model_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    for row in session.scalars(sa.select(ModelRow).where(ModelRow.id.in_(model_ids)).order_by(ModelRow.id)):
        yield {name: getattr(row, name) for name in ("fingerprint", "name", "path", "dimension", "active")}


def _documents(session: Session, model_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    mine = sa.select(ContentRow.id).where(ContentRow.model_id.in_(model_ids))

    def of_models(column: Any) -> Any:
        return sa.case((column.in_(mine), column))

    query = (
        sa.select(
            SourceRow.root.label("source"),  # two hosts may each have a folder of their own at one path
            DocumentRow.path,
            DocumentRow.size,
            DocumentRow.mtime_ns,
            DocumentRow.sha256,
            DocumentRow.problem,
            DocumentRow.found_at,
            sa.func.coalesce(of_models(DocumentRow.pending_id), of_models(DocumentRow.current_id)).label("content"),
            of_models(DocumentRow.current_id).label("shown"),
        )
        .join(SourceRow, SourceRow.id == DocumentRow.source_id)
        .order_by(DocumentRow.id)
    )
    yield from _rows(session, query)


_COUNTED = ("page_count", "characters", "chunk_count", "token_count")


def _contents(session: Session, model_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    query = (
        sa.select(ContentRow, ModelRow.fingerprint, ContentEmbeddingRow.method, ContentEmbeddingRow.vector)
        .join(ModelRow, ModelRow.id == ContentRow.model_id)
        .outerjoin(ContentEmbeddingRow, ContentEmbeddingRow.content_id == ContentRow.id)
        .where(ContentRow.model_id.in_(model_ids))
        .order_by(ContentRow.id)
        .execution_options(yield_per=ROWS)
    )
    kept = ("sha256", "kind", "recipe", "modified_ns", "created_at")
    made = (*_COUNTED, "state", "stage", "reason", "title", "embedded_at")
    waiting: dict[str, Any] = {"state": DocumentState.DISCOVERED.value} | dict.fromkeys(_COUNTED, 0)
    for content, fingerprint, method, vector in session.execute(query):
        ended = content.state in ENDED
        details = {name: value for name, value in content.details.items() if name != TRIED} if ended else {}
        yield (
            {"content": content.id, "fingerprint": fingerprint, "details": json.dumps(details, ensure_ascii=False)}
            | {name: getattr(content, name) for name in kept}
            | {name: getattr(content, name) if ended else waiting.get(name) for name in made}
            | {"method": method if ended else None, "vector": vector if ended else None}
        )
        session.expunge(content)


def _chunks(session: Session, model_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    shows = sa.or_(DocumentRow.current_id == ContentRow.id, DocumentRow.pending_id == ContentRow.id)
    first = sa.select(sa.func.min(DocumentRow.id)).where(shows).correlate(ContentRow).scalar_subquery()
    of_contents = (
        sa.select(
            ContentRow.id, ContentRow.title, ModelRow.name, ModelRow.fingerprint, folder_of_source(), DocumentRow.path
        )
        .join(ModelRow, ModelRow.id == ContentRow.model_id)
        .outerjoin(DocumentRow, DocumentRow.id == first)
        .outerjoin(SourceRow, SourceRow.id == DocumentRow.source_id)
        .where(ContentRow.model_id.in_(model_ids), ContentRow.state.in_(ENDED), ContentRow.chunk_count > 0)
        .order_by(ContentRow.id)
    )
    columns = (
        "content_id", "ordinal", "page_first", "page_last", "headings", "prefix", "text", "start_char", "end_char",
        "token_count", "error", "digest",
    )  # fmt: skip
    for content_id, title, model, fingerprint, root, path in session.execute(of_contents).all():
        file = None if path is None or root is None else f"{root.rstrip('/')}/{path}"
        query = (
            sa.select(*(getattr(ChunkRow, name) for name in columns), EmbeddingRow.vector)
            .outerjoin(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id)
            .where(ChunkRow.content_id == content_id)
            .order_by(ChunkRow.ordinal)
        )
        about = {"file": file, "title": title, "model": model, "fingerprint": fingerprint, "content": content_id}
        for row in _rows(session, query):
            yield row | about


def _rows(session: Session, query: Any) -> Iterator[dict[str, Any]]:
    for row in session.execute(query.execution_options(yield_per=ROWS)).mappings():
        yield dict(row)


def _blocks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    block: list[dict[str, Any]] = []
    for row in rows:
        block.append(row)
        if len(block) == ROWS:
            yield block
            block = []
    if block:
        yield block


def _on_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
