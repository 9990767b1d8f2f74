"""Encoders of any shape with random weights: as GGUF for llama.cpp, and the same weights as a folder for torch.

Speed does not depend on what the weights are. The tokenizer is that of the default model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

VOCABULARY = Path(__file__).parents[1] / "data" / "models" / "all-MiniLM-L6-v2-F16.gguf"
POSITIONS = 512
_LAYER = (
    ("attn_q", "attention.self.query"),
    ("attn_k", "attention.self.key"),
    ("attn_v", "attention.self.value"),
    ("attn_output", "attention.output.dense"),
    ("ffn_up", "intermediate.dense"),
    ("ffn_down", "output.dense"),
)
_NORMS = (("attn_output_norm", "attention.output.LayerNorm"), ("layer_output_norm", "output.LayerNorm"))


@dataclass(frozen=True, slots=True)
class Shape:
    """A BERT: `width` numbers for each token through `layers` layers, whose inner width is `inner`."""

    name: str
    layers: int
    width: int
    heads: int
    inner: int

    @property
    def flops_per_token(self) -> float:
        """Of the matrix products with the weights; attention itself is left out, as it is little for short chunks."""
        return 2.0 * self.layers * (4 * self.width**2 + 2 * self.width * self.inner)


BERT_LARGE = Shape("BERT-large", 24, 1024, 16, 4096)
MINILM = Shape("MiniLM", 6, 384, 12, 1536)
TINY = Shape("tiny", 2, 64, 4, 128)


class Weights:
    """Random matrices, the same for every format; a pool of numbers is repeated, because good ones take minutes."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.tokens = _tokens()
        self._pool = (np.random.default_rng(0).standard_normal(1 << 20) * 0.02).astype(np.float16)

    def matrix(self, number: int, rows: int, columns: int) -> npt.NDArray[np.float16]:
        """float16 [rows, columns], another one for each `number`."""
        repeated: npt.NDArray[np.float16] = np.resize(np.roll(self._pool, 7919 * number), (rows, columns))
        return repeated

    def layer(self, index: int) -> Iterator[tuple[str, str, npt.NDArray[np.float16]]]:
        """(name in GGUF, name in torch, weights) of each matrix of a layer."""
        width, inner = self.shape.width, self.shape.inner
        for number, (ours, theirs) in enumerate(_LAYER):
            rows, columns = {"ffn_up": (inner, width), "ffn_down": (width, inner)}.get(ours, (width, width))
            yield ours, theirs, self.matrix(10 + 10 * index + number, rows, columns)


def write_gguf(weights: Weights, path: Path) -> None:
    """The encoder as a GGUF in F16."""
    shape, writer = weights.shape, gguf.GGUFWriter(path, "bert")
    _copy_tokenizer(writer)
    writer.add_name(f"random {shape.name}")
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_context_length(POSITIONS)
    writer.add_vocab_size(len(weights.tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_layer_norm_eps(1e-12)
    writer.add_tensor("token_embd.weight", weights.matrix(0, len(weights.tokens), shape.width))
    writer.add_tensor("position_embd.weight", weights.matrix(1, POSITIONS, shape.width).astype(np.float32))
    writer.add_tensor("token_types.weight", weights.matrix(2, 2, shape.width).astype(np.float32))
    _gguf_norm(writer, "token_embd_norm", shape.width)
    for index in range(shape.layers):
        for name, _, matrix in weights.layer(index):
            writer.add_tensor(f"blk.{index}.{name}.weight", matrix)
            writer.add_tensor(f"blk.{index}.{name}.bias", np.zeros(len(matrix), np.float32))
        for name, _ in _NORMS:
            _gguf_norm(writer, f"blk.{index}.{name}", shape.width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_folder(weights: Weights, folder: Path) -> None:
    """The encoder as sentence-transformers reads it; needs torch."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    shape = weights.shape
    config = BertConfig(
        vocab_size=len(weights.tokens),
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
        max_position_embeddings=POSITIONS,
    )
    model = BertModel(config, add_pooling_layer=False)
    state: dict[str, Any] = {
        "embeddings.word_embeddings.weight": weights.matrix(0, len(weights.tokens), shape.width),
        "embeddings.position_embeddings.weight": weights.matrix(1, POSITIONS, shape.width),
        "embeddings.token_type_embeddings.weight": weights.matrix(2, 2, shape.width),
        "embeddings.LayerNorm.weight": np.ones(shape.width),
        "embeddings.LayerNorm.bias": np.zeros(shape.width),
    }
    for index in range(shape.layers):
        for _, name, matrix in weights.layer(index):
            state[f"encoder.layer.{index}.{name}.weight"] = matrix
            state[f"encoder.layer.{index}.{name}.bias"] = np.zeros(len(matrix))
        for _, name in _NORMS:
            state[f"encoder.layer.{index}.{name}.weight"] = np.ones(shape.width)
            state[f"encoder.layer.{index}.{name}.bias"] = np.zeros(shape.width)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array, np.float32)) for name, array in state.items()}
    missing = model.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys, missing
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(_word_pieces(weights.tokens)) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=POSITIONS).save_pretrained(folder)
    pooling = {"word_embedding_dimension": shape.width, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": POSITIONS, "do_lower_case": False}))
    modules = [("", "models.Transformer"), ("1_Pooling", "models.Pooling")]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.{kind}"}
        for number, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))


def words(weights: Weights) -> dict[int, str]:
    """Token ids that are whole plain words, so that a text of them has as many tokens as words."""
    return {
        number: token[1:]
        for number, token in enumerate(weights.tokens)
        if token.startswith("▁") and token[1:].isascii() and token[1:].isalpha() and token[1:].islower()
    }


def _tokens() -> list[str]:
    field = gguf.GGUFReader(VOCABULARY).fields["tokenizer.ggml.tokens"]
    return [str(token) for token in field.contents()]


def _word_pieces(tokens: list[str]) -> list[str]:
    """As BERT writes them: GGUF marks the beginning of a word, BERT what is not one."""
    return [
        token[1:] if token.startswith("▁") else token if token.startswith("[") and len(token) > 1 else f"##{token}"
        for token in tokens
    ]


def _copy_tokenizer(writer: gguf.GGUFWriter) -> None:
    for name, field in gguf.GGUFReader(VOCABULARY).fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)


def _gguf_norm(writer: gguf.GGUFWriter, name: str, width: int) -> None:
    writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.add_tensor(f"{name}.bias", np.zeros(width, np.float32))
