"""Keeps what torch frees for the next batch.

glibc gives large blocks back to the system as soon as they are freed, and each one costs its page faults again:
a tenth to an eighth of the time of a small encoder on a processor.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGEST_THRESHOLD = 32 * 2**20
"""The most that glibc takes on 64 bits (mallopt(3)); beyond it a block is the system's business."""


def keep_freed_memory() -> bool:
    """For the whole process, before it starts threads; whether the C library knows how."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    wanted = ((_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    return all(mallopt(name, value) == 1 for name, value in wanted)
