"""Delivery over HTTP: keys, errors that pass, answers that get lost, and requests that are refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.runner.mirroring import Mirroring
from pipeline.store import library, models
from pipeline.store.database import Database
from pipeline.store.mirror import outbox
from pipeline.store.models import Target
from pipeline.store.nearest import nearest_chunks, qdrant
from pipeline.store.qdrant.client import Place
from pipeline.store.view import Filter, view_of
from tests.runner.qdrant_server import World, qdrant_server
from tests.store import portable
from tests.store.rows import add_target, begin, digest, embed_all, extract_all, register, utc_now
from tests.store.test_nearest_qdrant import QUESTIONS


@pytest.fixture
def world() -> Iterator[World]:
    with qdrant_server() as world:
        yield world


@pytest.fixture
def target(store: Database) -> Target:
    """A model, and a source of two documents and a copy."""
    with store.begin() as session:
        library.ensure_source(session, "/docs", utc_now())
        begin(session)
        target = add_target(session)
        register(session, 1, target, a="one", b="two", copy="two")
        extract_all(session, target)
        embed_all(session, target)
        return target


def owed(store: Database) -> int:
    with store.snapshot() as session:
        return outbox.count_owed(session)


async def test_a_server_holds_what_search_sees(store: Database, target: Target, world: World) -> None:
    world.key = "secret"
    mirroring = Mirroring(store, Place(world.url, None, "nightshift", "secret"))
    done = await mirroring.deliver()
    assert (done.contents, done.points, done.error) == (2, 6, None)
    assert await mirroring.disagreements() == []
    indexed = [path for method, path in world.requests if method == "PUT" and path.endswith("/index")]
    assert len(indexed) == 4
    server = await mirroring.connect()
    assert server.counts() == {server.name_of(digest("m")): 6}
    store.carried[qdrant.HOME] = mirroring
    with store.snapshot() as session:
        for wanted in (Filter(), Filter(paths=["a.pdf"])):
            view = view_of(session, target.model_id, wanted)
            told: list[str] = []
            found = nearest_chunks(session, QUESTIONS[0], view, 4, told=told)
            assert found == portable.nearest_chunks(session, QUESTIONS[0], view, 4)
            assert told == ["by Qdrant, scores from the vectors"]
    with store.begin() as session:
        newer = add_target(session, "newer")
        library.retarget(session, None, newer, utc_now())
        extract_all(session, newer)
        embed_all(session, newer)
        assert models.activate_when_complete(session, newer)
    await mirroring.deliver()
    assert server.counts() == {server.name_of(digest("newer")): 6}
    assert [(one.alias_name, one.collection_name) for one in world.engine.get_aliases().aliases] == [
        ("nightshift", server.name_of(digest("newer")))
    ]
    await mirroring.close()


async def test_a_key_that_is_wrong_is_no_document_s_fault(store: Database, target: Target, world: World) -> None:
    world.key = "secret"
    mirroring = Mirroring(store, Place(world.url, None, "nightshift", "key-17"))
    done = await mirroring.deliver()
    assert done.error is not None
    assert "set qdrant.api_key" in done.error
    assert "key-17" not in done.error
    assert (done.refused, owed(store)) == (0, 2)
    world.key = "key-17"
    assert (await mirroring.deliver(at_once=True)).contents == 2
    await mirroring.close()


async def test_what_passes_by_itself_is_tried_again_at_once(store: Database, target: Target, world: World) -> None:
    mirroring = Mirroring(store, Place(world.url, None, "nightshift"))
    world.faults = [503, 500]
    done = await mirroring.deliver()
    assert (done.contents, done.error) == (2, None)
    await mirroring.close()


async def test_an_answer_that_is_lost_changes_nothing(store: Database, target: Target, world: World) -> None:
    mirroring = Mirroring(store, Place(world.url, None, "nightshift"))
    world.lost = 1  # of the collection's making: the second try finds it made
    done = await mirroring.deliver()
    assert (done.contents, done.refused, done.error) == (2, 0, None)
    with store.begin() as session:
        register(session, 1, target, c="three")
        extract_all(session, target)
        embed_all(session, target)
    world.lost = 1  # of its points
    done = await mirroring.deliver()
    assert (done.contents, done.refused, done.error) == (1, 0, None)
    assert await mirroring.disagreements() == []
    await mirroring.close()


async def test_a_server_that_stays_out_of_order_is_owed(store: Database, target: Target, world: World) -> None:
    mirroring = Mirroring(store, Place(world.url, None, "nightshift"))
    # And one that says nothing, as a server that is no Qdrant may.
    for fault, said in ((500, "500"), (200, "cannot be used")):
        world.faults = [fault] * 50
        done = await mirroring.deliver(at_once=True)
        assert done.error is not None
        assert said in done.error
        assert owed(store) == 2
    world.faults = []
    done = await mirroring.deliver(at_once=True)
    assert (done.contents, owed(store)) == (2, 0)
    await mirroring.close()


async def test_what_is_refused_is_put_off_and_holds_nothing_else_up(
    store: Database, target: Target, world: World
) -> None:
    mirroring = Mirroring(store, Place(world.url, None, "nightshift"))
    await mirroring.deliver()
    with store.begin() as session:
        register(session, 1, target, c="three", d="four")
        extract_all(session, target)
        embed_all(session, target)
    world.refused = 2  # both together, and then the first by itself
    done = await mirroring.deliver()
    assert (done.contents, done.refused, owed(store)) == (1, 1, 1)
    done = await mirroring.deliver(at_once=True)
    assert (done.contents, done.refused, owed(store)) == (1, 0, 0)
    assert await mirroring.disagreements() == []
    await mirroring.close()
