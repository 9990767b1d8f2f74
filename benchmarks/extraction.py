"""Our extraction against the libraries that read PDF and DOCX, bare, on the same files.

    python -m benchmarks.extraction [--pages 1200] [--rounds 5] [--json FILE]

What is measured, each in a process of its own, without the time that it takes to start:

    pypdfium2, pypdf   every page's text, as their documentation shows it, and nothing else
    python-docx        the text of every paragraph and every cell of a table
    reading            `pipeline.ingest.extract.extract`: text, order, pages, headings, metadata
    one worker         the pool with one worker: the file is read and hashed again, its text extracted, cut into
                       chunks and tokenized, and all of it sent back over a pipe
    a worker a core    the same with as many workers as there are cores

A ratio is of processor time, workers and pool together, which hardly depends on what else the machine does;
beside it stands what the clock said. All take their turn in every round, a ratio is that of a round, and the
median is shown. The DOCX files hold the paragraphs of the PDFs; a page of them is what was a page of the PDF.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import docx
import psutil
import pypdf
import pypdfium2

from benchmarks.corpus import write_corpus
from pipeline.core.documents import DocumentKind
from pipeline.ingest.extract import extract
from pipeline.ingest.pool import ExtractionPool

Measure = Callable[[Sequence[Path]], tuple[float, float]]
Figures = dict[str, list[tuple[float, float]]]
MODEL = Path(__file__).parents[1] / "data" / "models" / "all-MiniLM-L6-v2-F16.gguf"
PDF, DOCX = DocumentKind.PDF, DocumentKind.DOCX
CORES = len(os.sched_getaffinity(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, folder = options.one
        print(json.dumps(MEASURES[name](sorted(Path(folder).iterdir()))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder) / PDF.value, options.pages)
        write_as_docx(Path(folder) / PDF.value, Path(folder) / DOCX.value)
        figures = measured(Path(folder), options.pages, options.rounds)
    report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def measured(folder: Path, pages: int, rounds: int) -> Figures:
    """Pages a second of processor time, and by the clock, of each, round by round."""
    figures: Figures = {name: [] for name in MEASURES}
    for number in range(rounds):
        for name, rates in figures.items():
            command = [sys.executable, "-m", "benchmarks.extraction", "--one", name, str(folder / kind_of(name).value)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            busy, clock = json.loads(printed.splitlines()[-1])
            rates.append((pages / busy, pages / clock))
            print(f"round {number + 1}  {name:22} {pages / busy:8.1f} {pages / clock:8.1f}", flush=True)
    return figures


def report(figures: Figures) -> None:
    print(f"\n{CORES} cores")
    for ours in ("reading, pdf", "one worker, pdf"):
        for rival in ("pypdfium2", "pypdf"):
            print_ratio(figures, ours, rival)
    for ours in ("reading, docx", "one worker, docx"):
        print_ratio(figures, ours, "python-docx")
    print(f"\n{'pages a second of':22} {'processor time':>16} {'the clock':>16}")
    for name, rates in figures.items():
        busy, clock = (statistics.median(column) for column in zip(*rates, strict=True))
        print(f"{name:22} {busy:16.1f} {clock:16.1f}")


def print_ratio(figures: Figures, ours: str, rival: str) -> None:
    ratios = [own[0] / other[0] for own, other in zip(figures[ours], figures[rival], strict=True)]
    label = f"{ours} / {rival}"
    print(f"{label:32} {statistics.median(ratios):6.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


def kind_of(name: str) -> DocumentKind:
    return DOCX if "docx" in name else PDF


def write_as_docx(pdfs: Path, folder: Path) -> None:
    """A DOCX of each PDF: its headings and its paragraphs."""
    folder.mkdir()
    for path in pdfs.iterdir():
        read = extract(path.read_bytes(), PDF, path.name)
        titles = {heading.title for heading in read.headings}
        document = docx.Document()
        for paragraph in read.text.split("\n\n"):
            line = " ".join(paragraph.split())
            document.add_paragraph(line, "Heading 1" if line in titles else None)
        document.save(str(folder / f"{path.stem}.docx"))


def timed(read: Callable[[Path], object]) -> Measure:
    """Seconds of processor time, and by the clock, for all of them, one after the other.

    The first is read once before, as the libraries load late.
    """

    def measure(paths: Sequence[Path]) -> tuple[float, float]:
        read(paths[0])
        began, busy = time.perf_counter(), time.process_time()
        for path in paths:
            read(path)
        return time.process_time() - busy, time.perf_counter() - began

    return measure


def with_pypdfium2(path: Path) -> list[str]:
    texts = []
    with closing(pypdfium2.PdfDocument(path)) as document:
        for index in range(len(document)):
            with closing(document[index]) as page, closing(page.get_textpage()) as text:
                texts.append(text.get_text_range())
    return texts


def with_pypdf(path: Path) -> list[str]:
    with pypdf.PdfReader(path) as reader:
        return [page.extract_text() for page in reader.pages]


def with_python_docx(path: Path) -> list[str]:
    document = docx.Document(str(path))
    texts = [paragraph.text for paragraph in document.paragraphs]
    return texts + [cell.text for table in document.tables for row in table.rows for cell in row.cells]


def ours(path: Path) -> str:
    return extract(path.read_bytes(), DocumentKind(path.suffix[1:]), path.name).text


def pooled(workers: int) -> Measure:
    return lambda paths: asyncio.run(through_pool(paths, workers))


async def through_pool(paths: Sequence[Path], workers: int) -> tuple[float, float]:
    """Seconds of processor time, ours and the workers', and by the clock, from the first file to the last answer.

    The workers have started and read a file each.
    """
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    kind = DocumentKind(paths[0].suffix[1:])
    # Not nice: the others are not, either.
    async with ExtractionPool(workers, model_path=MODEL, limit=256, overlap=32, pdf_engine="auto", nice=0) as pool:
        await asyncio.gather(*(pool.extract(paths[0], kind, digests[0]) for _ in range(workers)))
        began, busy = time.perf_counter(), processor_time()
        await asyncio.gather(*(pool.extract(path, kind, digest) for path, digest in zip(paths, digests, strict=True)))
        return processor_time() - busy, time.perf_counter() - began


def processor_time() -> float:
    """Seconds of this process and of those that it started and that live."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children())]
    return sum(one.user + one.system for one in times)


MEASURES: dict[str, Measure] = {
    "pypdfium2": timed(with_pypdfium2),
    "pypdf": timed(with_pypdf),
    "reading, pdf": timed(ours),
    "one worker, pdf": pooled(1),
    "a worker a core, pdf": pooled(CORES),
    "python-docx": timed(with_python_docx),
    "reading, docx": timed(ours),
    "one worker, docx": pooled(1),
}


if __name__ == "__main__":
    main()
