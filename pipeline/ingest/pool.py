"""The extraction workers as one thing: give it a file, get its chunks or the reason why not.

A document that hangs, crashes its library or eats the memory costs that document and one worker;
the next document gets a new one. Knows processes; knows no database and no settings.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Self

import structlog

from pipeline.core import patience
from pipeline.core.errors import BackendStartFailed, Broken, ExtractionError, ModelError, Unstable, UsageError
from pipeline.ingest import confinement, protocol
from pipeline.ingest.protocol import ExtractedChunks, Malformed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from pipeline.core.documents import Chunk, DocumentKind
    from pipeline.core.stretches import Stretch
    from pipeline.ingest.tesseract import Ocr

__all__ = ["ExtractedChunks", "ExtractionPool"]

log = structlog.get_logger(__name__)

EXTRACTOR = "pipeline.ingest.extract:extract"
DOCUMENTS_PER_WORKER = 500
"""After so many a worker is replaced, so that what its libraries leak does not add up."""

START_TIMEOUT_S = 60.0
START_ATTEMPTS = 3
KILL_TIMEOUT_S = 5.0
"""A process stuck in the kernel (a dead network share) is left to the kernel after this."""

EXIT_TIMEOUT_S = 1.0
"""For a process whose answers have ended to end as well."""

_TAIL = 4096
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_GAVE_UP = (signal.SIGABRT, signal.SIGTRAP, signal.SIGILL)  # how native code ends itself when memory is refused
_MEMORY_WORDS = (b"MemoryError", b"bad_alloc", b"ut of memory", b"Cannot allocate memory")
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX")
_ROOT = Path(__file__).resolve().parents[2]


class ExtractionPool:
    """At most `workers` processes that read documents, started when they are first needed.

    model_path: the GGUF whose tokenizer counts. limit, overlap: of chunks, in tokens.
    timeout_s, timeout_per_mib_s, timeout_per_page_s: seconds for a document, and more for each MiB of
        it and for each page that was read (`pipeline.core.patience`).
    memory_limit_bytes: what one document may take. nice: how far the workers stand back.
    extractor: `module:function` with the signature of `pipeline.ingest.extract.extract`.
    document_tokens: of the longest text to be computed whole; 0 for none. late_chunking: whether documents
        come in stretches that give their chunks vectors (`pipeline.core.stretches`).
    ocr: how pages without text are read; None: not at all. It adds its own time to that of its pages.
    passwords: to try on encrypted documents. They go to the workers with each job, never as arguments.
    """

    def __init__(
        self,
        workers: int,
        *,
        model_path: Path,
        limit: int,
        overlap: int,
        pdf_engine: str,
        timeout_s: float = 60.0,
        timeout_per_mib_s: float = 1.0,
        timeout_per_page_s: float = 0.5,
        memory_limit_bytes: int = 2 * 2**30,
        nice: int = 10,
        documents_per_worker: int = DOCUMENTS_PER_WORKER,
        extractor: str = EXTRACTOR,
        passwords: Sequence[str] = (),
        document_tokens: int = 0,
        late_chunking: bool = False,
        ocr: Ocr | None = None,
    ) -> None:
        if workers < 1:
            raise UsageError(f"{workers} extraction workers read nothing; at least one is needed")
        self.workers = workers
        self._limit = limit
        self._longest = document_tokens
        recognition_s = ocr.timeout_s if ocr else 0.0
        self._patience = patience.Patience(timeout_s, timeout_per_mib_s, timeout_per_page_s, recognition_s)
        self._memory_limit = memory_limit_bytes
        self._documents_per_worker = documents_per_worker
        self._command = [
            *(sys.executable, "-P", "-m", "pipeline.ingest.worker"),
            *("--model", str(model_path.absolute()), "--limit", str(limit), "--overlap", str(overlap)),
            *("--document-tokens", str(document_tokens), *(["--late-chunking"] if late_chunking else [])),
            *("--pdf-engine", pdf_engine, "--memory-limit", str(memory_limit_bytes), "--nice", str(nice)),
            *("--parent", str(os.getpid()), "--extractor", extractor),
            *(["--ocr", json.dumps(asdict(ocr)), "--step-seconds", str(timeout_per_page_s)] if ocr else []),
        ]
        self._turns = asyncio.Semaphore(workers)
        self._idle: list[_Worker] = []
        self._alive: set[_Worker] = set()
        self._closed = False
        self._passwords = list(passwords)
        self.no_network: tuple[str, ...] = ()
        """What keeps the network from the workers (`pipeline.ingest.confinement`), once one has started."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def extract(self, path: Path, kind: DocumentKind, sha256: str, size: int = 0) -> ExtractedChunks:
        """The chunks of the file at `path`, whose content has this SHA-256, and about `size` bytes.

        Nothing here asks for the file: on a share whose server is gone that would never return.
        Cancelling it kills the worker. Raises an ExtractionError for the document: Broken where
        it takes too much time or memory or crashes the library, Unstable where the file cannot be
        read, not in that time either, or is another by now. Raises ModelError, UsageError or
        BackendStartFailed where no worker can start, and UsageError after `close`.
        """
        job: dict[str, object] = {"path": str(path), "kind": kind.value, "name": path.name, "sha256": sha256}
        if self._passwords:
            job["passwords"] = self._passwords
        async with self._turns:
            worker = await self._take()
            if worker.documents:
                try:
                    return await self._run(worker, job, kind, size)
                except _WorkerLost:
                    worker = await self._take(fresh=True)  # earlier documents may be what broke it
            try:
                return await self._run(worker, job, kind, size)
            except _WorkerLost as lost:
                raise lost.error from lost.__cause__

    async def close(self) -> None:
        """Kill all workers and wait for their ends; what is being read raises UsageError."""
        self._closed = True
        self._idle.clear()
        await asyncio.gather(*(self._discard(worker) for worker in list(self._alive)))

    async def _take(self, *, fresh: bool = False) -> _Worker:
        while self._idle and not fresh:
            worker = self._idle.pop()
            if worker.process.returncode is None:
                return worker
            await self._discard(worker)
        for _ in range(START_ATTEMPTS - 1):
            with suppress(BackendStartFailed):  # whatever ended it, the next one may be luckier
                return await self._start()
        return await self._start()

    async def _start(self) -> _Worker:
        self._refuse_if_closed()
        worker = _Worker(await self._spawn())
        self._alive.add(worker)
        try:
            self._refuse_if_closed()
            async with asyncio.timeout(START_TIMEOUT_S):
                self._held(await worker.hello())
        except (Malformed, EOFError, OSError) as error:
            await self._discard(worker)
            self._refuse_if_closed()
            last = worker.tail.decode(errors="replace").strip().rpartition("\n")[2] or "it said nothing"
            raise BackendStartFailed(f"an extraction worker did not start: {last}") from error
        except BaseException:
            await self._discard(worker)
            raise
        return worker

    async def _spawn(self) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=2**20,
                start_new_session=True,
                env=worker_environment(os.environ),
            )
        except OSError as error:
            raise BackendStartFailed(f"an extraction worker did not start: {error.strerror or error}") from error

    async def _run(self, worker: _Worker, job: Mapping[str, object], kind: DocumentKind, size: int) -> ExtractedChunks:
        """Raises an ExtractionError, and _WorkerLost where the worker went with the document."""
        keep = False
        clock = asyncio.get_running_loop().time
        began = clock()
        standing = patience.begun(self._patience, size, began)

        was_read = False

        def read(size: int) -> None:
            nonlocal standing, was_read
            if was_read:
                raise Malformed("it was read twice")
            was_read, standing = True, patience.begun(self._patience, size, clock())
            limit.reschedule(standing.deadline)

        def advance(steps: int) -> None:
            nonlocal standing
            standing = patience.advanced(self._patience, standing, steps, clock())
            limit.reschedule(standing.deadline)

        try:
            async with asyncio.timeout_at(standing.deadline) as limit:
                found = await worker.read_document(job, self._limit, self._longest, read, advance)
            keep = True
        except TimeoutError as error:
            if not was_read:  # a disk or a share that does not answer says nothing about the document
                raise Unstable(f"its disk did not give it within {clock() - began:.0f} s") from error
            raise Broken(
                f"reading it took more than {clock() - began:.0f} s; if it is only large, raise extract.timeout"
            ) from error
        except ExtractionError:
            keep = True
            raise
        except MemoryError as error:
            raise _WorkerLost(_too_large(self._memory_limit)) from error
        except Malformed as error:
            raise _WorkerLost(Broken(f"its reader answered nonsense ({error})")) from error
        except (EOFError, OSError) as error:
            self._refuse_if_closed()
            code = await worker.exit_code()
            raise _WorkerLost(classify_exit(code, kind, bytes(worker.tail), self._memory_limit)) from error
        finally:
            worker.documents += 1
            if keep and not self._closed and worker.documents < self._documents_per_worker:
                self._idle.append(worker)
            else:
                await self._discard(worker)
        return found

    def _held(self, no_network: tuple[str, ...]) -> None:
        if no_network == self.no_network:
            return
        self.no_network = no_network
        if no_network == (confinement.AUDIT,):
            log.warning("only Python code is kept from the network in extraction workers; native code is not")
        else:
            log.info("extraction workers have no network", held_by=list(no_network))

    async def _discard(self, worker: _Worker) -> None:
        self._alive.discard(worker)
        await worker.end()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise UsageError("the extraction pool is closed; nothing more is read")


class _WorkerLost(Exception):
    """The worker is gone; `error` is what to say if it is the document's doing."""

    def __init__(self, error: ExtractionError) -> None:
        self.error = error
        super().__init__(error.reason)


class _Worker:
    """One child process and its pipes. `documents` counts those given to it, `tail` is the end of what it printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.documents = 0
        self.tail = bytearray()
        self._jobs = process.stdin
        self._replies = process.stdout
        self._reading = asyncio.Lock()
        self._draining = asyncio.create_task(self._drain(process.stderr), name=f"extraction-worker-{process.pid}")

    async def read_document(
        self,
        job: Mapping[str, object],
        limit: int,
        longest: int,
        read: Callable[[int], None],
        advance: Callable[[int], None],
    ) -> ExtractedChunks:
        """Calls `read` with how many bytes the file turned out to have, and `advance` with the steps that were done.

        Raises what the extractor raised, MemoryError, Malformed, or EOFError and OSError at the process's end.
        """
        self._jobs.write(protocol.pack(job))
        await self._jobs.drain()
        chunks: list[Chunk] = []
        stretches: list[Stretch] = []
        left = protocol.MAX_REPLY
        while True:
            body = await self._frame()
            left -= len(body)
            if left < 0:
                raise Malformed("an answer without end")
            match message := protocol.unpack(body):
                case {"read": size}:
                    read(protocol.parse_count(size))
                case {"steps": steps}:
                    advance(protocol.parse_count(steps))
                    await asyncio.sleep(0)  # one that does nothing but count holds up nobody else
                case {"chunks": list(described)}:
                    chunks += [protocol.parse_chunk(one, len(chunks) + i, limit) for i, one in enumerate(described)]
                case {"stretch": described}:
                    stretches.append(protocol.parse_stretch(described, len(chunks), longest))
                case {"document": document}:
                    return protocol.parse_document(document, chunks, stretches)
                case {"error": protocol.OUT_OF_MEMORY}:
                    raise MemoryError
                case _:
                    raise protocol.parse_error(message)

    async def hello(self) -> tuple[str, ...]:
        """Wait until it can work; what keeps the network from it.

        Raises ModelError or UsageError if it cannot, Malformed, EOFError at its end.
        """
        match protocol.unpack(await self._frame()):
            case {"ready": True, "no_network": list(held)}:
                return protocol.parse_hold(held)
            case {"unusable": str(reason), "settings": bool(settings)}:
                raise UsageError(reason) if settings else ModelError(reason)
            case _:
                raise Malformed("no greeting")

    async def exit_code(self) -> int | None:
        """How it ended by itself; None where it only fell silent."""
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                await self.process.wait()
                await self._draining
        return self.process.returncode

    async def end(self) -> None:
        """Kill it with its process group unless it is gone, and wait for that."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self._jobs.close()
        try:
            async with asyncio.timeout(KILL_TIMEOUT_S):
                # A pipe is closed once it is read to its end, and the end of the process is told once its pipes are.
                async with self._reading:
                    while await self._replies.read(2**20):
                        pass
                await self._draining
                await self.process.wait()
        except TimeoutError:
            self._draining.cancel()

    async def _frame(self) -> bytes:
        async with self._reading:
            length = protocol.frame_length(await self._replies.readexactly(protocol.LENGTH.size))
            return await self._replies.readexactly(length)

    async def _drain(self, stream: asyncio.StreamReader) -> None:
        while text := await stream.read(2**16):
            self.tail += text
            del self.tail[:-_TAIL]


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """A worker's variables: this package on its path, no GPU, one thread, and none of our secrets."""
    kept = {key: value for key, value in environment.items() if not key.startswith("NIGHTSHIFT_")}
    path = environment.get("PYTHONPATH")
    return {
        **kept,
        **dict.fromkeys(_GPU_VARIABLES, ""),
        **dict.fromkeys(_THREAD_VARIABLES, "1"),
        "PYTHONPATH": f"{_ROOT}{os.pathsep}{path}" if path else str(_ROOT),
    }


def classify_exit(code: int | None, kind: DocumentKind, tail: bytes, memory_limit: int) -> ExtractionError:
    """What the end of a worker says about the document that it had.

    code: as subprocess has it, negative for a signal; None where it fell silent and lived on.
    tail: the end of its standard error.
    """
    library = f"the {kind.value.upper()} library"
    if code is None:
        return Broken(f"{library} broke off on it")
    if -code in _FROM_OUTSIDE:
        name = signal.Signals(-code).name
        return Unstable(f"its reader was ended from outside ({name}); perhaps the machine ran out of memory")
    if any(words in tail for words in _MEMORY_WORDS):
        return _too_large(memory_limit)
    if code < 0:
        guess = "; it may need more memory than it was given" if -code in _GAVE_UP else ""
        return Broken(f"{library} crashed on it (signal {_signal_name(-code)}){guess}")
    return Broken(f"{library} ended its reader (exit code {code})")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _too_large(memory_limit: int) -> Broken:
    return Broken(f"needs more than {memory_limit / 2**30:.1f} GiB of memory")
