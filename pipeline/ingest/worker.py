"""An extraction worker: opens one document at a time, in a process of its own that may hang or die.

Run by the pool as `python -m pipeline.ingest.worker`; jobs come on standard input, replies go to
what was standard output, as in `pipeline.ingest.protocol`. What a library prints goes to standard
error. It has no network (`pipeline.ingest.confinement`). The process ends as soon as its input
does, even in the middle of a native call, so that none is left behind when its parent is killed.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import hashlib
import importlib
import json
import os
import resource
import signal
import stat
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.backends.tokenizer import LimitedTokenizer, open_tokenizer
from pipeline.core.chunking import chunk
from pipeline.core.documents import DocumentKind, Extracted
from pipeline.core.errors import Broken, ExtractionError, ModelError, Unstable, UsageError
from pipeline.core.stretches import Stretch, late_stretches, whole_document
from pipeline.ingest import confinement, protocol
from pipeline.ingest.tesseract import Ocr, Tesseract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pipeline.core.documents import Chunk

    Extractor = Callable[..., Extracted]

_PR_SET_PDEATHSIG = 1
_REPORT_EVERY = 0.25
"""Seconds: often enough for limits of tens of seconds, and seldom enough to cost nothing."""

_CHARACTERS_PER_STEP = 4096
"""A page of text, as the tokenizer sees it: a little more than once."""

_OOM_SCORE = "500"  # the kernel, when memory runs out, is to take a worker and not the run


@dataclass(frozen=True, slots=True)
class _Tools:
    extractor: Extractor
    tokenizer: _PacedTokenizer
    pace: Pace
    pdf_engine: str
    limit: int
    overlap: int
    whole: int
    late: bool
    ocr: Tesseract | None


class Pace:
    """Called for each step that is done; reports how many every so often, which buys time (`pipeline.core.patience`).

    Whoever takes longer for a page than others, and may, calls it with as many steps as the time is worth.
    """

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._done = 0
        self._next = 0.0

    def __call__(self, steps: int = 1) -> None:
        """So many steps were done since the last call."""
        self._done += steps
        now = time.monotonic()
        if now >= self._next:
            self._report(self._done)
            self._done = 0
            self._next = now + _REPORT_EVERY

    def restart(self) -> None:
        """The next document begins."""
        self._done = 0
        self._next = time.monotonic() + _REPORT_EVERY


class _PacedTokenizer:
    """The tokenizer, with a step for each page of text that it has seen."""

    def __init__(self, tokenizer: LimitedTokenizer, pace: Pace) -> None:
        self._tokenizer = tokenizer
        self._pace = pace
        self._characters = 0

    def encode(self, text: str) -> Sequence[int]:
        self._characters += len(text)
        if self._characters >= _CHARACTERS_PER_STEP:
            steps, self._characters = divmod(self._characters, _CHARACTERS_PER_STEP)
            self._pace(steps)
        return self._tokenizer.encode(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve jobs until standard input ends. 1 where no job can be served or memory ran out."""
    options = _parse(arguments)
    jobs_in, replies = _take_standard_streams()
    held = confinement.confine()
    _die_with(options.parent)
    jobs: SimpleQueue[Mapping[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(jobs_in, jobs), name="jobs", daemon=True).start()
    _stand_back(options.nice)
    try:
        tools = _prepare(options, Pace(lambda steps: _send(replies, {"steps": steps})))
    except (ModelError, UsageError) as error:
        _send(replies, {"unusable": str(error), "settings": isinstance(error, UsageError)})
        return 1
    _limit_memory(options.memory_limit)
    out_of_memory = protocol.pack({"error": protocol.OUT_OF_MEMORY})
    _send(replies, {"ready": True, "no_network": held})
    while True:
        job = jobs.get()
        try:
            for message in _answer(job, tools):
                _send(replies, message)
        except MemoryError:
            replies.write(out_of_memory)
            return 1  # what is left of the heap is no place for the next document


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline.ingest.worker")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--overlap", type=int, required=True)
    parser.add_argument("--document-tokens", type=int, default=0, help="the longest text to compute whole; 0: none")
    parser.add_argument("--late-chunking", action="store_true", help="give stretches of the text, not only its chunks")
    parser.add_argument("--pdf-engine", required=True)
    parser.add_argument("--memory-limit", type=int, required=True, help="bytes that a document may take")
    parser.add_argument("--nice", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True, help="process id of the pool")
    parser.add_argument("--extractor", required=True, help="module:function with the signature of extract()")
    parser.add_argument("--ocr", type=json.loads, help="an `Ocr` of `pipeline.ingest.tesseract`, as JSON")
    parser.add_argument("--step-seconds", type=float, default=0.5, help="what a step is worth while OCR reads a page")
    return parser.parse_args(arguments)


def _prepare(options: argparse.Namespace, pace: Pace) -> _Tools:
    """Raises ModelError for the model, UsageError for the sizes."""
    vocabulary = open_tokenizer(options.model)
    if options.limit > vocabulary.limit:
        raise UsageError(f"chunks of {options.limit} tokens are more than the model takes; it takes {vocabulary.limit}")
    tokenizer = _PacedTokenizer(vocabulary, pace)
    try:
        chunk(Extracted(""), tokenizer, limit=options.limit, overlap=options.overlap)
    except ValueError as error:
        raise UsageError(str(error)) from error
    module, _, function = options.extractor.partition(":")
    extractor = getattr(importlib.import_module(module), function)
    return _Tools(
        extractor,
        tokenizer,
        pace,
        options.pdf_engine,
        options.limit,
        options.overlap,
        min(options.document_tokens, vocabulary.limit),
        options.late_chunking,
        Tesseract(Ocr(**options.ocr), pace, options.step_seconds) if options.ocr else None,
    )


def _answer(job: Mapping[str, Any], tools: _Tools) -> Iterator[Mapping[str, object]]:
    try:
        data = _read(Path(job["path"]), job["sha256"])
        yield {"read": len(data)}
        tools.pace.restart()
        extracted = _extract(data, job, tools)
        chunks = chunk(extracted, tools.tokenizer, limit=tools.limit, overlap=tools.overlap)
        stretches = _stretches(extracted, chunks, tools)
    except ExtractionError as error:
        yield protocol.describe_error(error)
        return
    except ValueError as error:
        yield {"error": Broken.__name__, "reason": f"it cannot be cut into chunks: {error}"}
        return
    for first in range(0, len(chunks), protocol.CHUNKS_PER_FRAME):
        some = chunks[first : first + protocol.CHUNKS_PER_FRAME]
        yield {"chunks": [protocol.describe_chunk(piece) for piece in some]}
    for stretch in stretches:
        yield {"stretch": protocol.describe_stretch(stretch)}
    yield {"document": protocol.describe_document(extracted)}


def _stretches(extracted: Extracted, chunks: Sequence[Chunk], tools: _Tools) -> Sequence[Stretch]:
    if tools.late:
        return late_stretches(extracted.text, chunks, tools.tokenizer, tools.whole)
    whole = whole_document(extracted.text, chunks, tools.tokenizer, tools.whole) if tools.whole else None
    return [whole] if whole else []


def _extract(data: bytes, job: Mapping[str, Any], tools: _Tools) -> Extracted:
    options: dict[str, Any] = {"passwords": tuple(job["passwords"])} if job.get("passwords") else {}
    if tools.ocr is not None:
        options["ocr"] = tools.ocr
    try:
        extracted = tools.extractor(
            data, DocumentKind(job["kind"]), job["name"], pdf_engine=tools.pdf_engine, step=tools.pace, **options
        )
    except (ExtractionError, MemoryError):
        raise
    except Exception as error:
        raise Broken(f"damaged: its content cannot be read ({type(error).__name__})") from error
    if len(extracted.text) > protocol.LONGEST_TEXT:
        raise Broken(
            f"holds {len(extracted.text):,} characters, and no document may hold more than {protocol.LONGEST_TEXT:,}: "
            "divide it"
        )
    return extracted


def _read(path: Path, sha256: str) -> bytes:
    """The bytes of the file, if they are still those. Raises Unstable."""
    try:
        # Where a pipe took the file's place, opening it would wait for a writer, and reading it for what he writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Unstable("it is no file any more")
            data = file.read()
    except FileNotFoundError as error:
        raise Unstable("it is no longer there") from error
    except PermissionError as error:
        raise Unstable("the permission to read it is missing") from error
    except OSError as error:
        raise Unstable(f"it could not be read from disk: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Unstable("it changed while it was being read")
    return data


def _send(replies: BinaryIO, message: Mapping[str, object]) -> None:
    replies.write(protocol.pack(message))


def _take_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """The two ends of the protocol; print and native code get the null device and standard error instead."""
    jobs = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    faulthandler.enable()
    return jobs, replies


def _listen(stream: BinaryIO, jobs: SimpleQueue[Mapping[str, Any]]) -> None:
    """Pass on jobs; end the process where they end, whatever its other threads do."""
    try:
        while head := stream.read(protocol.LENGTH.size):
            jobs.put(protocol.unpack(stream.read(protocol.frame_length(head))))
    finally:
        os._exit(0)


def _die_with(parent: int) -> None:
    """Where the kernel can, end with the parent even if native code never lets go of the interpreter."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _stand_back(nice: int) -> None:
    with suppress(OSError):
        os.nice(nice)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_memory(allowance: int) -> None:
    """Let the address space grow by `allowance` bytes from what the libraries and the vocabulary take."""
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        wanted = pages * resource.getpagesize() + allowance
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    sys.exit(main())
