"""Qdrant beside the database, as a person has it: by the program itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from pathlib import Path

import pytest

from tests.runs import SMALL_CHUNKS, Host

INBOX = Path(__file__).parents[2] / "data" / "inbox"


@pytest.mark.slow
def test_a_run_keeps_qdrant_in_line_and_one_that_cannot_owes_it(tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    shutil.copy(INBOX / "harbour-committee-minutes.docx", documents)
    plain = Host(tmp_path, SMALL_CHUNKS)
    assert "No Qdrant is set" in plain.run("mirror").stdout

    # Where nobody listens, the run is as complete as ever.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        away = with_settings(plain, NIGHTSHIFT_QDRANT_URL=f"http://127.0.0.1:{listener.getsockname()[1]}")
        report = away.run_json("run-now", str(documents))
        assert report["outcome"] == "complete"
        assert report["mirror"]["owed"] == 1
        assert "cannot be used" in report["mirror"]["error"]
        assert "Qdrant is still owed 1 document (Qdrant at http" in away.run("run-now", str(documents)).stdout
        assert "documents that Qdrant is owed, and that were not compared: 1" in away.run("verify").stdout
        assert away.run_json("status")["mirror"]["owed"] == 1
        failed = away.run("mirror", "sync")
        assert (failed.returncode, failed.stderr.count("\n")) == (1, 2)
        assert "cannot be used" in failed.stderr

    here = with_settings(plain, NIGHTSHIFT_QDRANT_PATH=str(tmp_path / "qdrant"), NIGHTSHIFT_SEARCH_VECTORS="qdrant")
    synced = here.run_json("mirror", "sync")
    chunks = report["chunks"]["embedded"]
    assert synced["delivered"] == {"contents": 1, "points": chunks, "refused": 0, "error": None, "busy": False}
    assert list(here.run_json("mirror")["collections"].values()) == [chunks]

    question = ("search", "what a night costs for a boat", "--by", "vector", "-k", "3", "--explain")
    found, expected = here.run_json(*question), plain.run_json(*question)
    assert found["explain"]["how"] == {"vector": "by Qdrant, scores from the vectors"}
    assert [(hit["text"], hit["score"]) for hit in found["results"]] == [
        (hit["text"], hit["score"]) for hit in expected["results"]
    ]

    documents_found = ("search", "what a night costs for a boat", "--documents", "--explain")
    found, expected = here.run_json(*documents_found), plain.run_json(*documents_found)
    assert found["results"] == expected["results"] != []
    assert found["explain"]["how"] == expected["explain"]["how"]
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "what do guest boats pay", "file": "harbour-committee-minutes.docx"}\n')
    judged, as_expected = here.run_json("eval", str(questions)), plain.run_json("eval", str(questions))
    assert judged["sides"][0]["scores"] == as_expected["sides"][0]["scores"]
    assert judged["sides"][0]["scores"]["vector"]["MRR"]["value"] > 0

    # The next run delivers what it changes, and nobody has to ask for it.
    (documents / "harbour-committee-minutes.docx").rename(documents / "renamed.docx")
    shutil.copy(INBOX / "harbour-committee-minutes.docx", documents / "changed.docx")
    report = here.run_json("run-now", str(documents))
    assert (report["outcome"], report["mirror"]) == ("complete", {"owed": 0, "error": None})
    standing = here.run_json("mirror")
    assert (standing["owed"], standing["error"], list(standing["collections"].values())) == (0, None, [chunks])

    forgotten = json.loads(here.run("mirror", "forget", "--drop", "--yes", "--json").stdout)
    assert forgotten["registered"]
    assert len(forgotten["dropped"]) == 1
    assert plain.run_json("mirror")["registered"] is None


def with_settings(host: Host, **settings: str) -> Host:
    return dataclasses.replace(host, settings={**host.settings, **settings})
