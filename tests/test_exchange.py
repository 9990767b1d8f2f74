"""Export and import: what comes over is what was there, and nothing of a bad export does."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from pipeline.core.errors import RunInProgress, StoreError, UsageError
from pipeline.ingest.progress import Progress
from pipeline.ingest.work import utc_now
from pipeline.runner.alone import hold_alone
from pipeline.runner.run import run_now
from pipeline.runner.untold import is_alive, this_process
from pipeline.store import runs
from pipeline.store.contents import drop_unused
from pipeline.store.database import Database, make_engine, upgrade
from pipeline.store.exchange.export import export
from pipeline.store.exchange.importing import Imported, import_export
from pipeline.store.exchange.layout import MANIFEST, file_of, hash_of
from pipeline.store.exchange.reading import check_export
from pipeline.store.tables import ChunkRow, DocumentRow, EmbeddingRow, ModelRow, SourceRow
from tests.filled import (
    DOCUMENTS,
    ROWS_ONLY,
    World,
    admin,
    assert_same,
    filled_postgres,
    filled_sqlite,
    originals,
    seen,
    settings_for,
    world,
)
from tests.runs import Host, kill_and_reap

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

__all__ = ["filled_postgres", "filled_sqlite", "originals", "world"]

_numbers = itertools.count()


def write(store: Database, folder: Path, fingerprint: str | None = None) -> Path:
    export(store, folder, program="test", now=utc_now(), fingerprint=fingerprint)
    return folder


def read(store: Database, folder: Path, roots: dict[str, str] | None = None) -> Imported:
    async def alone() -> Imported:
        async with hold_alone(store) as mine:
            return await asyncio.to_thread(
                import_export, store, check_export(folder), roots or {}, utc_now(), mine.check
            )

    return asyncio.run(alone())


@contextmanager
def empty(data_dir: Path, kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[World]:
    data_dir.mkdir(exist_ok=True)
    if kind == "sqlite":
        url = f"sqlite:///{data_dir / 'nightshift.db'}"
    else:
        server = request.getfixturevalue("postgres_server")
        name = f"imported{next(_numbers)}"
        admin(server, f"CREATE DATABASE {name}")
        url = sa.make_url(server).set(database=name).render_as_string(hide_password=False)
        engine = make_engine(url)
        upgrade(engine)
        engine.dispose()
    with Database.open(url) as store:
        yield World(settings_for(data_dir, url), store, folder)


@pytest.fixture(scope="module")
def exported(filled_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the database that a run filled."""
    with Database.open(f"sqlite:///{filled_sqlite}") as store:
        return write(store, tmp_path_factory.mktemp("exported") / "all")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_is_imported_is_what_was_exported_and_nothing_is_embedded_again(
    world: World, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before = seen(world.store)
    folder = write(world.store, tmp_path / "export")
    with empty(tmp_path / "other", kind, request, world.folder) as other:
        done = read(other.store, folder)
        assert (done.documents, done.kept, done.there) == (len(DOCUMENTS) + 2, 0, 0)
        assert done.chunks == len(before.vectors) - sum(1 for row in before.chunks if row[0] == "a copy.docx")
        assert_same(seen(other.store), before)
        found = other.verify(replace(ROWS_ONLY, embed=True, sample=8))
        assert found.agree, (found.tally.listed, found.errors)
        report = asyncio.run(
            run_now(other.settings, [world.folder], Progress(started_monotonic=time.monotonic()), asyncio.Event())
        )
        assert (report.outcome, report.chunks_embedded, report.documents_read) == ("complete", 0, 0)
        assert_same(seen(other.store), before)
        again = read(other.store, folder)
        assert (again.documents, again.contents, again.chunks) == (0, 0, 0)
        assert_same(seen(other.store), before)


def test_the_files_are_good_for_other_tools(exported: Path, filled_sqlite: Path) -> None:
    chunks = pq.read_table(exported / "chunks.parquet")
    manifest = json.loads((exported / MANIFEST).read_text())
    assert chunks.num_rows == manifest["files"]["chunks"]["rows"] > 50
    row = chunks.slice(3, 1).to_pylist()[0]
    with Database.open(f"sqlite:///{filled_sqlite}") as store, store.snapshot() as session:
        chunk, vector = session.execute(
            sa.select(ChunkRow, EmbeddingRow.vector)
            .join(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id)
            .where(ChunkRow.content_id == row["content"], ChunkRow.ordinal == row["ordinal"])
        ).one()
    assert row["text"] == chunk.text
    assert row["headings"] == chunk.headings
    assert np.asarray(row["vector"], "<f4").tobytes() == vector
    assert row["file"].startswith("/")
    assert Path(row["file"]).name in (*DOCUMENTS, "a copy.docx")
    assert row["model"]
    assert len(row["fingerprint"]) == 64
    documents = pq.read_table(exported / "documents.parquet").to_pylist()
    assert {Path(one["path"]).name for one in documents} == {*DOCUMENTS, "broken.pdf", "a copy.docx"}


def test_a_folder_that_is_there_is_not_written_over(exported: Path, filled_sqlite: Path, tmp_path: Path) -> None:
    with Database.open(f"sqlite:///{filled_sqlite}") as store:
        with pytest.raises(UsageError, match="there already"):
            write(store, exported)
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="there already"):
            write(store, tmp_path / "file")
        (tmp_path / "empty").mkdir()
        write(store, tmp_path / "empty")
        with pytest.raises(StoreError, match="cannot be written"):
            write(store, tmp_path / "file" / "below")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_sources_are_moved_to_where_they_lie_here(exported: Path, originals: tuple[Path, Path], tmp_path: Path) -> None:
    old, here = originals[0], tmp_path / "here" / "documents"
    shutil.copytree(old, here)
    url = f"sqlite:///{tmp_path / 'moved.db'}"
    with Database.open(url) as store:
        read(store, exported, {str(old.parent): str(here.parent), str(old): str(here)})
        with store.snapshot() as session:
            assert session.scalars(sa.select(SourceRow.root)).all() == [str(here)]
        world = World(settings_for(tmp_path, url), store, here)
        assert world.verify(ROWS_ONLY).agree
    # Into a database that knows the folder around it, they are documents of that.
    with Database.open(f"sqlite:///{tmp_path / 'around.db'}") as store:
        with store.begin() as session:
            session.add(SourceRow(root=str(here.parent), created_at=utc_now()))
        read(store, exported, {str(old): str(here)})
        with store.snapshot() as session:
            assert session.scalars(sa.select(SourceRow.root)).all() == [str(here.parent)]
            assert all(path.startswith("documents/") for path in session.scalars(sa.select(DocumentRow.path)))


def test_what_a_database_knows_with_other_bytes_stays(world: World, exported: Path) -> None:
    """And what waits in it is what the export has of it."""
    other = "0" * 64
    world.sql("UPDATE documents SET sha256 = :other, mtime_ns = 1 WHERE path = 'seed-store-incident.pdf'", other=other)
    world.sql("DELETE FROM documents WHERE path LIKE 'h%'")
    with world.store.begin() as session:
        drop_unused(session)
    done = read(world.store, exported)
    assert (done.documents, done.kept) == (2, 1)
    with world.store.snapshot() as session:
        assert other in session.scalars(sa.select(DocumentRow.sha256)).all()


@pytest.mark.parametrize("broken", [b"\0" * 100, np.full(384, np.nan, "<f4").tobytes()])
def test_a_broken_vector_is_said_before_an_import_finds_it(broken: bytes, filled_sqlite: Path, tmp_path: Path) -> None:
    shutil.copyfile(filled_sqlite, tmp_path / "nightshift.db")
    with Database.open(f"sqlite:///{tmp_path / 'nightshift.db'}") as store:
        with store.begin() as session:
            first = session.scalars(sa.select(sa.func.min(EmbeddingRow.chunk_id))).one()
            session.execute(sa.update(EmbeddingRow).where(EmbeddingRow.chunk_id == first).values(vector=broken))
        with pytest.raises(StoreError, match="`verify` names them"):
            write(store, tmp_path / "all")
    assert [path.name for path in tmp_path.iterdir() if "all" in path.name] == []


def test_only_what_a_model_made_may_be_exported(filled_sqlite: Path, tmp_path: Path) -> None:
    shutil.copyfile(filled_sqlite, tmp_path / "nightshift.db")
    host = Host(tmp_path, {})
    with Database.open(f"sqlite:///{host.database}") as store:
        with store.begin() as session:
            model = session.scalars(sa.select(ModelRow)).one()
            facts = {"name": "other", "path": "", "size": 1, "mtime_ns": 1, "dimension": 3, "created_at": utc_now()}
            session.add(ModelRow(fingerprint="f" * 64, active=False, **facts))
        done = export(store, tmp_path / "other", program="test", now=utc_now(), fingerprint="f" * 64)
    assert done.rows == {"models": 1, "documents": len(DOCUMENTS) + 2, "contents": 0, "chunks": 0}
    rows = host.run_json("export", str(tmp_path / "mine"), "--model", model.fingerprint[:8])["rows"]
    assert rows["models"] == 1
    assert rows["chunks"] > 50
    assert host.run("export", str(tmp_path / "no"), "--model", "nothing").returncode == 2
    # Documents of which it has nothing wait for the next look at their folder.
    fresh = Host(tmp_path / "fresh", {})
    fresh.data_dir.mkdir()
    assert fresh.run_json("import", str(tmp_path / "other"))["documents"] == len(DOCUMENTS) + 2
    assert fresh.run_json("status")["documents"]["discovered"] == len(DOCUMENTS) + 2


# Whoever made it


def changed(exported: Path, folder: Path, table: str, change: Callable[[list[dict[str, Any]]], object]) -> Path:
    """A copy of an export with other rows in a table, and a manifest that vouches for them."""
    shutil.copytree(exported, folder)
    path = folder / file_of(table)
    old = pq.read_table(path)
    rows = old.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=old.schema), path)
    vouch(folder, table, rows=len(rows))
    return folder


def vouch(folder: Path, table: str, **facts: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][table] |= {"sha256": hash_of(folder / file_of(table))} | facts
    (folder / MANIFEST).write_text(json.dumps(manifest))


def setter(name: str, value: object, place: int = 0) -> Callable[[list[dict[str, Any]]], None]:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[place][name] = value(rows[place][name]) if callable(value) else value

    return change


BAD: list[tuple[str, Callable[[list[dict[str, Any]]], object], str]] = [
    ("chunks", setter("vector", lambda vector: vector[:-1]), "a vector of 383 numbers"),
    ("chunks", setter("vector", lambda vector: [float("nan"), *vector[1:]]), "a vector of the length nan"),
    ("chunks", setter("vector", lambda vector: [float("inf"), *vector[1:]]), "a vector of the length inf"),
    ("chunks", setter("vector", lambda vector: [0.0] * len(vector)), "a vector of the length 0"),
    ("chunks", setter("vector", None), "a vector, or else an error"),
    ("chunks", setter("error", "it broke"), "a vector, or else an error"),
    ("chunks", setter("content", 10**15), "a content that is not there"),
    ("chunks", setter("ordinal", 7), "not in their order"),
    ("chunks", setter("text", lambda text: text + "more"), "not as long as its place"),
    ("chunks", setter("text", lambda text: "\0" + text[1:]), "no text of ours"),
    ("chunks", setter("page_first", -1), "page_first is -1"),
    ("chunks", setter("digest", b"short"), "digest is none"),
    ("chunks", list.pop, "chunks, not"),
    ("chunks", list.reverse, "not in their order"),
    ("documents", setter("path", "../outside.pdf"), "no path in a source"),
    ("documents", setter("path", "/etc/passwd"), "no path in a source"),
    ("documents", setter("path", "a/./b.pdf"), "no path in a source"),
    ("documents", setter("path", "x" * 5000), "no path in a source"),
    ("documents", setter("source", "relative"), "no absolute path"),
    ("documents", setter("source", "/srv/../etc"), "no absolute path"),
    ("documents", setter("sha256", "A" * 64), "SHA-256 of a file is none"),
    ("documents", setter("size", -5), "size is -5"),
    ("documents", setter("content", 10**15), "is not there"),
    ("documents", lambda rows: rows.append(rows[0]), "a document is there twice"),
    ("documents", lambda rows: rows[0].update(content=rows[1]["content"], shown=None), "other bytes"),
    ("contents", setter("state", "extracted"), "no state of what is exported"),
    ("contents", setter("kind", "exe"), "no kind of document"),
    ("contents", setter("fingerprint", "f" * 64), "a model that is not there"),
    ("contents", setter("details", "[]"), "no JSON object"),
    ("contents", setter("chunk_count", 10**9), "1000000000 chunks"),
    ("contents", setter("details", '{"a": NaN}'), "no JSON object"),
    ("contents", setter("details", '{"a": 1e999}'), "no JSON object"),
    ("contents", setter("details", '{"a": "\\ud800"}'), "no JSON object"),
    ("contents", setter("details", '{"a": "\\u0000"}'), "no JSON object"),
    ("chunks", setter("token_count", 0), "no tokens"),
    ("models", setter("path", "hf:someone/model/file.gguf"), "no path of a model"),
    ("models", setter("name", ""), "name of a model is none"),
    ("contents", setter("recipe", "'; DROP TABLE"), "a recipe is none"),
    ("contents", lambda rows: rows[1].update(rows[0]), "not in their order"),
    ("models", setter("dimension", 0), "0 dimensions"),
    ("models", setter("fingerprint", "../up"), "fingerprint of a model is none"),
    ("models", lambda rows: rows.append(rows[0]), "a model is there twice"),
]


@pytest.mark.parametrize(("table", "change", "problem"), BAD, ids=[f"{table}-{text}" for table, _, text in BAD])
def test_rows_that_cannot_be_are_refused_before_anything_is_written(
    exported: Path, tmp_path: Path, table: str, change: Callable[[list[dict[str, Any]]], object], problem: str
) -> None:
    with pytest.raises(StoreError, match=problem):
        check_export(changed(exported, tmp_path / "bad", table, change))


def middles_of_columns(path: Path) -> Iterator[int]:
    """Where the middle of each column lies in the file, wherever a column has more than the head of a page."""
    group = pq.read_metadata(path).row_group(0)
    for number in range(group.num_columns):
        column = group.column(number)
        if column.total_compressed_size > 500:
            yield column.data_page_offset + column.total_compressed_size // 2


def test_files_that_are_none_are_refused(exported: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(exported, tmp_path / name))

    with pytest.raises(StoreError, match="has no manifest"):
        check_export(tmp_path / "nothing")
    cut = copy("cut")
    (cut / "chunks.parquet").write_bytes((exported / "chunks.parquet").read_bytes()[:-100])
    with pytest.raises(StoreError, match="not the file that was exported"):
        check_export(cut)
    vouch(cut, "chunks")
    with pytest.raises(StoreError, match=r"chunks.parquet cannot be read"):
        check_export(cut)
    for place, byte in enumerate(middles_of_columns(exported / "chunks.parquet")):
        flipped = copy(f"flipped {place}")
        raw = bytearray((exported / "chunks.parquet").read_bytes())
        raw[byte] ^= 0xFF
        (flipped / "chunks.parquet").write_bytes(raw)
        vouch(flipped, "chunks")
        with pytest.raises(StoreError, match=r"chunks.parquet cannot be read"):
            check_export(flipped)
    columns = copy("columns")
    pq.write_table(pq.read_table(exported / "models.parquet").drop_columns(["name"]), columns / "models.parquet")
    vouch(columns, "models")
    with pytest.raises(StoreError, match="other columns"):
        check_export(columns)
    later = copy("later")
    manifest = json.loads((later / MANIFEST).read_text())
    (later / MANIFEST).write_text(json.dumps(manifest | {"version": 2}))
    with pytest.raises(StoreError, match="version 2"):
        check_export(later)
    for text in ("[]", "{}", '{"format": "other"}', "nothing", "[" * 100_000, json.dumps(manifest | {"files": 3})):
        (later / MANIFEST).write_text(text)
        with pytest.raises(StoreError):
            check_export(later)


def replaced(exported: Path, folder: Path, table: str, column: str, values: Any) -> Path:
    """A copy of an export with another column in a table, as whoever writes files by hand would."""
    shutil.copytree(exported, folder)
    old = pq.read_table(folder / file_of(table))
    place = old.schema.get_field_index(column)
    kind = pa.field(column, values.type, old.schema.field(place).nullable)
    table_of = old.set_column(place, kind, values)
    with pq.ParquetWriter(folder / file_of(table), table_of.schema, store_schema=False, compression="zstd") as writer:
        writer.write_table(table_of)
    vouch(folder, table)
    return folder


def test_files_that_say_more_than_they_hold_are_refused(exported: Path, tmp_path: Path) -> None:
    """A text or a number that repeats takes nothing in a file, and all of a memory once it is read."""
    rows = pq.read_metadata(exported / "chunks.parquet").num_rows
    once = pa.array(["y" * (5 << 20)])
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), once)
    bomb = replaced(exported, tmp_path / "texts", "chunks", "title", texts)
    assert (bomb / "chunks.parquet").stat().st_size < 10 << 20
    with pytest.raises(StoreError, match="too large"):
        check_export(bomb)
    vector = pq.read_schema(exported / "chunks.parquet").field("vector").type
    numbers = pa.array(np.zeros(70_000_000, np.float32))
    offsets = pa.array([0] * rows + [len(numbers)], pa.int32())
    vectors = pa.ListArray.from_arrays(offsets, numbers, type=vector)
    with pytest.raises(StoreError, match="too large"):
        check_export(replaced(exported, tmp_path / "vectors", "chunks", "vector", vectors))
    late = pa.array([2**62] * pq.read_metadata(exported / "contents.parquet").num_rows, pa.int64())
    late = late.cast(pa.timestamp("us", tz="UTC"))
    with pytest.raises(StoreError, match="cannot be read"):
        check_export(replaced(exported, tmp_path / "late", "contents", "embedded_at", late))


def test_folders_of_two_hosts_at_one_path_stay_two(filled_sqlite: Path, tmp_path: Path) -> None:
    shutil.copyfile(filled_sqlite, tmp_path / "two.db")
    with Database.open(f"sqlite:///{tmp_path / 'two.db'}") as store:
        with store.begin() as session:
            mine = session.scalars(sa.select(SourceRow)).one()
            mine.mark = "1" * 32
            root = mine.root
            facts = {"root": f"{root} (b)", "folder": root, "mark": "2" * 32, "created_at": utc_now()}
            session.add(theirs := SourceRow(**facts))
            session.flush()
            known = session.scalars(sa.select(DocumentRow).where(DocumentRow.path == DOCUMENTS[0])).one()
            names = ("path", "size", "mtime_ns", "sha256", "current_id", "found_at")
            session.add(DocumentRow(source_id=theirs.id, **{name: getattr(known, name) for name in names}))
        write(store, tmp_path / "two")
    with Database.open(f"sqlite:///{tmp_path / 'fresh.db'}") as store:
        assert read(store, tmp_path / "two", {f"{root} (b)": "/srv/theirs"}).documents == len(DOCUMENTS) + 3
        with store.snapshot() as session:
            assert set(session.scalars(sa.select(SourceRow.root))) == {root, "/srv/theirs"}


def test_sources_that_come_to_lie_in_each_other_become_one(exported: Path, tmp_path: Path) -> None:
    def nested(rows: list[dict[str, Any]]) -> None:
        for number, row in enumerate(rows):
            row["source"] = "/old/a" if number % 2 == 0 else "/old/b"

    both = changed(exported, tmp_path / "both", "documents", nested)
    with Database.open(f"sqlite:///{tmp_path / 'fresh.db'}") as store:
        done = read(store, both, {"/old/a": "/new/inner", "/old/b": "/new"})
        assert done.documents == len(DOCUMENTS) + 2
        with store.snapshot() as session:
            assert list(session.scalars(sa.select(SourceRow.root))) == ["/new"]
            paths = list(session.scalars(sa.select(DocumentRow.path)))
    assert sum(path.startswith("inner/") for path in paths) == len(paths) / 2


def test_another_dimension_here_is_refused(exported: Path, tmp_path: Path) -> None:
    with Database.open(f"sqlite:///{tmp_path / 'other.db'}") as store:
        read(store, exported)
        with store.begin() as session:
            session.execute(sa.text("UPDATE models SET dimension = 3"))
        with pytest.raises(StoreError, match="of 384 numbers, and of 3 here"):
            read(store, exported)


def test_nothing_is_imported_beside_a_run(exported: Path, tmp_path: Path) -> None:
    with Database.open(f"sqlite:///{tmp_path / 'other.db'}") as store:
        with store.begin() as session:
            runs.start_run(session, "at-work", this_process(), [], utc_now(), is_alive)
        with pytest.raises(RunInProgress, match="at-work"):
            read(store, exported)


def test_an_import_that_is_killed_goes_on_where_it_stopped(exported: Path, filled_sqlite: Path, tmp_path: Path) -> None:
    """And whenever it dies, what is there agrees, and waits."""
    host = Host(tmp_path, {"NIGHTSHIFT_CHUNK_TOKENS": "64", "NIGHTSHIFT_CHUNK_OVERLAP": "8"})
    moments = random.Random(3)
    for _ in range(5):
        process = host.spawn("import", str(exported))
        try:
            process.communicate(timeout=moments.uniform(0.8, 2.0))
            break
        except subprocess.TimeoutExpired:
            kill_and_reap(process)
        if host.database.exists():
            answer = json.loads(host.run("verify", "--no-embed", "--json").stdout)
            assert answer.get("counts", {}) == {}
    host.run_json("import", str(exported))
    with (
        Database.open(f"sqlite:///{filled_sqlite}") as before,
        Database.open(f"sqlite:///{host.database}") as after,
    ):
        assert_same(seen(after), seen(before))
    assert host.run("import", str(exported), "--root", "nothing").returncode == 2
