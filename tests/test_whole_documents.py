"""Documents computed whole, by the real program: their own vectors, and late chunking."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.corpus import write_corpus
from pipeline.backends.llama_cpp.engine import Engine
from pipeline.backends.llama_cpp.plan import EngineOptions
from tests.conftest import DEFAULT_MODEL
from tests.extract.sample_documents import docx, p, table
from tests.runs import SMALL_CHUNKS, Contents, Host, assert_same, contents, kill_and_reap, rows

SETTINGS = SMALL_CHUNKS | {"NIGHTSHIFT_SOURCES_SETTLE": "0"}
LATE = SETTINGS | {"NIGHTSHIFT_EMBEDDING_LATE_CHUNKING": "true"}
METHODS = """
    SELECT d.path, e.method, c.chunk_count, e.vector FROM documents d
    JOIN contents c ON c.id = d.current_id JOIN content_embeddings e ON e.content_id = c.id ORDER BY d.path
"""
PREFIXES = """
    SELECT coalesce(k.prefix, '') FROM chunks k JOIN contents c ON c.id = k.content_id ORDER BY c.sha256, k.ordinal
"""
TABLE = [["Vessel", "Length in metres", "Home port"], *([f"Ship {n}", f"{n * 3}", f"Harbour {n}"] for n in range(24))]
SHORT = "The lighthouse at Corrie Head has a keeper. She goes up at dusk and comes down at dawn."
MIDDLE = " ".join(f"In the year {1900 + n} the keeper wrote that {n} ships had passed her lamp." for n in range(12))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One chunk; a few that the model takes at once; two documents that it does not; a table over several chunks."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "a short.docx").write_bytes(docx(p(SHORT)))
    (folder / "b middle.docx").write_bytes(docx(p(MIDDLE)))
    write_corpus(folder / "c long", pages=4, pages_per_document=2)
    (folder / "d table.docx").write_bytes(docx(table(*TABLE)))
    return folder


@pytest.fixture(scope="module")
def plain(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Host:
    host = Host(tmp_path_factory.mktemp("plain"), SETTINGS)
    host.run_json("run-now", str(documents))
    return host


@pytest.fixture(scope="module")
def late(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Host, Contents, float]:
    host = Host(tmp_path_factory.mktemp("late"), LATE)
    began = time.monotonic()
    host.run_json("run-now", str(documents))
    return host, contents(host.database), time.monotonic() - began


def cosine(one: bytes, other: bytes) -> float:
    return float(np.frombuffer(one, "<f4") @ np.frombuffer(other, "<f4"))


@pytest.mark.timeout(300)
def test_a_document_that_the_model_takes_has_its_vector_and_others_the_mean(plain: Host) -> None:
    found = rows(plain.database, METHODS)
    assert [(path.split("/")[0], method) for path, method, _, _ in found] == [
        ("a short.docx", "model"), ("b middle.docx", "model"), ("c long", "mean"), ("c long", "mean"),
        ("d table.docx", "model"),
    ]  # fmt: skip
    assert found[0][2] == 1
    assert found[1][2] > 2
    engine = Engine(EngineOptions(DEFAULT_MODEL, contexts=1))
    for text, (_, _, _, vector) in zip((SHORT, MIDDLE), found, strict=False):
        (expected,) = engine.contexts[0].embed([engine.tokenize(text)])[0]
        assert cosine(vector, expected.tobytes()) > 0.999
    # A chunk below the header of its table is embedded with it.
    below = rows(
        plain.database,
        "SELECT k.prefix, k.text, e.vector FROM chunks k JOIN embeddings e ON e.chunk_id = k.id WHERE prefix != ''",
    )
    assert len(below) > 2
    for prefix, text, vector in below:
        assert prefix.strip() == " | ".join(TABLE[0])
        (with_header, without), _ = engine.contexts[0].embed([engine.tokenize(prefix + text), engine.tokenize(text)])
        assert cosine(vector, with_header.tobytes()) > 0.999 > cosine(vector, without.tobytes())
    engine.close()


@pytest.mark.timeout(300)
def test_late_chunking_gives_chunks_vectors_that_know_their_document(
    plain: Host, late: tuple[Host, Contents, float]
) -> None:
    host, with_context, _ = late
    by_themselves = contents(plain.database)
    assert with_context.chunks == by_themselves.chunks
    alike = (with_context.vectors * by_themselves.vectors).sum(axis=1)
    below_a_header = np.array([prefix != "" for (prefix,) in rows(host.database, PREFIXES)])
    several = np.array([chunk[1] > 0 for chunk in with_context.chunks]) & ~below_a_header
    # Other vectors, but of the same text; and a document of one chunk has nothing around it.
    assert (alike[several] < 0.9999).mean() > 0.9
    assert float(alike.min()) > 0.3
    # What needs the header of its table has it, by itself.
    assert below_a_header.sum() > 2
    assert float(alike[below_a_header].min()) > 0.9999
    one, *others = rows(host.database, METHODS)
    assert cosine(one[3], rows(plain.database, METHODS)[0][3]) > 0.9999
    # What was one stretch gave the document's own vector with it.
    assert [method for _, method, _, _ in others] == ["model", "mean", "mean", "model"]
    assert cosine(others[0][3], rows(plain.database, METHODS)[1][3]) > 0.999
    assert rows(host.database, "SELECT count(*) FROM pending_stretches") == [(0,)]


@pytest.mark.timeout(300)
def test_documents_are_found_by_their_own_vectors(plain: Host) -> None:
    found = plain.run_json("search", "--documents", "-k", "3", "who kept the lamp, and how many ships passed?")
    best, *others = found["results"]
    assert (Path(best["file"]).name, best["method"], best["rank"]) == ("b middle.docx", "model", 1)
    assert best["link"].endswith("b%20middle.docx")
    assert [hit["score"] for hit in found["results"]] == sorted((h["score"] for h in found["results"]), reverse=True)
    assert len(others) == 2
    said = plain.run("search", "--documents", "who kept the lamp?")
    assert (said.returncode, "b middle.docx" in said.stdout) == (0, True)


@pytest.mark.timeout(600)
def test_a_late_run_killed_again_and_again_ends_as_if_nothing_had_been(
    documents: Path, late: tuple[Host, Contents, float], tmp_path: Path
) -> None:
    _, expected, seconds = late
    moments = random.Random(5)
    host = Host(tmp_path, LATE)
    for _ in range(3):
        process = host.spawn("run-now", str(documents), "--quiet")
        try:
            process.communicate(timeout=moments.uniform(0.3, 1.0) * seconds)
            assert process.returncode == 0
            break
        except subprocess.TimeoutExpired:
            kill_and_reap(process)
    host.run_json("run-now", str(documents))
    assert_same(contents(host.database), expected)
    assert rows(host.database, "SELECT sum(chunks_embedded) FROM runs") == [(len(expected.vectors),)]
    assert rows(host.database, "SELECT count(*) FROM pending_stretches") == [(0,)]


@pytest.mark.timeout(300)
def test_none_is_computed_whole_where_the_settings_say_so_and_a_change_makes_every_document_anew(
    documents: Path, tmp_path: Path
) -> None:
    host = Host(tmp_path, SETTINGS | {"NIGHTSHIFT_EMBEDDING_DOCUMENT_TOKENS": "0"})
    before = host.run_json("run-now", str(documents / "b middle.docx"))
    assert [method for _, method, _, _ in rows(host.database, METHODS)] == ["mean"]
    assert before["engine"]["whole"]["texts"] == 0
    # A server of its own: its counts are of its whole life.
    after = Host(tmp_path, LATE).run_json("run-now", str(documents / "b middle.docx"), process=True)
    assert after["chunks_embedded"] == before["chunks_embedded"] > 2
    assert after["engine"]["whole"]["texts"] == 1
    assert [method for _, method, _, _ in rows(host.database, METHODS)] == ["model"]
    assert rows(host.database, "SELECT count(*) FROM contents") == [(1,)]


def test_a_model_that_pools_otherwise_is_refused(documents: Path, tmp_path: Path) -> None:
    host = Host(tmp_path, LATE | {"NIGHTSHIFT_EMBEDDING_POOLING": "cls"})
    refused = host.run("run-now", str(documents))
    assert refused.returncode == 2
    assert "late_chunking: needs a model whose vectors are the mean of its tokens'" in refused.stderr
    assert "pools by cls" in refused.stderr


def test_a_server_that_gives_no_token_vectors_is_refused(tmp_path: Path) -> None:
    elsewhere = {"NIGHTSHIFT_EMBEDDING_BACKEND": "remote", "NIGHTSHIFT_EMBEDDING_URL": "http://127.0.0.1:1"}
    refused = Host(tmp_path, LATE | elsewhere).run("run-now", str(tmp_path))
    assert refused.returncode == 2
    assert "remote gives no token vectors" in refused.stderr
