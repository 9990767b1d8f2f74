"""A model is meant by any of its names, in one place for all who name models."""

from __future__ import annotations

import pytest

from pipeline.core.errors import UsageError
from pipeline.core.naming import find_named, names_of

MODELS = {
    "mini": names_of("/data/models/all-MiniLM-L6-v2-F16.gguf", "MiniLM L6 H384 Uncased", ["embedder"]),
    "small": names_of("/data/models/intfloat/e5@main/e5-Q8_0.gguf", "E5 small"),
    "half": names_of("/srv/e5-F16.gguf", "E5 small"),
    "folder": names_of("/data/models/BAAI/bge-m3", "bge-m3"),
    "theirs": names_of("", "gpt-oss-120b"),
}


def find(wanted: str) -> str:
    return find_named(wanted, list(MODELS), MODELS.__getitem__, str)


@pytest.mark.parametrize(
    ("wanted", "model"),
    [
        ("all-MiniLM-L6-v2-F16", "mini"),
        ("all-MiniLM-L6-v2-F16.gguf", "mini"),
        ("/data/models/all-MiniLM-L6-v2-F16.gguf", "mini"),
        ("MiniLM L6 H384 Uncased", "mini"),
        ("minilm l6 h384 uncased", "mini"),
        ("embedder", "mini"),
        ("hf:intfloat/e5@main/e5-Q8_0.gguf", "small"),
        ("E5-Q8_0", "small"),
        ("hf:BAAI/bge-m3", "folder"),
        ("bge-m3", "folder"),
        ("gpt-oss-120b", "theirs"),
    ],
)
def test_any_name_of_a_model_means_it(wanted: str, model: str) -> None:
    assert find(wanted) == model


def test_a_name_that_could_mean_two_says_which() -> None:
    with pytest.raises(UsageError, match=r"^E5 small: could be more than one model: small, half$"):
        find("E5 small")


@pytest.mark.parametrize("wanted", ["", "gpt-4", "F16", "hf:e5-F16.gguf"])
def test_a_name_that_means_none_lists_what_is_there(wanted: str) -> None:
    with pytest.raises(UsageError) as raised:
        find(wanted)
    assert str(raised.value) == f"{wanted}: no such model here; there are: mini, small, half, folder, theirs"
