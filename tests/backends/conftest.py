"""The default model, and one real embedding server that the whole session shares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest

from pipeline.backends.models import ModelFile, resolve

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "data" / "models" / "all-MiniLM-L6-v2-F16.gguf"
API_KEY = "correct horse"


@dataclass(frozen=True)
class RunningServer:
    process: subprocess.Popen[str]
    told: dict[str, object]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.told['port']}"


def start_server(*arguments: str, api_key: str = "") -> RunningServer:
    """The server as a child of this process, ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.backends.llama_cpp", "--model", str(MODEL), *arguments],
        cwd=ROOT,
        env=os.environ | {"NIGHTSHIFT_BACKEND_API_KEY": api_key},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        told = json.loads(line)
        if "progress" not in told:
            return RunningServer(process, told)
    raise AssertionError(f"the server ended with {process.wait()}")


def stop_server(server: RunningServer) -> int:
    """SIGTERM, and the exit status."""
    server.process.terminate()
    status = server.process.wait(20)
    assert server.process.stdin is not None
    assert server.process.stdout is not None
    server.process.stdin.close()
    server.process.stdout.close()
    return status


def llama_server_binary() -> Path:
    """The real llama-server: where LLAMA_SERVER says, or where scripts/build_llama_server.py puts it; else a skip."""
    named = os.environ.get("LLAMA_SERVER")
    binary = Path(named) if named else ROOT / ".cache" / "llama-server" / version("llama-cpp-python") / "llama-server"
    if not binary.is_file():
        pytest.skip(f"there is no llama-server at {binary}: run scripts/build_llama_server.py, or set LLAMA_SERVER")
    return binary


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    running = start_server(api_key=API_KEY)
    try:
        yield running
    finally:
        stop_server(running)


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=server.url, headers={"Authorization": f"Bearer {API_KEY}"}, timeout=60, trust_env=False
    ) as client:
        yield client


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    return resolve(str(MODEL), tmp_path_factory.mktemp("models"))
