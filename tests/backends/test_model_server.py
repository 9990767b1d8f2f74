"""A model server through its life: with our own server, with the real llama-server, and with a vLLM that misbehaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import structlog

from benchmarks.tiny_models import tiny_llama
from pipeline.backends.accelerator import wait_released
from pipeline.backends.client import Timeouts
from pipeline.backends.launch import BackendKind, Options, Programs
from pipeline.backends.models import ModelFile, resolve
from pipeline.backends.options import EmbeddingOptions, GenerationOptions
from pipeline.backends.orphans import ChildRegistry
from pipeline.backends.server import BackendState, ModelServer
from pipeline.core.errors import BackendDied, BackendStartFailed, BackendTimeout, ModelError
from pipeline.core.modes import Device, Slot
from tests.backends.conftest import MODEL, ROOT, llama_server_binary
from tests.backends.test_process import STANDIN, alive, until

VLLM = Path(__file__).with_name("standin_vllm.py")

Make = Callable[..., AbstractAsyncContextManager[ModelServer]]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    folder = tmp_path_factory.mktemp("llama")
    return resolve(str(tiny_llama(folder)), folder)


@pytest.fixture
def make(tmp_path: Path, llama: ModelFile, model: ModelFile) -> Make:
    """A server that is stopped at the end; of which nothing is left then."""

    @asynccontextmanager
    async def made(kind: BackendKind, slot: Slot = Slot.GENERATION, **more: Any) -> AsyncIterator[ModelServer]:
        options: Options = GenerationOptions() if slot is Slot.GENERATION else EmbeddingOptions("m")
        file = llama if slot is Slot.GENERATION else model
        if kind == "llama-server":
            more.setdefault("programs", Programs(llama_server=llama_server_binary()))
        if kind == "vllm":
            file = ModelFile(tmp_path, "f", "stand-in", "directory")
            more.setdefault("programs", Programs(vllm=(sys.executable, str(VLLM))))
        device = more.pop("device", Device.GPU if kind == "vllm" else Device.CPU)
        server = ModelServer(
            slot, device, kind, more.pop("options", options), more.pop("file", file), tmp_path / "logs", **more
        )
        try:
            yield server
        finally:
            pids = server.pids()
            await server.stop()
            assert not [pid for pid in pids if alive(pid)]

    return made


@asynccontextmanager
async def client(server: ModelServer) -> AsyncIterator[httpx.AsyncClient]:
    assert server.base_url is not None
    headers = {"Authorization": f"Bearer {server.api_key}"}
    async with httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=30, trust_env=False) as opened:
        yield opened


def state_of(server: ModelServer) -> BackendState:
    """Its state now; the type checker takes it for the same after an await otherwise."""
    return server.state


CHAT = {"messages": [{"role": "user", "content": "night shift"}], "max_tokens": 5}


@pytest.mark.parametrize("kind", ["llama-cpp", "llama-server"])
async def test_a_language_model_from_start_to_stop(make: Make, kind: BackendKind, tmp_path: Path) -> None:
    async with make(kind) as server:
        assert (server.state, server.pid, server.pids()) == (BackendState.STOPPED, None, set())
        await asyncio.gather(server.start(), server.start())
        assert state_of(server) is BackendState.READY
        assert server.load_seconds is not None
        assert server.load_seconds < 10
        pid = server.pid
        assert pid is not None
        assert pid in server.pids()
        assert server.api_key
        assert server.api_key not in " ".join(psutil.Process(pid).cmdline())
        await server.canary()
        async with client(server) as asked:
            answer = (await asked.post("/v1/chat/completions", json=CHAT)).json()
            assert answer["choices"][0]["message"]["role"] == "assistant"
            assert answer["usage"]["completion_tokens"] <= 5
            whole = await asked.post("/v1/chat/completions", json=CHAT | {"stream": True})
            lines = [line for line in whole.text.split("\n\n") if line]
            assert lines[-1] == "data: [DONE]"
            assert json.loads(lines[0].removeprefix("data: "))["object"] == "chat.completion.chunk"
        async with httpx.AsyncClient(trust_env=False) as stranger:
            refused = await stranger.post(f"{server.base_url}/v1/chat/completions", json=CHAT)
        assert refused.status_code == 401
        await asyncio.gather(server.stop(), server.stop())
        assert (server.state, server.pid, server.pids()) == (BackendState.STOPPED, None, set())
        assert not alive(pid)
        assert not server.died.is_set()
        assert (tmp_path / "logs" / "generation.log").stat().st_size > 0
        with pytest.raises(BackendDied):
            await server.canary()


@pytest.mark.parametrize("kind", ["llama-cpp", "llama-server"])
async def test_an_embedding_model_and_its_vectors(make: Make, kind: BackendKind) -> None:
    async with make(kind, Slot.EMBEDDING) as server:
        await server.start()
        await server.canary()
        vectors = await server.embedder.embed([[101, 7592, 2088, 102], [101] + [7592] * 500 + [102]])
        assert vectors.shape == (2, 384)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        np.testing.assert_allclose((await server.embedder.embed(["hello world"]))[0], vectors[0], atol=2e-3)
    with pytest.raises(BackendDied, match="not running"):
        await server.embedder.embed(["too late"])
    with pytest.raises(BackendStartFailed, match="was stopped"):
        await server.embedder.ensure_ready()


@pytest.mark.parametrize("kind", ["llama-cpp", "llama-server"])
async def test_a_death_is_noticed_at_once_and_a_start_brings_it_back(make: Make, kind: BackendKind) -> None:
    async with make(kind) as server:
        await server.start()
        first = server.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await asyncio.wait_for(server.died.wait(), 30)
        assert state_of(server) is BackendState.FAILED
        assert server.why_failed is not None
        assert "SIGKILL" in server.why_failed
        await server.start()
        assert state_of(server) is BackendState.READY
        assert not server.died.is_set()
        assert server.pid != first
        await server.canary()


async def test_whoever_waits_for_vectors_gets_them_after_a_restart_by_another(make: Make) -> None:
    async with make("llama-cpp", Slot.EMBEDDING) as server:
        await server.start()
        call = asyncio.create_task(server.embedder.embed([[101] * 250] * 60))
        await asyncio.sleep(0.3)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(BackendDied, match="SIGKILL"):
            await call
        waiting = asyncio.create_task(server.embedder.ensure_ready())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await server.start()
        await waiting
        assert (await server.embedder.embed(["back"])).shape == (1, 384)


async def test_a_server_that_hangs_is_killed_for_its_guardian_to_restart(make: Make) -> None:
    async with make("llama-cpp", Slot.EMBEDDING) as server:
        await server.start()
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        restart = asyncio.create_task(server.embedder.restart("it computed nothing"))
        await asyncio.wait_for(server.died.wait(), 30)
        await server.start()
        await restart
        assert (await server.embedder.embed(["back"])).shape == (1, 384)


async def test_a_prepared_server_has_loaded_nothing_and_starts_at_once(make: Make) -> None:
    async with make("llama-cpp") as server:
        await server.prepare()
        prepared = server.pid
        assert prepared is not None
        assert state_of(server) is BackendState.STOPPED
        assert not any(".gguf" in file.path for file in psutil.Process(prepared).memory_maps())
        await server.start()
        assert server.pid == prepared
        assert any(".gguf" in file.path for file in psutil.Process(prepared).memory_maps())
        await server.canary()
        await server.stop()
        await server.prepare()
        await server.stop()
        assert server.pid is None


async def test_a_prepared_server_that_died_is_started_afresh(make: Make) -> None:
    async with make("llama-cpp") as server:
        await server.prepare()
        prepared = server.pid
        assert prepared is not None
        os.kill(prepared, signal.SIGKILL)
        await until(lambda: server.pid is None)
        await server.start()
        assert server.pid != prepared
        await server.canary()


async def test_preparing_what_cannot_be_started_costs_a_log_line(make: Make, tmp_path: Path) -> None:
    programs = Programs(own=(sys.executable, "-c", "raise SystemExit('no such device')"))
    async with make("llama-cpp", programs=programs) as server:
        with structlog.testing.capture_logs() as logs:
            await server.prepare()
        assert [entry["event"] for entry in logs] == ["A model server could not be prepared"]
        assert (server.state, server.pid) == (BackendState.STOPPED, None)
        with pytest.raises(BackendStartFailed, match="no such device"):
            await server.start()
        assert state_of(server) is BackendState.FAILED


async def test_a_start_in_two_steps(make: Make) -> None:
    async with make("llama-server") as server:
        await server.launch()
        launched = server.pid
        assert launched is not None
        assert state_of(server) is BackendState.STARTING
        await server.launch()
        await server.start()
        assert server.pid == launched
        await server.launch()
        assert state_of(server) is BackendState.READY


async def test_a_server_that_does_not_count_is_waited_for_as_long_as_it_works(make: Make) -> None:
    """Seconds of work, at a server that has one second to show that it works. Then it is halted."""
    brief = Timeouts(connect=5.0, read=1.0, total=1.0)
    async with make("llama-server", Slot.EMBEDDING, timeouts=brief) as server:
        await server.start()
        vectors = await server.embedder.embed(["the harbour crane lifts containers " * 40] * 20)
        assert vectors.shape == (20, 384)
        assert server.worked() > 1.0
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(BackendTimeout, match="computed nothing for 1 s"):
                await server.embedder.embed(["x"])
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert (await server.embedder.embed(["x"])).shape == (1, 384)


async def test_draining_is_a_state_in_which_it_serves(make: Make) -> None:
    async with make("llama-cpp") as server:
        server.begin_drain()
        assert state_of(server) is BackendState.STOPPED
        await server.start()
        server.begin_drain()
        assert state_of(server) is BackendState.DRAINING
        await server.canary()
        server.end_drain()
        assert state_of(server) is BackendState.READY


async def test_the_settings_reach_the_model(make: Make) -> None:
    options = GenerationOptions(n_ctx=256, max_tokens=7, temperature=0.0)
    async with make("llama-server", options=options) as server:
        await server.start()
        async with client(server) as asked:
            defaults = (await asked.get("/props")).json()["default_generation_settings"]
            assert defaults["n_ctx"] == 256
            params = defaults["params"]
            assert (params["temperature"], round(params["top_p"], 3)) == (0.0, 0.9)
            assert round(params["repeat_penalty"], 3) == 1.1
            answer = (await asked.post("/v1/completions", json={"prompt": "night", "ignore_eos": True})).json()
            assert answer["usage"]["completion_tokens"] == 7


async def test_a_start_without_progress_is_given_up_and_nothing_is_left(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_MODE", "forever")
    async with make("vllm", start_stall=0.6) as server:
        starting = asyncio.create_task(server.start())
        await until(lambda: server.pid is not None)
        pid = server.pid
        assert pid is not None
        with pytest.raises(BackendStartFailed, match=r"no sign of life for 0\.6 s"):
            await starting
        assert state_of(server) is BackendState.FAILED
        assert "no sign of life" in str(server.why_failed)
        assert not alive(pid)


async def test_a_stop_ends_a_start_that_is_under_way(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_MODE", "forever")
    async with make("vllm", start_stall=60) as server:
        starting = asyncio.create_task(server.start())
        await until(lambda: server.pid is not None)
        async with asyncio.timeout(30):  # half of what the start would wait
            await server.stop()
        with pytest.raises(BackendStartFailed, match="SIGTERM"):
            await starting
        assert state_of(server) is BackendState.STOPPED


async def test_a_start_that_is_cancelled_leaves_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_MODE", "forever")
    async with make("vllm", start_stall=60) as server:
        starting = asyncio.create_task(server.start())
        await until(lambda: server.pid is not None)
        pid = server.pid
        assert pid is not None
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not alive(pid)
        assert state_of(server) is BackendState.FAILED


async def test_vllm_that_ignores_sigterm_is_gone_with_all_that_it_started(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_MODE", "stubborn")
    async with make("vllm", stop_grace=0.3) as server:
        await server.start()
        await server.canary()
        await until(lambda: len(server.pids()) == 3)
        pids = server.pids()
        assert len({os.getsid(pid) for pid in pids}) == 2
        await server.stop()
        released = await wait_released(None, None, pids, deadline_s=30)
        assert released.ok, released.why


async def test_what_a_dead_server_left_is_ended_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_MODE", "stubborn")
    async with make("vllm") as server:
        await server.start()
        await until(lambda: len(server.pids()) == 3)
        pids = server.pids()
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.wait_for(server.died.wait(), 30)
        assert len(server.pids()) == 2
        await server.stop()
        assert not [pid for pid in pids if alive(pid)]


async def test_a_native_crash_is_answered_with_safe_settings(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_MODE", "crash-with-extra-bufts")
    async with make("llama-cpp", Slot.EMBEDDING, programs=Programs(own=(sys.executable, str(STANDIN)))) as server:
        await server.start()
        assert state_of(server) is BackendState.READY
        assert isinstance(server.options, EmbeddingOptions)
        assert not server.options.use_extra_bufts


async def test_what_cannot_be_started_says_why(make: Make, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(MODEL.read_bytes()[:1_000_000])
    async with make("llama-cpp", file=ModelFile(broken, "f", "broken")) as server:
        with pytest.raises(ModelError, match="cannot load"):
            await server.start()
    async with make("vllm", programs=Programs(vllm=("no-such-program",))) as server:
        with pytest.raises(BackendStartFailed, match="there is no program no-such-program"):
            await server.start()


async def test_what_llama_server_cannot_load_is_in_the_reason(make: Make, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(MODEL.read_bytes()[:1_000_000])
    async with make("llama-server", file=ModelFile(broken, "f", "broken")) as server:
        with pytest.raises(BackendStartFailed, match=r"(?s)exit status 1.*broken\.gguf"):
            await server.start()
        assert server.why_failed is not None


async def test_children_are_registered_for_as_long_as_they_live(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "run" / "children.json"
    async with make("llama-cpp", registry=ChildRegistry(path)) as server:
        await server.start()
        (line,) = path.read_text().splitlines()
        noted = json.loads(line)
        assert (noted["pid"], noted["owner_pid"]) == (server.pid, os.getpid())
        await server.stop()
        assert path.read_text() == ""


PARENT = """
import asyncio, sys
from pathlib import Path
from pipeline.backends.launch import Programs
from pipeline.backends.models import ModelFile
from pipeline.backends.options import GenerationOptions
from pipeline.backends.server import ModelServer
from pipeline.core.modes import Device, Slot

async def main():
    kind, model, folder, binary = sys.argv[1], *map(Path, sys.argv[2:])
    server = ModelServer(
        Slot.GENERATION, Device.CPU, kind, GenerationOptions(), ModelFile(model, "f", "m"), folder,
        programs=Programs(llama_server=binary),
    )
    await server.start()
    print("PID", server.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["llama-cpp", "llama-server"])
def test_the_server_ends_when_its_parent_is_killed(kind: str, llama: ModelFile, tmp_path: Path) -> None:
    binary = llama_server_binary() if kind == "llama-server" else Path("unused")
    arguments = [sys.executable, "-c", PARENT, kind, str(llama.path), str(tmp_path), str(binary)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(next(line for line in parent.stdout if line.startswith("PID")).split()[1])
        assert alive(pid)
        parent.kill()
        deadline = time.monotonic() + 4
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not alive(pid)
