"""A sentence-transformers model in memory, and what computes on it: token sequences in, unit vectors out.

Knows no requests, queues or HTTP. The model's own modules are honoured (pooling, dense layers, normalisation);
prompts are none of its business, and code that comes with a model is never run.
"""

from __future__ import annotations

import threading
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from transformers import AttentionInterface, AttentionMaskInterface

from pipeline.backends.directory import read_directory
from pipeline.backends.serving.sequences import Course, EngineError, Tokens
from pipeline.backends.serving.tuned import usable_cores
from pipeline.backends.tokenizer import DirectoryTokenizer
from pipeline.backends.torch_engine import attention
from pipeline.backends.torch_engine.plan import Device, TorchOptions, TorchPlan, plan_engine
from pipeline.core.errors import ModelError
from pipeline.core.vectors import Matrix, normalise

if TYPE_CHECKING:
    from collections.abc import Sequence

_POOLING_MODES = {"mean": "mean", "cls": "cls", "last": "lasttoken"}

_followed: Any = threading.local()
"""`course`: that of the batch which this thread computes. The contexts share one model, and so its hooks."""

AttentionInterface.register(attention.NAME, attention.attend)
AttentionMaskInterface.register(attention.NAME, attention.make_mask)


class Engine:
    """A model and the contexts that compute on it; they share its weights. Each is used by one thread at a time.

    `dimension` of the vectors, `vocabulary` size, and the `plan` that the contexts follow. Raises ModelError.
    """

    def __init__(self, options: TorchOptions) -> None:
        facts = read_directory(options.model)
        self._tokenizer = DirectoryTokenizer(options.model)
        device = find_device()
        self.plan = plan_engine(options, device, longest=facts.max_tokens)
        self.on_gpu = device.on_gpu
        self.name = options.model.absolute().name
        # Of every thread that computes from now on; those of one context wait for each other at every layer.
        torch.set_num_threads(self.plan.threads)
        model = _load(options, self.plan, on_gpu=device.on_gpu)
        self.vocabulary = int(model[0].auto_model.get_input_embeddings().weight.shape[0])
        self.contexts = [Context(model, self.plan, self.vocabulary) for _ in range(self.plan.contexts)]
        self.dimension = self.contexts[0].warm_up()
        if self.dimension != facts.dimension:
            raise ModelError(f"{options.model} gives vectors of {self.dimension} numbers, and says {facts.dimension}")

    def tokenize(self, text: str) -> Tokens:
        """Token ids of `text`, int32 [n], with the special tokens that the model wants around it."""
        return np.array(self._tokenizer.encode(text), dtype=np.int32)


class Context:
    """Computes one batch at a time, on `plan.threads` threads."""

    def __init__(self, model: SentenceTransformer, plan: TorchPlan, vocabulary: int) -> None:
        self._model = model
        self._plan = plan
        self._vocabulary = vocabulary
        self._device = model.device
        self._padding = _padding_token(model)
        self._all_steps = 0

    def embed(self, sequences: Sequence[Tokens], course: Course | None = None) -> tuple[Matrix, npt.NDArray[np.bool_]]:
        """Unit vectors float32 [n, d] of `sequences`, and bool [n]: which of them are finite.

        Each at most `plan.max_tokens`. `course` is told how far they have come. Raises ValueError where one is longer
        or holds ids outside the vocabulary, EngineError where torch fails (too little memory) or nobody wants
        them any more.
        """
        self._check(sequences)
        ids, mask = pad(sequences, self._padding)
        _followed.course = course = course or Course()
        course.all_steps = self._all_steps
        try:
            with torch.inference_mode():
                features = {"input_ids": self._moved(ids), "attention_mask": self._moved(mask)}
                found = self._model(features)["sentence_embedding"].float().cpu().numpy()
        except RuntimeError as error:
            raise EngineError(f"torch could not compute a batch of {ids.shape[0]} x {ids.shape[1]}: {error}") from error
        self._all_steps = course.steps
        finite: npt.NDArray[np.bool_] = np.isfinite(found).min(axis=1)
        vectors = np.where(finite[:, None], found, np.float32(0.0))
        return normalise(vectors), finite

    def warm_up(self) -> int:
        """Compute a small batch and forget it; the dimension of its vectors."""
        tokens = np.full(min(32, self._plan.max_tokens), min(1, self._vocabulary - 1), dtype=np.int32)
        return int(self.embed([tokens, tokens[: max(1, len(tokens) // 2)]])[0].shape[1])

    def _moved(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.pin_memory().to(self._device, non_blocking=True)

    def _check(self, sequences: Sequence[Tokens]) -> None:
        if not sequences:
            raise ValueError("a batch holds at least one sequence")
        for tokens in sequences:
            if not 1 <= len(tokens) <= self._plan.max_tokens:
                raise ValueError(f"a sequence holds 1 to {self._plan.max_tokens} tokens, not {len(tokens)}")
            if int(tokens.min()) < 0 or int(tokens.max()) >= self._vocabulary:
                raise ValueError(f"token ids go from 0 to {self._vocabulary - 1}")


def pad(sequences: Sequence[Tokens], padding: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`sequences` as ids int64 [n, longest], filled up with `padding` at the end, and where they are theirs, 1."""
    lengths = np.array([len(tokens) for tokens in sequences])
    theirs = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(theirs.shape, padding, dtype=np.int64)
    ids[theirs] = np.concatenate(sequences)
    return ids, theirs.astype(np.int64)


def find_device() -> Device:
    """Where torch computes on this host."""
    return Device(
        on_gpu=torch.cuda.is_available(),
        cores=usable_cores(),
        bfloat16=bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()),
    )


def build_name() -> str:
    """What vectors are computed with."""
    return f"torch {torch.__version__}, sentence-transformers {version('sentence-transformers')}"


def _load(options: TorchOptions, plan: TorchPlan, *, on_gpu: bool) -> SentenceTransformer:
    try:
        model = SentenceTransformer(
            str(options.model.absolute()),
            device="cuda" if on_gpu else "cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={
                "dtype": getattr(torch, plan.precision),
                "attn_implementation": "sdpa" if on_gpu else attention.NAME,
            },
        )
    except Exception as error:  # whatever a damaged directory makes the libraries raise
        raise ModelError(f"sentence-transformers cannot load {options.model}: {error}") from error
    if options.pooling:
        _set_pooling(model, options)
    # `dtype` was for the transformer alone, which keeps its tables of rotations in float32: not so the layers after it.
    for module in list(model)[1:]:
        module.to(dtype=getattr(torch, plan.precision))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(_step)
    return model.eval()


def _step(*_: object) -> None:
    course: Course = _followed.course
    course.steps += 1
    if course.unwanted:
        raise EngineError("nobody waits for this batch any more")


def _set_pooling(model: SentenceTransformer, options: TorchOptions) -> None:
    for module in model:
        if type(module).__name__ == "Pooling":
            module.pooling_mode = _POOLING_MODES[options.pooling]
            return
    raise ModelError(f"{options.model} has no pooling that could be set to {options.pooling}")


def _padding_token(model: SentenceTransformer) -> int:
    known: Any = getattr(model.tokenizer, "pad_token_id", None)
    return known if isinstance(known, int) else 0
