"""The options of a model server, by slot. None means: chosen for the host and the model at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FlashAttention = Literal["on", "off", "auto"]
Pooling = Literal["", "mean", "cls", "last"]
Dtype = Literal["auto", "half", "float16", "bfloat16", "float", "float32"]


@dataclass(frozen=True, slots=True)
class Tuned:
    """Options that were measured to be the fastest on a device, with one build of an engine.

    device, build: as the engine's server names them. measured_at: ISO 8601, for people.
    """

    device: str
    build: str
    options: Mapping[str, Any]
    measured_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """What vLLM alone understands; the other servers pass over it.

    gpu_memory_utilization: share of the GPU's memory that it takes, 0 to 1.
    tensor_parallel_size: GPUs that one model is spread over.
    max_model_len: tokens of context; None is what the model allows.
    max_num_seqs: requests computed side by side.
    quantization: awq, gptq, fp8 or another of its methods; empty is what the model says.
    dtype: of the weights in memory.
    enable_prefix_caching: keep what a prompt begins with for the next one.
    """

    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    max_num_seqs: int = 256
    quantization: str = ""
    dtype: Dtype = "auto"
    enable_prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class EmbeddingOptions(VllmOptions):
    """What an operator may set for the embedding model.

    model: a GGUF path, a Hugging Face model directory, or `hf:OWNER/REPO/FILE`.
    n_gpu_layers: layers on the GPU; negative for all, 0 for none.
    threads: of each context.
    n_batch: tokens packed into one batch.
    n_ubatch: capacity of a batch in tokens, and so the longest input.
    contexts: batches computed side by side over the one loaded model.
    flash_attn: None is on for a CPU and auto for a GPU.
    pooling: how token vectors become one; empty is the model's own.
    document_tokens: of the longest text that is computed by itself; None is by the model and the device.
    mlock: keep the weights from being swapped out.
    use_extra_bufts: let the CPU backend repack weights for its matrix instructions.
    n_ctx: tokens of context of llama-server; None is what the model allows.
    fit_memory: let llama-server lower what was not asked for until the model fits into memory.
    tuned: what was measured for this model; our own servers take the one for their device and build, for
        whatever is None here.
    """

    model: str
    n_gpu_layers: int | None = None
    threads: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    contexts: int | None = None
    flash_attn: FlashAttention | None = None
    pooling: Pooling = ""
    mlock: bool = False
    use_extra_bufts: bool = True
    n_ctx: int | None = None
    fit_memory: bool = False
    document_tokens: int | None = field(default=None, kw_only=True)
    tuned: tuple[Tuned, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions(VllmOptions):
    """What an operator may set for the language model.

    n_ctx: tokens of context of one request. n_gpu_layers: layers on the GPU; negative for all, 0
    for none. n_batch: prompt tokens handed over at once. n_ubatch: prompt tokens computed at once.
    flash_attn: None is off on an AMD GPU, where it has crashed, and auto elsewhere.
    cont_batching: let requests join while others are computed. mlock: keep the weights from being
    swapped out. fit_memory: let llama-server lower what was not asked for until the model fits into
    memory. jinja: use the model's own chat template. pooling: as for embedding; for requests to
    `/v1/embeddings` of a language model. threads: None is one for each core. use_extra_bufts: let
    the CPU backend repack weights for its matrix instructions. max_model_len: vLLM's name for `n_ctx`.

    The sampling defaults hold for requests that do not say: temperature, top_p, repeat_penalty,
    and max_tokens of an answer.
    """

    n_ctx: int = 4096
    n_gpu_layers: int = -1
    n_batch: int = 2048
    n_ubatch: int = 2048
    flash_attn: FlashAttention | None = None
    cont_batching: bool = True
    mlock: bool = False
    fit_memory: bool = False
    jinja: bool = True
    pooling: Pooling = ""
    threads: int | None = None
    use_extra_bufts: bool = True
    max_model_len: int | None = 4096
    temperature: float = 0.7
    top_p: float = 0.9
    max_tokens: int = 2048
    repeat_penalty: float = 1.1
