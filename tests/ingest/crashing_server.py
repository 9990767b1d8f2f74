"""The real embedding server, but that some token ids kill it or make it answer wrongly.

    python -m tests.ingest.crashing_server [the server's own arguments]

A sequence that holds DEADLY dies of SIGSEGV, as native code does; one that holds NOT_FINITE gives
a vector that is not finite; the first request with ONCE dies, and the file named by
NIGHTSHIFT_TEST_ONCE says that it did. One with SLOW takes SLOW_SECONDS, in which the engine comes on step by step;
one with STUCK never ends, and nothing is computed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.backends.llama_cpp import __main__ as server
from pipeline.backends.llama_cpp.engine import Context

DEADLY, NOT_FINITE, ONCE, SLOW, STUCK = 5001, 5002, 5003, 5004, 5005
SLOW_SECONDS = 4.0
ONCE_VARIABLE = "TEST_DIED_ONCE"

real_embed = Context.embed


def embed(self: Context, sequences: Any, course: Any = None) -> Any:
    if course is not None and any(SLOW in tokens for tokens in sequences):
        course.all_steps = 1000
        for _ in range(20):
            time.sleep(SLOW_SECONDS / 20)
            course.steps += 1
    if any(STUCK in tokens for tokens in sequences):
        time.sleep(600)
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
