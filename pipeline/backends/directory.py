"""What a Hugging Face model directory says about itself, read from its JSON files: no weights, no torch.

Source: the files that sentence-transformers and transformers write beside the weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

_UNLIMITED = 10**9
"""transformers writes 10**30 where a tokenizer knows no limit."""


@dataclass(frozen=True, slots=True)
class DirectoryFacts:
    """max_tokens: of one input, special tokens included. dimension: of a vector. lower_case: text is lowered first."""

    max_tokens: int
    dimension: int
    lower_case: bool


def read_directory(path: Path) -> DirectoryFacts:
    """Raises ModelError where the directory does not say how long its input and its vectors are."""
    config = _load(path / "config.json")
    if not config:
        raise ModelError(f"{path} holds no config.json: it is no Hugging Face model")
    wrapped = _load(path / "sentence_bert_config.json")
    modules = _modules(path)
    longest, dimension = _longest(path, config, wrapped), _dimension(path, config, modules)
    if longest is None or dimension is None:
        raise ModelError(f"{path} does not say how long its input and its vectors are: it is no embedding model")
    return DirectoryFacts(longest, dimension, wrapped.get("do_lower_case") is True)


def _longest(path: Path, config: dict[str, Any], wrapped: dict[str, Any]) -> int | None:
    """As sentence-transformers finds it: what it was told, else the least of what model and tokenizer say."""
    tokenizer = _load(path / "tokenizer_config.json").get("model_max_length")
    limits = [_number(wrapped.get("max_seq_length"))]
    if limits[0] is None:
        limits = [_number(config.get("max_position_embeddings")), _number(tokenizer)]
    known = [limit for limit in limits if limit is not None and limit < _UNLIMITED]
    return min(known) if known else None


def _dimension(path: Path, config: dict[str, Any], modules: list[tuple[str, str]]) -> int | None:
    """Of the last module that changes it: a dense layer, the pooling, or the model itself."""
    for kind, folder in reversed(modules):
        told = _load(path / folder / "config.json") if folder else {}
        if kind == "Dense" and (size := _number(told.get("out_features"))):
            return size
        if kind == "Pooling" and (
            size := _number(told.get("embedding_dimension", told.get("word_embedding_dimension")))
        ):
            return size * max(1, _pooling_modes(told))
    return _number(config.get("hidden_size")) or _number(config.get("dim")) or _number(config.get("d_model"))


def _pooling_modes(told: dict[str, Any]) -> int:
    mode = told.get("pooling_mode")
    if isinstance(mode, list):
        return len(mode)
    return 1 if mode else sum(told.get(name) is True for name in told if name.startswith("pooling_mode_"))


def _modules(path: Path) -> list[tuple[str, str]]:
    """(the last part of its class's name, its folder) of each module; empty for a plain model."""
    listed = _load_any(path / "modules.json")
    if not isinstance(listed, list):
        return []
    found = []
    for module in listed:
        told = module if isinstance(module, dict) else {}
        kind, folder = str(told.get("type", "")), str(told.get("path", ""))
        if not kind.startswith(("sentence_transformers.", "torch.nn.")):
            raise ModelError(f"{path} wants {kind}, which is code of its own: that is never run")
        found.append((kind.rpartition(".")[2], folder))
    return found


def _load(path: Path) -> dict[str, Any]:
    told = _load_any(path)
    return told if isinstance(told, dict) else {}


def _load_any(path: Path) -> object:
    try:
        told: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {error}; download the model again") from error
    return told


def _number(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None
