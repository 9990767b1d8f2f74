"""What the extraction pool and its workers say to each other: JSON objects, each after its length.

A worker opens hostile files and is not trusted: nothing is unpickled, and whatever is not exactly
as expected is `Malformed`. Knows no processes.

    to a worker     {path, kind, name, sha256}, and {passwords: [...]} where there are any to try
    when it starts  {ready: true, no_network: [how it is held]}
                    or {unusable: a sentence, settings: whether a setting is wrong}
    per document    {read: how many bytes}, once they are in memory;
                    any number of {steps: n}, done since the one before (`pipeline.core.patience`);
                    any number of {chunks: [...]} and then of {stretch: {...}}, then {document: {...}};
                    or {error: a class's name, reason: ...}, and {pages: n} where so many wait for OCR
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.core.documents import Chunk, Recognition
from pipeline.core.errors import Broken, Encrypted, ExtractionError, NoText, Unstable
from pipeline.core.stretches import WHOLE, Span, Stretch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.documents import Extracted

LENGTH = struct.Struct(">I")
MAX_FRAME = 256 * 2**20
"""Bytes; a longer frame is Malformed. A chunk with its tokens is a few kilobytes."""

MAX_REPLY = 2**30
"""Bytes of all the frames about one document."""

CHUNKS_PER_FRAME = 64
"""Few enough that taking a frame apart does not hold up the event loop."""

LONGEST_TEXT = 64 * 2**20
"""Characters of one document; some twenty thousand pages. The text of more would be the pool's memory."""

OUT_OF_MEMORY = "out of memory"
ERRORS: Mapping[str, type[ExtractionError]] = {kind.__name__: kind for kind in (Encrypted, NoText, Broken, Unstable)}


class Malformed(Exception):
    """A worker answered with what is no answer."""


@dataclass(frozen=True, slots=True)
class ExtractedChunks:
    """One document, read and cut.

    page_count: None where the format knows no pages. empty_pages: the numbers of those without
    text. characters: length of the whole text. stretches: what of it is to be computed in one go.
    ocr: what OCR did, where it was needed and asked for.
    """

    title: str | None
    metadata: Mapping[str, str]
    engine: str
    page_count: int | None
    empty_pages: tuple[int, ...]
    characters: int
    chunks: Sequence[Chunk]
    stretches: Sequence[Stretch] = ()
    ocr: Recognition | None = None


def pack(message: Mapping[str, object]) -> bytes:
    """A frame: the length of the JSON in four bytes, big-endian, and the JSON."""
    body = json.dumps(message).encode("ascii")
    return LENGTH.pack(len(body)) + body


def unpack(body: bytes) -> dict[str, Any]:
    """The object in a frame's JSON. Raises Malformed."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed("no JSON") from error
    if not isinstance(message, dict):
        raise Malformed("no object")
    return message


def frame_length(head: bytes) -> int:
    """The length of the frame that begins with these four bytes. Raises Malformed where it is too long."""
    (length,) = LENGTH.unpack(head)
    if length > MAX_FRAME:
        raise Malformed(f"a frame of {length} bytes")
    return int(length)


def describe_chunk(chunk: Chunk) -> dict[str, object]:
    """A chunk as JSON; its ordinal is its place in the reply."""
    return {
        "start": chunk.start,
        "end": chunk.end,
        "text": chunk.text,
        "pages": [chunk.page_first, chunk.page_last],
        "headings": chunk.headings,
        "prefix": chunk.prefix,
        "tokens": base64.b64encode(array("i", chunk.tokens).tobytes()).decode("ascii"),
    }


def describe_stretch(stretch: Stretch) -> dict[str, object]:
    """A stretch as JSON."""
    return {
        "tokens": base64.b64encode(array("i", stretch.tokens).tobytes()).decode("ascii"),
        "spans": [list(span) for span in stretch.spans],
    }


def describe_document(extracted: Extracted) -> dict[str, object]:
    """A document without its text as JSON."""
    pages = extracted.pages
    return {
        "title": extracted.title,
        "metadata": dict(extracted.metadata),
        "engine": extracted.engine,
        "page_count": len(pages) if pages else None,
        "empty_pages": [page.number for page in pages if not extracted.text[page.start : page.end].strip()],
        "characters": len(extracted.text),
        "ocr": None if extracted.ocr is None else _describe_recognition(extracted.ocr),
    }


def _describe_recognition(ocr: Recognition) -> dict[str, object]:
    return {
        "engine": ocr.engine,
        "languages": ocr.languages,
        "pages": list(ocr.pages),
        "confidence": None if ocr.confidence is None else round(ocr.confidence),
        "failed": [[page, reason] for page, reason in ocr.failed.items()],
    }


def describe_error(error: ExtractionError) -> dict[str, object]:
    """For `parse_error`."""
    pages = {"pages": error.pages} if isinstance(error, NoText) and error.pages else {}
    return {"error": type(error).__name__, "reason": error.reason, **pages}


def parse_chunk(message: Any, ordinal: int, limit: int) -> Chunk:
    """What `describe_chunk` described, of `limit` tokens at most. Raises Malformed."""
    try:
        start, end = _number(message["start"]), _number(message["end"])
        text = _text(message["text"])
        page_first, page_last = (None if page is None else _number(page) for page in message["pages"])
        headings = tuple(_text(title) for title in message["headings"])
        prefix = _text(message["prefix"])
        tokens = array("i", base64.b64decode(message["tokens"], validate=True)).tolist()
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise Malformed("no chunk") from error
    if len(text) != end - start or not 0 < len(tokens) <= limit or min(tokens) < 0:
        raise Malformed("a chunk that is not of the size it says")
    return Chunk(ordinal, start, end, text, page_first, page_last, headings, tokens, prefix)


def parse_stretch(message: Any, chunks: int, limit: int) -> Stretch:
    """What `describe_stretch` described, of `limit` tokens at most, with spans of `chunks` chunks. Raises Malformed."""
    try:
        tokens = array("i", base64.b64decode(message["tokens"], validate=True))
        spans = [(int(ordinal), _number(start), _number(end)) for ordinal, start, end in message["spans"]]
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise Malformed("no stretch") from error
    if not 0 < len(tokens) <= limit or min(tokens) < 0:
        raise Malformed("a stretch that is too long or too short")
    if any(not WHOLE <= ordinal < chunks or not start < end <= len(tokens) for ordinal, start, end in spans):
        raise Malformed("a stretch without its chunks")
    return Stretch(tokens, tuple(Span(*span) for span in spans))


def parse_document(message: Any, chunks: Sequence[Chunk], stretches: Sequence[Stretch] = ()) -> ExtractedChunks:
    """What `describe_document` described, with what came before. Raises Malformed."""
    named = [span.ordinal for stretch in stretches for span in stretch.spans]
    if len(named) != len(set(named)):
        raise Malformed("a chunk in two stretches")
    try:
        return ExtractedChunks(
            title=None if message["title"] is None else _text(message["title"]),
            metadata={_text(key): _text(value) for key, value in message["metadata"].items()},
            engine=_text(message["engine"]),
            page_count=None if message["page_count"] is None else _number(message["page_count"]),
            empty_pages=tuple(_number(page) for page in message["empty_pages"]),
            characters=_number(message["characters"]),
            chunks=chunks,
            stretches=stretches,
            ocr=None if message["ocr"] is None else _parse_recognition(message["ocr"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Malformed("no document") from error


def _parse_recognition(message: Any) -> Recognition:
    """Raises KeyError, TypeError or ValueError."""
    return Recognition(
        engine=_text(message["engine"]),
        languages=_text(message["languages"]),
        pages=[_number(page) for page in message["pages"]],
        confidence=None if message["confidence"] is None else _number(message["confidence"]),
        failed={_number(page): _text(reason) for page, reason in message["failed"]},
    )


def parse_count(value: Any) -> int:
    """How many steps were done since the last report, or how many bytes were read. Raises Malformed."""
    try:
        return _number(value)
    except ValueError as error:
        raise Malformed("no number of steps or bytes") from error


def parse_hold(value: Sequence[Any]) -> tuple[str, ...]:
    """What keeps the network from a worker. Raises Malformed."""
    try:
        return tuple(_text(name) for name in value)
    except (TypeError, ValueError) as error:
        raise Malformed("no greeting") from error


def parse_error(message: Mapping[str, Any]) -> ExtractionError:
    """The error that the extractor raised. Raises Malformed."""
    try:
        kind, reason = ERRORS[message["error"]], _text(message["reason"])
        return NoText(reason, _number(message.get("pages", 0))) if kind is NoText else kind(reason)
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed("no error that there is") from error


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"not a count: {value!r}")
    return value


def _text(value: Any) -> str:
    """Text that every database takes: no NUL and no half of a surrogate pair."""
    if type(value) is not str:
        raise TypeError(f"not text: {value!r}")
    if "\0" in value:
        raise ValueError("text with a NUL")
    if not value.isascii():
        value.encode()
    return value
