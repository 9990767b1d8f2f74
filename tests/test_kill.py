"""The proof that nothing is lost: SIGKILL at random moments, then the same database as without.

The moments are random, but from fixed seeds; what is hit differs with the host's speed, and is to
come out the same whatever it is.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.corpus import write_corpus
from tests.runs import SMALL_CHUNKS, Contents, Host, assert_same, children, contents, kill_and_reap, rows, wait_until

INBOX = Path(__file__).parents[1] / "data" / "inbox"
KILLS = 14


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample documents, some more, one broken and one copy: about 300 small chunks."""
    folder = tmp_path_factory.mktemp("documents")
    for path in INBOX.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    write_corpus(folder / "corpus", pages=24, pages_per_document=3)
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nand then nothing")
    (folder / "copy of the minutes.docx").write_bytes((INBOX / "harbour-committee-minutes.docx").read_bytes())
    return folder


@pytest.fixture(scope="module")
def undisturbed(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Contents, float]:
    """What a run that nobody disturbs leaves, and its seconds."""
    host = Host(tmp_path_factory.mktemp("undisturbed"), SMALL_CHUNKS)
    began = time.monotonic()
    report = host.run_json("run-now", str(documents))
    assert report["outcome"] == "complete"
    assert report["documents"]["failed"] == 1
    assert report["documents"]["empty"] == 1
    return contents(host.database), time.monotonic() - began


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_again_and_again_ends_as_if_nothing_had_been(
    documents: Path, undisturbed: tuple[Contents, float], tmp_path: Path, seed: int
) -> None:
    expected, seconds = undisturbed
    moments = random.Random(seed)
    host = Host(tmp_path, SMALL_CHUNKS)
    stored = [0]
    for _ in range(KILLS):
        process = host.spawn("run-now", str(documents), "--quiet")
        try:
            # From before the first row to the end of the work, more often early: each run starts from the last one.
            process.communicate(timeout=moments.uniform(0.05, 1.0) * seconds / 2)
            assert process.returncode == 0
            break
        except subprocess.TimeoutExpired:
            kill_and_reap(process)
        if host.database.exists() and rows(host.database, "SELECT 1 FROM sqlite_master WHERE name = 'embeddings'"):
            stored.append(rows(host.database, "SELECT count(*) FROM embeddings")[0][0])
            assert stored[-1] >= stored[-2], "a vector that was stored is gone"
    host.run_json("run-now", str(documents))
    assert_same(contents(host.database), expected)
    # Not one vector was made twice: what the runs say that they stored adds up to what is there.
    assert rows(host.database, "SELECT sum(chunks_embedded) FROM runs") == [(len(expected.vectors),)]
    states = {state for (state,) in rows(host.database, "SELECT DISTINCT state FROM runs")}
    assert states == {"complete", "interrupted"}


@pytest.mark.timeout(600)
def test_a_server_killed_again_and_again_costs_no_chunk(
    documents: Path, undisturbed: tuple[Contents, float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    moments = random.Random(3)
    host = Host(tmp_path, SMALL_CHUNKS)
    process = host.spawn("run-now", str(documents), "--quiet")
    kills = 0
    while process.poll() is None and kills < 6:
        time.sleep(moments.uniform(0.1, 0.6) * seconds)
        for server in children(process, "pipeline.backends.llama_cpp"):
            server.send_signal(signal.SIGKILL)
            kills += 1
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert kills >= 2
    assert_same(contents(host.database), expected)


@pytest.mark.timeout(600)
def test_readers_killed_cost_at_most_a_later_try(
    documents: Path, undisturbed: tuple[Contents, float], tmp_path: Path
) -> None:
    expected, _ = undisturbed
    host = Host(tmp_path, SMALL_CHUNKS)
    process = host.spawn("run-now", str(documents), "--quiet")
    killed = 0
    wait_until(lambda: children(process, "pipeline.ingest.worker"))
    # Once while it starts and once while it reads; a worker may fail to start twice before that is the run's failure.
    for pause in (0.0, 1.0):
        time.sleep(pause)
        for worker in children(process, "pipeline.ingest.worker"):
            worker.send_signal(signal.SIGKILL)
            killed += 1
    assert killed
    process.communicate(timeout=240)
    assert process.returncode == 0
    # What was being read is left for a later run, at a time that would be long to wait for here.
    host.run("documents", "retry", "--state", "discovered")
    report = host.run_json("run-now", str(documents))
    assert report["documents"]["discovered"] == 0
    assert_same(contents(host.database), expected)
