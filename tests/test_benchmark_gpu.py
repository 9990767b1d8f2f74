"""The GPU benchmark, as far as a processor can show that it works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.random_encoders import BERT_LARGE, TINY, Weights, words, write_gguf
from pipeline.backends.gguf import read_header
from tests.runs import ROOT


def test_a_tiny_encoder_is_measured_with_one_context_and_with_several(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--cpu", "--without-torch", "--rounds", "1"]
    command += ["--seconds", "0.1", "--contexts", "1,2", "--batches", "256,512", "--json", str(figures)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (shape,) = json.loads(figures.read_text())
    rows = {row["name"]: row for row in shape["rows"]}
    assert list(rows) == ["llama-cpp, 1 x 256", "llama-cpp, 1 x 512", "llama-cpp, 2 x 256", "llama-cpp, 2 x 512"]
    assert all(row["problem"] == "" and row["tokens_per_second"] > 0 for row in rows.values())
    assert shape["ratios"]["several contexts / one, each at its best"] > 0
    assert "several contexts / one" in done.stdout


def test_the_random_encoder_is_one_that_can_be_read(tmp_path: Path) -> None:
    write_gguf(Weights(TINY), tmp_path / "tiny.gguf")
    header = read_header(tmp_path / "tiny.gguf")
    assert (header.embedding_length, header.context_length) == (64, 512)
    assert BERT_LARGE.flops_per_token == 2 * 24 * (4 * 1024**2 + 2 * 1024 * 4096)


def test_weights_are_the_same_each_time_and_others_for_each_matrix() -> None:
    one, two = Weights(TINY), Weights(TINY)
    assert np.array_equal(one.matrix(3, 64, 64), two.matrix(3, 64, 64))
    assert not np.array_equal(one.matrix(3, 64, 64), one.matrix(4, 64, 64))
    assert len(words(one)) > 5000
