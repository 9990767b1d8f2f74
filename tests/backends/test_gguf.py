from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.tiny_models import write_decoder
from pipeline.backends.gguf import read_header
from pipeline.core.errors import ModelError
from tests.backends.conftest import MODEL


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


ARCHITECTURE = entry("general.architecture", 8, string("bert"))


def header(*entries: bytes, version: int = 3, tensors: int = 0, count: int | None = None) -> bytes:
    claimed = len(entries) if count is None else count
    return b"GGUF" + struct.pack("<IQQ", version, tensors, claimed) + b"".join(entries)


def read(tmp_path: Path, data: bytes) -> object:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return read_header(path)


def test_the_default_model() -> None:
    found = read_header(MODEL)
    assert (found.architecture, found.name) == ("bert", "MiniLM L6 H384 Uncased")
    assert (found.context_length, found.embedding_length, found.pooling) == (512, 384, "mean")
    assert (found.file_type, found.tensors, found.parts) == (1, 101, 1)


def test_a_model_that_another_writer_made(tmp_path: Path) -> None:
    write_decoder(tmp_path / "tiny.gguf")
    found = read_header(tmp_path / "tiny.gguf")
    assert (found.architecture, found.name, found.pooling) == ("llama", "tiny decoder", "last")
    assert (found.context_length, found.embedding_length) == (128, 64)


def test_what_is_missing_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(header(ARCHITECTURE, entry("bert.context_length", 8, string("many"))))
    found = read_header(path)
    assert (found.name, found.context_length, found.pooling, found.file_type) == (None, None, None, None)


@pytest.mark.parametrize("cut", [1, 100, 10_000_000, 46_000_000])
def test_a_file_that_is_cut_short_says_so(tmp_path: Path, cut: int) -> None:
    with pytest.raises(ModelError, match="cut short"):
        read(tmp_path, MODEL.read_bytes()[:-cut])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no GGUF model"),
        (b"PK\3\4" + bytes(100), "no GGUF model"),
        (b"GGUF", "cut short"),
        (header(ARCHITECTURE, version=1), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "little-endian"),
        (header(), "names no architecture"),
        (header(count=2**60), "claims"),
        (header(tensors=2**60), "claims"),
        (header(ARCHITECTURE, count=9), "cut short"),
        (header(struct.pack("<Q", 2**63)), "claims"),
        (header(entry("a", 99, b"")), "unknown type 99"),
        (header(entry("a", 8, struct.pack("<Q", 2**40))), "claims"),
        (header(entry("a", 9, struct.pack("<IQ", 4, 2**50))), "claims"),
        (header(entry("a", 9, struct.pack("<IQ", 10, 5))), "cut short"),
        (header(entry("a", 9, struct.pack("<IQ", 8, 1) + struct.pack("<Q", 2**62))), "cut short"),
        (header(entry("a", 9, struct.pack("<IQ", 9, 1) * 50)), "unknown type 9"),
        (header(entry("a", 9, struct.pack("<IQ", 77, 3) + bytes(9))), "unknown type 77"),
        (header(ARCHITECTURE, tensors=1), "cut short"),
        (header(ARCHITECTURE, tensors=1) + string("t") + struct.pack("<I", 5000), "claims"),
        (header(ARCHITECTURE, tensors=1) + string("t") + struct.pack("<IQIQ", 1, 2**60, 0, 0), "cut short"),
    ],
)
def test_what_is_no_model_is_a_clear_error(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(tmp_path, data)


@settings(max_examples=150, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 1 << 16))
def test_no_bytes_do_any_harm(tmp_path: Path, noise: bytes, at: int) -> None:
    start = _start()
    place = at % len(start)
    data = start[:place] + noise + start[place + len(noise) :]
    with contextlib.suppress(ModelError):
        read(tmp_path, data)


def _start() -> bytes:
    with MODEL.open("rb") as file:
        return file.read(5000)


def test_no_file_and_a_folder_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model at"):
        read_header(tmp_path / "nothing.gguf")
    with pytest.raises(ModelError, match="cannot be read"):
        read_header(tmp_path)
