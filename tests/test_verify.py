"""`verify` over what the real program made: each kind of disagreement is made for real, found, mended, and gone.

One database of each kind is filled by a run; each test has a copy of it, and changes it behind the program's back.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sqlite3
import subprocess
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from pipeline.core.errors import RunInProgress, StoreError, UsageError
from pipeline.ingest.work import utc_now
from pipeline.runner.mirroring import beside
from pipeline.runner.untold import is_alive, this_process
from pipeline.runner.verifying import Wanted
from pipeline.store import runs
from pipeline.store.database import Database
from pipeline.store.exchange.export import export
from pipeline.store.models import active_model
from pipeline.store.nearest.copies import folder_of
from pipeline.store.nearest.copying import Copying
from pipeline.store.nearest.quantized import database_file
from pipeline.store.tables import ChunkRow, ContentEmbeddingRow, DocumentRow, EmbeddingRow, ModelRow
from tests.filled import (
    ALL,
    DOCUMENTS,
    ROWS_ONLY,
    World,
    assert_same,
    filled_postgres,
    filled_sqlite,
    originals,
    seen,
    settings_for,
    world,
)
from tests.runs import Host, kill_and_reap

__all__ = ["filled_postgres", "filled_sqlite", "originals", "world"]

# Ways to break it


def some_chunk(world: World, method: str = "mean") -> int:
    """A chunk in the middle of a document whose own vector was made so."""
    query = (
        sa.select(ChunkRow.id)
        .join(ContentEmbeddingRow, ContentEmbeddingRow.content_id == ChunkRow.content_id)
        .where(ContentEmbeddingRow.method == method, ChunkRow.ordinal == 2)
        .order_by(ChunkRow.id)
    )
    return int(world.one(query))


def set_vector(world: World, chunk_id: int, vector: np.ndarray[Any, Any]) -> None:
    with world.store.begin() as session:
        values = {"vector": vector.astype("<f4").tobytes()}
        session.execute(sa.update(EmbeddingRow).where(EmbeddingRow.chunk_id == chunk_id).values(**values))


def vector_of(world: World, chunk_id: int) -> np.ndarray[Any, Any]:
    query = sa.select(EmbeddingRow.vector).where(EmbeddingRow.chunk_id == chunk_id)
    return np.frombuffer(world.one(query), "<f4").copy()


def too_long(world: World) -> None:
    chunk = some_chunk(world)
    set_vector(world, chunk, vector_of(world, chunk) * 2)


def flipped(world: World) -> None:
    """A bit of an exponent."""
    chunk = some_chunk(world)
    raw = bytearray(vector_of(world, chunk).tobytes())
    raw[3] ^= 0x40
    set_vector(world, chunk, np.frombuffer(bytes(raw), "<f4"))


def cut_short(world: World) -> None:
    chunk = some_chunk(world)
    set_vector(world, chunk, vector_of(world, chunk)[:-1])


def not_finite(world: World) -> None:
    chunk = some_chunk(world)
    vector = vector_of(world, chunk)
    vector[7] = np.nan
    set_vector(world, chunk, vector)


def zeroed(world: World) -> None:
    chunk = some_chunk(world)
    set_vector(world, chunk, np.zeros_like(vector_of(world, chunk)))


def exchanged(world: World) -> None:
    """Two chunks have each other's vectors: nothing but the model can tell."""
    with world.store.snapshot() as session:
        mine = sa.select(ChunkRow.id).where(
            ChunkRow.content_id == session.get_one(ChunkRow, some_chunk(world, "model")).content_id
        )
        first, second, *_ = session.scalars(mine.order_by(ChunkRow.ordinal)).all()
    one, other = vector_of(world, first), vector_of(world, second)
    set_vector(world, first, other)
    set_vector(world, second, one)


def vector_gone(world: World) -> None:
    world.sql("DELETE FROM embeddings WHERE chunk_id = :id", id=some_chunk(world, "model"))


def error_beside_vector(world: World) -> None:
    world.sql("UPDATE chunks SET error = 'it broke' WHERE id = :id", id=some_chunk(world))


def counter_off(world: World) -> None:
    world.sql("UPDATE contents SET embedded_count = embedded_count - 1 WHERE id = :id", id=some_content(world))


def tokens_off(world: World) -> None:
    world.sql("UPDATE contents SET token_count = token_count + 5 WHERE id = :id", id=some_content(world))


def some_content(world: World) -> int:
    with world.store.snapshot() as session:
        return session.get_one(ChunkRow, some_chunk(world)).content_id


def state_off(world: World) -> None:
    world.sql("UPDATE contents SET state = 'extracted' WHERE id = :id", id=some_content(world))


def chunk_gone(world: World) -> None:
    world.sql("DELETE FROM chunks WHERE id = :id", id=some_chunk(world, "model"))


def last_chunk_gone(world: World) -> None:
    with world.store.snapshot() as session:
        content = session.get_one(ChunkRow, some_chunk(world, "model")).content_id
    world.sql(
        "DELETE FROM chunks WHERE id = (SELECT id FROM chunks WHERE content_id = :id ORDER BY ordinal DESC LIMIT 1)",
        id=content,
    )


def text_longer(world: World) -> None:
    world.sql("UPDATE chunks SET text = text || ' more' WHERE id = :id", id=some_chunk(world))


def text_other(world: World) -> None:
    """Of the same length, so that only its tokens tell."""
    chunk = some_chunk(world)
    text = world.one(sa.select(ChunkRow.text).where(ChunkRow.id == chunk))
    world.sql("UPDATE chunks SET text = :text WHERE id = :id", id=chunk, text="zebra " + text[6:])


def held(world: World) -> None:
    world.sql("UPDATE contents SET claimed_by = (SELECT id FROM runs LIMIT 1) WHERE id = :id", id=some_content(world))


def unwanted(world: World) -> None:
    world.sql(
        "INSERT INTO contents (sha256, kind, model_id, recipe, state, attempts, details, page_count, characters, "
        "chunk_count, embedded_count, failed_count, token_count, priority, modified_ns, created_at) "
        "SELECT sha256, kind, model_id, 'another', 'discovered', 0, '{}', 0, 0, 0, 0, 0, 0, 0, 0, created_at "
        "FROM contents WHERE id = :id",
        id=some_content(world),
    )


def other_content(world: World) -> None:
    """A document shows the text of another one."""
    with world.store.begin() as session:
        first, second = session.scalars(
            sa.select(DocumentRow.id)
            .join(ContentEmbeddingRow, ContentEmbeddingRow.content_id == DocumentRow.current_id)
            .where(DocumentRow.path.like("%.pdf"))
            .order_by(DocumentRow.path)
            .limit(2)
        )
        session.get_one(DocumentRow, first).current_id = session.get_one(DocumentRow, second).current_id


def no_content(world: World) -> None:
    world.sql("UPDATE documents SET current_id = NULL WHERE path = 'a copy.docx'")


def not_shown(world: World) -> None:
    world.sql("UPDATE documents SET pending_id = current_id, current_id = NULL WHERE path = 'a copy.docx'")


def copy_off(world: World) -> None:
    world.sql("UPDATE embeddings SET model_id = 77, content_id = 78 WHERE chunk_id = :id", id=some_chunk(world))


def no_model_active(world: World) -> None:
    world.sql("UPDATE models SET active = :no", no=False)


def two_models_active(world: World) -> None:
    with world.store.begin() as session:
        model = session.scalars(sa.select(ModelRow)).one()
        session.add(
            ModelRow(
                fingerprint="f" * 64, name="other", path="/nowhere", size=1, mtime_ns=1, dimension=3, active=True,
                created_at=model.created_at,
            )
        )  # fmt: skip


def own_vector_gone(world: World) -> None:
    """Of a document that the model computed as a whole."""
    with world.store.snapshot() as session:
        content = session.get_one(ChunkRow, some_chunk(world, "model")).content_id
    world.sql("DELETE FROM content_embeddings WHERE content_id = :id", id=content)


def set_own_vector(world: World, method: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> None:
    with world.store.begin() as session:
        row = session.get_one(ContentEmbeddingRow, session.get_one(ChunkRow, some_chunk(world, method)).content_id)
        row.vector = change(np.frombuffer(row.vector, "<f4")).astype("<f4").tobytes()


def own_vector_long(world: World) -> None:
    set_own_vector(world, "model", lambda vector: vector * 3)


def own_vector_turned(world: World) -> None:
    set_own_vector(world, "mean", lambda vector: vector[::-1])


def index_gone(world: World) -> None:
    world.sql("DROP INDEX ix_documents_gone")


def words_gone(world: World) -> None:
    world.sql("DELETE FROM chunk_words WHERE chunk_id = :id", id=some_chunk(world))


def words_other(world: World) -> None:
    value = "'zebra'" if world.on_sqlite else "'zebra'::tsvector"
    world.sql(f"UPDATE chunk_words SET words = {value} WHERE chunk_id = :id", id=some_chunk(world))


def index_of_words_empty(world: World) -> None:
    world.sql("INSERT INTO chunk_words_index (chunk_words_index) VALUES ('delete-all')")


def trigger_gone(world: World) -> None:
    world.sql("DROP TRIGGER count_new_document")


def document_count_off(world: World) -> None:
    world.sql("UPDATE document_counts SET documents = documents + 1 WHERE state = 'embedded'")


def chunk_count_off(world: World) -> None:
    world.sql("UPDATE chunk_counts SET chunks = chunks - 1")


def numbers_back(world: World) -> None:
    world.sql("UPDATE chunk_numbers SET last = 1")


def content_gone(world: World) -> None:
    """Its row, and nothing of what refers to it."""
    content = some_content(world)
    without_references(world, "DELETE FROM contents WHERE id = :id", content)


def vector_of_no_chunk(world: World) -> None:
    model = world.one(sa.select(ModelRow.id))
    with world.store.snapshot() as session:
        vector = session.scalars(sa.select(EmbeddingRow.vector).limit(1)).one()
    with world.store.engine.connect() as connection:
        references(connection, on=False)
        connection.execute(
            sa.insert(EmbeddingRow).values(chunk_id=9_999_999, content_id=1, model_id=model, vector=vector)
        )
        connection.commit()
        references(connection, on=True)


def without_references(world: World, statement: str, number: int) -> None:
    with world.store.engine.connect() as connection:
        references(connection, on=False)
        connection.execute(sa.text(statement), {"id": number})
        connection.commit()
        references(connection, on=True)


def references(connection: sa.Connection, *, on: bool) -> None:
    """Let the database look after references, or not, on this connection."""
    if connection.dialect.name == "sqlite":
        connection.connection.driver_connection.execute(f"PRAGMA foreign_keys = {'ON' if on else 'OFF'}")  # type: ignore[union-attr]
    else:
        connection.execute(sa.text(f"SET session_replication_role = {'origin' if on else 'replica'}"))
        connection.commit()


def index_stale(world: World) -> None:
    """SQLite: an index that was not there while its table changed. PostgreSQL: one whose build did not end."""
    if not world.on_sqlite:
        world.sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_contents_oldest'::regclass")
        return
    world.store.engine.dispose()
    path, name = str(world.store.engine.url.database), "ix_contents_oldest"
    row = changing_schema(path, "SELECT * FROM sqlite_master WHERE name = ?", name)
    changing_schema(path, "DELETE FROM sqlite_master WHERE name = ?", name)
    changing_schema(path, "UPDATE contents SET priority = 3 WHERE id = ?", 1)
    changing_schema(path, "INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", *row)


def changing_schema(path: str, statement: str, *values: Any) -> Any:
    """Run a statement on a connection of its own, on which the schema is a table like any other; its first row."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        return connection.execute(statement, values).fetchone()


# The tests

BROKEN: Sequence[tuple[Callable[[World], None], set[str]]] = [
    (too_long, {"vector-norm"}),
    (cut_short, {"vector-length"}),
    (zeroed, {"vector-norm"}),
    (exchanged, {"vector-other"}),
    (vector_gone, {"chunk-nowhere", "content-counters"}),
    (error_beside_vector, {"chunk-places", "content-counters"}),
    (counter_off, {"content-counters"}),
    (tokens_off, {"content-counters"}),
    (state_off, {"content-state"}),
    (chunk_gone, {"chunk-missing"}),
    (last_chunk_gone, {"chunk-missing"}),
    (text_longer, {"chunk-text", "chunk-tokens", "text-index"}),
    (text_other, {"chunk-tokens", "text-index"}),
    (held, {"content-claim"}),
    (unwanted, {"content-unwanted"}),
    (other_content, {"document-content", "content-unwanted"}),
    (no_content, {"document-content"}),
    (not_shown, {"document-not-shown"}),
    (copy_off, {"copy-content"}),
    (no_model_active, {"model-active"}),
    (two_models_active, {"model-active"}),
    (own_vector_gone, {"document-vector-missing"}),
    (own_vector_long, {"document-vector-norm"}),
    (own_vector_turned, {"document-vector-other"}),
    (index_gone, {"schema-missing"}),
    (index_stale, {"index-damaged"}),
    (words_gone, {"text-index"}),
    (words_other, {"text-index"}),
    (vector_of_no_chunk, {"row-orphan"}),
    (content_gone, {"row-orphan"}),
]
ON_SQLITE: Sequence[tuple[Callable[[World], None], set[str]]] = [
    (flipped, {"vector-norm"}),
    (not_finite, {"vector-not-finite"}),
    (index_of_words_empty, {"text-index"}),
    (trigger_gone, {"schema-missing"}),
    (document_count_off, {"count-documents"}),
    (chunk_count_off, {"count-chunks"}),
    (numbers_back, {"chunk-numbers"}),
]


CONSEQUENCES: dict[str, set[str]] = {
    # What was there of the content has no document any more, and the document nothing to show.
    "content_gone": {"document-content", "copy-content", "count-documents", "count-chunks"},
    "other_content": {"count-chunks"},
}


def check(world: World, break_it: Callable[[World], None], codes: set[str]) -> None:
    before = seen(world.store)
    break_it(world)
    wanted = ALL if codes & {"vector-other", "chunk-tokens"} else ROWS_ONLY
    found = world.verify(wanted)
    assert codes <= set(found.tally.counts), found.tally.listed
    assert not found.errors
    # What disagrees with what was broken is told of as well; nothing else is.
    assert set(found.tally.counts) - codes <= CONSEQUENCES.get(break_it.__name__, set()), found.tally.listed
    assert all(one.where and one.found and one.expected for one in found.tally.listed)
    done = world.repair(wanted)
    assert done.after.agree, (done.after.tally.listed, done.after.errors, done.left)
    assert done.before.tally.counts == found.tally.counts
    assert_same(seen(world.store), before)


def test_an_untouched_database_agrees(world: World) -> None:
    found = world.verify(Wanted(hash_all=True, sample=100_000))
    assert found.agree, (found.tally.listed, found.errors)
    assert found.files == found.hashed == len(DOCUMENTS) + 2
    assert found.embedded > 50
    done = world.repair(ROWS_ONLY)
    assert done.run is None
    assert not done.mended
    assert done.after is done.before


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("break_it", "codes"), [*BROKEN, *ON_SQLITE], ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_broken_is_found_and_mended(world: World, break_it: Callable[[World], None], codes: set[str]) -> None:
    check(world, break_it, codes)


@pytest.mark.parametrize("world", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    "breaks",
    [
        (held, unwanted, copy_off, index_gone, index_stale, words_gone, not_shown, own_vector_turned),
        (too_long, own_vector_gone, vector_of_no_chunk, words_other, no_content, state_off),
        (cut_short, chunk_gone, text_longer, tokens_off, two_models_active),
        (vector_gone, error_beside_vector, no_model_active),
        (exchanged,),
        (content_gone,),
    ],
    ids=lambda breaks: breaks[0].__name__,
)
def test_postgresql_is_mended_alike(world: World, breaks: Sequence[Callable[[World], None]]) -> None:
    expected = {break_it: codes for break_it, codes in BROKEN if break_it in breaks}
    assert len(expected) == len(breaks)
    before = seen(world.store)
    codes: set[str] = set()
    wanted = ROWS_ONLY
    for break_it in breaks:
        break_it(world)
        codes |= expected[break_it]
        wanted = ALL if expected[break_it] & {"vector-other", "chunk-tokens"} else wanted
    done = world.repair(wanted)
    assert codes <= set(done.before.tally.counts), done.before.tally.listed
    assert done.after.agree, (done.after.tally.listed, done.after.errors, done.left)
    assert_same(seen(world.store), before)


ODD_VALUES = {
    "chunks.text": "UPDATE chunks SET text = CAST(x'ff41' AS TEXT) WHERE id = 5",
    "chunks.headings": "UPDATE chunks SET headings = '[3]' WHERE id = 5",
    "contents.details": "UPDATE contents SET details = 'no JSON' WHERE id = 2",
    "contents.created_at": "UPDATE contents SET created_at = 'yesterday' WHERE id = 2",
    "documents.mtime_ns": "UPDATE documents SET mtime_ns = 'noon' WHERE id = 2",
    "embeddings.vector": "UPDATE embeddings SET vector = 17 WHERE chunk_id = 5",
}


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
def test_values_that_cannot_be_read_are_told_and_nothing_is_mended(world: World) -> None:
    for statement in ODD_VALUES.values():
        world.sql(statement)
    done = world.repair(ROWS_ONLY)
    with pytest.raises(StoreError, match="verify"):
        export(world.store, world.settings.data_dir / "export", program="test", now=utc_now())
    assert {f"{one.ids['table']}.{one.ids['column']}" for one in done.after.tally.listed} == set(ODD_VALUES)
    assert set(done.after.tally.counts) == {"value-damaged"}
    assert not done.mended
    assert done.run is None


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
@pytest.mark.parametrize("table", ["models", "sources"])
def test_what_refers_to_a_source_or_a_model_that_is_gone_is_not_thrown_away(world: World, table: str) -> None:
    rows = sa.select(sa.func.count()).select_from(DocumentRow), sa.select(sa.func.count()).select_from(EmbeddingRow)
    before = [world.one(query) for query in rows]
    with closing(sqlite3.connect(database_file(world.store.engine.connect()))) as connection:
        connection.execute(f"DELETE FROM {table}")
        connection.commit()
    done = world.repair(ROWS_ONLY)
    assert set(done.after.tally.counts) == {"row-lost"}
    assert [world.one(query) for query in rows] == before


def test_what_a_run_finds_again_is_not_thrown_away_before(world: World) -> None:
    """Rows of documents are gone, and what was made of their files is there: nothing is embedded anew."""
    before = seen(world.store)
    world.sql("DELETE FROM documents")
    done = world.repair(ROWS_ONLY)
    assert {"content-unwanted", "file-new"} <= set(done.before.tally.counts)
    assert done.run is not None
    assert done.run.chunks_embedded == 0
    assert done.after.agree, (done.after.tally.listed, done.left)
    assert_same(seen(world.store), before)


def test_what_was_mended_counts_once(world: World) -> None:
    """A document that waits to be made anew is found again until a run was there, and not queued again."""
    world.sql("UPDATE chunks SET text = text || ' more' WHERE id = :id", id=some_chunk(world))
    done = world.repair(ROWS_ONLY)
    assert done.mended["chunk-text"] == 1
    assert done.after.agree


def test_each_difference_of_a_file_is_told_and_a_run_takes_it_in(world: World) -> None:
    folder = world.folder
    (folder / "broken.pdf").unlink()
    (folder / "new.pdf").write_bytes((folder / "seed-store-incident.pdf").read_bytes())
    os.utime(folder / "a copy.docx", (1_600_000_000, 1_600_000_000))
    (folder / "harbour-committee-minutes.docx").write_bytes(b"PK\x03\x04 and no more")
    other = folder / "delivery-note-scan.pdf"
    same_size, times = other.read_bytes()[:-1] + b" ", (1_700_000_000, 1_700_000_000)
    other.write_bytes(same_size)
    os.utime(other, times)
    (folder / "heron-operations-handbook.pdf").unlink()
    (folder / "heron-operations-handbook.pdf").symlink_to(folder / "nothing.pdf")
    found = world.verify(ROWS_ONLY)
    told = {one.code: Path(one.where).name for one in found.tally.listed}
    assert told == {
        "file-gone": "broken.pdf",
        "file-new": "new.pdf",
        "file-changed": "harbour-committee-minutes.docx",
        "file-touched": "a copy.docx",
        "file-bytes": "delivery-note-scan.pdf",
        "file-unreadable": "heron-operations-handbook.pdf",
    }
    assert found.tally.total == len(told)
    left = world.repair(ROWS_ONLY, run=False)
    assert left.run is None
    assert left.after.tally.counts.keys() == {*told} - {"file-bytes"} | {"file-changed"}
    done = world.repair(ROWS_ONLY)
    assert done.run is not None
    assert done.after.agree, (done.after.tally.listed, done.after.errors)
    # As often as it is asked, and whatever it is asked for.
    assert world.verify(Wanted([folder / "new.pdf"], embed=False)).files == 1
    with pytest.raises(UsageError, match="no source holds it"):
        world.verify(Wanted([folder.parent / "elsewhere"], embed=False))


def test_a_folder_that_is_away_is_an_error_and_no_disagreement(world: World) -> None:
    away = world.folder.with_name("away")
    world.folder.rename(away)
    try:
        found = world.verify(ROWS_ONLY)
        assert not found.tally.total
        assert len(found.errors) == 1
        assert "is not there" in found.errors[0]
        assert not found.agree
        world.folder.mkdir()
        emptied = world.verify(ROWS_ONLY)
        assert not emptied.tally.total
        assert "is a disk missing?" in emptied.errors[0]
        world.folder.rmdir()
        if not world.on_sqlite:
            world.sql("UPDATE source_hosts SET host = 'another host'")
            theirs = world.verify(ROWS_ONLY)
            assert theirs.agree
            assert "sources of other hosts" in theirs.notes[0]
    finally:
        away.rename(world.folder)


def test_what_cannot_be_made_anew_from_its_file_is_left(world: World) -> None:
    """A chunk is gone, and the file is another: search keeps the rest, and the run reads the file."""
    chunk_gone(world)
    before = seen(world.store)
    for path in world.folder.iterdir():
        path.write_bytes(path.read_bytes() + b" ")
    done = world.repair(ROWS_ONLY, run=False)
    assert [line for line in done.left if line.startswith("chunk-missing")]
    assert "chunk-missing" in done.after.tally.counts
    assert seen(world.store).chunks == before.chunks
    assert world.repair(ROWS_ONLY).after.agree


def test_nothing_is_said_of_files_or_mended_while_a_run_is_at_work(world: World) -> None:
    counter_off(world)
    (world.folder / "new.pdf").write_bytes(b"%PDF")
    with world.store.begin() as session:
        runs.start_run(session, "at-work", this_process(), [], utc_now(), is_alive)
    found = world.verify(ROWS_ONLY)
    assert set(found.tally.counts) == {"content-counters"}
    assert "at-work" in found.notes[0]
    with pytest.raises(RunInProgress, match="at-work"):
        world.repair(ROWS_ONLY)
    with world.store.begin() as session:
        runs.finish_run(session, "at-work", "complete", None, utc_now())
    assert set(world.verify(ROWS_ONLY).tally.counts) == {"content-counters", "file-new"}


async def break_qdrant(world: World) -> None:
    """One point is gone, one has another vector, one another page, and one is of nothing."""
    async with beside(world.settings, world.store) as mirroring:
        assert mirroring is not None
        await mirroring.deliver(at_once=True)
        qdrant = await mirroring.connect()
        with world.store.snapshot() as session:
            model = active_model(session)
            assert model is not None
        page = next(iter(qdrant.held(model.fingerprint)))
        ids = [str(point.id) for point in page][:3]
        found = await mirroring.call(qdrant.retrieve, model.fingerprint, ids)
        assert len(found) == 3
        vectors = [found[number].vector for number in ids]
        payloads = [dict(found[number].payload) for number in ids]
        assert vectors[1] is not None
        assert vectors[2] is not None
        await mirroring.call(qdrant.delete, model.fingerprint, [ids[0]])
        nothing = str(uuid.uuid5(uuid.NAMESPACE_URL, "nothing"))
        await mirroring.call(
            qdrant.upsert,
            model.fingerprint,
            [ids[1], ids[2], nothing],
            [-vectors[1], vectors[2], vectors[2]],
            [payloads[1], payloads[2] | {"page_first": 99}, {"mine": True}],
        )


def test_what_qdrant_has_is_compared_and_mended(world: World, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client")
    url = world.store.engine.url.render_as_string(hide_password=False)
    folder = str(tmp_path / "qdrant")
    mirrored = replace(world, settings=settings_for(tmp_path, url, NIGHTSHIFT_QDRANT_PATH=folder))
    asyncio.run(break_qdrant(mirrored))
    found = mirrored.verify(ROWS_ONLY)
    assert found.tally.counts == {
        "qdrant-missing": 1, "qdrant-vector": 1, "qdrant-payload": 1, "qdrant-foreign": 1,
    }  # fmt: skip
    assert not found.errors
    # What is mended in the database goes there too.
    too_long(mirrored)
    done = mirrored.repair(ROWS_ONLY)
    assert done.after.agree, (done.after.tally.listed, done.after.errors, done.left)
    assert mirrored.verify(ROWS_ONLY).agree


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
def test_a_quantized_copy_that_does_not_know_what_changed_is_made_anew(world: World) -> None:
    with world.store.snapshot() as session:
        copied = Copying(world.store, "on").run()
        assert copied.built
        folder = folder_of(database_file(session.connection()))
    assert world.verify(ROWS_ONLY).agree
    before = seen(world.store)
    exchanged(world)
    (copy,) = folder.glob("*.vectors")
    assert set(world.verify(ROWS_ONLY).tally.counts) == {"copy-stale"}
    # The vectors are mended, and then there is a copy of these, or none: not the one that knows others.
    done = world.repair()
    assert done.after.agree, (done.after.tally.listed, done.left)
    assert_same(seen(world.store), before)
    Copying(world.store, "on").run()
    raw = bytearray(copy.read_bytes())
    raw[5000:6000] = b"\x7f" * 1000
    copy.write_bytes(raw)
    assert set(world.verify(ROWS_ONLY).tally.counts) <= {"copy-stale"}
    assert world.repair(ROWS_ONLY).after.agree


# The program itself


@pytest.fixture
def host(filled_sqlite: Path, originals: tuple[Path, Path], tmp_path: Path) -> Host:
    """A data folder with a copy of the database."""
    shutil.copyfile(filled_sqlite, tmp_path / "nightshift.db")
    settings = {"NIGHTSHIFT_CHUNK_TOKENS": "64", "NIGHTSHIFT_CHUNK_OVERLAP": "8"}
    return Host(tmp_path, settings)


def break_much(path: Path) -> None:
    with Database.open(f"sqlite:///{path}") as store, store.begin() as session:
        for chunk_id, vector in session.execute(sa.select(EmbeddingRow.chunk_id, EmbeddingRow.vector)).all():
            if chunk_id % 3 == 0:
                twice = (np.frombuffer(vector, "<f4") * 2).astype("<f4").tobytes()
                session.execute(sa.update(EmbeddingRow).where(EmbeddingRow.chunk_id == chunk_id).values(vector=twice))
            elif chunk_id % 3 == 1:
                session.execute(sa.delete(EmbeddingRow).where(EmbeddingRow.chunk_id == chunk_id))
        session.execute(sa.text("DELETE FROM chunks WHERE ordinal = 2"))
        session.execute(sa.text("UPDATE contents SET token_count = token_count + 1"))
        session.execute(sa.text("DELETE FROM chunk_words"))


def test_the_command_says_what_disagrees_and_ends_with_1_until_it_is_mended(host: Host) -> None:
    assert host.run("verify", "--no-embed").returncode == 0
    break_much(host.database)
    told = host.run("verify", "--no-embed")
    assert told.returncode == 1
    assert "vector-norm: a chunk's vector is not of length 1 (" in told.stdout
    assert "--repair: it is computed again from the chunk's text" in told.stdout
    answer = host.run_json("verify", "--no-embed", code=1)
    assert answer["agree"] is False
    assert answer["counts"]["vector-norm"] > 10
    assert {"code", "where", "found", "expected", "ids", "repair"} == answer["disagreements"][0].keys()
    mended = host.run_json("verify", "--repair")
    assert mended["agree"] is True
    assert mended["mended"]["vector-norm"] == mended["found"]["vector-norm"]
    assert mended["run"]["outcome"] == "complete"
    assert "All agree" in host.run("verify").stdout
    missing = host.run("verify", "--database", f"sqlite:///{host.data_dir / 'nowhere.db'}")
    assert missing.returncode == 1
    assert "There is no database" in missing.stderr


def test_a_repair_that_is_killed_again_and_again_ends_as_if_nothing_had_been(host: Host, filled_sqlite: Path) -> None:
    break_much(host.database)
    moments = random.Random(1)
    for _ in range(6):
        process = host.spawn("verify", "--repair", "--no-embed")
        try:
            process.communicate(timeout=moments.uniform(0.6, 3.5))
            break
        except subprocess.TimeoutExpired:
            kill_and_reap(process)
    assert host.run_json("verify", "--repair")["agree"] is True
    shutil.copyfile(filled_sqlite, host.data_dir / "before.db")
    with (
        Database.open(f"sqlite:///{host.data_dir / 'before.db'}") as before,
        Database.open(f"sqlite:///{host.database}") as after,
    ):
        assert_same(seen(after), seen(before))


def test_a_run_that_is_killed_leaves_nothing_that_disagrees(originals: tuple[Path, Path], tmp_path: Path) -> None:
    """But files that no run has taken in yet, while no run is at work; and nothing at all once one has ended."""
    folder, _ = originals
    host = Host(tmp_path, {"NIGHTSHIFT_CHUNK_TOKENS": "64", "NIGHTSHIFT_CHUNK_OVERLAP": "8"})
    moments = random.Random(2)
    for _ in range(4):
        process = host.spawn("run-now", str(folder), "--quiet")
        try:
            process.communicate(timeout=moments.uniform(0.3, 4.0))
            break
        except subprocess.TimeoutExpired:
            kill_and_reap(process)
        if host.database.exists():
            answer = json.loads(host.run("verify", "--no-embed", "--json").stdout)
            assert set(answer.get("counts", {})) <= {"file-new"}
    host.run_json("run-now", str(folder))
    assert host.run_json("verify", "--sample", "1000", "--hash")["agree"] is True


def test_a_file_with_damaged_pages_is_told_and_nothing_else_is_believed(host: Host) -> None:
    size = host.database.stat().st_size
    with host.database.open("r+b") as file:
        for place in range(size // 2, size // 2 + 16 * 4096, 4096):
            file.seek(place)
            file.write(b"\xff" * 2048)
    answer = host.run_json("verify", "--no-embed", code=1)
    assert answer.get("counts", {}).get("database-damaged") or "malformed" in answer["error"]
