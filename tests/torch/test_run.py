"""A whole run with a model directory: documents to vectors, beside those of the GGUF, and a search."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.backends.models import ModelFile
from tests.runs import Host


def test_run_now_with_a_model_directory(directory: ModelFile, tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    from benchmarks.corpus import write_corpus

    write_corpus(documents, pages=3)
    data = tmp_path / "data"
    data.mkdir()
    host = Host(data, {"NIGHTSHIFT_EMBEDDING_MODEL": str(directory.path)})
    done = host.run("run-now", str(documents), "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert report["chunks_embedded"] > 3
    again = json.loads(host.run("run-now", str(documents), "--json").stdout)
    assert again["chunks_embedded"] == 0
    found = host.run("search", "water supply", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["results"]
    gguf = Host(data, {})
    other = json.loads(gguf.run("run-now", str(documents), "--json").stdout)
    assert other["chunks_embedded"] == report["chunks_embedded"]
