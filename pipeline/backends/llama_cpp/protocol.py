"""What `/v1/embeddings` takes and gives, in OpenAI's form, as pure functions.

Source: the API reference of OpenAI's "Create embeddings" and its error object.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.core.errors import NightshiftError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.backends.serving.sequences import Tokens
    from pipeline.core.vectors import Matrix

MAX_INPUTS = 2048
"""As OpenAI's own service."""

RAW = "application/octet-stream"
"""Accepted by a client that takes an answer as little-endian float32, which costs next to nothing to write and read."""

EncodingFormat = Literal["float", "base64"]


class ApiError(NightshiftError):
    """A request that is answered with an error object. `status` is the HTTP status."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        self.status = status
        self.param = param
        self.code = code
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the loaded model allows.

    max_tokens: of one input among others. matryoshka: its vectors may be cut short and normalised again.
    longest: tokens of a text that is computed by itself; 0 where that is no more than `max_tokens`.
    """

    dimension: int
    max_tokens: int
    vocabulary: int
    matryoshka: bool
    longest: int = 0


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A request that has been checked. `dimensions` is that of the answer's vectors."""

    sequences: Sequence[Tokens]
    encoding_format: EncodingFormat
    dimensions: int

    @property
    def tokens(self) -> int:
        """Of all inputs together."""
        return sum(len(tokens) for tokens in self.sequences)


@dataclass(frozen=True, slots=True)
class SpanRequest(EmbeddingRequest):
    """A request for the vectors of spans: for each sequence, from where to before where in its tokens."""

    spans: Sequence[Sequence[tuple[int, int]]]


def inflate(body: bytes, limit: int) -> bytes:
    """`body` without its gzip wrapping. Raises ApiError: not gzip (400), or larger than `limit` bytes (413)."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise ApiError(400, f"the body is not gzip: {error}") from error
    if len(text) > limit:
        raise ApiError(413, f"the body unpacks to more than {limit} bytes", code="request_too_large")
    if not unpacker.eof or unpacker.unused_data:
        raise ApiError(400, "the body is not one whole gzip member")
    return text


def parse_request(payload: object, limits: Limits, tokenize: Callable[[str], Tokens]) -> EmbeddingRequest:
    """Check a decoded JSON body and bring its inputs into tokens. Raises ApiError (400)."""
    if not isinstance(payload, dict):
        raise ApiError(400, "the body must be a JSON object")
    encoding = payload.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise ApiError(400, "encoding_format must be float or base64", param="encoding_format")
    dimensions = _dimensions(payload.get("dimensions"), limits)
    if not isinstance(payload.get("model", ""), str):
        raise ApiError(400, "model must be a string", param="model")
    inputs, single = _inputs(payload.get("input"))
    sequences = []
    for index, item in enumerate(inputs):
        where = "input" if single else f"input[{index}]"
        sequences.append(_sequence(item, where, limits, tokenize))
    return EmbeddingRequest(sequences, encoding, dimensions)


def parse_span_request(payload: object, limits: Limits) -> SpanRequest:
    """Check a request for spans of token sequences: `input` as for embeddings, `spans` a list for each of its items.

    Raises ApiError (400).
    """

    def only_tokens(_: str) -> Tokens:
        raise ApiError(400, "input must hold lists of token ids: where else would the spans be", param="input")

    asked = parse_request(payload, limits, only_tokens)
    given = payload.get("spans") if isinstance(payload, dict) else None
    if not isinstance(given, list) or len(given) != len(asked.sequences):
        raise ApiError(400, "spans must hold a list of spans for each input", param="spans")
    spans = [
        _spans(item, len(tokens), index)
        for index, (item, tokens) in enumerate(zip(given, asked.sequences, strict=True))
    ]
    return SpanRequest(asked.sequences, asked.encoding_format, asked.dimensions, spans)


def _spans(item: object, length: int, index: int) -> list[tuple[int, int]]:
    if not isinstance(item, list) or not item:
        raise ApiError(400, f"spans[{index}] must be a list of [start, end]", param=f"spans[{index}]")
    spans = []
    for span in item:
        match span:
            case [int(start), int(end)] if 0 <= start < end <= length:
                spans.append((start, end))
            case _:
                raise ApiError(
                    400, f"spans[{index}] holds no part of {length} tokens: {span!r:.80}", param=f"spans[{index}]"
                )
    return spans


def parse_text(payload: object) -> str:
    """The text in a decoded body of `/tokenize`, as llama-server takes it. Raises ApiError (400)."""
    text = payload.get("content") if isinstance(payload, dict) else None
    if not isinstance(text, str):
        raise ApiError(400, "content must be a string", param="content")
    return text


def _dimensions(asked: object, limits: Limits) -> int:
    if asked is None:
        return limits.dimension
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
        raise ApiError(400, "dimensions must be a positive integer", param="dimensions")
    if asked > limits.dimension or (asked != limits.dimension and not limits.matryoshka):
        why = "" if limits.matryoshka else ", and this model is not known to allow shorter ones"
        raise ApiError(
            400, f"dimensions is {asked}, but the model's vectors have {limits.dimension}{why}", param="dimensions"
        )
    return asked


def _inputs(given: object) -> tuple[Sequence[object], bool]:
    """The inputs, and whether there is only one that stands for itself."""
    if isinstance(given, str):
        return [given], True
    if not isinstance(given, list):
        raise ApiError(400, "input must be a string, a list of strings, or lists of token ids", param="input")
    if not given:
        raise ApiError(400, "input is an empty list", param="input")
    if isinstance(given[0], int):
        return [given], True
    if len(given) > MAX_INPUTS:
        raise ApiError(400, f"input holds {len(given)} items; at most {MAX_INPUTS} are allowed", param="input")
    if not isinstance(given[0], (str, list)) or any(type(item) is not type(given[0]) for item in given):
        raise ApiError(400, "input must hold strings only, or lists of token ids only", param="input")
    return given, False


def _sequence(item: object, where: str, limits: Limits, tokenize: Callable[[str], Tokens]) -> Tokens:
    if not item:
        raise ApiError(400, f"{where} is empty", param=where)
    if isinstance(item, str):
        tokens = tokenize(item)
        if len(tokens) == 0:
            raise ApiError(400, f"{where} has no tokens", param=where)
    elif isinstance(item, list) and all(type(token) is int for token in item):
        if min(item) < 0 or max(item) >= limits.vocabulary:
            raise ApiError(400, f"{where} holds a token id outside 0 to {limits.vocabulary - 1}", param=where)
        tokens = np.array(item, dtype=np.int32)
    else:
        raise ApiError(400, f"{where} must hold token ids, which are integers", param=where)
    most = max(limits.max_tokens, limits.longest)
    if len(tokens) > most:
        raise ApiError(
            400,
            f"{where} has {len(tokens)} tokens, {len(tokens) - most} more than the {most} that the model takes",
            param=where,
            code="context_length_exceeded",
        )
    return tokens


def encode_answer(vectors: Matrix, tokens: int, model: str, encoding_format: EncodingFormat) -> dict[str, Any]:
    """The answer's JSON object for `vectors` float32 [n, d]."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": vector.tolist()
            if encoding_format == "float"
            else base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii"),
        }
        for index, vector in enumerate(vectors)
    ]
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
