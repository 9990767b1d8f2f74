"""The supervised backend: with the real server, and with a stand-in that misbehaves."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import structlog

from pipeline.backends.embedding import EmbeddingBackend
from pipeline.backends.models import ModelFile
from pipeline.backends.options import EmbeddingOptions
from pipeline.core.errors import BackendDied, BackendRefused, BackendStartFailed, ModelError
from tests.backends.conftest import MODEL, ROOT
from tests.backends.test_process import STANDIN, alive

OPTIONS = EmbeddingOptions(model=str(MODEL))


@pytest.fixture
async def standin(tmp_path: Path, model: ModelFile, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EmbeddingBackend]:
    monkeypatch.setenv("STANDIN_FILE", str(tmp_path / "marker"))
    backend = EmbeddingBackend(
        OPTIONS, model, tmp_path, command=[sys.executable, str(STANDIN)], start_stall=5.0, start_backoff=0.05
    )
    yield backend
    await backend.stop()


async def test_the_real_server_from_start_to_stop(tmp_path: Path, model: ModelFile) -> None:
    async with EmbeddingBackend(OPTIONS, model, tmp_path) as backend:
        info = backend.info
        assert (info.dimension, info.max_tokens, info.model) == (384, 512, "MiniLM L6 H384 Uncased")
        vectors = await backend.embed([[101, 7592, 2088, 102], [101, 102]])
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        np.testing.assert_allclose((await backend.embed(["hello world"]))[0], vectors[0], atol=1e-3)
        with pytest.raises(BackendRefused, match=r"input\[1\] has 513 tokens, 1 more") as refused:
            await backend.embed([[101], [101] * 513])
        assert (refused.value.status, refused.value.param) == (400, "input[1]")
        async with httpx.AsyncClient(trust_env=False) as stranger:
            answer = await stranger.post(f"http://127.0.0.1:{info.port}/v1/embeddings", json={"input": "x"})
        assert answer.status_code == 401
    assert not alive(info.pid)
    with pytest.raises(BackendDied, match="not running"):
        await backend.embed(["too late"])


async def test_a_killed_server_is_noticed_at_once_and_comes_back(tmp_path: Path, model: ModelFile) -> None:
    async with EmbeddingBackend(OPTIONS, model, tmp_path) as backend:
        first = backend.info.pid
        call = asyncio.create_task(backend.embed([[101] * 250] * 1500))  # nobody waits for it, so it may be much
        await asyncio.sleep(0.3)
        assert not call.done()
        os.kill(first, signal.SIGKILL)
        with pytest.raises(BackendDied, match="SIGKILL"):
            async with asyncio.timeout(30):  # well before a request is given up
                await call
        assert not backend.alive
        with pytest.raises(BackendDied, match="SIGKILL"):
            await backend.embed(["nobody there"])
        await asyncio.gather(backend.ensure_ready(), backend.ensure_ready(), backend.ensure_ready())
        assert backend.info.pid != first
        await backend.ensure_ready()
        assert (await backend.embed(["back again"])).shape == (1, 384)


PARENT = """
import asyncio, os, sys, time
from pathlib import Path
from pipeline.backends.embedding import EmbeddingBackend
from pipeline.backends.models import resolve
from pipeline.backends.options import EmbeddingOptions

async def main():
    backend = EmbeddingBackend(EmbeddingOptions(sys.argv[1]), resolve(sys.argv[1], Path(".")), Path(sys.argv[2]))
    await backend.start()
    sibling = 0
    if sys.argv[3] == "fork":
        sibling = os.fork()
        if sibling == 0:
            time.sleep(30)
            os._exit(0)
    call = asyncio.create_task(backend.embed([[101] * 500] * 400))
    await asyncio.sleep(0.3)
    print("PIDS", backend.info.pid, sibling, flush=True)
    await call

asyncio.run(main())
"""


@pytest.mark.parametrize("fork", ["fork", "alone"])
def test_the_server_ends_when_its_parent_is_killed(tmp_path: Path, fork: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(MODEL), str(tmp_path), fork], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = next(line for line in parent.stdout if line.startswith("PIDS"))
        pid, sibling = map(int, pids.split()[1:])
        try:
            assert alive(pid)
            parent.kill()
            deadline = time.monotonic() + 20  # its sibling lives longer
            while alive(pid) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not alive(pid)
        finally:
            if sibling:
                os.kill(sibling, signal.SIGKILL)


async def test_a_native_crash_at_start_is_answered_with_safe_settings(
    standin: EmbeddingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_MODE", "crash-with-extra-bufts")
    with structlog.testing.capture_logs() as logs:
        await standin.start()
    warnings = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
    assert warnings == ["A model server crashed in native code; it is started with safe settings (no repacked weights)"]
    assert (await standin.embed(["x"])).shape == (1, 4)
    os.kill(standin.info.pid, signal.SIGKILL)
    with pytest.raises(BackendDied, match="SIGKILL"):
        await standin.embed(["x"])
    await standin.ensure_ready()
    assert (await standin.embed(["the settings stay safe"])).shape == (1, 4)


async def test_a_native_crash_in_use_makes_the_next_start_safe(
    standin: EmbeddingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_MODE", "crash-on-request")
    await standin.start()
    with pytest.raises(BackendDied, match="SIGSEGV"):
        await standin.embed(["x"])
    await standin.ensure_ready()
    assert (await standin.embed(["x"])).shape == (1, 4)


async def test_a_server_that_always_crashes_fails_with_its_log(
    standin: EmbeddingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_MODE", "crash")
    with pytest.raises(BackendStartFailed, match=r"(?s)with safe settings too: .*SIGSEGV.*about to crash"):
        await standin.start()
    with pytest.raises(BackendDied, match="not running"):
        await standin.embed(["x"])
    with pytest.raises(BackendStartFailed):
        await standin.ensure_ready()


async def test_ensure_ready_tries_again(standin: EmbeddingBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_MODE", "once")
    await standin.ensure_ready()
    assert standin.alive
    await standin.stop()
    assert not standin.alive


@pytest.mark.parametrize(
    ("mode", "kind", "message"),
    [
        ("exit", BackendStartFailed, "no such device"),
        ("explain", ModelError, "upside down"),
        ("nonsense", BackendStartFailed, "makes no sense"),
        ("wrong-size", BackendStartFailed, "have 4 numbers, not 5"),
    ],
)
async def test_a_start_that_fails_says_why_and_leaves_nothing(
    standin: EmbeddingBackend, monkeypatch: pytest.MonkeyPatch, mode: str, kind: type[Exception], message: str
) -> None:
    monkeypatch.setenv("STANDIN_MODE", mode)
    with pytest.raises(kind, match=f"(?s){message}"):
        await standin.start()
    assert not standin.alive


async def test_the_real_server_explains_a_model_it_cannot_use(tmp_path: Path, model: ModelFile) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(MODEL.read_bytes()[:1_000_000])
    backend = EmbeddingBackend(OPTIONS, ModelFile(broken, "0", "broken"), tmp_path)
    with pytest.raises(ModelError, match="cannot load"):
        await backend.start()
    backend = EmbeddingBackend(OPTIONS, ModelFile(tmp_path, "0", "x", "directory"), tmp_path)
    with pytest.raises(ModelError, match=r"holds no config\.json|install -e '\.\[torch\]'"):
        await backend.start()
