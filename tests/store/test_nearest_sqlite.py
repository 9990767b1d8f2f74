"""Search on SQLite: whatever looks for the nearest vectors, the same are found, with the same scores."""

from __future__ import annotations

import datetime as dt
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from pipeline.core.documents import DocumentState
from pipeline.core.errors import StoreError
from pipeline.core.quantized import Wanted
from pipeline.core.vectors import normalise, to_blob
from pipeline.store import bulk, models
from pipeline.store.database import Database
from pipeline.store.nearest import nearest_chunks, nearest_documents, quantized, shelves, sqlite
from pipeline.store.nearest.copies import HEADING_BYTES, folder_of, open_copy, path_of
from pipeline.store.nearest.copying import Copied, Copying, Held, coverable, delete_copies, held_copies
from pipeline.store.tables import (
    ChunkRow,
    ContentEmbeddingRow,
    ContentRow,
    DocumentRow,
    EmbeddingRow,
    PendingChunkRow,
    SourceRow,
)
from pipeline.store.view import Filter, View, view_of
from tests.store import portable

Vectors = NDArray[np.float32]
Found = list[tuple[int, float]]

CHUNKS = 5
"""Of each document."""


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """A database with its tables."""
    path = shutil.copyfile(sqlite_template, tmp_path_factory.mktemp("empty") / "empty.db")
    with Database.open(f"sqlite:///{path}") as store, store.begin() as session:
        session.add(SourceRow(id=1, root="/docs", created_at=now()))
    return path


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copy(empty, tmp_path / "test.db")
    with Database.open(f"sqlite:///{tmp_path / 'test.db'}") as opened:
        yield opened


@contextmanager
def opened(empty: Path, folder: Path) -> Iterator[Database]:
    """A database of its own for each example."""
    for left in (*folder.glob("example.db-search/*"), *folder.glob("example.db*")):
        if left.is_file():
            left.unlink()
    shutil.copy(empty, folder / "example.db")
    with Database.open(f"sqlite:///{folder / 'example.db'}") as store:
        yield store


def now() -> dt.datetime:
    return dt.datetime(2026, 6, 2, tzinfo=dt.UTC)


def add_model(session: Session, name: str, dimension: int) -> int:
    known = {"fingerprint": name, "name": name, "path": f"/{name}", "size": 1, "mtime_ns": 1}
    return models.ensure_model(session, **known, dimension=dimension, now=now()).id  # type: ignore[arg-type]


def add_documents(
    session: Session, model_id: int, vectors: Vectors, *, seen: bool = True, kind: str = "pdf", spaced: int = 1
) -> list[int]:
    """Documents with CHUNKS chunks each, that have these vectors; the first of each is the document's own, too."""
    numbers: list[int] = []
    for begin in range(0, len(vectors), CHUNKS):
        mine = vectors[begin : begin + CHUNKS]
        last = session.scalar(sa.select(sa.func.max(ContentRow.id))) or 0
        content = ContentRow(
            id=last + 1, sha256=f"{last + 1:064}", kind=kind, model_id=model_id, recipe="r", created_at=now()
        )
        content.state, content.chunk_count, content.embedded_count = DocumentState.EMBEDDED, len(mine), len(mine)
        session.add(content)
        session.flush()
        ids = bulk.new_ids(session, ChunkRow.id, len(mine) * spaced)[::spaced]
        chunks = [
            {"id": number, "content_id": content.id, "ordinal": ordinal, "start_char": 0, "end_char": 1, "text": "x"}
            | {"headings": [], "token_count": 1}
            for ordinal, number in enumerate(ids)
        ]
        bulk.insert_rows(session, ChunkRow, chunks)
        bulk.insert_rows(
            session,
            EmbeddingRow,
            [
                {"chunk_id": number, "content_id": content.id, "model_id": model_id, "vector": to_blob(vector)}
                for number, vector in zip(ids, mine, strict=True)
            ],
        )
        session.add(ContentEmbeddingRow(content_id=content.id, method="mean", vector=to_blob(mine[0])))
        if seen:
            show(session, content.id)
        numbers += ids
    session.flush()
    return numbers


def show(session: Session, content_id: int, name: str = "") -> None:
    path = f"{name or content_id}.pdf"
    row = DocumentRow(source_id=1, path=path, size=1, mtime_ns=1, found_at=now(), current_id=content_id)
    row.sha256 = session.get_one(ContentRow, content_id).sha256
    session.add(row)
    session.flush()


def remove(session: Session, content_id: int) -> None:
    session.execute(sa.delete(DocumentRow).where(DocumentRow.current_id == content_id))
    session.execute(sa.delete(ContentRow).where(ContentRow.id == content_id))


def some_vectors(random: np.random.Generator, count: int, dimension: int, *, distinct: int | None = None) -> Vectors:
    """Unit vectors, of which many are the same, or about, where only few are distinct."""
    made = normalise(random.standard_normal((distinct or count, dimension)))
    chosen = made[random.integers(0, len(made), count)]
    nudged = random.random(count) < 0.3
    chosen[nudged] = normalise(chosen[nudged] + random.standard_normal((nudged.sum(), dimension)) * 1e-7)
    return chosen if distinct else made


def copied(store: Database) -> Copied:
    return Copying(store, "on").run()


def activate(session: Session, model_id: int) -> None:
    models.choose(session, model_id, anyway=True)


def everywhere(session: Session, question: Vectors, view: View, k: int) -> dict[str, Found]:
    """What each way finds."""
    found = {
        "numpy": sqlite.by_numpy(session, question, shelves.chunks(view), k),
        "numpy, looked up": sqlite.by_numpy(session, question, shelves.chunks_by_contents(view), k),
        "whatever is quickest": nearest_chunks(session, question, view, k),
    }
    by_copy = quantized.nearest(session, question, view, k)
    return found if by_copy is None else found | {"a copy": by_copy}


@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.booleans())
def test_every_way_finds_the_same(
    empty: Path, tmp_path_factory: pytest.TempPathFactory, seed: int, k: int, ties: bool
) -> None:
    random = np.random.default_rng(seed)
    folder = tmp_path_factory.getbasetemp() / "examples"
    folder.mkdir(exist_ok=True)
    with opened(empty, folder) as store:
        with store.begin() as session:
            mine, other = add_model(session, "mine", 6), add_model(session, "other", 4)
            for model_id, dimension in ((mine, 6), (other, 4), (mine, 6)):
                distinct = 3 if ties else None
                for kind, seen in (("pdf", True), ("docx", True), ("pdf", False)):
                    vectors = some_vectors(random, int(random.integers(1, 60)), dimension, distinct=distinct)
                    add_documents(session, model_id, vectors, seen=seen, kind=kind)
            activate(session, mine)
        if seed % 2:
            assert copied(store).built
            with store.begin() as session:  # what the copy does not cover, and what it covers in vain
                add_documents(session, mine, some_vectors(random, 9, 6, distinct=2 if ties else None))
                remove(session, int(session.scalars(sa.select(ContentRow.id)).all()[int(random.integers(0, 5))]))
        with store.snapshot() as session:
            question = some_vectors(random, 1, 6)[0]
            for model_id, wanted in ((mine, Filter()), (mine, Filter(kinds=["docx"])), (other, Filter())):
                view = view_of(session, model_id, wanted)
                asked = question if model_id == mine else normalise(question[None, :4])[0]
                expected = portable.nearest_chunks(session, asked, view, k)
                for way, found in everywhere(session, asked, view, k).items():
                    assert found == expected, way
                documents = portable.nearest_documents(session, asked, view, k)
                assert nearest_documents(session, asked, view, k) == documents


def test_a_transaction_finds_what_it_sees_whatever_others_commit(store: Database) -> None:
    random = np.random.default_rng(2)
    with store.begin() as session:
        model = add_model(session, "m", 16)
        vectors = some_vectors(random, 400, 16)
        numbers = add_documents(session, model, vectors, spaced=300)
        activate(session, model)
    with store.snapshot() as session:
        view = view_of(session, model)
        expected = portable.nearest_chunks(session, vectors[0], view, 7)
        assert expected[0][0] == numbers[0]
        with store.begin() as writing:  # the best is gone for others, and there is a better one
            remove(writing, 1)
            add_documents(writing, model, vectors[:1])
        assert nearest_chunks(session, vectors[0], view, 7) == expected
    with store.begin() as session:
        more = add_documents(session, model, vectors[:1])
        found = nearest_chunks(session, vectors[0], view, 7)
        assert more[0] in [number for number, _ in found]  # its own, not committed


def test_many_that_are_the_same_are_found_by_their_ids(store: Database) -> None:
    with store.begin() as session:
        model = add_model(session, "m", 8)
        vector = some_vectors(np.random.default_rng(3), 1, 8)
        numbers = add_documents(session, model, np.repeat(vector, 500, axis=0))
        activate(session, model)
    copied(store)
    with store.snapshot() as session:
        view = view_of(session, model)
        for way, found in everywhere(session, vector[0], view, 10).items():
            assert [number for number, _ in found] == numbers[:10], way


def test_what_is_not_in_view_hides_nothing_that_is(store: Database) -> None:
    random = np.random.default_rng(5)
    with store.begin() as session:
        model = add_model(session, "m", 16)
        vectors = some_vectors(random, 300, 16, distinct=300)
        add_documents(session, model, np.repeat(vectors[:1], 200, axis=0), seen=False)  # nearer than all others
        add_documents(session, model, vectors[1:])
        activate(session, model)
    with store.snapshot() as session:
        view = view_of(session, model)
        for question in vectors[:2]:
            expected = portable.nearest_chunks(session, question, view, 10)
            assert len(expected) == 10
            assert nearest_chunks(session, question, view, 10) == expected


BROKEN = {
    "short": b"\1\2\3\4",
    "cut off": b"\1",
    "empty": b"",
    "longer": np.full(9, 1 / 3, np.float32).tobytes(),
    "zeros": bytes(32),
    "not numbers": np.full(8, np.nan, np.float32).tobytes(),
    "infinite": np.full(8, np.inf, np.float32).tobytes(),
    "huge": np.full(8, 1e30, np.float32).tobytes(),
    "text": "x" * 32,
}


@pytest.mark.parametrize("bad", [1, 40])
@pytest.mark.parametrize("broken", list(BROKEN))
def test_a_broken_vector_costs_only_itself(store: Database, broken: str, bad: int) -> None:
    with store.begin() as session:
        model = add_model(session, "m", 8)
        vectors = some_vectors(np.random.default_rng(4), 60, 8)
        numbers = add_documents(session, model, vectors)
        activate(session, model)
        chosen = numbers[7 : 7 + bad]
        spoil = sa.text("UPDATE embeddings SET vector = :v WHERE chunk_id = :id")
        session.execute(spoil, [{"v": BROKEN[broken], "id": number} for number in chosen])
        own = sa.text("UPDATE content_embeddings SET vector = :v WHERE content_id = 2")
        session.execute(own, {"v": BROKEN[broken]})
    question = -vectors[0]  # so that most of the sound ones are farther away than zeros
    sound = [number for number in numbers if number not in chosen]
    scores = dict(zip(numbers, (vectors @ question).tolist(), strict=True))
    expected = sorted(sound, key=lambda number: (-scores[number], number))
    with capture_logs() as logs:
        assert copied(store).built == (("m", 60),)
        with store.snapshot() as session:
            view = view_of(session, model)
            for k in (3, 100):
                ways = everywhere(session, question, view, k)
                assert "a copy" in ways
                for way, found in ways.items():
                    assert [number for number, _ in found] == expected[:k], way
            found = nearest_documents(session, question, view, 100)
            assert 2 not in [number for number, _ in found]
            assert len(found) == len(session.scalars(sa.select(ContentRow.id)).all()) - 1
    (line,) = logs
    assert "verify --repair" in line["event"]


def test_a_search_tells_how_it_went(store: Database) -> None:
    with store.begin() as session:
        model = add_model(session, "m", 8)
        vectors = some_vectors(np.random.default_rng(4), 20, 8)
        add_documents(session, model, vectors)
        activate(session, model)
    for how in ("exact, by numpy", "by quantized copies, scores from the vectors"):
        with store.snapshot() as session:
            told: list[str] = []
            nearest_chunks(session, vectors[0], view_of(session, model), 3, told=told)
            assert told == [how]
        copied(store)


def test_what_is_narrow_is_looked_up(store: Database) -> None:
    with store.begin() as session:
        model = add_model(session, "m", 8)
        add_documents(session, model, some_vectors(np.random.default_rng(4), 50, 8))
        view = view_of(session, model)
        rows = shelves.chunks_by_contents(view).rows()
        compiled = rows.compile(session.connection(), compile_kwargs={"literal_binds": True})
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}").all()
        assert any("SEARCH embeddings USING INTEGER PRIMARY KEY" in step[3] for step in plan)
        assert not any(step[3].startswith(("SCAN embeddings", "SCAN chunks")) for step in plan)
    assert sqlite.is_selective(10, 60)
    assert not sqlite.is_selective(10, 59)


def filled(store: Database, count: int = 200) -> tuple[int, Vectors, list[int]]:
    """A model with vectors of 16 numbers, and a copy of them."""
    vectors = some_vectors(np.random.default_rng(8), count, 16)
    with store.begin() as session:
        model = add_model(session, "m", 16)
        numbers = add_documents(session, model, vectors)
        activate(session, model)
    assert copied(store) == Copied(built=(("m", count),))
    return model, vectors, numbers


def copy_file(store: Database) -> Path:
    return path_of(folder_of(str(store.engine.url.database)), "m")


def uses_copy(store: Database, model_id: int, question: Vectors) -> bool:
    """Whether a search goes by the copy; it finds what is nearest in any case."""
    with store.snapshot() as session:
        view = view_of(session, model_id)
        assert nearest_chunks(session, question, view, 9) == portable.nearest_chunks(session, question, view, 9)
        return quantized.nearest(session, question, view, 9) is not None


def test_a_copy_holds_what_it_says(store: Database) -> None:
    _, vectors, numbers = filled(store)
    copy = open_copy(copy_file(store), "m", 16)
    assert copy is not None
    assert copy.chunk_ids.tolist() == numbers
    assert copy.content_ids.tolist() == [number // CHUNKS + 1 for number in range(len(numbers))]
    again = copy.rounded.numbers * copy.rounded.scales[:, None]
    assert np.abs(again - vectors).max() <= copy.rounded.scales.max()
    assert open_copy(copy_file(store), "other", 16) is None
    assert open_copy(copy_file(store), "m", 17) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda written: b"",
        lambda written: written[:100],
        lambda written: written[:-1],
        lambda written: written + b"x",
        lambda written: b"[]".ljust(HEADING_BYTES) + written[HEADING_BYTES:],
        lambda written: b"\xff" * HEADING_BYTES + written[HEADING_BYTES:],
        lambda written: written.replace(b"vectors 1", b"vectors 9", 1),
        lambda written: written.replace(b'"rows": 200', b'"rows": 2e2', 1),
        lambda written: written.replace(b'"rows": 200', b'"rows": 100', 1),
        lambda written: written.replace(b'"rows": 200', b'"rows":-200', 1),
        lambda written: written.replace(b'"upto"', b'"oops"', 1),
        lambda written: written[:HEADING_BYTES] + bytes(len(written) - HEADING_BYTES),
        lambda written: written[: HEADING_BYTES + 64] + bytes([9]) * (len(written) - HEADING_BYTES - 64),
        lambda written: written[:-1600] + b"\x7f" * 1600,
    ],
)
def test_a_copy_that_is_odd_is_passed_over_and_made_anew(store: Database, damage: object) -> None:
    model, vectors, _ = filled(store)
    assert uses_copy(store, model, vectors[5])
    path = copy_file(store)
    written = path.read_bytes()
    damaged = damage(written)  # type: ignore[operator]
    assert damaged != written
    path.unlink()  # a file in use is never written over
    path.write_bytes(damaged)
    assert not uses_copy(store, model, vectors[5])
    assert copied(store).built == (("m", 200),)
    assert uses_copy(store, model, vectors[5])


def test_a_copy_may_be_deleted_at_any_time(store: Database) -> None:
    model, vectors, _ = filled(store)
    shutil.rmtree(copy_file(store).parent)
    assert not uses_copy(store, model, vectors[5])
    copied(store)
    with store.snapshot() as session:
        delete_copies(session.connection())
    assert not uses_copy(store, model, vectors[5])


def test_what_is_newer_than_a_copy_is_found_and_what_is_gone_is_not(store: Database) -> None:
    model, vectors, numbers = filled(store)
    with store.begin() as session:
        more = add_documents(session, model, vectors[:3])
        remove(session, 1)
    assert uses_copy(store, model, vectors[0])
    with store.snapshot() as session:
        found = nearest_chunks(session, vectors[0], view_of(session, model), 200)
    assert more[0] == found[0][0]
    assert not {number for number, _ in found} & set(numbers[:CHUNKS])
    assert copied(store) == Copied()  # three in two hundred
    with store.begin() as session:
        add_documents(session, model, vectors[:40])
    assert copied(store) == Copied(built=(("m", 200 - CHUNKS + 43),))


def test_a_copy_in_which_most_is_gone_still_finds_what_is_there(store: Database) -> None:
    """The best of thousands is out of view, over and over."""
    random = np.random.default_rng(9)
    near = some_vectors(random, 3000, 16)
    question = some_vectors(random, 1, 16)[0]
    near[:2800] = normalise(question + 0.05 * near[:2800])
    with store.begin() as session:
        model = add_model(session, "m", 16)
        add_documents(session, model, near[:2800], seen=False)
        add_documents(session, model, near[2800:])
        activate(session, model)
    copied(store)
    assert uses_copy(store, model, question)


def test_what_waits_is_not_covered(store: Database) -> None:
    model, _, numbers = filled(store)
    with store.begin() as session:
        content_id = session.get_one(ChunkRow, numbers[50]).content_id
        session.execute(sa.delete(EmbeddingRow).where(EmbeddingRow.chunk_id == numbers[50]))
        bulk.insert_rows(
            session,
            PendingChunkRow,
            [{"chunk_id": numbers[50], "content_id": content_id, "tokens": b"", "in_stretch": False}],
        )
        assert coverable(session.connection(), model) == numbers[50] - 1
        delete_copies(session.connection())
    assert copied(store) == Copied(built=(("m", 50),))
    copy = open_copy(copy_file(store), "m", 16)
    assert copy is not None
    assert copy.heading.upto == numbers[49]


def test_a_database_from_a_backup_is_not_searched_by_the_copy_of_a_later_one(store: Database, tmp_path: Path) -> None:
    model, vectors, _ = filled(store)
    with store.begin() as session:
        session.connection().exec_driver_sql("SELECT 1")
    store.engine.dispose()
    shutil.copy(tmp_path / "test.db", tmp_path / "backup.db")
    with store.begin() as session:
        add_documents(session, model, vectors[:60])
    copied(store)
    store.close()
    for ending in ("", "-wal", "-shm"):
        (tmp_path / f"test.db{ending}").unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.db", tmp_path / "test.db")
    with Database.open(f"sqlite:///{tmp_path / 'test.db'}") as restored:
        assert not uses_copy(restored, model, vectors[5])
        with restored.begin() as session:  # the same numbers again, for others, and more of them
            add_documents(session, model, some_vectors(np.random.default_rng(10), 100, 16))
        assert not uses_copy(restored, model, vectors[5])
        assert copied(restored).built == (("m", 300),)
        assert uses_copy(restored, model, vectors[5])


def test_copies_go_with_their_models_and_when_they_are_not_wanted(store: Database) -> None:
    model, vectors, _ = filled(store)
    folder = copy_file(store).parent
    stranger = folder / "0123.vectors"
    stranger.write_bytes(b"of a model that is gone")
    (folder / "other.txt").write_text("not ours")
    assert copied(store) == Copied()
    assert not stranger.exists()
    assert Copying(store, "auto").run() == Copied()  # so few need none, but there is one
    with store.snapshot() as session:
        assert held_copies(session) == [Held("m", 200, 200)]
    with store.begin() as session:
        add_documents(session, model, vectors[:100])
    assert Copying(store, "auto").run() == Copied(dropped=("m",))
    with store.snapshot() as session:
        assert held_copies(session) == [Held("m", 300, 0)]
    copied(store)
    assert Copying(store, "off").run() == Copied(dropped=("m",))
    assert {path.name for path in folder.iterdir()} == {"lock", "other.txt"}


@pytest.mark.parametrize("wanted", ["auto", "off"])
def test_nothing_is_made_where_no_copy_is_to_be(store: Database, wanted: Wanted) -> None:
    with store.begin() as session:
        add_documents(session, add_model(session, "m", 8), some_vectors(np.random.default_rng(6), 20, 8))
    assert Copying(store, wanted).run() == Copied()
    assert not copy_file(store).parent.exists()


def test_a_copy_that_is_given_up_leaves_nothing(store: Database) -> None:
    model, vectors, _ = filled(store)
    with store.begin() as session:
        add_documents(session, model, vectors)
    before = copy_file(store).read_bytes()
    copying = Copying(store, "on")
    copying.stop()
    assert copying.run() == Copied(stopped=True)
    assert copy_file(store).read_bytes() == before
    assert {path.name for path in copy_file(store).parent.iterdir()} == {"lock", copy_file(store).name}


MAKING = """
import sys, time
from pipeline.store.database import Database
from pipeline.store.nearest.copying import Copying
def wait(model, done, rows):
    print(done, flush=True)
    time.sleep(600)
with Database.open(sys.argv[1]) as store:
    Copying(store, "on", wait).run()
"""


def test_a_process_that_is_killed_leaves_what_nobody_reads(store: Database) -> None:
    model, vectors, _ = filled(store)
    copy_file(store).unlink()
    command = [sys.executable, "-c", MAKING, str(store.engine.url)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as making:
        assert making.stdout is not None
        assert making.stdout.readline() == b"200\n"
        assert copied(store) == Copied(busy=True)  # one at a time
        making.send_signal(signal.SIGKILL)
    assert any(path.name.endswith(".new") for path in copy_file(store).parent.iterdir())
    assert not uses_copy(store, model, vectors[5])
    assert copied(store) == Copied(built=(("m", 200),))
    assert uses_copy(store, model, vectors[5])
    assert not any(path.name.endswith(".new") for path in copy_file(store).parent.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error_that_says_so(store: Database) -> None:
    filled(store)
    folder = copy_file(store).parent
    shutil.rmtree(folder)
    folder.write_text("in the way")
    with pytest.raises(StoreError, match="no quantized copy can be written"):
        copied(store)
