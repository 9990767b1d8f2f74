"""A real daemon in its own process, with a tiny language model and the real embedding model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.tiny_models import tiny_llama
from tests.runs import ROOT, SMALL_CHUNKS

ALWAYS = 'cron = "0 0 * * *"\nuntil = "24:00"\nmode = "{mode}"\ntimezone = "UTC"\n'


@dataclass
class Daemon:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path, timeout=20).raise_for_status().json()

    def post(self, path: str, body: Any = None, timeout: float = 60) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=timeout)

    def switch(self, mode: str, hold: str | None = None) -> Any:
        body = {"mode": mode} | ({"hold": hold} if hold else {})
        answer = self.post("/api/switch", body)
        while answer.status_code == 409:  # the schedule is at it
            time.sleep(0.1)
            answer = self.post("/api/switch", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def mode(self) -> str:
        return str(self.get("/api/status")["host"]["mode"])

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@dataclass
class Place:
    """A host's folders and settings, over several lives of its daemon."""

    folder: Path
    settings: dict[str, str]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def jobs(self) -> Path:
        return self.folder / "jobs"

    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSHIFT_")}
        return inherited | {
            "NIGHTSHIFT_DATA_DIR": str(self.data),
            "NIGHTSHIFT_SOURCES_SETTLE": "0",
            "NIGHTSHIFT_JOBS_DIR": str(self.jobs),
            "PYTHONPATH": str(ROOT),
            **self.settings,
        }

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self) -> Daemon:
        """Start the daemon on a free port, and wait until it answers."""
        log = self.folder / "daemon.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "daemon", "--port", "0"],
                env=self.environment() | {"NIGHTSHIFT_LOG_LEVEL": "info"},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            url = _url(self.data, process.pid)
            if url is not None:
                try:
                    httpx.get(f"{url}/health", timeout=5).raise_for_status()
                except httpx.HTTPError:
                    pass
                else:
                    return Daemon(process, url, log)
            time.sleep(0.05)

    @contextmanager
    def daemon(self) -> Iterator[Daemon]:
        """A daemon that is stopped at the end, and leaves nothing behind."""
        daemon = self.start()
        try:
            yield daemon
            children = daemon.children()
            assert daemon.stop() == 0, daemon.log.read_text()[-4000:]
            _, alive = psutil.wait_procs(children, timeout=60)
            assert not alive
        finally:
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait()


def make_place(folder: Path, *, mode: str = "generation", language_model: bool = True, **settings: str) -> Place:
    """A host that the schedule keeps in one mode."""
    (folder / "jobs").mkdir()
    (folder / "data" / "inbox").mkdir(parents=True)
    (folder / "jobs" / "always.toml").write_text(ALWAYS.format(mode=mode))
    given = SMALL_CHUNKS | {f"NIGHTSHIFT_{name.upper()}": value for name, value in settings.items()}
    if language_model:
        given |= {"NIGHTSHIFT_GENERATION_MODEL": str(tiny_llama(folder)), "NIGHTSHIFT_GENERATION_N_CTX": "1024"}
    return Place(folder, given)


def add_samples(place: Place, *names: str) -> None:
    for name in names:
        shutil.copy(ROOT / "data" / "inbox" / name, place.data / "inbox")


def wait_for(condition: Any, what: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} never happened"
        time.sleep(0.05)


def _url(data: Path, pid: int) -> str | None:
    from pipeline.runner.ownership import owner_of

    owner = owner_of(data)
    return owner.url if owner is not None and owner.pid == pid else None
