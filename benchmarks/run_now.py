"""The whole of `run-now` against the engine's raw ceiling, and its memory against the size of the corpus.

    python -m benchmarks.run_now [--pages 600] [--rounds 3] [--json FILE]

Each round runs run-now on a fresh database, from the start of its process to its exit, and gives the
very same chunks to the engine alone (benchmarks/ceiling.py) before and after it. The ratio of a round
is run-now's rate over the mean of those two, because the speed of a shared machine drifts. The engine
is set up as Nightshift sets it up; one context over all cores with batches of 512 tokens, which is
the best that was known otherwise, is measured once beside it.

Two more figures that hardly depend on what else the machine does: the share of all processor time,
from start to exit, that went into the embedding server; and the highest memory, as the sum of the
proportional set sizes (PSS) of run-now and its children.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.corpus import write_corpus

SAMPLE_SECONDS = 0.25
OTHERWISE = ["--contexts", "1", "--n-batch", "512"]
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Run:
    """One run-now.

    report: what it printed. seconds: of the whole process. peak_mib: its highest memory, children
    included. server_cpu: processor seconds of its embedding server.
    """

    report: dict[str, Any]
    seconds: float
    peak_mib: float
    server_cpu: float
    database: Path

    @property
    def rate(self) -> float:
        """Chunks a second, from the start of the process to its end."""
        return float(self.report["chunks_embedded"]) / self.seconds

    @property
    def server_share(self) -> float:
        """Of all processor time of the host while it ran."""
        return self.server_cpu / (self.seconds * CORES)


def run_now(documents: Path, data_dir: Path, model: str | None = None) -> Run:
    """Run it on a fresh data folder, with the model that ships or another one."""
    data_dir.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NIGHTSHIFT_")}
    command = [sys.executable, "-m", "pipeline", "run-now", str(documents), "--json", "--quiet"]
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=environment
        | {"NIGHTSHIFT_DATA_DIR": str(data_dir)}
        | ({} if model is None else {"NIGHTSHIFT_EMBEDDING_MODEL": model}),
        stdout=subprocess.PIPE,
        text=True,
    )
    peak, server_cpu = 0, 0.0
    while process.poll() is None:
        memory, cpu = _usage(process.pid)
        peak, server_cpu = max(peak, memory), max(server_cpu, cpu)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SAMPLE_SECONDS)
    seconds = time.perf_counter() - began
    assert process.stdout is not None
    report = json.loads(process.stdout.read())
    process.stdout.close()
    if process.returncode != 0:
        raise SystemExit(f"run-now failed: {report}")
    return Run(report, seconds, peak / 2**20, server_cpu, data_dir / "nightshift.db")


def ceiling(database: Path, arguments: list[str]) -> dict[str, float]:
    """The engine alone, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ceiling", str(database), *arguments]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(result.stdout)
    return measured


def _usage(pid: int) -> tuple[int, float]:
    """Bytes of a process and its children, and the processor seconds of the embedding server among them."""
    memory, server_cpu = 0, 0.0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                memory += one.memory_full_info().pss
                if {"pipeline.backends.llama_cpp", "pipeline.backends.torch_engine"} & set(one.cmdline()):
                    times = one.cpu_times()
                    server_cpu = times.user + times.system
    return memory, server_cpu


def main() -> None:
    """Measure, and print as it goes; ratios last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=600, help="PDF pages in the corpus; a tenth for the small one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightshift-bench-") as folder:
        figures = measure(Path(folder), given.pages, given.rounds)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(folder: Path, pages: int, rounds: int) -> dict[str, Any]:
    """The figures of all rounds."""
    print(f"{processor()}, {CORES} cores, {pages} PDF pages")
    write_corpus(folder / "large", pages=pages)
    write_corpus(folder / "small", pages=max(1, pages // 10))
    small = run_now(folder / "small", folder / "small-data")
    print(f"a tenth of the documents: peak memory {small.peak_mib:.0f} MiB")
    warm = run_now(folder / "large", folder / "data-0")
    otherwise = ceiling(warm.database, OTHERWISE)["chunks_per_second"]
    before = ceiling(warm.database, [])["chunks_per_second"]
    runs, ratios, ceilings = [warm], [], [before]
    for number in range(1, rounds + 1):
        run = run_now(folder / "large", folder / f"data-{number}")
        after = ceiling(run.database, [])["chunks_per_second"]
        runs.append(run)
        ceilings.append(after)
        ratios.append(run.rate / statistics.mean((before, after)))
        print(
            f"round {number}: engine alone {before:.2f}, run-now {run.rate:.2f} chunks/s "
            f"({run.report['chunks_embedded']} chunks in {run.seconds:.1f} s), engine alone {after:.2f}: "
            f"ratio {ratios[-1]:.3f}, {run.server_share:.3f} of all processor time in the engine's server"
        )
        before = after
    ratio, growth = statistics.median(ratios), max(run.peak_mib for run in runs) / small.peak_mib
    share = statistics.median(run.server_share for run in runs)
    print(f"run-now / engine's ceiling: {ratio:.3f} (median of {rounds}; goal 0.95)")
    print(f"processor time in the server: {share:.3f} of all there was (median)")
    print(f"engine as set up / one context and 512 tokens: {max(ceilings) / otherwise:.2f} (once)")
    print(f"peak memory with 10 x the documents: {growth:.2f} x, {max(r.peak_mib for r in runs):.0f} MiB (goal 1.2 x)")
    return {
        "machine": processor(),
        "cores": CORES,
        "pages": pages,
        "chunks": warm.report["chunks_embedded"],
        "ratios": ratios,
        "ratio": ratio,
        "server_share": share,
        "ceilings": ceilings,
        "otherwise": otherwise,
        "memory_growth": growth,
    }


def processor() -> str:
    """The processor's name, as it calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
