"""Another model, other chunk settings, an edited document: with the real model, killed on the way.

Another pooling is another model, so one file is enough for two of them.
"""

from __future__ import annotations

import random
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import docx
import pytest

from benchmarks.corpus import write_corpus
from tests.conftest import DEFAULT_MODEL
from tests.runs import ROOT, SMALL_CHUNKS, Host, assert_same, contents, kill_and_reap, rows, wait_until

KILLS = 3
ANOTHER_MODEL = SMALL_CHUNKS | {"NIGHTSHIFT_EMBEDDING_POOLING": "cls"}
OTHER_CHUNKS = {"NIGHTSHIFT_CHUNK_TOKENS": "48", "NIGHTSHIFT_CHUNK_OVERLAP": "8"}
QUESTION = "How cold must the seeds be kept?"

SEARCHED = """
    SELECT d.path FROM documents d JOIN contents c ON c.id = d.current_id JOIN models m ON m.id = c.model_id
    WHERE m.active AND c.embedded_count > 0 AND c.embedded_count = c.chunk_count
      AND c.chunk_count = (SELECT count(*) FROM chunks k JOIN embeddings e ON e.chunk_id = k.id
                           WHERE k.content_id = c.id)
    ORDER BY d.path
"""
"""The documents that search finds, whole and by the one model that it uses."""


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    for path in (ROOT / "data" / "inbox").glob("seed-store*"):
        (folder / path.name).write_bytes(path.read_bytes())
    write_corpus(folder / "corpus", pages=9, pages_per_document=3)
    return folder


def searched(host: Host) -> list[str]:
    assert rows(host.database, "SELECT count(*) FROM models WHERE active") == [(1,)]
    return [path for (path,) in rows(host.database, SEARCHED)]


def answer(host: Host) -> tuple[str, float]:
    """The best passage and its score."""
    best = host.run_json("search", QUESTION)["results"][0]
    return best["text"], best["score"]


def like(answer: tuple[str, float]) -> tuple[str, object]:
    """The same but for what other batches do to a vector; another pooling changes the score far more."""
    return answer[0], pytest.approx(answer[1], abs=0.003)


@pytest.mark.timeout(600)
def test_a_move_to_another_model_that_is_killed_again_and_again(documents: Path, tmp_path: Path) -> None:
    fresh = Host(tmp_path / "fresh", ANOTHER_MODEL)
    moved = Host(tmp_path / "moved", SMALL_CHUNKS)
    for host in (fresh, moved):
        host.data_dir.mkdir()
    began = time.monotonic()
    fresh.run_json("run-now", str(documents))
    seconds = time.monotonic() - began
    moved.run_json("run-now", str(documents))
    before = searched(moved)
    assert before == searched(fresh)
    old_answer = answer(moved)

    moving = replace(moved, settings=ANOTHER_MODEL)
    moments = random.Random(4)
    for _ in range(KILLS):
        process = moving.spawn("run-now", str(documents), "--quiet")
        try:
            process.communicate(timeout=moments.uniform(0.1, 1.0) * seconds)
            assert process.returncode == 0
        except subprocess.TimeoutExpired:
            kill_and_reap(process)
        assert searched(moving) == before
    listed = {model["active"]: model for model in moving.run_json("models")["models"]}
    if not listed[True]["fingerprint"].startswith("cls:"):
        # Search by day: the settings name the new model, the question is embedded with the old one.
        assert answer(moving) == like(old_answer)
    moving.run_json("run-now", str(documents))
    assert searched(moving) == before
    new_answer = answer(fresh)
    assert new_answer != like(old_answer)
    assert answer(moving) == like(new_answer)

    # Back, in one step, and the next run leaves it so though the settings name the other one.
    assert moving.run("models", "use", "all-MiniLM-L6-v2-F16.gguf").returncode == 2, "that names two models"
    old = next(m["fingerprint"] for m in moving.run_json("models")["models"] if ":" not in m["fingerprint"])
    used = moving.run("models", "use", old[:10])
    assert (used.returncode, "NIGHTSHIFT_EMBEDDING_POOLING=" in used.stdout) == (0, True), used
    assert answer(moving) == like(old_answer)
    report = moving.run_json("run-now", str(documents))
    assert (report["chunks_embedded"], searched(moving)) == (0, before)
    assert answer(moving) == like(old_answer)

    # And for good: what is left is what a run with the new model alone makes.
    moving.run_json("models", "use", "cls:", code=2)  # too short to mean anything
    moving.run_json("models", "use", f"cls:{old[:10]}")
    pruned = moving.run_json("models", "prune", "--yes")
    assert [model["fingerprint"] for model in pruned["pruned"]] == [old]
    assert_same(contents(moving.database), contents(fresh.database))


@pytest.mark.timeout(600)
def test_other_chunk_settings_that_are_killed_and_taken_back(documents: Path, tmp_path: Path) -> None:
    fresh = Host(tmp_path / "fresh", SMALL_CHUNKS)
    host = Host(tmp_path / "host", SMALL_CHUNKS)
    for each in (fresh, host):
        each.data_dir.mkdir()
        each.run_json("run-now", str(documents))
    before = searched(host)
    (first,) = rows(host.database, "SELECT DISTINCT recipe FROM contents")
    moved = "SELECT count(*) FROM documents d JOIN contents c ON c.id = d.current_id WHERE c.recipe != ?"

    recut = replace(host, settings=OTHER_CHUNKS)
    for least in (1, 3, 5):
        process = recut.spawn("run-now", str(documents), "--quiet")
        wait_until(
            lambda least=least, run=process: rows(host.database, moved, first)[0][0] >= least or run.poll() is not None
        )
        kill_and_reap(process)
        assert searched(recut) == before
    left = rows(host.database, "SELECT count(*) FROM documents")[0][0] - rows(host.database, moved, first)[0][0]
    not_moved = (
        "SELECT coalesce(sum(k), 0) FROM (SELECT DISTINCT c.id, c.chunk_count AS k FROM documents d "
        "JOIN contents c ON c.id = d.current_id WHERE c.recipe = ?)"
    )
    kept = rows(host.database, not_moved, first)[0][0]
    report = host.run_json("run-now", str(documents))
    assert searched(host) == before
    assert report["chunks_embedded"] + report["chunks_reused"] <= report["chunks"]["total"] - kept, left
    assert_same(contents(host.database), contents(fresh.database))


@pytest.mark.timeout(300)
def test_what_is_needed_at_once_is_embedded_with_the_old_model_during_the_move(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    write_handbook(docs / "handbook.docx", sections=4)
    write_handbook(docs / "other.docx", sections=3)
    old_host = Host(tmp_path, SMALL_CHUNKS)
    old_host.run_json("run-now", str(docs))
    # Another file is another model; what stands behind the last tensor makes no difference to the vectors.
    another = tmp_path / "another.gguf"
    another.write_bytes(DEFAULT_MODEL.read_bytes() + b"\0" * 32)
    host = replace(old_host, settings=SMALL_CHUNKS | {"NIGHTSHIFT_EMBEDDING_MODEL": str(another)})
    host.run_json("run-now", str(docs / "handbook.docx"))
    write_handbook(docs / "urgent.docx", edited=0, sections=1)
    host.run_json("run-now", str(docs / "urgent.docx"))
    assert searched(host) == ["handbook.docx", "other.docx"]  # the move is under way, and the new one is its other side
    assert host.run_json("status")["found_after_move"] == 1

    said = host.run("run-now", str(docs / "urgent.docx"), "--model", str(DEFAULT_MODEL))
    assert said.returncode == 0, said
    assert searched(host) == ["handbook.docx", "other.docx", "urgent.docx"]
    found = host.run_json("search", "Which sluice gate was closed for repairs?")
    assert found["results"][0]["file"].endswith("urgent.docx")
    status = host.run_json("status")
    assert status["model"]["path"] == str(DEFAULT_MODEL)
    assert [model["waiting"] for model in status["next_models"]] == [2]

    report = host.run_json("run-now", str(docs))
    assert report["model"]["active"]
    assert searched(host) == ["handbook.docx", "other.docx", "urgent.docx"]
    assert host.run_json("status")["next_models"] == []


def write_handbook(path: Path, *, edited: int | None = None, sections: int = 40) -> None:
    """So many sections; one of them may say something else."""
    document = docx.Document()
    for number in range(sections):
        document.add_heading(f"Section {number}", 1)
        what = "was closed for repairs" if number == edited else "is inspected each spring"
        document.add_paragraph(f"Sluice gate number {number} {what}, and the keeper notes it in the book. " * 3)
    document.save(str(path))


@pytest.mark.timeout(300)
def test_an_edited_document_costs_what_was_edited(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    hosts = [Host(tmp_path / name, SMALL_CHUNKS) for name in ("edited", "fresh")]
    for made in (folder, *(host.data_dir for host in hosts)):
        made.mkdir()
    write_handbook(folder / "handbook.docx")
    first = hosts[0].run_json("run-now", str(folder))
    assert (first["chunks_reused"], first["chunks"]["total"] >= 40) == (0, True)
    write_handbook(folder / "handbook.docx", edited=20)
    second = hosts[0].run_json("run-now", str(folder))
    assert 1 <= second["chunks_embedded"] <= 3
    assert second["chunks_embedded"] + second["chunks_reused"] == second["chunks"]["total"]
    assert hosts[1].run_json("run-now", str(folder))["chunks_reused"] == 0
    assert_same(contents(hosts[0].database), contents(hosts[1].database))
