"""An extraction worker: opens one document at a time, in a process of its own that may hang or die.

Run by the pool as `python -m pipeline.ingest.worker`; jobs come on standard input, replies go to
what was standard output, as in `pipeline.ingest.protocol`. What a library prints goes to standard
error. The process ends as soon as its input does, even in the middle of a native call, so that
none is left behind when its parent is killed.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import hashlib
import importlib
import os
import resource
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.backends.llama_cpp.tokenizer import GgufTokenizer
from pipeline.core.chunking import chunk
from pipeline.core.documents import DocumentKind, Extracted
from pipeline.core.errors import Broken, ExtractionError, ModelError, Unstable, UsageError
from pipeline.ingest import protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Extractor = Callable[..., Extracted]

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "500"  # the kernel, when memory runs out, is to take a worker and not the run


@dataclass(frozen=True, slots=True)
class _Tools:
    extractor: Extractor
    tokenizer: GgufTokenizer
    pdf_engine: str
    limit: int
    overlap: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve jobs until standard input ends. 1 where no job can be served or memory ran out."""
    options = _parse(arguments)
    jobs_in, replies = _take_standard_streams()
    _die_with(options.parent)
    jobs: SimpleQueue[Mapping[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(jobs_in, jobs), name="jobs", daemon=True).start()
    _stand_back(options.nice)
    try:
        tools = _prepare(options)
    except (ModelError, UsageError) as error:
        _send(replies, {"unusable": str(error), "settings": isinstance(error, UsageError)})
        return 1
    _limit_memory(options.memory_limit)
    out_of_memory = protocol.pack({"error": protocol.OUT_OF_MEMORY})
    _send(replies, {"ready": True})
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
    parser.add_argument("--pdf-engine", required=True)
    parser.add_argument("--memory-limit", type=int, required=True, help="bytes that a document may take")
    parser.add_argument("--nice", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True, help="process id of the pool")
    parser.add_argument("--extractor", required=True, help="module:function with the signature of extract()")
    return parser.parse_args(arguments)


def _prepare(options: argparse.Namespace) -> _Tools:
    """Raises ModelError for the model, UsageError for the sizes."""
    tokenizer = GgufTokenizer(options.model)
    if options.limit > tokenizer.limit:
        raise UsageError(f"chunks of {options.limit} tokens are more than the model takes; it takes {tokenizer.limit}")
    try:
        chunk(Extracted(""), tokenizer, limit=options.limit, overlap=options.overlap)
    except ValueError as error:
        raise UsageError(str(error)) from error
    module, _, function = options.extractor.partition(":")
    extractor = getattr(importlib.import_module(module), function)
    return _Tools(extractor, tokenizer, options.pdf_engine, options.limit, options.overlap)


def _answer(job: Mapping[str, Any], tools: _Tools) -> Iterator[Mapping[str, object]]:
    try:
        extracted = _extract(job, tools)
        chunks = chunk(extracted, tools.tokenizer, limit=tools.limit, overlap=tools.overlap)
    except ExtractionError as error:
        yield {"error": type(error).__name__, "reason": error.reason}
        return
    except ValueError as error:
        yield {"error": Broken.__name__, "reason": f"it cannot be cut into chunks: {error}"}
        return
    for first in range(0, len(chunks), protocol.CHUNKS_PER_FRAME):
        some = chunks[first : first + protocol.CHUNKS_PER_FRAME]
        yield {"chunks": [protocol.describe_chunk(piece) for piece in some]}
    yield {"document": protocol.describe_document(extracted)}


def _extract(job: Mapping[str, Any], tools: _Tools) -> Extracted:
    data = _read(Path(job["path"]), job["sha256"])
    try:
        return tools.extractor(data, DocumentKind(job["kind"]), job["name"], pdf_engine=tools.pdf_engine)
    except (ExtractionError, MemoryError):
        raise
    except Exception as error:
        raise Broken(f"damaged: its content cannot be read ({type(error).__name__})") from error


def _read(path: Path, sha256: str) -> bytes:
    """The bytes of the file, if they are still those. Raises Unstable."""
    try:
        data = path.read_bytes()
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
