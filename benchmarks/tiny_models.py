"""Writes small GGUF models with random weights, for what the default model cannot show."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def tiny_llama(folder: Path, *, context: int = 4096) -> Path:
    """A language model of half a megabyte that generates nonsense, with a chat template; made in milliseconds."""
    path = folder / "tiny-llama.gguf"
    write_decoder(path, pooling=None, context=context, chat_template=CHATML)
    return path


def write_decoder(
    path: Path,
    *,
    pooling: gguf.PoolingType | None = gguf.PoolingType.LAST,
    context: int = 128,
    chat_template: str | None = None,
) -> None:
    """A Llama of two layers with 64 numbers a vector, and an SPM vocabulary of bytes and a few words."""
    width, inner, heads, layers = 64, 128, 4, 2
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁night", "▁shift", "▁"]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * 3
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny decoder")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    random = np.random.default_rng(7)

    def weight(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.1, shape).astype(np.float32))

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(width, dtype=np.float32))

    weight("token_embd.weight", len(tokens), width)
    weight("output.weight", len(tokens), width)
    ones("output_norm.weight")
    for layer in range(layers):
        ones(f"blk.{layer}.attn_norm.weight")
        ones(f"blk.{layer}.ffn_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weight(f"blk.{layer}.{part}.weight", width, width)
        weight(f"blk.{layer}.ffn_gate.weight", inner, width)
        weight(f"blk.{layer}.ffn_up.weight", inner, width)
        weight(f"blk.{layer}.ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def with_number(model: Path, key: str, number: int, target: Path) -> Path:
    """A copy of `model` at `target` whose 32-bit metadata value `key` is `number`."""
    data = bytearray(model.read_bytes())
    at = data.index(key.encode()) + len(key) + 4
    data[at : at + 4] = struct.pack("<I", number)
    target.write_bytes(data)
    return target
