"""An extractor for tests: the document says how to misbehave. Runs inside extraction workers."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.documents import Extracted, Heading, Page
from pipeline.core.errors import Broken, Encrypted, NoText, Unstable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.core.documents import DocumentKind

_served = 0


def obey(
    data: bytes, kind: DocumentKind, name: str, *, pdf_engine: str = "auto", step: Callable[[int], None]
) -> Extracted:
    global _served
    _served += 1
    word, _, rest = data.decode().partition(" ")
    match word:
        case "text":
            return _document(rest)
        case "report":
            variables = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NIGHTSHIFT_API_KEY")
            facts = [os.getpid(), os.getsid(0), os.nice(0), kind.value, name, pdf_engine]
            return _document(" ".join(map(str, [*facts, *(os.environ.get(key, "unset") for key in variables)])))
        case "marked":  # each time that it is opened, a line more stands there
            with Path(rest).open("a") as marks:
                marks.write("opened\n")
            raise Broken("as told")
        case "hang":
            time.sleep(1000)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "block":  # in native code that never looks at the interpreter again
            ctypes.PyDLL(None).pause()
        case "connect":
            return _document(_attempts(rest))
        case "leaf":  # pages that take a while each, and in the end one that never ends
            pages, seconds, ending = rest.split()
            for _ in range(int(pages)):
                time.sleep(float(seconds))
                step(1)
            if ending == "hang":
                time.sleep(1000)
            return _document(rest)
        case "boast":  # more pages than there can be
            while True:
                time.sleep(0.01)
                step(2**20)
        case "flood":
            while True:
                _write_to_pool(b'\0\0\0\x0c{"steps": 1}' * 1000)
        case "spin":  # one call that never lets go of the interpreter
            re.match(r"(a+)+$", "a" * 60 + "b")
        case "orphan":
            with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) as child:
                Path(rest).write_text(str(child.pid))
                time.sleep(1000)
        case "segfault":
            ctypes.string_at(0)
        case "segfault-if-used":
            if _served > 1:
                ctypes.string_at(0)
            return _document("Fine in a new process.")
        case "abort":
            os.abort()
        case "out-of-memory":
            hoard = []
            while True:
                hoard.append(bytearray(32 * 2**20))
        case "native-out-of-memory":
            os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
            os.abort()
        case "exit":
            os._exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "noise":
            sys.stdout.write("noise on standard output")
            sys.stdout.flush()
            os.write(1, b"\0\0\0\x02{}" * 10)
            os.write(2, b"x" * 1_000_000)
            return _document(rest)
        case "garbage":
            _write_to_pool(rest.encode())
            time.sleep(1000)
        case "silence":
            for number in range(3, 100):  # but not the end that jobs come from, which would end the process
                with suppress(OSError):
                    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                        os.close(number)
            time.sleep(1000)
        case "pages":
            return Extracted(
                "Title\n\nOne here.\n\nTwo here.",
                pages=[Page(1, 0, 16), Page(2, 18, 18), Page(3, 18, 27)],
                headings=[Heading(0, 1, "Title")],
                title="A title",
                metadata={"author": "Somebody \U0001f642"},
                engine="misbehaving",
            )
        case "unstorable":
            return _document("a\0b\ud800c")
        case "raise":
            raise {"Broken": Broken, "Encrypted": Encrypted, "NoText": NoText, "Unstable": Unstable}[rest]("as told")
        case "bug":
            raise KeyError("a bug")
        case _:
            raise ValueError(word)
    raise AssertionError("it did not misbehave")


def _attempts(address: str) -> str:
    """What comes of trying to reach 127.0.0.1 at a port, and a Unix socket, in three ways each."""
    port, _, path = address.partition(" ")
    results = []
    for family, target in ((socket.AF_INET, ("127.0.0.1", int(port))), (socket.AF_UNIX, path)):
        try:
            with socket.socket(family) as client:
                client.connect(target)
            results.append("python: through")
        except OSError as error:
            results.append(f"python: {type(error).__name__}")
        # Past Python: the C library, and a program of its own, which knows nothing of this one's hooks.
        library = ctypes.CDLL(None, use_errno=True)
        made = library.socket(int(family), int(socket.SOCK_STREAM), 0)
        results.append("native: through" if made >= 0 else f"native: {errno.errorcode[ctypes.get_errno()]}")
        program = f"import socket; socket.socket({int(family)}).connect({target!r})"
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
        results.append("program: through" if ended.returncode == 0 else "program: refused")
    return ", ".join(results)


def _document(text: str) -> Extracted:
    return Extracted(text, engine="misbehaving")


def _write_to_pool(garbage: bytes) -> None:
    for number in range(3, 20):
        with suppress(OSError):
            os.write(number, garbage)
