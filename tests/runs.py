"""Runs of the real program in its own process, and what they leave in a database."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.in_process import call, can_call

ROOT = Path(__file__).parents[1]
SMALL_CHUNKS = {"NIGHTSHIFT_CHUNK_TOKENS": "64", "NIGHTSHIFT_CHUNK_OVERLAP": "8"}


@dataclass(frozen=True, slots=True)
class Host:
    """A data folder of its own, and the settings that go with it."""

    data_dir: Path
    settings: dict[str, str]

    @property
    def database(self) -> Path:
        return self.data_dir / "nightshift.db"

    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSHIFT_")}
        # 100 columns for whatever is drawn; PYTHONPATH because the working folder is not the checkout.
        return inherited | {
            "NIGHTSHIFT_DATA_DIR": str(self.data_dir),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "100",
            # The tests' files are as old as the run that reads them; test_discover has files that are written to.
            "NIGHTSHIFT_SOURCES_SETTLE": "0",
            **self.settings,
        }

    def spawn(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            env=self.environment(),
            cwd=self.data_dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, *arguments: str, process: bool = False) -> subprocess.CompletedProcess[str]:
        """A command to its end: called in this process, or a process of its own for what only a process shows."""
        if process or not can_call():
            return self._run_process(arguments)
        return call(arguments, self.environment(), self.data_dir)

    def run_json(self, *arguments: str, code: int = 0, process: bool = False) -> Any:
        result = self.run(*arguments, "--json", process=process)
        assert result.returncode == code, (result.returncode, result.stdout, result.stderr)
        return json.loads(result.stdout)

    def _run_process(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        process = self.spawn(*arguments)
        try:
            out, err = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def children(process: subprocess.Popen[str], module: str = "") -> list[psutil.Process]:
    """The children of a run whose command line names `module`."""
    try:
        found = psutil.Process(process.pid).children(recursive=True)
        return [child for child in found if any(module in argument for argument in child.cmdline())]
    except psutil.Error:
        return []


def kill_and_reap(process: subprocess.Popen[str]) -> None:
    """SIGKILL a run, and wait until its children have ended by themselves."""
    orphans = children(process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(orphans, timeout=60)
    assert not alive, f"outlived the run: {alive}"


def wait_until(condition: Any, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def rows(database: Path, query: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return connection.execute(query, parameters).fetchall()
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Contents:
    """What a database says about documents, apart from ids and times."""

    documents: list[tuple[Any, ...]]
    chunks: list[tuple[Any, ...]]
    vectors: np.ndarray[Any, np.dtype[np.float32]]
    own_vectors: np.ndarray[Any, np.dtype[np.float32]]


def contents(database: Path) -> Contents:
    """Read it, checking on the way that each chunk has just one vector and that nothing waits."""
    documents = rows(
        database,
        "SELECT d.path, d.sha256, d.pending_id IS NULL OR c.state = 'failed', c.state, c.reason, c.title, "
        "c.page_count, c.chunk_count, c.embedded_count, c.failed_count, c.claimed_by "
        "FROM documents d JOIN contents c ON c.id = coalesce(d.pending_id, d.current_id) ORDER BY d.path",
    )
    chunks = rows(
        database,
        "SELECT c.sha256, k.ordinal, k.start_char, k.end_char, k.page_first, k.page_last, k.headings, k.token_count, "
        "k.text, k.error FROM chunks k JOIN contents c ON c.id = k.content_id ORDER BY c.sha256, k.ordinal",
    )
    vectors = rows(
        database,
        "SELECT e.vector FROM embeddings e JOIN chunks k ON k.id = e.chunk_id JOIN contents c ON c.id = k.content_id "
        "ORDER BY c.sha256, k.ordinal",
    )
    own = rows(
        database,
        "SELECT e.vector FROM content_embeddings e JOIN contents c ON c.id = e.content_id ORDER BY c.sha256",
    )
    assert rows(database, "SELECT count(*) FROM pending_chunks") == [(0,)]
    assert rows(database, "SELECT sha256, kind FROM contents GROUP BY 1, 2 HAVING count(*) > 1") == []
    assert len(vectors) == len(chunks) == rows(database, "SELECT sum(embedded_count) FROM contents")[0][0]
    return Contents(documents, chunks, _matrix(vectors), _matrix(own))


def assert_same(one: Contents, other: Contents) -> None:
    """The same documents, chunks and vectors (cosine > 0.9999)."""
    assert one.documents == other.documents
    assert one.chunks == other.chunks
    for mine, theirs in ((one.vectors, other.vectors), (one.own_vectors, other.own_vectors)):
        assert mine.shape == theirs.shape
        assert float((mine * theirs).sum(axis=1).min()) > 0.9999


def _matrix(blobs: list[tuple[Any, ...]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.stack([np.frombuffer(blob, "<f4") for (blob,) in blobs])
