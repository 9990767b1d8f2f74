"""Where whole events end."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.web.events import error_events, says_done, whole_events
from pipeline.web.relay import renamed


@pytest.mark.parametrize(
    ("held", "whole"),
    [
        (b"", 0),
        (b"data: 1", 0),
        (b"data: 1\n", 0),
        (b"data: 1\n\n", 9),
        (b"data: 1\n\ndata", 9),
        (b"data: 1\r\n\r\nda", 11),
        (b"data: 1\r\n\r", 0),
        (b"a\n\nb\r\n\r\nc", 8),
        (b"a\r\n\r\nb\n\nc", 8),
    ],
)
def test_whole_events(held: bytes, whole: int) -> None:
    assert whole_events(held) == whole


@given(st.lists(st.sampled_from([b"data: x\n\n", b": ping\r\n\r\n", b"a", b"\n", b"\r", b"\r\n"])), st.integers(1, 5))
def test_nothing_is_lost_or_added_however_the_bytes_are_cut(pieces: list[bytes], size: int) -> None:
    stream = b"".join(pieces)
    held, passed = b"", b""
    for start in range(0, len(stream), size):
        held += stream[start : start + size]
        whole = whole_events(held)
        passed += held[:whole]
        assert passed == b"" or passed.endswith((b"\n\n", b"\r\n\r\n"))
        held = held[whole:]
    assert passed + held == stream


def test_the_end_of_a_stream_is_noticed() -> None:
    assert says_done(b"data: 1\n\ndata: [DONE]\n\n")
    assert says_done(b"data: [DONE]\r\n\r\n")
    assert not says_done(b'data: {"text": "data: [DONE] "}\n\n')


def test_an_error_is_an_event_and_the_end_another() -> None:
    error, end, rest = error_events({"error": {"message": "a\nb"}}).split(b"\n\n")
    assert json.loads(error.removeprefix(b"data: ")) == {"error": {"message": "a\nb"}}
    assert (end, rest) == (b"data: [DONE]", b"")


def test_only_an_object_has_a_model() -> None:
    assert json.loads(renamed(b'{"model": "a", "x": 1}', "b")) == {"model": "b", "x": 1}
    assert json.loads(renamed(b"{}", "b")) == {"model": "b"}
    assert renamed(b"[1]", "b") == b"[1]"
    assert renamed(b"[" * 100_000, "b") == b"[" * 100_000
