"""A model server without anything around it: spawned, waited for by its own signal, ended by SIGTERM.

What the switch is held against: the very command line and environment that the daemon gives the
server (`pipeline.backends.launch`), and nothing of the daemon's in between.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.backends.accelerator import gpu_vendor
from pipeline.backends.launch import BackendKind, Launch, Options, plan_launch
from pipeline.backends.models import ModelFile
from pipeline.backends.server import free_port
from pipeline.core.modes import Device, Slot
from pipeline.daemon.servers import find_programs

LOOK_SECONDS = 0.005
"""Between two looks at a health address: the wait for the next look is hardly part of what is measured."""

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Server:
    """A slot's server as the daemon would start it."""

    slot: Slot
    device: Device
    kind: BackendKind
    options: Options
    model: ModelFile

    def launch(self) -> Launch:
        """Its command line and environment, on a port that is free now."""
        return plan_launch(
            self.kind,
            self.slot,
            self.device,
            self.options,
            self.model,
            port=free_port(),
            api_key=secrets.token_urlsafe(24),
            gpu=gpu_vendor(),
            programs=find_programs(),
        )


@dataclass(frozen=True, slots=True)
class Bare:
    """Seconds from the spawn to readiness, and from SIGTERM to the exit."""

    start: float
    stop: float


def measure(server: Server, log: Path) -> Bare:
    """Start it and stop it once. Raises SystemExit where it ends by itself."""
    launch = server.launch()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **launch.env}
    with log.open("ab") as errors:
        began = time.perf_counter()
        # A pipe as standard input, held open: our own server ends when it closes.
        process = subprocess.Popen(
            launch.argv,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if launch.health_url is None else errors,
            stderr=errors,
            start_new_session=True,
        )
    try:
        if launch.health_url is None:
            _until_told(process)
        else:
            _until_healthy(process, launch.health_url)
        start = time.perf_counter() - began
        began = time.perf_counter()
        process.terminate()
        process.wait()
        return Bare(start, time.perf_counter() - began)
    finally:
        process.kill()
        process.communicate()


def _until_told(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        told = json.loads(line)
        if "error" in told:
            raise SystemExit(told["error"])
        if "port" in told:
            return
    raise SystemExit(f"the server ended with {process.wait()}")


def _until_healthy(process: subprocess.Popen[bytes], url: str) -> None:
    where = urlsplit(url)
    assert where.hostname is not None
    while process.poll() is None:
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=5)
        try:
            connection.request("GET", where.path)
            if connection.getresponse().status == http.client.OK:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(LOOK_SECONDS)
    raise SystemExit(f"the server ended with {process.returncode}")
