"""The second engine's vectors: those of sentence-transformers, and of llama.cpp with the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.backends.embedding import EmbeddingBackend
from pipeline.backends.models import ModelFile, resolve
from pipeline.backends.options import EmbeddingOptions
from pipeline.backends.tokenizer import DirectoryTokenizer, open_tokenizer
from tests.conftest import DEFAULT_MODEL
from tests.torch.reference import Reference

TEXTS = [
    "The night shift begins when the last lamp in the office goes out.",
    "Turbidity at the upper reservoir had risen by 3.5 milligrams a litre since the survey of 1998.",
    "ﬁne ligatures, İstanbul, 中文字符, naïve café, e\u0301, emoji 👩‍👩‍👧 and\ttabs\n\nin  between",
    "[CLS] what looks like [SEP] a special token is text [PAD] <s> </s>",
    "x" * 300,
    "a",
    "word " * 240,
]


def cosines(left: object, right: object) -> NDArray[np.float64]:
    a, b = np.asarray(left, np.float64), np.asarray(right, np.float64)
    cosine: NDArray[np.float64] = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return cosine


def test_tokens_are_those_of_the_model_itself(minilm: Path, reference: Reference) -> None:
    tokenizer = DirectoryTokenizer(minilm)
    assert [tokenizer.encode(text) for text in TEXTS] == reference("tokens", minilm, TEXTS)
    assert tokenizer.limit == 256


def test_tokens_are_those_of_the_gguf_of_the_same_model(minilm: Path) -> None:
    ours, theirs = open_tokenizer(minilm), open_tokenizer(DEFAULT_MODEL)
    # A word of more than 100 characters is one unknown token in the one, and pieces in llama.cpp.
    texts = [text for text in TEXTS if max(map(len, text.split())) <= 100]
    assert len(texts) == len(TEXTS) - 1
    assert [list(ours.encode(text)) for text in texts] == [list(theirs.encode(text)) for text in texts]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
async def test_engines_agree_on_one_model(dtype: str, minilm: Path, reference: Reference, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(minilm)
    sequences = [list(tokenizer.encode(text)) for text in TEXTS]
    file = resolve(str(DEFAULT_MODEL), tmp_path)
    async with EmbeddingBackend(EmbeddingOptions(str(DEFAULT_MODEL)), file, tmp_path) as backend:
        by_llama = await backend.embed(sequences)
    by_torch = reference("engine", minilm, dtype, sequences)
    assert cosines(by_torch, by_llama).min() > 0.999
    least = 0.999999 if dtype == "float32" else 0.999
    assert cosines(by_torch, reference("vectors", minilm, sequences)).min() > least


@pytest.mark.parametrize("kind", ["bert", "llama", "wide"])
def test_the_models_own_modules_are_honoured(kind: str, reference: Reference, tmp_path: Path) -> None:
    reference("make", kind, tmp_path)
    random = np.random.default_rng(1)
    sequences = [random.integers(2, 100, size=length).tolist() for length in (1, 48, 17, 33, 2)]
    folder = tmp_path / "model"
    ours, theirs = reference("engine", folder, "float32", sequences), reference("vectors", folder, sequences)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert np.asarray(ours).shape == (5, {"bert": 24, "llama": 64, "wide": 128}[kind])


def test_pooling_can_be_set(reference: Reference, tmp_path: Path) -> None:
    reference("make", "wide", tmp_path)
    of = {
        pooling: reference("engine", tmp_path / "model", "float32", [[5, 9, 30, 7]], pooling)
        for pooling in ("", "mean", "cls", "last")
    }
    assert cosines(of[""], of["mean"])[0] > 0.999999
    assert max(cosines(of[one], of[other])[0] for one, other in (("cls", "last"), ("cls", "mean"))) < 0.99


def test_the_fingerprints_of_the_two_forms_differ(directory: ModelFile, tmp_path: Path) -> None:
    assert directory.kind == "directory"
    assert directory.fingerprint != resolve(str(DEFAULT_MODEL), tmp_path).fingerprint
