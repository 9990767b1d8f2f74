"""Quantized copies, from a real run to a real search: by the settings, and by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pipeline.runner.indexing import renew_indexes
from pipeline.store import library
from pipeline.store.database import Database
from pipeline.store.nearest.copying import held_copies
from tests.runs import ROOT, Host
from tests.store import rows

INBOX = ROOT / "data" / "inbox"
QUESTION = "why did the seed store become warm"


def copies(host: Host) -> list[str]:
    folder = host.database.with_name(f"{host.database.name}-search")
    return [path.name for path in folder.glob("*.vectors")] if folder.exists() else []


def test_a_run_makes_a_copy_where_it_is_wanted_and_search_finds_the_same_by_it(tmp_path: Path) -> None:
    host = Host(tmp_path, {})
    assert host.run("run-now", str(INBOX)).returncode == 0
    assert not copies(host)  # so few need none
    assert "exact, by" in host.run("search", QUESTION, "--by", "vector", "--explain").stdout
    exact = host.run_json("search", QUESTION, "--by", "vector", "-k", "5")
    wanted = Host(tmp_path, {"NIGHTSHIFT_SEARCH_QUANTIZED": "on"})
    assert wanted.run("run-now", str(INBOX)).returncode == 0
    assert len(copies(host)) == 1
    explained = wanted.run("search", QUESTION, "--by", "vector", "--explain")
    assert "quantized copies" in explained.stdout, explained
    assert host.run_json("search", QUESTION, "--by", "vector", "-k", "5") == exact
    unwanted = Host(tmp_path, {"NIGHTSHIFT_SEARCH_QUANTIZED": "off"})
    assert unwanted.run("run-now", str(INBOX)).returncode == 0
    assert not copies(host)


def test_a_copy_is_made_by_hand(tmp_path: Path) -> None:
    host = Host(tmp_path, {})
    assert "there are no vectors yet" in host.run("db", "index").stdout
    with Database.open(f"sqlite:///{host.database}") as store, store.begin() as session:
        rows.begin(session)
        target = rows.add_target(session)
        rows.register(session, library.ensure_source(session, "/docs", rows.utc_now()), target, a="alpha")
        rows.extract_all(session, target)
        rows.embed_all(session, target)
    assert "m: 3 vectors, a quantized copy of 3 of them was made" in host.run("db", "index").stdout
    assert "m: 3 vectors, a quantized copy of 3 of them is there" in host.run("db", "index").stdout
    known = {"model": "m", "vectors": 3, "index": "ready", "built": False}
    told = host.run_json("db", "index")
    assert (told["busy"], told["indexes"]) == (False, [known])
    off = Host(tmp_path, {"NIGHTSHIFT_SEARCH_QUANTIZED": "off"})
    assert "m: 3 vectors, no quantized copy, because search.quantized is off" in off.run("db", "index").stdout
    assert not copies(host)


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_stop_that_came_before_leaves_it_to_a_later_run(store: Database, wanted: bool) -> None:
    """On both databases."""
    with store.begin() as session:
        rows.begin(session)
        target = rows.add_target(session)
        rows.register(session, library.ensure_source(session, "/docs", rows.utc_now()), target, a="alpha")
        rows.extract_all(session, target)
        rows.embed_all(session, target)
    stop = asyncio.Event()
    if not wanted:
        stop.set()
    await renew_indexes(store, "on", stop)
    if store.engine.dialect.name == "sqlite":
        with store.snapshot() as session:
            assert [one.copied for one in held_copies(session)] == [3 if wanted else 0]
