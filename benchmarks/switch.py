"""What a switch costs: seconds by phase, and how much more than the model servers' own stop and start.

    python -m benchmarks.switch [--rounds 20] [--prepared-rounds 6] [--generation-model FILE]
                                [--generation-backend llama-cpp] [--json FILE]

A real daemon goes to and fro between generation and embedding, with nobody asking for anything. In each
round the very same servers are also started and stopped bare (benchmarks/bare_server.py); what a switch costs
over that is its time, from the beginning of its row in the journal to the end, less the bare stop of the
one and the bare start of the other in the same round, so that the drift of a shared machine falls out.

The rounds with preparation let the schedule do the switch, as in a real night: ahead of it, while the
other model serves, the next model's file is read and our own server is spawned (the setting
`switch.prepare`); llama-server cannot be halved there, and only its file is read.

Without --generation-model the language model is a tiny one, made up: its load is nearly nothing,
and what is seen is what the switch itself takes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.bare_server import ROOT, Bare, Server, measure
from benchmarks.run_now import CORES, processor
from benchmarks.tiny_models import tiny_llama
from pipeline.backends.models import resolve
from pipeline.core.modes import Device, Mode, Slot
from pipeline.daemon.app import generation_options
from pipeline.runner.ownership import owner_of
from pipeline.runner.target import embedding_options
from pipeline.settings import load
from pipeline.store.switches import Phase

GOAL = 0.25
"""Seconds that a switch may take over the bare stop and start."""

PREPARE = 3.0
"""Seconds ahead that the daemon makes the next server ready here."""

DRAIN_MARGIN = 5.0
"""Seconds that the schedule leaves for the drain before generation must serve (`core.shift.Margins`)."""

JOB = 'cron = "0 0 * * *"\nuntil = "24:00"\ntimezone = "UTC"\nmode = "{mode}"\n'
PATIENCE = 300.0


@dataclass(slots=True)
class Direction:
    """The switches from one mode to another.

    bare: seconds of the stop of the one server and of the start of the other. over: what the switch took
    over both, in the same round.
    """

    source: Mode
    target: Mode
    rows: list[dict[str, Any]] = field(default_factory=list)
    prepared: list[dict[str, Any]] = field(default_factory=list)
    bare: list[tuple[float, float]] = field(default_factory=list)
    over: list[float] = field(default_factory=list)
    prepared_over: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "from": self.source,
            "to": self.target,
            "phases": [row["phases"] for row in self.rows],
            "seconds": [row["seconds"] for row in self.rows],
            "phases_prepared": [row["phases"] for row in self.prepared],
            "seconds_prepared": [row["seconds"] for row in self.prepared],
            "bare": self.bare,
            "over": self.over,
            "over_prepared": self.prepared_over,
        }


class Daemon:
    """A daemon in its own process, asked over its port."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, job: Path) -> None:
        self.process = process
        self.client = httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False)
        self._job = job

    def status(self) -> dict[str, Any]:
        """The host's state."""
        host: dict[str, Any] = self._get("/api/status")["host"]
        return host

    def switch(self, mode: Mode) -> dict[str, Any]:
        """Go there at once; the switch's row in the journal."""
        self._post("/api/switch", {"mode": mode})
        return self._row(mode)

    def switch_on_schedule(self, mode: Mode, ahead: float) -> dict[str, Any]:
        """Have the schedule want `mode` in `ahead` seconds; the row of the switch that comes of it."""
        # A hold of what is on; when it ends, the only job says what is next.
        self._post("/api/switch", {"mode": self.status()["mode"], "hold": ahead})
        self._job.write_text(JOB.format(mode=mode.value))
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + ahead + PATIENCE
        while (host := self.status())["mode"] != mode or host["switching"] is not None:
            if time.monotonic() > deadline:
                raise SystemExit(f"the schedule never came to {mode}: {host}")
            time.sleep(0.1)
        return self._row(mode)

    def command_line(self, slot: Slot) -> list[str]:
        """Of a slot's server as it runs."""
        pid = next(state["pid"] for state in self.status()["slots"] if state["slot"] == slot)
        return psutil.Process(pid).cmdline()

    def _row(self, mode: Mode) -> dict[str, Any]:
        deadline = time.monotonic() + 10
        while True:
            row: dict[str, Any] = self._get("/api/switches?limit=1")[0]
            if row["outcome"] != "running" or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        if (row["target"], row["outcome"]) != (mode, "done"):
            raise SystemExit(f"the switch to {mode} failed: {row}")
        return row

    def _get(self, path: str) -> Any:
        return self.client.get(path).raise_for_status().json()

    def _post(self, path: str, body: dict[str, Any]) -> None:
        answer = self.client.post(path, json=body)
        while answer.status_code == httpx.codes.CONFLICT:  # the schedule is at it
            time.sleep(0.1)
            answer = self.client.post(path, json=body)
        if not answer.is_success:
            raise SystemExit(f"{path} {body}: {answer.text}")


@contextmanager
def running_daemon(folder: Path, environment: dict[str, str]) -> Iterator[Daemon]:
    """A daemon on a free port, until the end of the block."""
    data, job = folder / "data", folder / "jobs" / "always.toml"
    data.mkdir()
    job.parent.mkdir()
    job.write_text(JOB.format(mode=Mode.GENERATION.value))
    log = folder / "daemon.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "daemon", "--port", "0"],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield Daemon(process, _address(process, data, log), job)
    except httpx.HTTPError as error:
        raise SystemExit(f"the daemon does not answer: {error!r}\n{log.read_text()[-2000:]}") from error
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], data: Path, log: Path) -> str:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        owner = owner_of(data)
        if owner is not None and owner.pid == process.pid and owner.url is not None:
            with suppress(httpx.HTTPError):
                httpx.get(f"{owner.url}/health", timeout=5, trust_env=False).raise_for_status()
                return owner.url
        time.sleep(0.05)
    raise SystemExit(f"the daemon did not start:\n{log.read_text()}")


def servers_of(daemon: Daemon, environment: dict[str, str], cwd: Path) -> dict[Slot, Server]:
    """Each slot's server as the daemon runs it, to be started bare."""
    settings = load(environ=environment, cwd=cwd).settings
    assert settings.generation.model is not None
    names = {Slot.GENERATION: settings.generation.model, Slot.EMBEDDING: settings.embedding.model}
    found = {}
    for slot, mode in ((Slot.EMBEDDING, Mode.EMBEDDING), (Slot.GENERATION, Mode.GENERATION)):
        if daemon.status()["mode"] != mode:
            daemon.switch(mode)
        state = next(state for state in daemon.status()["slots"] if state["slot"] == slot)
        model = resolve(names[slot], settings.data_dir / "models")
        options = (
            generation_options(settings) if slot is Slot.GENERATION else embedding_options(settings, str(model.path))
        )
        server = Server(slot, Device(state["device"]), state["kind"], options, model)
        wanted, runs = (_without_port(line) for line in (server.launch().argv, daemon.command_line(slot)))
        if wanted != runs:
            raise SystemExit(f"the bare server is not the daemon's: {wanted} instead of {runs}")
        found[slot] = server
    return found


def _without_port(argv: Sequence[str]) -> list[str]:
    return [part for before, part in zip(["", *argv], argv, strict=False) if before != "--port"]


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="switches each way, at once")
    parser.add_argument("--prepared-rounds", type=int, default=6, help="switches each way on schedule, prepared")
    parser.add_argument("--generation-model", help="a GGUF file; without one, a tiny one is made")
    parser.add_argument("--generation-backend", default="auto", help="llama-server, llama-cpp, vllm (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightshift-bench-") as folder:
        figures = run(
            Path(folder), given.rounds, given.prepared_rounds, given.generation_model, given.generation_backend
        )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


def run(
    folder: Path, rounds: int, prepared_rounds: int, generation_model: str | None, generation_backend: str
) -> dict[str, Any]:
    """The figures of all rounds."""
    model = str(Path(generation_model).absolute()) if generation_model else str(tiny_llama(folder))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSHIFT_")}
    environment = inherited | {
        "NIGHTSHIFT_DATA_DIR": str(folder / "data"),
        "NIGHTSHIFT_JOBS_DIR": str(folder / "jobs"),
        "NIGHTSHIFT_GENERATION_MODEL": model,
        "NIGHTSHIFT_GENERATION_BACKEND": generation_backend,
        "NIGHTSHIFT_SWITCH_PREPARE": str(PREPARE),
        "PYTHONPATH": str(ROOT),
    }
    to_embedding = Direction(Mode.GENERATION, Mode.EMBEDDING)
    to_generation = Direction(Mode.EMBEDDING, Mode.GENERATION)
    with running_daemon(folder, environment) as daemon:
        servers = servers_of(daemon, environment, folder)
        kinds = {slot: f"{server.kind} on the {server.device}" for slot, server in servers.items()}
        print(f"{processor()}, {CORES} cores; " + ", ".join(f"{slot}: {kind}" for slot, kind in kinds.items()))
        for number in range(rounds + prepared_rounds):
            bare = {slot: measure(server, folder / "bare.log") for slot, server in servers.items()}
            if number < rounds:
                for way in (to_embedding, to_generation):
                    _note(way.rows, way.over, daemon.switch(way.target), bare, way)
            else:
                # The schedule leaves time for the load and the drain before generation has to serve.
                early = DRAIN_MARGIN + 3 * bare[Slot.GENERATION].start
                for way, lead in ((to_embedding, 0.0), (to_generation, early)):
                    row = daemon.switch_on_schedule(way.target, PREPARE + 1.0 + lead)
                    _note(way.prepared, way.prepared_over, row, bare, way)
    for way in (to_embedding, to_generation):
        _print(way)
    print(f"goal: a switch costs at most {GOAL} s over the bare stop and start")
    return {
        "machine": processor(),
        "cores": CORES,
        "servers": kinds,
        "directions": [way.as_json() for way in (to_embedding, to_generation)],
    }


def _note(
    rows: list[dict[str, Any]], over: list[float], row: dict[str, Any], bare: dict[Slot, Bare], way: Direction
) -> None:
    slots = {Mode.GENERATION: Slot.GENERATION, Mode.EMBEDDING: Slot.EMBEDDING}
    alone = bare[slots[way.source]].stop, bare[slots[way.target]].start
    rows.append(row)
    way.bare.append(alone)
    over.append(row["seconds"] - sum(alone))


def _print(way: Direction) -> None:
    print(f"\n{way.source} -> {way.target}: seconds, medians of {len(way.rows)} switches", end="")
    print(f" and of {len(way.prepared)} prepared ones" if way.prepared else "")
    columns = [rows for rows in (way.rows, way.prepared) if rows]
    for phase in Phase:
        _line(phase, [[row["phases"].get(phase, 0.0) for row in rows] for rows in columns])
    _line("besides", [[row["seconds"] - sum(row["phases"].values()) for row in rows] for rows in columns])
    _line("the switch", [[row["seconds"] for row in rows] for rows in columns])
    _line("bare stop", [[stop for stop, _ in way.bare]])
    _line("bare start", [[start for _, start in way.bare]])
    _line("over both, by round", [over for over in (way.over, way.prepared_over) if over], spread=True)


def _line(name: str, columns: Sequence[Sequence[float]], *, spread: bool = False) -> None:
    cells = []
    for values in columns:
        cell = f"{statistics.median(values):8.3f}"
        if spread and len(values) > 1:
            low, _, high = statistics.quantiles(values, n=4)
            cell += f" ({low:.3f} to {high:.3f})"
        cells.append(cell)
    print(f"  {name:<20}" + "".join(cells))


if __name__ == "__main__":
    main()
