"""Measuring one combination: with the real server, and with children that fail in every way."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.backends.launch import Programs
from pipeline.backends.models import ModelFile
from pipeline.backends.options import EmbeddingOptions
from pipeline.backends.tuning import Bench, measure, plan_requests, shortened, tokenized
from pipeline.core.errors import BackendStartFailed
from pipeline.core.modes import Device
from tests.backends.conftest import MODEL

CHUNKS = [[101, *([7592] * (20 + 3 * number)), 102] for number in range(16)]
OPTIONS = EmbeddingOptions(str(MODEL), n_gpu_layers=0)


@pytest.fixture
def bench(model: ModelFile, tmp_path: Path) -> Bench:
    return Bench("llama-cpp", Device.CPU, model, CHUNKS, 0.2, tmp_path, Programs())


def running(bench: Bench, program: str) -> Bench:
    """The bench with another program in the place of the server."""
    return dataclasses.replace(bench, programs=Programs(own=(sys.executable, "-c", program)))


async def test_a_real_server_is_measured_and_says_what_it_chose(bench: Bench) -> None:
    result = await measure(bench, OPTIONS)
    assert result.problem == ""
    assert result.rate is not None
    assert result.rate > 0
    assert result.told["n_batch"] > 0
    assert result.stats is not None
    assert result.stats.total.tokens >= 4 * sum(map(len, CHUNKS)) / len(CHUNKS)


async def test_the_options_are_those_of_the_combination(bench: Bench) -> None:
    chosen = dataclasses.replace(OPTIONS, n_batch=200, contexts=1, threads=1, flash_attn="off")
    told = (await measure(bench, chosen)).told
    assert (told["n_batch"], told["contexts"], told["threads"], told["flash_attn"]) == (200, 1, 1, "off")


async def test_what_no_engine_can_do_is_a_result(bench: Bench) -> None:
    result = await measure(bench, dataclasses.replace(OPTIONS, n_batch=512, n_ubatch=256))
    assert result.rate is None
    assert "n_ubatch (256) is smaller than n_batch (512)" in result.problem


async def test_a_crash_is_a_result_with_its_signal_and_its_last_words(bench: Bench) -> None:
    crash = "import os, sys; sys.stderr.write('ggml: all is lost\\n'); sys.stderr.flush(); os.abort()"
    result = await measure(running(bench, crash), OPTIONS)
    assert result.rate is None
    assert "SIGABRT" in result.problem
    assert "all is lost" in result.problem


async def test_a_crash_is_not_mended_by_other_options_in_silence(bench: Bench, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    program = f"import os; open({str(starts)!r}, 'a').write('x'); os.abort()"
    assert (await measure(running(bench, program), OPTIONS)).rate is None
    assert starts.read_text() == "x"


async def test_a_server_that_dies_under_load_is_a_result(bench: Bench, tmp_path: Path) -> None:
    program = (
        "import os, sys, pipeline.backends.llama_cpp.engine as engine, pipeline.backends.llama_cpp.__main__ as server\n"
        "right = engine.Context.embed\n"
        "def embed(self, sequences, course=None):\n"
        "    if len(sequences) > 1 and len(sequences[0]) > 40: os.abort()\n"
        "    return right(self, sequences)\n"
        "engine.Context.embed = embed\n"
        "sys.exit(server.main())"
    )
    result = await measure(running(bench, program), OPTIONS)
    assert result.rate is None
    assert "SIGABRT" in result.problem
    assert result.told["n_batch"] > 0


async def test_a_measurement_that_is_cut_short_leaves_no_process(bench: Bench, tmp_path: Path) -> None:
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    program = f"import os, time; print(os.getpid(), file=open({str(fifo)!r}, 'w'), flush=True); time.sleep(600)"
    measuring = asyncio.create_task(measure(running(bench, program), OPTIONS))
    with await asyncio.to_thread(fifo.open) as pipe:
        pid = int(await asyncio.to_thread(pipe.readline))
    measuring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await measuring
    assert not psutil.pid_exists(pid)


async def test_texts_are_tokenized_by_the_engine(bench: Bench) -> None:
    assert await tokenized(bench, OPTIONS, ["hello world", "hello"]) == [[101, 7592, 2088, 102], [101, 7592, 102]]
    with pytest.raises(BackendStartFailed):
        await tokenized(running(bench, "raise SystemExit(5)"), OPTIONS, ["hello"])


def test_requests_hold_every_chunk_once_and_chunks_alike_in_length() -> None:
    requests = plan_requests(CHUNKS, 150)
    assert sorted(map(tuple, (chunk for request in requests for chunk in request))) == sorted(map(tuple, CHUNKS))
    assert all(sum(map(len, request)) <= 150 for request in requests)
    spans = sorted((max(map(len, request)), min(map(len, request))) for request in requests)
    assert all(longer[1] >= shorter[0] for shorter, longer in itertools.pairwise(spans))
    assert plan_requests(CHUNKS, 150) == requests
    assert [len(request) for request in plan_requests([[1] * 300] * 3, 150)] == [1, 1, 1]


def test_a_long_log_is_shortened_to_its_end() -> None:
    lines = ["it died", *(f"line {number}" for number in range(50))]
    assert shortened("\n".join(lines)).splitlines() == ["it died", *(f"line {number}" for number in range(45, 50))]
    assert shortened("it died") == "it died"
