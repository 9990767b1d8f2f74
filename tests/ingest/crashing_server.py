"""The real embedding server, but that some token ids kill it or make it answer wrongly.

    python -m tests.ingest.crashing_server [the server's own arguments]

A sequence that holds DEADLY dies of SIGSEGV, as native code does; one that holds NOT_FINITE gives
a vector that is not finite; the first request with ONCE dies, and the file named by
NIGHTSHIFT_TEST_ONCE says that it did.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from pipeline.backends.llama_cpp import __main__ as server
from pipeline.backends.llama_cpp.engine import Context

DEADLY, NOT_FINITE, ONCE = 5001, 5002, 5003
ONCE_VARIABLE = "TEST_DIED_ONCE"

real_embed = Context.embed


def embed(self: Context, sequences: Any, course: Any = None) -> Any:
    vectors, finite = real_embed(self, sequences, course)
    for row, tokens in enumerate(sequences):
        if DEADLY in tokens:
            os.kill(os.getpid(), signal.SIGSEGV)
        if NOT_FINITE in tokens:
            finite[row] = False
        if ONCE in tokens and not Path(os.environ[ONCE_VARIABLE]).exists():
            Path(os.environ[ONCE_VARIABLE]).touch()
            os.kill(os.getpid(), signal.SIGSEGV)
    return vectors, finite


if __name__ == "__main__":
    Context.embed = embed  # type: ignore[method-assign]
    sys.exit(server.main())
