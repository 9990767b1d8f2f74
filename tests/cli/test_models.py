"""The `models` command: what a person and a program see, what it refuses, and its exit codes."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.store import library, models, overview, queue, runs
from pipeline.store.database import Database
from pipeline.store.runs import Process
from tests.runs import Host
from tests.store import rows
from tests.store.rows import utc_now

OLD, NEW = rows.digest("old"), rows.digest("new")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Two documents by `old`, which search uses; `new` has made one of them."""
    host = Host(tmp_path, {})
    with opened(host) as store, store.begin() as session:
        rows.begin(session)
        source, old = library.ensure_source(session, "/docs", utc_now()), rows.add_target(session, "old")
        rows.register(session, source, old, a="alpha", b="beta")
        rows.extract_all(session, old)
        rows.embed_all(session, old)
        new = rows.add_target(session, "new")
        library.retarget(session, None, new, utc_now())
        (first,) = queue.claim_to_extract(session, "run", None, new, utc_now(), 1)
        queue.store_extracted(session, first.content_id, rows.extracted("one"), utc_now())
        rows.embed_all(session, new)
        runs.finish_run(session, "run", "stopped", None, utc_now())
    return host


def opened(host: Host) -> Database:
    return Database.open(f"sqlite:///{host.database}")


def finish(host: Host) -> None:
    """Let the new model make the rest, and search move to it."""
    with opened(host) as store, store.begin() as session:
        rows.begin(session, "next")
        new = rows.add_target(session, "new")
        for content in queue.claim_to_extract(session, "next", None, new, utc_now(), 9):
            queue.store_extracted(session, content.content_id, rows.extracted("two"), utc_now())
        rows.embed_all(session, new)
        assert models.activate_when_complete(session, new)
        runs.finish_run(session, "next", "complete", None, utc_now())


def active(host: Host) -> str:
    with opened(host) as store, store.snapshot() as session:
        model = models.active_model(session)
        assert model is not None
        return model.name


def listed(host: Host) -> dict[str, dict[str, Any]]:
    return {model["name"]: model for model in host.run_json("models")["models"]}


def test_the_list_says_which_model_search_uses_and_how_far_the_others_are(host: Host) -> None:
    shown = host.run("models").stdout.splitlines()
    assert shown[0] == f"old (old.gguf, {OLD[:8]}): search uses it"
    assert shown[1].startswith("    2 of 2 documents embedded, 6 chunks, 4 dimensions, about ")
    assert shown[2] == (
        f"new (new.gguf, {NEW[:8]}): being built; search moves over once all documents have been through it"
    )
    assert shown[3].startswith("    1 of 2 documents embedded, 1 not yet through it, 1 chunk, 4 dimensions, about ")
    known = listed(host)
    assert {name: (m["active"], m["building"], m["complete"], m["missing"]) for name, m in known.items()} == {
        "old": (True, False, True, 0),
        "new": (False, True, False, 1),
    }
    assert known["old"]["fingerprint"] == OLD
    assert known == {m["name"]: m for m in host.run_json("models", "list")["models"]}


def test_the_list_counts_all_documents_whatever_became_of_them(host: Host) -> None:
    with opened(host) as store, store.begin() as session:
        rows.begin(session, "next")
        new = rows.add_target(session, "new")
        (other,) = queue.claim_to_extract(session, "next", None, new, utc_now(), 9)
        queue.end_extraction(session, other.content_id, DocumentState.EMPTY, "no text")
        library.note_unreadable(session, 1, [library.UnreadableFile("c.pdf", 7, "away")], utc_now())
        runs.finish_run(session, "next", "stopped", None, utc_now())
    shown = host.run("models").stdout.splitlines()
    assert shown[1].startswith("    2 of 3 documents embedded, 1 empty, encrypted or failed, 6 chunks, ")
    assert shown[3].startswith("    1 of 3 documents embedded, 2 empty, encrypted or failed, 1 chunk, ")


def test_without_a_database_there_is_none_and_none_is_made(tmp_path: Path) -> None:
    host = Host(tmp_path, {})
    assert "There is no database" in host.run("models").stdout
    assert host.run_json("models") == {"models": []}
    assert host.run("models", "use", "any").returncode == 2
    assert host.run_json("models", "prune", "--yes")["pruned"] == []
    assert not host.database.exists()


def test_use_refuses_what_is_incomplete_unless_told(host: Host) -> None:
    refused = host.run("models", "use", "new")
    assert (refused.returncode, active(host)) == (1, "old")
    assert refused.stderr.startswith("nightshift: 1 document has not been through new, and search would not find")
    assert "--anyway" in refused.stderr
    used = host.run("models", "use", "new", "--anyway")
    assert (used.returncode, active(host)) == (0, "new")
    assert used.stdout.splitlines()[:2] == [
        f"Search uses new (new.gguf, {NEW[:8]}) from now on.",
        "Not found by it until they have been through it: 1 document.",
    ]
    assert host.run_json("models", "use", OLD[:6])["moved"] is True
    again = host.run_json("models", "use", "old.gguf")
    assert (again["moved"], again["missing"], again["model"]["active"]) == (False, 0, True)


def test_use_says_when_runs_go_on_with_the_other_model(host: Host) -> None:
    finish(host)
    setting = {"NIGHTSHIFT_EMBEDDING_MODEL": "/models/new.gguf"}
    used = Host(host.data_dir, setting).run("models", "use", "old")
    assert used.returncode == 0
    assert "set NIGHTSHIFT_EMBEDDING_MODEL=/models/old.gguf\n" in used.stdout
    assert "set aside" in host.run("models").stdout
    # The next run takes the documents up again with the model that is set, and status says what that is good for.
    with opened(host) as store, store.begin() as session:
        library.retarget(session, None, rows.add_target(session, "new"), utc_now())
    (shown,) = [line for line in host.run("status").stdout.splitlines() if line.startswith("set aside")]
    assert shown.endswith("models use` only")


def test_status_says_what_is_found_only_after_the_move(host: Host) -> None:
    with opened(host) as store, store.begin() as session:
        rows.begin(session, "next")
        new = rows.add_target(session, "new")
        rows.register(session, 1, new, c="gamma")
        queue.claim_to_extract(session, "next", None, new, utc_now(), 1)
        (added,) = queue.claim_to_extract(session, "next", None, new, utc_now(), 9)
        queue.store_extracted(session, added.content_id, rows.extracted("three"), utc_now())
        rows.embed_all(session, new)
        runs.finish_run(session, "next", "stopped", None, utc_now())
    (shown,) = [line for line in host.run("status").stdout.splitlines() if line.startswith("next model")]
    assert shown.endswith("2 of 3 documents embedded; search moves over to it once all are, and then finds 1 more")
    assert host.run_json("status")["found_after_move"] == 1


@pytest.mark.parametrize(("name", "message"), [("nothing", "no such model here"), ("", "no such model here")])
def test_a_model_that_is_not_there_is_wrong_usage(host: Host, name: str, message: str) -> None:
    for command in (["models", "use", name], ["models", "prune", name, "--yes"]):
        result = host.run(*command)
        assert (result.returncode, message in result.stderr, len(result.stderr.splitlines())) == (2, True, 1)


def test_prune_asks_and_leaves_what_search_uses_and_what_is_being_built(host: Host) -> None:
    assert host.run_json("models", "prune", "--yes")["pruned"] == []
    refused = host.run("models", "prune", "old", "--yes")
    assert (refused.returncode, "search uses old" in refused.stderr) == (2, True)
    finish(host)
    unasked = host.run("models", "prune")
    assert (unasked.returncode, "not confirmed, nothing was done" in unasked.stderr) == (1, True)
    assert f"Delete the chunks and vectors of 2 documents by old (old.gguf, {OLD[:8]})" in unasked.stderr
    assert set(listed(host)) == {"old", "new"}
    pruned = host.run("models", "prune", "--yes")
    assert pruned.returncode == 0
    assert pruned.stdout.startswith(f"Deleted what old (old.gguf, {OLD[:8]}) made: 2 documents with 6 chunks, about ")
    assert f"sqlite3 {host.database} VACUUM" in " ".join(pruned.stdout.split())
    assert set(listed(host)) == {"new"}
    assert "Nothing to prune" in host.run("models", "prune", "--yes").stdout


def test_prune_of_a_model_that_is_being_built_needs_its_name_and_no_run_at_work(host: Host) -> None:
    def at_work(session: Session, run_id: str) -> None:
        me = Process(socket.gethostname(), os.getpid(), psutil.Process().create_time())
        runs.start_run(session, run_id, me, [], utc_now(), lambda process: False)

    with opened(host) as store, store.begin() as session:
        at_work(session, "at work")
    busy = host.run("models", "prune", "new", "--yes")
    assert (busy.returncode, "another run is at work" in busy.stderr) == (1, True)
    with opened(host) as store, store.begin() as session:
        runs.finish_run(session, "at work", "stopped", None, utc_now())
    pruned = host.run_json("models", "prune", "new", "--yes")
    assert [(m["name"], m["deleted"]) for m in pruned["pruned"]] == [("new", {"contents": 2, "chunks": 1})]
    assert pruned["reclaimable"] >= 0
    assert set(listed(host)) == {"old"}
    with opened(host) as store, store.snapshot() as session:
        assert {line.state for line in overview.list_documents(session)} == {DocumentState.EMBEDDED}


def test_options_go_after_the_command(host: Host) -> None:
    result = host.run("models", "--json", "use", "new")
    assert (result.returncode, "put the options after the command" in result.stderr) == (2, True)
