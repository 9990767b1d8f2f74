"""What sentence-transformers itself makes of token sequences, texts and models, in a process of its own.

Run by the fixture `reference` as `python -m tests.torch.reference`: a question is a line of JSON, and so is its answer.
So the tests' own process stays free of torch, which warns when it is imported, and torch is imported once.

    ["vectors", DIRECTORY, token lists]         in float32, each sequence by itself
    ["tokens", DIRECTORY, texts]                by the tokenizer of the loaded model
    ["engine", DIRECTORY, DTYPE, token lists, POOLING]   by our engine, all in one batch; the last may be missing
    ["make", KIND, DIRECTORY]                   writes a small model with random weights
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]


class Reference:
    """The process, as the tests see it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.torch.reference"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, what: str, *arguments: object) -> Any:
        """The answer to a question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(
            json.dumps([what, *(str(one) if isinstance(one, Path) else one for one in arguments)])
        )
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the reference process ended with {self._process.wait()}"
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _load(directory: str) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(directory, device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})


def vectors(directory: str, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Each sequence by itself, so that there is no padding."""
    import torch

    model = _load(directory).eval()
    found = []
    with torch.inference_mode():
        for tokens in sequences:
            ids = torch.tensor([tokens])
            vector = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["sentence_embedding"][0]
            found.append((vector / vector.norm()).tolist())
    return found


def tokens(directory: str, texts: Sequence[str]) -> list[list[int]]:
    """By the tokenizer of the loaded model, with nothing cut off."""
    tokenizer = _load(directory).tokenizer
    return [tokenizer(text, truncation=False, split_special_tokens=True)["input_ids"] for text in texts]


def engine(directory: str, dtype: str, sequences: Sequence[Sequence[int]], pooling: str = "") -> list[list[float]]:
    """All sequences in one batch of our engine, so that there is padding."""
    from pipeline.backends.torch_engine.engine import Engine
    from pipeline.backends.torch_engine.plan import TorchOptions

    made = Engine(TorchOptions(Path(directory), dtype=dtype, contexts=1, pooling=pooling))  # type: ignore[arg-type]
    found, finite = made.contexts[0].embed([np.array(one, dtype=np.int32) for one in sequences])
    assert finite.all()
    rows: list[list[float]] = found.tolist()
    return rows


def make(kind: str, directory: str) -> None:
    """bert: [CLS] pooling and a dense layer. llama: a decoder, pooled by its last token. wide: heads of 64 numbers."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *(f"w{i}" for i in range(98))])}
    plain = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="[UNK]", pad_token="[PAD]", model_max_length=48
    )
    base = Path(directory) / "base"
    if kind == "llama":
        config: Any = LlamaConfig(
            vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64,
        )  # fmt: skip
        LlamaModel(config).save_pretrained(base)
    else:
        size = 128 if kind == "wide" else 64
        config = BertConfig(
            vocab_size=100, hidden_size=size, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64,
        )  # fmt: skip
        BertModel(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    transformer = Transformer(str(base))
    pooling = Pooling(transformer.get_embedding_dimension(), {"llama": "lasttoken", "bert": "cls"}.get(kind, "mean"))
    modules = [transformer, pooling, *([Dense(64, 24)] if kind == "bert" else []), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(Path(directory) / "model"))


def main() -> None:
    """Answer questions until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print too
    kinds: dict[str, Callable[..., object]] = {"vectors": vectors, "tokens": tokens, "engine": engine, "make": make}
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        answers.write(json.dumps(kinds[what](*arguments)) + "\n")


if __name__ == "__main__":
    main()
