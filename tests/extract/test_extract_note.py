"""Texts that were handed in as such."""

from __future__ import annotations

import json

import pytest

from pipeline.core.documents import DocumentKind
from pipeline.core.errors import Broken, NoText
from pipeline.ingest.extract import extract


def read(note: object) -> object:
    return extract(json.dumps(note).encode(), DocumentKind.TEXT, "x.text")


def test_the_text_and_what_its_sender_said_about_it_are_kept() -> None:
    found = extract(
        json.dumps({"text": "Es war Nacht.\n\n밤이었다.", "metadata": {"title": "Night", "page": 3}}).encode(),
        DocumentKind.TEXT,
        "x.text",
    )
    assert (found.text, found.title) == ("Es war Nacht.\n\n밤이었다.", "Night")
    assert found.metadata == {"title": "Night", "page": "3"}


def test_what_no_encoding_can_hold_is_replaced() -> None:
    found = extract(b'{"text": "a\\ud800b\\u0000c"}', DocumentKind.TEXT, "x.text")
    found.text.encode("utf-8")
    assert (found.text[0], found.text[-2:]) == ("a", "bc")


@pytest.mark.parametrize(
    "note", [[], "text", 5, {}, {"text": None}, {"text": ["a"]}, {"text": "a", "metadata": "b"}, {"text": " \n"}]
)
def test_what_is_no_text_says_so(note: object) -> None:
    with pytest.raises((Broken, NoText)):
        read(note)


def test_bytes_that_are_no_json_are_broken() -> None:
    with pytest.raises(Broken, match=r"a \.text file is a JSON object"):
        extract(b"\xff\xfe not json", DocumentKind.TEXT, "x.text")
