"""Decides the numbers of the engine from the options, the host and the model. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pipeline.backends.options import Dtype, Pooling
from pipeline.core.errors import ModelError

Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]

MAX_DEFAULT_CONTEXTS = 8
"""What cores are left become threads of each."""

CPU_BATCH = 1024
"""Tokens, padding counted. MiniLM in bfloat16, one thread: 4 chunks of 230 tokens are 1.05 times as fast as 1."""

GPU_BATCH = 65_536
"""Tokens, padding counted. An encoder on one H200: batches of 16,000 tokens reach 0.83, of 65,000 0.87 of the rate
of 260,000, which needs four times the memory."""

CPU_SEQUENCES = 256
GPU_SEQUENCES = 4096

_NAMES: dict[Dtype, Precision] = {
    "half": "float16",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float": "float32",
    "float32": "float32",
}


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """The options of one engine; None is automatic. See `pipeline.backends.options`."""

    model: Path
    threads: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    contexts: int | None = None
    pooling: Pooling = ""
    dtype: Dtype = "auto"


@dataclass(frozen=True, slots=True)
class Device:
    """Where it computes. bfloat16: whether there are instructions for it."""

    on_gpu: bool
    cores: int
    bfloat16: bool


@dataclass(frozen=True, slots=True)
class TorchPlan:
    """What the engine works with.

    n_batch: tokens of a batch, padding counted. n_seq_max: sequences of a batch. max_tokens: longest single input.
    """

    contexts: int
    threads: int
    n_batch: int
    n_seq_max: int
    max_tokens: int
    precision: Precision


def plan_engine(options: TorchOptions, device: Device, *, longest: int) -> TorchPlan:
    """The numbers for a model that takes `longest` tokens.

    On a CPU one thread to a context, since threads that share a batch wait for each other at every layer. On a
    GPU one context, whose batches are large. Raises ModelError for a number that cannot be.
    """
    for name in ("threads", "n_batch", "n_ubatch", "contexts"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise ModelError(f"{name} must be at least 1, not {number}")
    contexts = options.contexts or (1 if device.on_gpu else max(1, min(device.cores, MAX_DEFAULT_CONTEXTS)))
    return TorchPlan(
        contexts=contexts,
        threads=options.threads or max(1, device.cores // contexts),
        n_batch=options.n_batch or (GPU_BATCH if device.on_gpu else CPU_BATCH),
        n_seq_max=GPU_SEQUENCES if device.on_gpu else CPU_SEQUENCES,
        max_tokens=min(longest, options.n_ubatch or longest),
        precision=choose_precision(options.dtype, device),
    )


def choose_precision(asked: Dtype, device: Device) -> Precision:
    """The numbers of weights and activations: the ones asked for, or half of them where the device is fast with it.

    A processor without instructions for bfloat16 computes it slower than float32.
    """
    if asked != "auto":
        return _NAMES[asked]
    if device.on_gpu:
        return "float16"
    return "bfloat16" if device.bfloat16 else "float32"
