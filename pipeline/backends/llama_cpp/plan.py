"""Decides the numbers of an engine from the options, the host and the model. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.backends.options import FlashAttention, Pooling
from pipeline.core.batching import plan_ubatch
from pipeline.core.errors import ModelError

MAX_DEFAULT_INPUT = 8192
"""Compute buffers grow with the longest input, and documents are cut into far smaller pieces."""

MAX_DEFAULT_CONTEXTS = 8
"""Each context has compute buffers of its own; what cores are left become threads of each."""

CPU_BATCH = 384
"""Tokens. MiniLM F16, contexts of one thread: 384 is 1.03 to 1.06 times as fast as 512, 1.12 times as 1024."""

GPU_BATCH = 1024
"""Tokens. A BERT-large encoder on one H200: 1024 is 1.7 times as fast as 4096, 4.8 times as 16384."""

GPU_CONTEXTS = 8
"""Side by side on a GPU, at most. One context of 1024 tokens reaches 6 % of the arithmetic limit of a BERT-large
encoder on one H200, since the processor prepares each batch (its attention mask) and starts each kernel: the GPU
idles meanwhile, and other contexts can fill the gaps. Not measured yet on a GPU: `tune` does that.
"""

GPU_MASK_TOKENS = 2048
"""Up to this capacity all `GPU_CONTEXTS` are made. Buffers of a context grow with the square of its capacity, 16
heads of 2048 x 2048 scores are 256 MiB, and together they stay below what that many take.
"""

CPU_SEQUENCES = 16
GPU_SEQUENCES = 64


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options of one engine; None is automatic. See `pipeline.backends.options`."""

    model: Path
    n_gpu_layers: int | None = None
    threads: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    contexts: int | None = None
    n_seq_max: int | None = None
    flash_attn: FlashAttention | None = None
    pooling: Pooling = ""
    mlock: bool = False
    use_extra_bufts: bool = True


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What every context is made with.

    n_batch: packing budget in tokens. n_ubatch: capacity in tokens, a multiple of `n_seq_max`.
    max_tokens: longest single input. threads: of each context.
    """

    contexts: int
    threads: int
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    max_tokens: int
    flash_attn: FlashAttention


def plan_engine(
    options: EngineOptions, *, n_ctx_train: int, causal: bool, max_sequences: int, cores: int, on_gpu: bool
) -> EnginePlan:
    """The numbers for a model trained on `n_ctx_train` tokens, on `cores` CPU cores or a GPU.

    `causal` models are decoders. `max_sequences` is the native library's own limit. Raises
    ModelError where the options contradict each other.
    """
    for name in ("threads", "n_batch", "n_ubatch", "contexts", "n_seq_max"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise ModelError(f"{name} must be at least 1, not {number}")
    n_batch = options.n_batch or (GPU_BATCH if on_gpu else CPU_BATCH)
    if options.n_ubatch is not None and options.n_batch is not None and options.n_ubatch < options.n_batch:
        raise ModelError(
            f"n_ubatch ({options.n_ubatch}) is smaller than n_batch ({options.n_batch}):"
            " an encoder needs a whole batch at once, so raise n_ubatch or lower n_batch"
        )
    n_batch = min(n_batch, options.n_ubatch or n_batch)
    longest = min(n_ctx_train, options.n_ubatch or MAX_DEFAULT_INPUT)
    n_seq_max = min(options.n_seq_max or (GPU_SEQUENCES if on_gpu else CPU_SEQUENCES), max_sequences, n_batch)
    n_ubatch = plan_ubatch(n_batch, longest, n_seq_max)
    contexts = options.contexts or default_contexts(cores, causal=causal, on_gpu=on_gpu, capacity=n_ubatch)
    return EnginePlan(
        contexts=contexts,
        threads=options.threads or max(1, cores // contexts),
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        n_seq_max=n_seq_max,
        max_tokens=longest,
        flash_attn=options.flash_attn or ("auto" if on_gpu else "on"),
    )


def default_contexts(cores: int, *, causal: bool, on_gpu: bool, capacity: int) -> int:
    """How many batches of up to `capacity` tokens are computed side by side.

    On a GPU several, each small, with a core of the processor for each: see `GPU_CONTEXTS` and `GPU_MASK_TOKENS`.

    On a CPU one thread to a context: threads of one context wait for each other at every layer,
    which costs 1.04 on free cores and 1.25 where another process takes some of one (MiniLM F16,
    two cores). A decoder's context holds a KV cache of its own, so there it is one.
    """
    if causal:
        return 1
    if on_gpu:
        in_memory = GPU_CONTEXTS * GPU_MASK_TOKENS**2 // max(capacity, GPU_MASK_TOKENS) ** 2
        return max(1, min(cores, in_memory))
    return max(1, min(cores, MAX_DEFAULT_CONTEXTS))


def load_mode_name(*, mlock: bool) -> Literal["MMAP_MLOCK", "AUTO"]:
    """How the weights are read: pinned where asked for, otherwise as the library thinks best."""
    return "MMAP_MLOCK" if mlock else "AUTO"
