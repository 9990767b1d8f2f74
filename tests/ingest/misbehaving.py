"""An extractor for tests: the document says how to misbehave. Runs inside extraction workers."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.documents import Extracted, Heading, Page
from pipeline.core.errors import Broken, Encrypted, NoText, Unstable

if TYPE_CHECKING:
    from pipeline.core.documents import DocumentKind

_served = 0


def obey(data: bytes, kind: DocumentKind, name: str, *, pdf_engine: str = "auto") -> Extracted:
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
        case "hang":
            time.sleep(1000)
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
            os.closerange(3, 100)
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


def _document(text: str) -> Extracted:
    return Extracted(text, engine="misbehaving")


def _write_to_pool(garbage: bytes) -> None:
    for number in range(3, 20):
        with suppress(OSError):
            os.write(number, garbage)
