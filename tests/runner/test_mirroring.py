"""Qdrant, in its local mode and for real, holds what search sees: whatever changes, fails or is killed."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.changes import Known
from pipeline.core.errors import MirrorAway
from pipeline.runner.mirroring import Mirroring, place_of
from pipeline.settings import Settings
from pipeline.store import library, models, queue
from pipeline.store.database import Database
from pipeline.store.mirror import contents, outbox
from pipeline.store.mirror.alone import alone
from pipeline.store.mirror.outbox import ContentKey
from pipeline.store.models import Target
from pipeline.store.qdrant.client import Place
from pipeline.store.qdrant.points import point_id
from pipeline.store.tables import DocumentRow
from tests.store.rows import DIMENSION, add_target, begin, digest, embed_all, extract_all, register, utc_now

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(None, tmp_path / "qdrant", "nightshift")


@pytest.fixture
async def mirroring(store: Database, place: Place) -> AsyncIterator[Mirroring]:
    mirroring = Mirroring(store, place)
    yield mirroring
    await mirroring.close()


@pytest.fixture
def target(store: Database) -> Target:
    """A model, a run, and a source with the number 1."""
    with store.begin() as session:
        library.ensure_source(session, "/docs", utc_now())
        begin(session)
        return add_target(session)


def ingest(store: Database, target: Target, *texts: str, **files: str) -> None:
    """Files by name and content, each embedded with these chunks."""
    with store.begin() as session:
        register(session, 1, target, **files)
        extract_all(session, target, texts or ("one", "two", "three"))
        embed_all(session, target)


def forget(store: Database, *paths: str) -> None:
    with store.begin() as session:
        rows = session.scalars(sa.select(DocumentRow).where(DocumentRow.path.in_(paths)))
        library.forget(session, [Known(row.id, row.path, row.size, row.mtime_ns, row.sha256) for row in rows])


async def points(mirroring: Mirroring, model: str = "m") -> dict[str, dict[str, object]]:
    """All that Qdrant holds of a model: the payloads by id, with the vectors in them."""
    qdrant = await mirroring.connect()
    if not await mirroring.call(qdrant.exists, digest(model)):
        return {}
    ids = [str(point.id) for page in qdrant.held(digest(model)) for point in page]
    found = await mirroring.call(qdrant.retrieve, digest(model), ids)
    return {
        number: {**point.payload, "vector": list(point.vector)}
        for number, point in found.items()
        if point.vector is not None
    }


def payload_in(point: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in point.items() if name != "vector"}


async def agrees(mirroring: Mirroring) -> bool:
    return await mirroring.disagreements() == []


def key_of(text: str) -> ContentKey:
    return ContentKey(digest("m"), digest(text), "pdf", "r")


async def test_it_holds_what_search_sees_with_all_that_a_result_shows(
    store: Database, target: Target, mirroring: Mirroring
) -> None:
    ingest(store, target, "first", "second", a="one", b="two", copy="two")
    done = await mirroring.deliver()
    assert (done.contents, done.points, done.refused, done.error) == (2, 4, 0, None)
    held = await points(mirroring)
    assert set(held) == {point_id(key_of(text), ordinal) for text in ("one", "two") for ordinal in (0, 1)}
    second = held[point_id(key_of("two"), 1)]
    assert second == {
        "content": f"{digest('two')}:pdf:r", "ordinal": 1, "model": "m", "fingerprint": digest("m"),
        "file": "/docs/b.pdf", "also": ["/docs/copy.pdf"], "source": "/docs", "path": "b.pdf", "kind": "pdf",
        "title": "Title", "modified": "1970-01-01T00:00:00+00:00", "page_first": 1, "page_last": 1,
        "headings": ["Heading"], "table_header": "", "text": "second", "vector": [0.0, 1.0, 0.0, 0.0],
    }  # fmt: skip
    assert await agrees(mirroring)
    again = await mirroring.deliver()
    assert (again.contents, again.points) == (0, 0)


async def test_each_change_of_what_search_sees_is_followed(
    store: Database, target: Target, mirroring: Mirroring
) -> None:
    ingest(store, target, a="one", b="two", copy="two")
    await mirroring.deliver()
    forget(store, "a.pdf", "b.pdf")
    await mirroring.deliver()
    held = await points(mirroring)
    assert {(point["file"], point["text"]) for point in held.values()} == {
        ("/docs/copy.pdf", text) for text in ("one", "two", "three")
    }
    assert all(point["also"] == [] for point in held.values())
    ingest(store, target, "changed", copy="three")  # fewer chunks than before
    await mirroring.deliver()
    assert [(point["text"], point["path"]) for point in (await points(mirroring)).values()] == [("changed", "copy.pdf")]
    with store.begin() as session:
        session.execute(sa.update(DocumentRow).values(path="folder/renamed.pdf"))
    await mirroring.deliver()
    (last,) = (await points(mirroring)).values()
    assert last["file"] == "/docs/folder/renamed.pdf"
    forget(store, "folder/renamed.pdf")
    await mirroring.deliver()
    assert await points(mirroring) == {}
    assert await agrees(mirroring)


async def test_a_long_document_goes_there_in_parts(store: Database, target: Target, mirroring: Mirroring) -> None:
    texts = [f"part {number}" for number in range(contents.CHUNKS + 90)]
    with store.begin() as session:
        register(session, 1, target, long="one", short="two")
        extract_all(session, target, texts)
        for content_id in queue.claim_to_embed(session, "run", None, target, utc_now(), 10):
            chunks = queue.pending_chunks(session, content_id, 0, 10_000)
            vectors = np.random.default_rng(content_id).normal(size=(len(chunks), DIMENSION))
            vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f4")
            made = [(chunk, vector.tobytes()) for chunk, vector in zip(chunks, vectors, strict=True)]
            queue.store_vectors(session, "run", made, [], utc_now())
    done = await mirroring.deliver()
    assert (done.contents, done.points) == (2, 2 * len(texts))
    assert len(await points(mirroring)) == 2 * len(texts)
    assert await agrees(mirroring)


async def test_the_alias_moves_once_the_new_model_is_there_and_the_old_points_go(
    store: Database, target: Target, mirroring: Mirroring
) -> None:
    ingest(store, target, a="one")
    await mirroring.deliver()
    qdrant = await mirroring.connect()
    assert qdrant.counts() == {qdrant.name_of(digest("m")): 3}
    with store.begin() as session:
        newer = add_target(session, "newer")
        library.retarget(session, None, newer, utc_now())
        extract_all(session, newer, ["of the newer"])
        embed_all(session, newer)
        assert models.activate_when_complete(session, newer)
    await mirroring.deliver()
    assert qdrant.counts() == {qdrant.name_of(digest("newer")): 1}
    with store.snapshot() as session:
        mirror = outbox.find_mirror(session)
    assert mirror is not None
    assert mirror.shown == digest("newer")
    # By its alias, as another program would ask.
    found = qdrant._client.query_points("nightshift", query=[1.0, 0.0, 0.0, 0.0], limit=5)
    assert [point.payload["text"] for point in found.points if point.payload] == ["of the newer"]
    assert await agrees(mirroring)


async def test_at_another_place_all_is_owed_again_and_what_was_there_goes(
    store: Database, target: Target, mirroring: Mirroring, tmp_path: Path
) -> None:
    ingest(store, target, a="one", b="two")
    await mirroring.deliver()
    other = Mirroring(store, Place(None, tmp_path / "other", "nightshift"))
    await other.deliver()
    assert await points(other) == await points(mirroring)
    forget(store, "a.pdf")
    await other.deliver()
    assert not any(point["path"] == "a.pdf" for point in (await points(other)).values())
    # Back at the first place, where nobody took it away.
    assert any(point["path"] == "a.pdf" for point in (await points(mirroring)).values())
    await mirroring.deliver()
    assert await points(mirroring) == await points(other)
    assert await agrees(mirroring)
    await other.close()


async def test_a_collection_that_was_deleted_is_filled_again(
    store: Database, target: Target, mirroring: Mirroring
) -> None:
    ingest(store, target, a="one")
    await mirroring.deliver()
    before = await points(mirroring)
    qdrant = await mirroring.connect()
    qdrant.drop(qdrant.name_of(digest("m")))
    ingest(store, target, b="two")
    await mirroring.deliver()
    assert (await points(mirroring)).keys() > before.keys()
    assert await agrees(mirroring)


async def test_a_folder_that_was_deleted_is_filled_again(store: Database, target: Target, place: Place) -> None:
    ingest(store, target, a="one", b="two")
    first = Mirroring(store, place)
    await first.deliver()
    before = await points(first)
    await first.close()
    assert place.path is not None
    shutil.rmtree(place.path)
    # Nor is one whose making was cut off shut for good.
    place.path.mkdir()
    (place.path / "meta.json").touch()
    again = Mirroring(store, place)
    done = await again.deliver(at_once=True)
    assert (done.contents, done.points, done.error) == (2, 6, None)
    assert await points(again) == before != {}
    assert await agrees(again)
    await again.close()


async def test_a_vector_that_is_broken_holds_nothing_else_up(
    store: Database, target: Target, mirroring: Mirroring
) -> None:
    ingest(store, target, a="one", b="two", c="three")
    broken = np.full(DIMENSION, np.inf, "<f4").tobytes()
    with store.begin() as session:
        chunks = "SELECT k.id FROM chunks k JOIN contents c ON c.id = k.content_id WHERE c.sha256 = :sha256"
        chunk_id = session.scalars(sa.text(chunks), {"sha256": digest("two")}).first()
        if store.engine.dialect.name == "postgresql":
            pytest.skip("pgvector takes no such vector")
        session.execute(
            sa.text("UPDATE embeddings SET vector = :v WHERE chunk_id = :id"), {"v": broken, "id": chunk_id}
        )
    done = await mirroring.deliver()
    assert (done.contents, done.points, done.refused, done.error) == (2, 6, 1, None)
    with store.snapshot() as session:
        ((key, attempts, error),) = outbox.errors(session)
    assert (key, attempts) == (key_of("two"), 1)
    assert "not finite" in error
    # It waits for its time, and is not tried again and again.
    assert (await mirroring.deliver()).refused == 0
    with store.begin() as session:
        session.execute(
            sa.text("UPDATE embeddings SET vector = :v"), {"v": np.eye(DIMENSION, dtype="<f4")[0].tobytes()}
        )
    done = await mirroring.deliver()
    assert (done.contents, done.refused) == (3, 0)
    assert await agrees(mirroring)


async def test_a_collection_of_somebody_else_is_left_alone(
    store: Database, target: Target, mirroring: Mirroring
) -> None:
    qdrant = await mirroring.connect()
    name = qdrant.name_of(digest("m"))
    from qdrant_client import models as shapes

    qdrant._client.create_collection(name, vectors_config=shapes.VectorParams(size=7, distance=shapes.Distance.DOT))
    ingest(store, target, a="one")
    done = await mirroring.deliver()
    assert (done.contents, done.refused) == (0, 1)
    assert qdrant.counts() == {name: 0}


async def test_a_folder_is_of_one_process_at_a_time(store: Database, target: Target, place: Place) -> None:
    ingest(store, target, a="one")
    mine, other = Mirroring(store, place), Mirroring(store, place)
    await mine.deliver()
    with pytest.raises(MirrorAway, match=r"in use by another process.*qdrant\.url"):
        await other.connect()
    await mine.close()
    assert await agrees(other)
    await other.close()


async def test_who_delivers_is_left_to_it(store: Database, target: Target, mirroring: Mirroring) -> None:
    ingest(store, target, a="one")
    with alone(store) as mine:
        assert mine
        done = await mirroring.deliver()
        assert (done.busy, done.contents) == (True, 0)
    done = await mirroring.deliver()
    assert (done.busy, done.contents) == (False, 1)


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_server_that_is_away_is_owed_and_tried_later(store: Database, target: Target, place: Place) -> None:
    away = Mirroring(store, Place(closed_port(), None, "nightshift", "secret"))
    ingest(store, target, a="one")
    done = await away.deliver()
    assert done.error is not None
    assert "cannot be used" in done.error
    assert "secret" not in done.error
    with store.snapshot() as session:
        mirror = outbox.find_mirror(session)
        assert outbox.count_owed(session) == 1
    assert mirror is not None
    assert mirror.error == done.error
    assert mirror.due_at is not None
    assert mirror.due_at > utc_now() - dt.timedelta(seconds=1)
    assert (await away.deliver()).error is None  # not before its time
    done = await away.deliver(at_once=True)
    assert done.error is not None
    await away.close()
    back = Mirroring(store, place)
    assert (await back.deliver()).contents == 1
    with store.snapshot() as session:
        mirror = outbox.find_mirror(session)
    assert mirror is not None
    assert (mirror.error, mirror.due_at, mirror.attempts) == (None, None, 0)
    assert mirror.in_line_at is not None
    await back.close()


async def test_what_was_changed_there_is_found_and_mended(
    store: Database, target: Target, mirroring: Mirroring
) -> None:
    ingest(store, target, a="one", b="two")
    await mirroring.deliver()
    assert await agrees(mirroring)
    before = await points(mirroring)
    qdrant, model = await mirroring.connect(), digest("m")
    client, name = qdrant._client, qdrant.name_of(model)
    missing, stale, moved = (point_id(key_of("one"), ordinal) for ordinal in range(3))
    foreign = "00000000-0000-0000-0000-000000000001"
    qdrant.delete(model, [missing])
    client.set_payload(name, {"text": "something else"}, points=[stale])
    qdrant.upsert(model, [moved], [np.eye(DIMENSION, dtype=np.float32)[0]], [payload_in(before[moved])])
    extra = point_id(key_of("two"), 3)
    payload = payload_in(before[point_id(key_of("two"), 2)]) | {"ordinal": 3}
    unit = np.eye(DIMENSION, dtype=np.float32)[1]
    qdrant.upsert(model, [extra, foreign], [unit, unit], [payload, {"whose": "somebody's"}])
    found = await mirroring.disagreements()
    assert {(one.code, str(one.point)) for one in found} == {
        ("qdrant-missing", missing),
        ("qdrant-payload", stale),
        ("qdrant-vector", moved),
        ("qdrant-extra", extra),
        ("qdrant-foreign", foreign),
    }
    assert {one.file for one in found} == {"/docs/a.pdf", None}
    await mirroring.repair(found)
    assert await agrees(mirroring)
    assert await points(mirroring) == before


PUMP = """
import asyncio, os, sys
from pathlib import Path
from pipeline.runner.mirroring import Mirroring, keep_in_line
from pipeline.store.database import Database
from pipeline.store.qdrant.client import Place

async def main():
    with Database.open(sys.argv[1]) as store:
        print(os.getpid(), flush=True)
        await keep_in_line(Mirroring(store, Place(None, Path(sys.argv[2]), "nightshift")), 0.01)

for _ in sys.stdin:  # each pump is a process, of a parent that has imported everything
    child = os.fork()
    if not child:
        asyncio.run(main())
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def change(session: Session, target: Target, dice: random.Random, turn: int) -> None:
    """Something that documents do."""
    paths = session.scalars(sa.select(DocumentRow.path).order_by(DocumentRow.path)).all()
    done = dice.choice(["new", "new", "changed", "gone", "renamed"]) if paths else "new"
    if done == "gone":
        row = session.scalars(sa.select(DocumentRow).where(DocumentRow.path == dice.choice(paths))).one()
        library.forget(session, [Known(row.id, row.path, row.size, row.mtime_ns, row.sha256)])
    elif done == "renamed":
        row = session.scalars(sa.select(DocumentRow).where(DocumentRow.path == dice.choice(paths))).one()
        row.path = f"renamed{turn}.pdf"
    else:
        name = dice.choice(paths).removesuffix(".pdf") if done == "changed" else f"new{turn}"
        register(session, 1, target, **{name: f"text {dice.randrange(8)}"})
        extract_all(session, target, [f"chunk {number} of {turn}" for number in range(dice.randrange(1, 40))])
        embed_all(session, target)
        library.drop_leftovers(session)


@pytest.mark.slow
def test_killed_again_and_again_it_comes_to_hold_what_search_sees(
    store: Database, database_url: str, target: Target, place: Place
) -> None:
    dice = random.Random(1)
    with store.begin() as session:
        outbox.register(session, place.location, utc_now())
    command = [sys.executable, "-c", PUMP, database_url, str(place.path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as pumps:
        assert pumps.stdin is not None
        assert pumps.stdout is not None
        for round_ in range(4):
            pumps.stdin.write("next\n")
            pumps.stdin.flush()
            pump = int(pumps.stdout.readline())
            try:
                for turn in range(dice.randrange(5, 20)):
                    with store.begin() as session:
                        change(session, target, dice, 1000 * round_ + turn)
                    time.sleep(dice.uniform(0, 0.05))  # so that it is killed at any point of its work
            finally:
                os.kill(pump, signal.SIGKILL)
            assert pumps.stdout.readline() == "ended\n"
    asyncio.run(holds_what_search_sees(store, place))


async def holds_what_search_sees(store: Database, place: Place) -> None:
    last = Mirroring(store, place)
    done = await last.deliver()
    assert (done.error, done.refused) == (None, 0)
    assert await last.disagreements() == []
    with store.snapshot() as session:
        assert not outbox.owes(session)
        seen = sa.text(
            "SELECT count(*) FROM embeddings e JOIN chunks k ON k.id = e.chunk_id "
            "WHERE k.content_id IN (SELECT current_id FROM documents)"
        )
        vectors = session.scalar(seen)
    assert vectors
    assert len(await points(last)) == vectors
    await last.close()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"qdrant": {"url": "http://qdrant:6333", "path": "/q"}}, "one home beside the database"),
        ({"search": {"vectors": "qdrant"}}, "should be database"),
        ({"qdrant": {"url": "http://user:secret@qdrant:6333"}}, "no password"),
        ({"qdrant": {"url": "qdrant:6333"}}, "begin with http"),
        ({"qdrant": {"url": "http://qdrant", "collection": "a/b"}}, "letters, digits"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Settings.model_validate(given)


def test_where_qdrant_is_told_without_its_key() -> None:
    settings = Settings.model_validate({"qdrant": {"url": "http://qdrant:6333", "api_key": "key-17"}})
    place = place_of(settings)
    assert place == Place("http://qdrant:6333", None, "nightshift", "key-17")
    assert place is not None
    assert "key-17" not in f"{place} {place.location}"
