"""Our engines on a GPU: several contexts against one, and both engines against sentence-transformers in float16.

    python -m benchmarks.gpu [--shapes BERT-large,MiniLM] [--seconds 5] [--rounds 3] [--tflops 790] [--json FILE]
    python -m benchmarks.gpu --cpu

Encoders of two shapes with random weights are written into a temporary folder: as GGUF, and the same weights for
torch (where it is installed: the extra `torch`). Every row is a process of its own, and the rows are measured in
turns, `--rounds` times. Our rows go the whole way, through the server that a run uses; sentence-transformers is
called in one process with texts of the same lengths, and finds the tokens itself. The GPU's utilisation is NVML's
(the extra `nvidia`), over the time that was measured. `of the limit`: of --tflops (790 is what an H200 does in half
precision in dense matrix products).

It needs this repository and a build of llama-cpp-python for the GPU (`CMAKE_ARGS=-DGGML_CUDA=on`). With --cpu it
measures a tiny encoder on the processor, which shows that it works and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import structlog

from benchmarks.random_encoders import BERT_LARGE, MINILM, TINY, Shape, Weights, words, write_folder, write_gguf
from pipeline.backends.accelerator import find_accelerator, gpu_vendor
from pipeline.backends.launch import BackendKind, Programs, sentence_transformers_installed
from pipeline.backends.models import ModelFile
from pipeline.backends.options import EmbeddingOptions
from pipeline.backends.serving.tuned import device_name
from pipeline.backends.tuning import Bench, measure
from pipeline.core.modes import Device

CHUNKS, CHUNKS_ON_CPU = 2048, 128
LONGEST = 256
SAMPLE_SECONDS = 0.1
RIVAL_BATCHES = (64, 256, 1024)


@dataclass(slots=True)
class Row:
    """Something that is measured. engine: `rival` is sentence-transformers itself. rates: tokens a second."""

    name: str
    engine: BackendKind | str
    options: dict[str, Any]
    rates: list[float] = field(default_factory=list)
    utilisation: list[float] = field(default_factory=list)
    problem: str = ""

    @property
    def rate(self) -> float | None:
        """The median; None where it failed."""
        return statistics.median(self.rates) if self.rates and not self.problem else None


class Utilisation:
    """The GPU's utilisation in percent, looked at ten times a second; nothing where NVML is not there."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._nvml: Any = None
        try:
            self._nvml = import_module("pynvml")
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByIndex(0)
        except Exception:  # noqa: BLE001  without the library or a driver there is nothing to read
            self._nvml = None
            return
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._samples.append((time.monotonic(), float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)))

    def over(self, begin: float, end: float) -> float | None:
        """The mean between two times of `time.monotonic`."""
        found = [value for at, value in self._samples if begin <= at <= end]
        return statistics.mean(found) if found else None

    def close(self) -> None:
        """Look no more."""
        self._stop.set()


def rows_for(contexts: Sequence[int], batches: Sequence[int], *, with_torch: bool) -> list[Row]:
    """What is measured of a shape: one context of each size, several of the first size, and the torch engines."""
    first = batches[0]
    plans = [(1, size) for size in batches] + [(count, first) for count in contexts if count > 1]
    plans += [(max(contexts), size) for size in batches[1:] if max(contexts) > 1]
    rows = [
        Row(f"llama-cpp, {count} x {size}", "llama-cpp", {"contexts": count, "n_batch": size}) for count, size in plans
    ]
    if with_torch:
        rows.append(Row("sentence-transformers engine", "sentence-transformers", {}))
        rows += [Row(f"sentence-transformers, batch {size}", "rival", {"batch": size}) for size in RIVAL_BATCHES]
    return rows


def made_of_words(weights: Weights, number: int) -> tuple[list[list[int]], list[str]]:
    """Chunks as token ids and as the texts with these tokens; most are as long as they may be."""
    chance, known = random.Random(0), words(weights)
    special = {token: number for number, token in enumerate(weights.tokens) if token in ("[CLS]", "[SEP]")}
    ids, texts, numbers = [], [], list(known)
    for _ in range(number):
        length = LONGEST if chance.random() < 0.75 else chance.randint(LONGEST // 8, LONGEST)
        chosen = chance.choices(numbers, k=length - 2)
        ids.append([special["[CLS]"], *chosen, special["[SEP]"]])
        texts.append(" ".join(known[number] for number in chosen))
    return ids, texts


def measure_shape(shape: Shape, given: argparse.Namespace, folder: Path) -> list[Row]:
    """Write the models of a shape, and measure every row in turns."""
    weights = Weights(shape)
    write_gguf(weights, folder / "model.gguf")
    ids, texts = made_of_words(weights, CHUNKS_ON_CPU if given.cpu else CHUNKS)
    (folder / "texts.json").write_text(json.dumps(texts))
    with_torch = sentence_transformers_installed() and not given.without_torch
    if with_torch:
        (folder / "model").mkdir()
        write_folder(weights, folder / "model")
    rows = rows_for(given.contexts, given.batches, with_torch=with_torch)
    watch = Utilisation()
    for _ in range(given.rounds):
        for row in rows:
            if not row.problem:
                _measure(row, given, folder, ids, watch)
    watch.close()
    return rows


def _measure(row: Row, given: argparse.Namespace, folder: Path, ids: list[list[int]], watch: Utilisation) -> None:
    if row.engine == "rival":
        _measure_rival(row, given, folder, sum(map(len, ids)), watch)
        return
    is_torch = row.engine == "sentence-transformers"
    path = folder / "model" if is_torch else folder / "model.gguf"
    file = ModelFile(path, row.engine, row.engine, "directory" if is_torch else "gguf")
    bench = Bench(
        kind="sentence-transformers" if is_torch else "llama-cpp",
        device=Device.CPU if given.cpu else Device.GPU,
        model=file,
        chunks=ids,
        seconds=given.seconds,
        log_dir=folder,
        programs=Programs(),
        gpu=gpu_vendor(),
    )
    options = EmbeddingOptions(str(path), n_gpu_layers=0 if given.cpu else -1, **row.options)
    result = asyncio.run(measure(bench, options))
    end = time.monotonic() - 0.2  # the server has ended since
    if result.rate is None:
        row.problem = result.problem
        return
    row.rates.append(result.rate)
    if not given.cpu and (used := watch.over(end - given.seconds, end)) is not None:
        row.utilisation.append(used)


def _measure_rival(row: Row, given: argparse.Namespace, folder: Path, tokens: int, watch: Utilisation) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--rival", str(folder), "--batch", str(row.options["batch"])]
    command += ["--seconds", str(given.seconds), *(["--cpu"] if given.cpu else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        row.problem = f"exit {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}"
        return
    told = json.loads(done.stdout.splitlines()[-1])
    row.rates.append(told["passes"] * tokens / told["seconds"])
    if not given.cpu and (used := watch.over(told["began"], told["ended"])) is not None:
        row.utilisation.append(used)


def rival(folder: Path, batch: int, seconds: float, *, cpu: bool) -> None:
    """sentence-transformers in this process, over all texts again and again; prints one JSON object."""
    from sentence_transformers import SentenceTransformer

    texts = json.loads((folder / "texts.json").read_text())
    model = SentenceTransformer(str(folder / "model"), device="cpu" if cpu else "cuda")
    if not cpu:
        model = model.half()
    model.encode(texts[: 2 * batch], batch_size=batch)
    began, passes = time.monotonic(), 0
    while not passes or time.monotonic() - began < seconds:
        model.encode(texts, batch_size=batch)
        passes += 1
    ended = time.monotonic()
    print(json.dumps({"passes": passes, "seconds": ended - began, "began": began, "ended": ended}))


def report(shape: Shape, rows: Sequence[Row], tflops: float | None) -> dict[str, Any]:
    """Print ratios first, then the table; the figures as they go into --json."""
    ours = [row for row in rows if row.engine == "llama-cpp" and row.rate]
    one = max((row.rate or 0.0 for row in ours if row.options["contexts"] == 1), default=None)
    several = max((row.rate or 0.0 for row in ours if row.options["contexts"] > 1), default=None)
    rivals = max((row.rate for row in rows if row.engine == "rival" and row.rate), default=None)
    best = max((row.rate or 0.0 for row in ours), default=None)
    torch_engine = next((row.rate for row in rows if row.engine == "sentence-transformers"), None)
    ratios = {
        "several contexts / one, each at its best": several / one if several and one else None,
        "llama-cpp engine / sentence-transformers at its best": best / rivals if best and rivals else None,
        "torch engine / sentence-transformers at its best": torch_engine / rivals if torch_engine and rivals else None,
    }
    print(f"\n{shape.name}: {shape.layers} layers of {shape.width}")
    for name, ratio in ratios.items():
        print(f"  {name}: {'not measured' if ratio is None else f'{ratio:.2f}'}")
    limit = None if tflops is None else tflops * 1e12 / shape.flops_per_token
    if limit is not None:
        print(f"  arithmetic limit: {limit:,.0f} tokens/s")
    for row in sorted(rows, key=lambda row: -(row.rate or 0.0)):
        if row.rate is None:
            print(f"  {'failed':>12}  {row.name}: {row.problem.splitlines()[0] if row.problem else ''}")
            continue
        spread = (max(row.rates) - min(row.rates)) / row.rate
        used = f", GPU {statistics.mean(row.utilisation):.0f} % busy" if row.utilisation else ""
        share = f", {row.rate / limit:.3f} of the limit" if limit else ""
        print(f"  {row.rate:>12,.0f}  {row.name} (spread {spread:.0%}{used}{share})")
    return {
        "shape": shape.name,
        "ratios": ratios,
        "limit": limit,
        "rows": [
            {
                "name": row.name,
                "options": row.options,
                "tokens_per_second": row.rate,
                "measurements": row.rates,
                "gpu_percent": row.utilisation,
                "problem": row.problem,
            }
            for row in rows
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print as it goes; 1 where there is no GPU and none was waived."""
    given = _parser().parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if given.rival is not None:
        rival(given.rival, given.batch, given.seconds, cpu=given.cpu)
        return 0
    if not given.cpu and gpu_vendor() is None:
        print("there is no GPU here; --cpu measures a tiny encoder on the processor", file=sys.stderr)
        return 1
    accelerator = None if given.cpu else find_accelerator()
    print(accelerator.name if accelerator else device_name(on_gpu=not given.cpu))
    shapes = [TINY] if given.cpu else [shape for shape in (BERT_LARGE, MINILM) if shape.name in given.shapes.split(",")]
    figures = []
    for shape in shapes:
        with tempfile.TemporaryDirectory(prefix="nightshift-gpu-") as folder:
            rows = measure_shape(shape, given, Path(folder))
        figures.append(report(shape, rows, None if given.cpu else given.tflops))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="a tiny encoder on the processor")
    parser.add_argument("--shapes", default="BERT-large,MiniLM")
    parser.add_argument("--contexts", type=_numbers, default=[1, 2, 4, 8, 16])
    parser.add_argument("--batches", type=_numbers, default=[1024, 512, 2048])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tflops", type=float, default=790.0, help="what the GPU does in half precision")
    parser.add_argument("--without-torch", action="store_true", help="llama.cpp only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--rival", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=64, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
