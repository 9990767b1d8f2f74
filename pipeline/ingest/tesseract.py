"""Tesseract, as a program: whether it is there, and one page at a time through its pipes.

It is started by an extraction worker for each page, with one thread, within the worker's limit on memory and without
a network (both are inherited), is killed with all that it started when a page takes too long, and dies with the worker.
Pictures and text go through pipes, so that no kill leaves a file behind. Knows no PDF and no settings.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.backends.leash import NOT_FOUND, leashed
from pipeline.core.errors import NotRecognised, Unstable, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_OLDEST = 4
_ANSWER_S = 30.0
_KILL_S = 5.0
_LONGEST_ANSWER = 32 * 2**20
"""Bytes. A page of small print is a few hundred kilobytes."""

_LONGEST_COMPLAINT = 4096
_PIECE = 2**16
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ORIENTATION = "osd"
_ALL_AND_ORIENTATION, _ALL = "1", "3"  # Tesseract's page segmentation modes


@dataclass(frozen=True, slots=True)
class Ocr:
    """How pages are to be read.

    program: its path. engine: its name and version. languages: as Tesseract names them, with `+` between them.
    dpi: how finely pages are drawn. timeout_s: seconds for a page. turns: whether it can tell which way up a page is.
    """

    program: str
    engine: str
    languages: str
    dpi: int
    timeout_s: float
    turns: bool


def find_tesseract(languages: str, *, dpi: int, timeout_s: float) -> Ocr:
    """The program on the PATH, asked what it is. Raises UsageError that says what to install."""
    program = shutil.which("tesseract")
    if program is None:
        raise UsageError("OCR needs Tesseract, which is not installed (Debian: apt install tesseract-ocr)")
    match = re.match(r"tesseract v?((\d+)[\w.-]*)", _answer(program, "--version"))
    if match is None:
        raise UsageError(f"{program} does not answer as Tesseract does")
    if int(match[2]) < _OLDEST:
        raise UsageError(f"OCR needs Tesseract {_OLDEST} or newer, and {program} is {match[1]}")
    # Below a line of words, one language each.
    known = {line.strip() for line in _answer(program, "--list-langs").splitlines()[1:]}
    missing = [language for language in languages.split("+") if language not in known]
    if missing:
        there = ", ".join(sorted(known - {_ORIENTATION})) or "none"
        packages = " ".join(f"tesseract-ocr-{name.lower().replace('_', '-').replace('/', '-')}" for name in missing)
        raise UsageError(
            f"Tesseract does not have {' and '.join(missing)} (Debian: apt install {packages}); it has: {there}"
        )
    return Ocr(program, f"tesseract {match[1]}", languages, dpi, timeout_s, turns=_ORIENTATION in known)


def _answer(program: str, question: str) -> str:
    """What it prints; where depends on its version. Raises UsageError."""
    try:
        done = subprocess.run(
            [program, question], stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWER_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = "did not answer" if isinstance(error, subprocess.TimeoutExpired) else error.strerror
        raise UsageError(f"Tesseract cannot be used: {program}: {why}") from error
    return (done.stdout or done.stderr).decode(errors="replace")


class Tesseract:
    """A `Recogniser`. `step` is called once for each `step_s` seconds that a page takes."""

    def __init__(self, ocr: Ocr, step: Callable[[int], None], step_s: float) -> None:
        self.engine = ocr.engine
        self.languages = ocr.languages
        self.dpi = ocr.dpi
        self._timeout_s = ocr.timeout_s
        self._step = step
        self._step_s = step_s
        self._program = ocr.program
        self._mode = _ALL_AND_ORIENTATION if ocr.turns else _ALL

    def __call__(self, image: bytes, dpi: int) -> str:
        """Its table of what is on the picture. Raises NotRecognised, and Unstable where the page is not at fault."""
        command = [
            *(self._program, "stdin", "stdout", "-l", self.languages),
            *("--dpi", str(max(dpi, 70)), "--psm", self._mode, "tsv"),
        ]
        try:
            process = subprocess.Popen(
                leashed(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,
                env={**os.environ, "OMP_THREAD_LIMIT": "1"},
            )
        except OSError as error:
            raise Unstable(f"Tesseract, for OCR, could not be started: {error.strerror or error}") from error
        try:
            return _judged(*self._talk(process, image))
        finally:
            _kill(process)

    def _talk(self, process: subprocess.Popen[bytes], image: bytes) -> tuple[int, bytes, bytes]:
        """How it ended, and what it wrote on standard output and standard error. Raises NotRecognised."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        answer, complaint = bytearray(), bytearray()
        left = memoryview(image)
        began = time.monotonic()
        deadline, next_step = began + self._timeout_s, began + self._step_s
        with selectors.DefaultSelector() as pipes:
            for pipe in (process.stdin, process.stdout, process.stderr):
                os.set_blocking(pipe.fileno(), False)
            pipes.register(process.stdin, selectors.EVENT_WRITE)
            pipes.register(process.stdout, selectors.EVENT_READ, answer)
            pipes.register(process.stderr, selectors.EVENT_READ, complaint)
            # It may end before it has read the whole picture, so its standard input is not waited for.
            while process.stdout in (open_pipes := _registered(pipes)) or process.stderr in open_pipes:
                for key, _ in pipes.select(max(0.0, min(next_step, deadline) - time.monotonic())):
                    if key.fileobj is process.stdin:
                        left = _written(process.stdin.fileno(), left)
                        if not left:
                            pipes.unregister(process.stdin)
                            process.stdin.close()
                    elif piece := os.read(key.fd, _PIECE):
                        key.data.extend(piece)
                    else:
                        pipes.unregister(key.fileobj)
                del complaint[:-_LONGEST_COMPLAINT]
                if len(answer) > _LONGEST_ANSWER:
                    raise NotRecognised("Tesseract's answer has no end")
                now = time.monotonic()
                if now >= deadline:
                    raise NotRecognised(f"it took more than {self._timeout_s:g} s; raise extract.ocr_timeout")
                while now >= next_step:
                    self._step(1)
                    next_step += self._step_s
        try:
            code = process.wait(_KILL_S)
        except subprocess.TimeoutExpired as error:
            raise NotRecognised("Tesseract did not end") from error
        return code, bytes(answer), bytes(complaint)


def _registered(pipes: selectors.BaseSelector) -> Sequence[object]:
    return [key.fileobj for key in pipes.get_map().values()]


def _written(descriptor: int, left: memoryview) -> memoryview:
    """What is left to be written; nothing where the other end is gone."""
    try:
        return left[os.write(descriptor, left[: 16 * _PIECE]) :]
    except BlockingIOError:
        return left
    except BrokenPipeError:
        return left[:0]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill it with all that it started, unless it has ended, and wait for that; its pipes are closed."""
    if process.returncode is None:  # not waited for yet: its number is still its own
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    with suppress(subprocess.TimeoutExpired):  # one that is stuck in the kernel is left to it
        process.wait(_KILL_S)


def _judged(code: int, answer: bytes, complaint: bytes) -> str:
    if code == 0:
        if not answer.startswith(b"level\t"):
            raise NotRecognised("Tesseract's answer is no table")
        return answer.decode(errors="replace")
    if -code in _FROM_OUTSIDE:
        name = signal.Signals(-code).name
        raise Unstable(f"Tesseract, for OCR, was ended from outside ({name}); perhaps the machine ran out of memory")
    last = complaint.decode(errors="replace").strip().rpartition("\n")[2][:200].replace("\0", "")
    if code == NOT_FOUND:
        raise Unstable(f"Tesseract, for OCR, could not be started: {last}")
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    raise NotRecognised(f"Tesseract failed ({ended}){': ' if last else ''}{last}")
