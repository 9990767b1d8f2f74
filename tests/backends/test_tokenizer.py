from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.backends.llama_cpp.tokenizer import GgufTokenizer
from pipeline.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = Path(__file__).parents[2] / "data" / "models" / "all-MiniLM-L6-v2-F16.gguf"
CLS, SEP = 101, 102


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[GgufTokenizer]:
    with GgufTokenizer(MODEL) as tokenizer:
        yield tokenizer


def test_ids_are_those_of_the_model(tokenizer: GgufTokenizer) -> None:
    assert tokenizer.encode("hello world") == [CLS, 7592, 2088, SEP]
    assert tokenizer.encode("") == [CLS, SEP]


def test_limit_is_the_trained_context(tokenizer: GgufTokenizer) -> None:
    assert tokenizer.limit == 512


def test_special_tokens_in_the_text_are_text(tokenizer: GgufTokenizer) -> None:
    ids = tokenizer.encode("[SEP] [CLS]")
    assert ids.count(CLS) == 1
    assert ids.count(SEP) == 1


@pytest.mark.parametrize("text", ["a\0b", "\0", "a\udc00b", "\ud800", "\u0301", "안녕하세요", "日本語", "🏳️‍🌈"])
def test_odd_text_is_encoded(tokenizer: GgufTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids[0] == CLS
    assert ids[-1] == SEP


def test_text_longer_than_the_buffer_is_not_cut(tokenizer: GgufTokenizer) -> None:
    assert len(tokenizer.encode("word " * 50_000)) == 50_002


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a model", b"GGUF\x03\0\0\0" + b"\xff" * 200])
def test_what_is_no_model_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.gguf"):
        GgufTokenizer(path)


def test_a_model_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        GgufTokenizer(tmp_path / "missing.gguf")


def test_a_truncated_model_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(MODEL.read_bytes()[:200_000])
    with pytest.raises(ModelError, match="damaged"):
        GgufTokenizer(path)


def test_a_closed_tokenizer_refuses() -> None:
    tokenizer = GgufTokenizer(MODEL)
    tokenizer.close()
    tokenizer.close()
    with pytest.raises(ValueError, match="closed"):
        tokenizer.encode("text")
