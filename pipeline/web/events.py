"""Server-sent events as bytes: where whole ones end, and the two that end a stream that failed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

DONE = b"data: [DONE]\n\n"
_ENDS = (b"\n\n", b"\r\n\r\n")


def whole_events(held: bytes | bytearray) -> int:
    """How many of these bytes are whole events; what follows is the beginning of one."""
    return max(place + len(end) if (place := held.rfind(end)) >= 0 else 0 for end in _ENDS)


def says_done(events: bytes) -> bool:
    """Whether whole events end with the one that ends an OpenAI stream."""
    return events.rstrip().endswith(b"data: [DONE]")


def error_events(body: Mapping[str, Any]) -> bytes:
    """The end of a stream that failed: the error in OpenAI's form, then the end."""
    return b"data: " + json.dumps(body).encode() + b"\n\n" + DONE
