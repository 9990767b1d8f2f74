"""Reads an export, and believes nothing of it: each row is checked before anything makes use of it."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.documents import DocumentKind, DocumentState
from pipeline.core.errors import StoreError
from pipeline.core.vectors import BYTES_PER_NUMBER, NORM_TOLERANCE
from pipeline.store.contents import BY_MEAN, BY_MODEL
from pipeline.store.exchange.layout import Manifest, arrow, file_of, read_manifest, schema
from pipeline.store.reuse import DIGEST_BYTES

ROWS = 512
"""Read at once."""

LARGEST_GROUP = 1 << 28
"""Bytes of a row group, unpacked; ours have some ten million."""

LARGEST_BATCH = 1 << 28
"""Bytes of the texts that are read at once: a text that repeats takes next to nothing in a file."""

LONGEST_TEXT = 16 << 20
"""Characters of any text: more is none that this program wrote."""

MOST_CHUNKS = 1_000_000
"""Of one content."""

LONGEST_NAME = 1000
LARGEST_DIMENSION = 16_000
LARGEST_NUMBER = 2**62

_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NAME = re.compile(r"[\w:.@+-]{1,64}", re.ASCII)
_RECIPE = re.compile(r"[\w ]{1,64}", re.ASCII)
_ENDED = (DocumentState.EMBEDDED, DocumentState.EMPTY, DocumentState.ENCRYPTED, DocumentState.FAILED)


@dataclass(frozen=True, slots=True)
class Content:
    """What is known of a content before its chunks are read. chunks: how many it has."""

    fingerprint: str
    sha256: str
    kind: str
    recipe: str
    state: str
    chunks: int


@dataclass(frozen=True, slots=True)
class Checked:
    """An export whose every row makes sense. dimensions: of the models, by their fingerprint."""

    folder: Path
    manifest: Manifest
    dimensions: Mapping[str, int]
    contents: Mapping[int, Content]


def check_export(folder: Path, tell: Callable[[str, int, int], None] = lambda *_: None) -> Checked:
    """Read all of an export, and keep what the import has to know beforehand.

    Raises:
        StoreError: it is no export, of another version, not whole, or says what cannot be.
    """
    manifest = read_manifest(folder)
    dimensions: dict[str, int] = {}
    contents: dict[int, Content] = {}
    keys: set[tuple[str, ...]] = set()
    paths: set[tuple[str, str]] = set()
    seen = dict.fromkeys(manifest.rows, 0)
    counted, failed = Counter[int](), Counter[int]()
    last = (-1, -1)
    active, highest = 0, -1
    for table in manifest.rows:
        for row in rows_of(folder, table):
            seen[table] += 1
            where = f"{file_of(table)}, row {seen[table]}"
            try:
                match table:
                    case "models":
                        _check_model(row, dimensions)
                        active += row["active"]
                        dimensions[row["fingerprint"]] = row["dimension"]
                    case "documents":
                        _check_document(row)
                        _once(paths, (row["source"], row["path"]), "a document")
                    case "contents":
                        content = _check_content(row, dimensions)
                        _need(row["content"] > highest, "contents are not in their order")
                        _once(keys, (content.fingerprint, content.sha256, content.kind, content.recipe), "a content")
                        highest = row["content"]
                        contents[highest] = content
                    case "chunks":
                        _check_chunk(row, contents, dimensions)
                        place = (row["content"], row["ordinal"])
                        follows = (place[0] > last[0] and place[1] == 0) or place == (last[0], last[1] + 1)
                        _need(follows, "chunks are not in their order")
                        last = place
                        counted[place[0]] += 1
                        failed[place[0]] += row["error"] is not None
            except _Wrong as error:
                raise StoreError(f"{where}: {error}; nothing was imported") from None
        tell(f"checking {table}", seen[table], manifest.rows[table])
        if seen[table] != manifest.rows[table]:
            raise StoreError(f"{file_of(table)} has {seen[table]} rows, not {manifest.rows[table]}")
    if active > 1:
        raise StoreError(f"{file_of('models')}: more than one model is the active one")
    for number, content in contents.items():
        if counted[number] != content.chunks:
            raise StoreError(f"content {number} has {counted[number]} chunks, not {content.chunks}")
        if content.chunks and (content.state == DocumentState.FAILED) != bool(failed[number]):
            raise StoreError(f"content {number} is {content.state}, and {failed[number]} of its chunks failed")
    _check_references(folder, contents)
    return Checked(folder, manifest, dimensions, contents)


def rows_of(folder: Path, table: str) -> Iterator[dict[str, Any]]:
    """The rows of a file in order; `vector` as little-endian float32. Raises StoreError where the file is damaged."""
    pa = arrow()
    path = folder / file_of(table)
    try:
        with pa.parquet.ParquetFile(path) as file:
            if not file.schema_arrow.equals(schema(table)):
                raise StoreError(f"{path} has other columns than an export")
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                values = max(group.column(place).num_values for place in range(group.num_columns))
                if max(group.total_byte_size, group.num_rows * 64, values * BYTES_PER_NUMBER) > LARGEST_GROUP:
                    raise StoreError(f"{path}: row group {number} is too large")
        # Repeated texts stay one text until it is known what they come to.
        with pa.parquet.ParquetFile(path, read_dictionary=_texts(table), page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                if _bytes_of_texts(batch) > LARGEST_BATCH:
                    raise StoreError(f"{path}: its texts are too large")
                yield from _batch_rows(batch)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def _texts(table: str) -> list[str]:
    """The columns of texts, as Parquet calls them."""
    pa = arrow()
    kinds = {field.name: field.type for field in schema(table)}
    lists = [f"{name}.list.element" for name, kind in kinds.items() if kind == schema("chunks").field("headings").type]
    return [name for name, kind in kinds.items() if kind == pa.string()] + lists


def _bytes_of_texts(batch: Any) -> int:
    pa, total = arrow(), 0
    for column in batch.columns:
        values = column.flatten() if pa.types.is_list(column.type) else column
        if pa.types.is_dictionary(values.type) and len(values.dictionary):
            lengths = pa.compute.binary_length(values.dictionary).take(values.indices)
            total += pa.compute.sum(lengths.cast(pa.int64())).as_py() or 0
    return total


def _batch_rows(batch: Any) -> Iterator[dict[str, Any]]:
    names = [name for name in batch.schema.names if name != "vector"]
    columns = [batch.column(name).to_pylist() for name in names]
    vectors = _vectors(batch.column("vector")) if "vector" in batch.schema.names else None
    for place in range(batch.num_rows):
        row = {name: column[place] for name, column in zip(names, columns, strict=True)}
        if vectors is not None:
            row["vector"] = vectors[place]
        yield row


def _vectors(column: Any) -> list[bytes | None]:
    found: list[bytes | None] = []
    for value in column:
        numbers = value.values
        if numbers is None:
            found.append(None)
            continue
        if numbers.null_count:
            raise ValueError("a vector has numbers that are missing")
        found.append(np.asarray(numbers.to_numpy(zero_copy_only=False), "<f4").tobytes())
    return found


class _Wrong(Exception):
    """What a row says cannot be."""


def _need(condition: object, problem: str) -> None:
    if not condition:
        raise _Wrong(problem)


def _once(seen: set[Any], key: Any, what: str) -> None:
    _need(key not in seen, f"{what} is there twice")
    seen.add(key)


def _check_texts(row: Mapping[str, Any], *names: str) -> None:
    for name in names:
        value = row[name]
        _need(value is None or (len(value) <= LONGEST_TEXT and "\0" not in value), f"{name} is no text of ours")


def _check_numbers(row: Mapping[str, Any], *names: str) -> None:
    for name in names:
        _need(row[name] is None or 0 <= row[name] <= LARGEST_NUMBER, f"{name} is {row[name]}")


def _check_model(row: Mapping[str, Any], known: Mapping[str, int]) -> None:
    _check_texts(row, "name", "path")
    _need(_NAME.fullmatch(row["fingerprint"]), "the fingerprint of a model is none")
    _need(row["fingerprint"] not in known, "a model is there twice")
    _need(row["name"] and len(row["name"]) <= LONGEST_NAME, "the name of a model is none")
    # What a hub has by this name would be downloaded when somebody searches.
    _need(not row["path"].startswith("hf:"), f"{row['path'][:100]!r} is no path of a model")
    _need(1 <= row["dimension"] <= LARGEST_DIMENSION, f"a model has {row['dimension']} dimensions")


def _check_document(row: Mapping[str, Any]) -> None:
    _check_texts(row, "source", "path", "problem")
    _check_numbers(row, "size", "content", "shown")
    source, path = row["source"], row["path"]
    _need(source.startswith("/") and _is_plain(source[1:] or "root"), f"{source!r} is no absolute path")
    _need(_is_plain(path), f"{path!r} is no path in a source")
    _need(row["mtime_ns"] >= -1, f"mtime_ns is {row['mtime_ns']}")
    _need(row["sha256"] is None or _HASH.fullmatch(row["sha256"]), "the SHA-256 of a file is none")
    _need(row["content"] is not None or row["shown"] is None, "a document shows what it does not have")
    _check_moment(row["found_at"])


def _is_plain(path: str) -> bool:
    """Whether a relative path stays below where it begins."""
    parts = path.split("/")
    return 0 < len(path) <= 4096 and all(part not in ("", ".", "..") for part in parts)


def _check_content(row: Mapping[str, Any], dimensions: Mapping[str, int]) -> Content:
    _check_texts(row, "stage", "reason", "title", "details")
    names = ("content", "page_count", "characters", "chunk_count", "token_count", "modified_ns")
    _check_numbers(row, *names)
    _need(_HASH.fullmatch(row["sha256"]), "the SHA-256 of a content is none")
    _need(row["kind"] in {*DocumentKind}, f"{row['kind']!r} is no kind of document")
    _need(row["state"] in (*_ENDED, DocumentState.DISCOVERED), f"{row['state']!r} is no state of what is exported")
    _need(_RECIPE.fullmatch(row["recipe"]), "a recipe is none")
    _need(row["stage"] is None or len(row["stage"]) <= 16, "a stage is none")
    _need(row["fingerprint"] in dimensions, "a content is of a model that is not there")
    _need(row["chunk_count"] <= MOST_CHUNKS, f"{row['chunk_count']} chunks")
    with_chunks = row["state"] in (DocumentState.EMBEDDED, DocumentState.FAILED)
    _need(with_chunks or not row["chunk_count"], f"{row['state']} documents have no chunks")
    _need(_is_object(row["details"]), "details are no JSON object")
    _need((row["vector"] is None) == (row["method"] is None), "a vector without its method")
    _need(row["method"] in (None, BY_MODEL, BY_MEAN), f"{row['method']!r} is no way to make a vector")
    _check_vector(row["vector"], dimensions[row["fingerprint"]])
    _check_moment(row["created_at"])
    if row["embedded_at"] is not None:
        _check_moment(row["embedded_at"])
    return Content(row["fingerprint"], row["sha256"], row["kind"], row["recipe"], row["state"], row["chunk_count"])


def _is_object(text: str) -> bool:
    """Whether this is a JSON object that every database takes: no NaN, no infinity, no half of a character."""
    try:
        document = json.loads(text)
        json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "\\u0000" not in text


def _check_chunk(row: Mapping[str, Any], contents: Mapping[int, Content], dimensions: Mapping[str, int]) -> None:
    _check_texts(row, "prefix", "text", "error")
    _check_numbers(row, "ordinal", "page_first", "page_last", "start_char", "end_char", "token_count")
    content = contents.get(row["content"])
    if content is None:
        raise _Wrong("a chunk is of a content that is not there")
    _need(row["token_count"] > 0, "a chunk has no tokens")
    headings: Sequence[str] = row["headings"]
    _need(sum(map(len, headings)) <= LONGEST_TEXT and not any("\0" in one for one in headings), "headings are none")
    _need(len(row["text"]) == row["end_char"] - row["start_char"], "a chunk's text is not as long as its place")
    pages = (row["page_first"], row["page_last"])
    _need(pages == (None, None) or (None not in pages and 1 <= pages[0] <= pages[1]), "a chunk's pages are none")
    _need(row["digest"] is None or len(row["digest"]) == DIGEST_BYTES, "a chunk's digest is none")
    _need((row["vector"] is None) != (row["error"] is None), "a chunk has a vector, or else an error")
    failed = content.state == DocumentState.FAILED
    _need(row["error"] is None or failed, "a chunk of an embedded document failed")
    _check_vector(row["vector"], dimensions[content.fingerprint])


def _check_vector(vector: bytes | None, dimension: int) -> None:
    if vector is None:
        return
    numbers = len(vector) // BYTES_PER_NUMBER
    _need(numbers == dimension, f"a vector of {numbers} numbers, and its model's have {dimension}")
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.sqrt(np.square(np.frombuffer(vector, "<f4"), dtype=np.float64).sum()))
    _need(abs(length - 1.0) <= NORM_TOLERANCE, f"a vector of the length {length:.4g}, and not 1")


def _check_moment(value: dt.datetime | None) -> None:
    _need(value is not None and 1970 <= value.year <= 9998, "a time is none")


def _check_references(folder: Path, contents: Mapping[int, Content]) -> None:
    for number, row in enumerate(rows_of(folder, "documents"), start=1):
        for name in ("content", "shown"):
            if row[name] is not None and row[name] not in contents:
                raise StoreError(f"{file_of('documents')}, row {number}: content {row[name]} is not there")
        effective = contents.get(row["content"]) if row["content"] is not None else None
        if effective is not None and row["problem"] is None and effective.sha256 != row["sha256"]:
            raise StoreError(f"{file_of('documents')}, row {number}: its content was made of other bytes")
