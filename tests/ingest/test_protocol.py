from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.documents import Chunk, Extracted, Page, Recognition
from pipeline.core.errors import NoText, Unstable
from pipeline.ingest.protocol import (
    LENGTH,
    MAX_FRAME,
    Malformed,
    describe_chunk,
    describe_document,
    describe_error,
    frame_length,
    pack,
    parse_chunk,
    parse_count,
    parse_document,
    parse_error,
    parse_hold,
    unpack,
)

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
pages = st.none() | st.integers(1, 5000)


@given(
    text=texts,
    start=st.integers(0, 10**6),
    page=pages,
    headings=st.lists(texts, max_size=3).map(tuple),
    tokens=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=64),
)
def test_a_chunk_arrives_as_it_was_sent(
    text: str, start: int, page: int | None, headings: tuple[str, ...], tokens: list[int]
) -> None:
    chunk = Chunk(3, start, start + len(text), text, page, page, headings, tokens, "".join(headings))
    assert parse_chunk(json.loads(json.dumps(describe_chunk(chunk))), 3, 64) == chunk


def test_a_document_arrives_as_it_was_sent() -> None:
    extracted = Extracted("ab\n \ncd", [Page(1, 0, 2), Page(2, 3, 4), Page(3, 5, 7)], (), "T", {"a": "b"}, "e")
    found = parse_document(json.loads(json.dumps(describe_document(extracted))), [])
    assert (found.title, found.metadata, found.engine) == ("T", {"a": "b"}, "e")
    assert (found.page_count, found.empty_pages, found.characters) == (3, (2,), 7)
    assert parse_document(describe_document(Extracted("x")), []).page_count is None


@pytest.mark.parametrize(
    "ocr",
    [
        None,
        Recognition("tesseract 5", "eng", []),
        Recognition("tesseract 5", "deu+eng", [1, 3], 93.0, {2: "it took more than 60 s"}),
    ],
)
def test_what_ocr_did_arrives_as_it_was_sent(ocr: Recognition | None) -> None:
    extracted = Extracted("ab", [Page(1, 0, 2)], ocr=ocr)
    assert parse_document(json.loads(json.dumps(describe_document(extracted))), []).ocr == ocr


@pytest.mark.parametrize(
    "change",
    [
        {"pages": ["1"]},
        {"pages": None},
        {"confidence": -1},
        {"confidence": 1.5},
        {"engine": None},
        {"languages": "\0"},
        {"failed": [[1]]},
        {"failed": [[1, 2]]},
        {"failed": [["1", "x"]]},
        {"failed": {"1": "x"}},
    ],
)
def test_what_says_no_such_thing_of_ocr_is_malformed(change: dict[str, Any]) -> None:
    document = describe_document(Extracted("ab", ocr=Recognition("e", "eng", [1], 90.0, {2: "x"})))
    assert isinstance(document["ocr"], dict)
    with pytest.raises(Malformed):
        parse_document(document | {"ocr": document["ocr"] | change}, [])


GOOD = describe_chunk(Chunk(0, 0, 3, "abc", None, None, (), [1, 2]))


@pytest.mark.parametrize(
    "change",
    [
        {"start": -1},
        {"start": 1},
        {"start": True},
        {"end": 10**12},
        {"end": "3"},
        {"text": "a\0c"},
        {"text": "a\ud800c"},
        {"text": None},
        {"pages": [1]},
        {"pages": [1, "x"]},
        {"headings": [1]},
        {"headings": None},
        {"tokens": ""},
        {"tokens": "AAA"},
        {"tokens": "AAAA"},
        {"tokens": "/////w=="},
        {"tokens": "A" * 400},
        {"tokens": 7},
    ],
)
def test_what_is_no_chunk_is_malformed(change: dict[str, Any]) -> None:
    assert parse_chunk(GOOD, 0, 64).tokens == [1, 2]
    with pytest.raises(Malformed):
        parse_chunk(GOOD | change, 0, 64)


@pytest.mark.parametrize("message", [None, 7, [], "x", {}])
def test_anything_else_is_malformed(message: Any) -> None:
    with pytest.raises(Malformed):
        parse_chunk(message, 0, 64)
    with pytest.raises(Malformed):
        parse_document(message, [])


def test_errors() -> None:
    assert isinstance(parse_error({"error": "Unstable", "reason": "later"}), Unstable)
    scanned = parse_error(describe_error(NoText("it needs OCR", 7)))
    assert isinstance(scanned, NoText)
    assert (scanned.reason, scanned.pages) == ("it needs OCR", 7)
    for message in (
        {"error": "NoText", "reason": "x", "pages": -1},
        {"error": "SystemExit", "reason": "x"},
        {"error": ["x"], "reason": "x"},
        {"reason": "x"},
    ):
        with pytest.raises(Malformed):
            parse_error(message)


def test_frames() -> None:
    frame = pack({"a": "é\ud800"})
    assert frame_length(frame[: LENGTH.size]) == len(frame) - LENGTH.size
    assert unpack(frame[LENGTH.size :]) == {"a": "é\ud800"}
    with pytest.raises(Malformed):
        frame_length(LENGTH.pack(MAX_FRAME + 1))
    for body in (b"", b"[1]", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(Malformed):
            unpack(body)


def test_steps_are_counted() -> None:
    assert parse_count(0) == 0
    assert parse_count(2**31 - 1) == 2**31 - 1
    wrongs: list[object] = [-1, 2**31, 1.0, True, "1", None, []]
    for wrong in wrongs:
        with pytest.raises(Malformed):
            parse_count(wrong)


def test_what_holds_the_network_is_words() -> None:
    assert parse_hold(["seccomp", "audit"]) == ("seccomp", "audit")
    wrongs: list[list[object]] = [[1], [None], ["a\0"], [["audit"]]]
    for wrong in wrongs:
        with pytest.raises(Malformed):
            parse_hold(wrong)
