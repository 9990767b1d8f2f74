"""What a model directory says about itself; none of this needs torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.backends.directory import read_directory
from pipeline.backends.models import fingerprint, stamp
from pipeline.core.errors import ModelError

POOLING = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
DENSE = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("0", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"config0": {"hidden_size": 8, "max_position_embeddings": 64}}, (64, 8)),
        (
            {
                "config0": {"hidden_size": 8, "max_position_embeddings": 514},
                "tokenizer_config0": {"model_max_length": 512},
            },
            (512, 8),
        ),
        (
            {
                "config0": {"hidden_size": 8, "max_position_embeddings": 64},
                "tokenizer_config0": {"model_max_length": 10**30},
                "sentence_bert_config0": {"max_seq_length": 32},
                "modules0": [POOLING],
                "1_Pooling__config0": {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True},
            },
            (32, 8),
        ),
        (
            {
                "config0": {"hidden_size": 8, "max_position_embeddings": 64},
                "modules0": [POOLING],
                "1_Pooling__config0": {"embedding_dimension": 8, "pooling_mode": ["cls", "mean"]},
            },
            (64, 16),
        ),
        (
            {
                "config0": {"hidden_size": 8, "max_position_embeddings": 64},
                "modules0": [POOLING, DENSE],
                "1_Pooling__config0": {"word_embedding_dimension": 8},
                "2_Dense__config0": {"in_features": 8, "out_features": 3},
            },
            (64, 3),
        ),
    ],
)
def test_sizes(files: dict[str, object], wanted: tuple[int, int], tmp_path: Path) -> None:
    facts = read_directory(write(tmp_path, **files))
    assert (facts.max_tokens, facts.dimension) == wanted


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no config\.json"),
        ({"config0": {"hidden_size": 8}}, "no embedding model"),
        ({"config0": {"hidden_size": 8, "max_position_embeddings": True}}, "no embedding model"),
        ({"config0": {"hidden_size": 8}, "modules0": [{"type": "custom.Thing", "path": ""}]}, "never run"),
        ({"config0": {"hidden_size": 8}, "modules0": ["x"]}, "never run"),
    ],
)
def test_what_is_no_model_is_explained(files: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read_directory(write(tmp_path, **files))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is damaged"):
        read_directory(tmp_path)


def test_a_directory_is_not_hashed_again_while_nothing_in_it_changed(tmp_path: Path) -> None:
    write(tmp_path, config0={"hidden_size": 8})
    (tmp_path / "2_Dense").mkdir()
    weights = tmp_path / "2_Dense" / "model.safetensors"
    weights.write_bytes(b"one")
    before = fingerprint(tmp_path)
    known = {stamp(tmp_path): "remembered"}
    assert fingerprint(tmp_path, known) == "remembered"
    weights.write_bytes(b"three")
    assert fingerprint(tmp_path, known) not in ("remembered", before)
