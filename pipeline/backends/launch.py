"""Which program serves a model, and its command line: a table from options to flags. Pure.

Source: `llama-server --help` of the llama.cpp that llama-cpp-python 0.3.36 vendors. vLLM's flags are those of
`vllm serve` as far as known, and were not tried against it. A key is never on a command line, which every user of the
host may read.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, assert_never

from pipeline.backends.options import EmbeddingOptions, GenerationOptions
from pipeline.backends.serving.tuned import to_argument
from pipeline.core.errors import ModelError
from pipeline.core.modes import Device, Slot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.backends.models import ModelFile

BackendKind: TypeAlias = Literal["llama-cpp", "sentence-transformers", "llama-server", "vllm", "remote"]
Gpu: TypeAlias = Literal["nvidia", "amd"] | None
Options: TypeAlias = GenerationOptions | EmbeddingOptions

API_KEY_VARIABLES: Mapping[BackendKind, str] = {
    "llama-cpp": "NIGHTSHIFT_BACKEND_API_KEY",
    "sentence-transformers": "NIGHTSHIFT_BACKEND_API_KEY",
    "llama-server": "LLAMA_API_KEY",
    "vllm": "VLLM_API_KEY",
}
STALL_SECONDS: Mapping[BackendKind, float] = {
    "llama-cpp": 60.0,
    "sentence-transformers": 120.0,
    "llama-server": 60.0,
    "vllm": 300.0,
    "remote": 30.0,
}
"""Without a sign of life; vLLM is silent while it compiles for the GPU."""

NO_GPU: Mapping[str, str] = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "HIP_VISIBLE_DEVICES": "-1",
    "ROCR_VISIBLE_DEVICES": "-1",
    "GGML_VK_VISIBLE_DEVICES": "",
}
"""A server on the CPU does not see the GPU: with no layer on it, llama.cpp still computes long prompts there."""

EMBEDDING_PARALLEL = 4
"""Requests that llama-server embeds side by side. MiniLM on two cores: as fast as our own server at 4."""


OWN_SERVER = (sys.executable, "-P", "-m", "pipeline.backends.llama_cpp")
TORCH_SERVER = (sys.executable, "-P", "-m", "pipeline.backends.torch_engine")
OWN_KINDS: frozenset[BackendKind] = frozenset({"llama-cpp", "sentence-transformers"})
"""Servers of ours: they watch their parent, can be prepared, and say where they listen."""


@dataclass(frozen=True, slots=True)
class Programs:
    """What is run.

    own: our server for GGUF files. torch: our server for model directories. llama_server: the binary. vllm: the
    command before `serve`.
    """

    own: Sequence[str] = OWN_SERVER
    torch: Sequence[str] = TORCH_SERVER
    llama_server: Path | None = None
    vllm: Sequence[str] = ("vllm",)


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a server.

    env: what is added to the environment. health_url: what answers 200 when it is ready, and
    base_url its address without `/v1`; None where the server chooses its port and says it. leashed:
    whether it would outlive its parent if the kernel did not end it.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    health_url: str | None
    base_url: str | None
    leashed: bool


def choose_backend(
    asked: BackendKind | Literal["auto"],
    *,
    slot: Slot,
    gpu: Gpu,
    model_is_directory: bool,
    llama_server: Path | None,
    vllm: bool,
    sentence_transformers: bool = False,
) -> BackendKind:
    """The kind of server for a model: the one asked for, or by the host, the slot and the model's form.

    llama_server: where the binary is, if it is. vllm, sentence_transformers: whether they are installed.
    Raises ModelError where nothing here serves such a model.
    """
    if asked != "auto":
        return asked
    if model_is_directory and slot is Slot.EMBEDDING:
        if sentence_transformers:
            return "sentence-transformers"
        raise ModelError(
            "a Hugging Face model directory is served by sentence-transformers:"
            " `.venv/bin/pip install -e '.[torch]'`, or give a GGUF file of the model instead"
        )
    if model_is_directory:
        if gpu == "nvidia" and vllm:
            return "vllm"
        raise ModelError(
            "a Hugging Face model directory is served by vLLM, for generation, on an NVIDIA GPU and where vLLM is"
            " installed; give a GGUF file of the model instead"
        )
    if slot is Slot.GENERATION and llama_server is not None:
        return "llama-server"
    return "llama-cpp"


def plan_launch(
    kind: BackendKind,
    slot: Slot,
    device: Device,
    options: Options,
    model: ModelFile,
    *,
    port: int,
    api_key: str,
    gpu: Gpu = None,
    programs: Programs = Programs(),
    wait: bool = False,
) -> Launch:
    """How to start `kind` for a slot, on a device.

    port: on loopback; 0 for a server that chooses. wait: let it stop before it takes the GPU until
    it is told to go on (our own server only). Raises ModelError where the kind cannot serve this model.
    """
    env = {API_KEY_VARIABLES[kind]: api_key} if kind in API_KEY_VARIABLES else {}
    if device is Device.CPU:
        env |= NO_GPU
    match kind:
        case "llama-cpp":
            _require_gguf(kind, model)
            argv = [*programs.own, *own_arguments(slot, device, options, model, gpu)]
            return Launch((*argv, *(["--wait"] if wait else [])), env, None, None, leashed=False)
        case "sentence-transformers":
            argv = [*programs.torch, *torch_arguments(slot, options, model)]
            # A model is what lies on the disk: nothing is asked of the hub, and nothing told to it.
            env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
            return Launch((*argv, *(["--wait"] if wait else [])), env, None, None, leashed=False)
        case "llama-server":
            _require_gguf(kind, model)
            if programs.llama_server is None:
                raise ModelError(
                    f"llama-server was not found: put it on the PATH, or set {slot.value}.backend to llama-cpp"
                )
            argv = [str(programs.llama_server), *llama_server_arguments(slot, device, options, model, gpu)]
        case "vllm":
            if device is Device.CPU:
                raise ModelError(
                    f"vLLM serves on a GPU only; set {slot.value}.backend to llama-cpp or llama-server for the CPU"
                )
            argv = [*programs.vllm, *vllm_arguments(slot, options, model)]
            env["VLLM_NO_USAGE_STATS"] = "1"
        case "remote":
            raise ModelError("a remote server is not started from here")
        case _:
            assert_never(kind)
    base_url = f"http://127.0.0.1:{port}"
    argv += ["--host", "127.0.0.1", "--port", str(port)]
    return Launch(tuple(argv), env, f"{base_url}/health", base_url, leashed=True)


def own_arguments(slot: Slot, device: Device, options: Options, model: ModelFile, gpu: Gpu = None) -> list[str]:
    """The command line of `python -m pipeline.backends.llama_cpp`."""
    arguments = ["--model", str(model.path.absolute()), "--alias", model.name]
    if isinstance(options, GenerationOptions):
        arguments += ["--slot", slot.value, f"--n-ctx={options.n_ctx}"]
        arguments += [f"--temperature={options.temperature}", f"--top-p={options.top_p}"]
        arguments += [f"--max-tokens={options.max_tokens}", f"--repeat-penalty={options.repeat_penalty}"]
    numbers = {
        "--n-gpu-layers": 0 if device is Device.CPU else options.n_gpu_layers,
        "--threads": options.threads,
        "--n-batch": options.n_batch,
        "--n-ubatch": options.n_ubatch,
        "--contexts": options.contexts if isinstance(options, EmbeddingOptions) else None,
        "--document-tokens": options.document_tokens if isinstance(options, EmbeddingOptions) else None,
    }
    arguments += [f"{flag}={number}" for flag, number in numbers.items() if number is not None]
    flash = options.flash_attn or ("off" if gpu == "amd" and device is Device.GPU else None)
    if flash is not None:
        arguments += ["--flash-attn", flash]
    if options.pooling and slot is Slot.EMBEDDING:
        arguments += ["--pooling", options.pooling]
    if options.mlock:
        arguments.append("--mlock")
    if not options.use_extra_bufts:
        arguments.append("--no-extra-bufts")
    if isinstance(options, EmbeddingOptions) and options.tuned:
        arguments += ["--tuned", to_argument(options.tuned)]
    return arguments


def torch_arguments(slot: Slot, options: Options, model: ModelFile) -> list[str]:
    """The command line of `python -m pipeline.backends.torch_engine`. Raises ModelError for what it does not serve."""
    if not isinstance(options, EmbeddingOptions) or slot is not Slot.EMBEDDING:
        raise ModelError("sentence-transformers makes vectors only; set generation.backend to another")
    if model.kind != "directory":
        raise ModelError(f"{model.path} is a GGUF file: sentence-transformers needs a Hugging Face model directory")
    arguments = ["--model", str(model.path.absolute()), "--alias", model.name]
    numbers = {
        "--threads": options.threads,
        "--n-batch": options.n_batch,
        "--n-ubatch": options.n_ubatch,
        "--contexts": options.contexts,
    }
    arguments += [f"{flag}={number}" for flag, number in numbers.items() if number is not None]
    if options.pooling:
        arguments += ["--pooling", options.pooling]
    if options.dtype != "auto":
        arguments += ["--dtype", options.dtype]
    if options.tuned:
        arguments += ["--tuned", to_argument(options.tuned)]
    return arguments


def own_kind(model: ModelFile) -> BackendKind:
    """Which server of ours is for a model of its form."""
    return "sentence-transformers" if model.kind == "directory" else "llama-cpp"


def sentence_transformers_installed() -> bool:
    """Whether the extra `torch` is there; imports nothing of it."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "sentence_transformers"))


def llama_server_arguments(
    slot: Slot, device: Device, options: Options, model: ModelFile, gpu: Gpu = None
) -> list[str]:
    """The flags of `llama-server`, without its address."""
    arguments = ["--model", str(model.path.absolute()), "--alias", model.name]
    arguments += [
        "--n-gpu-layers",
        _gpu_layers(device, options),
        "--flash-attn",
        _flash_attention(slot, device, options, gpu),
    ]
    if device is Device.CPU:
        arguments += ["--device", "none"]
    if options.threads is not None:
        arguments += ["--threads", str(options.threads)]
    if isinstance(options, GenerationOptions):
        arguments += ["--ctx-size", str(options.n_ctx)]
        arguments += ["--batch-size", str(options.n_batch), "--ubatch-size", str(options.n_ubatch)]
        arguments.append("--cont-batching" if options.cont_batching else "--no-cont-batching")
        arguments.append("--jinja" if options.jinja else "--no-jinja")
        arguments += ["--temp", str(options.temperature), "--top-p", str(options.top_p)]
        arguments += ["--repeat-penalty", str(options.repeat_penalty), "--predict", str(options.max_tokens)]
    else:
        parallel = options.contexts or EMBEDDING_PARALLEL
        # Unified: else each of the parallel requests has a share of the context only.
        arguments += ["--embedding", "--parallel", str(parallel), "--kv-unified"]
        if options.n_ctx is not None:
            arguments += ["--ctx-size", str(options.n_ctx)]
        # An encoder computes a batch at once or not at all; a size that the parallel requests do not divide aborts.
        size = max(options.n_ubatch or options.n_batch or 2048, parallel) // parallel * parallel
        arguments += ["--batch-size", str(size), "--ubatch-size", str(size)]
    if options.pooling:
        arguments += ["--pooling", options.pooling]
    if options.mlock:
        arguments += ["--load-mode", "mmap+mlock"]
    arguments += ["--fit", "on" if options.fit_memory else "off"]
    if not options.use_extra_bufts:
        arguments.append("--no-repack")
    return [*arguments, "--offline"]


def vllm_arguments(slot: Slot, options: Options, model: ModelFile) -> list[str]:
    """The arguments of `vllm`, without the server's address."""
    arguments = ["serve", str(model.path.absolute()), "--served-model-name", model.name]
    arguments += ["--gpu-memory-utilization", str(options.gpu_memory_utilization)]
    arguments += ["--tensor-parallel-size", str(options.tensor_parallel_size)]
    if options.max_model_len is not None:
        arguments += ["--max-model-len", str(options.max_model_len)]
    arguments += ["--max-num-seqs", str(options.max_num_seqs), "--dtype", options.dtype]
    if options.quantization:
        arguments += ["--quantization", options.quantization]
    if slot is Slot.EMBEDDING:
        arguments += ["--runner", "pooling"]
        if options.pooling:
            pooling = json.dumps({"pooling_type": options.pooling.upper()})
            arguments += ["--pooler-config", pooling]
    if isinstance(options, GenerationOptions):
        arguments.append("--enable-prefix-caching" if options.enable_prefix_caching else "--no-enable-prefix-caching")
        sampling = {
            "temperature": options.temperature,
            "top_p": options.top_p,
            "repetition_penalty": options.repeat_penalty,
            "max_new_tokens": options.max_tokens,
        }
        arguments += ["--override-generation-config", json.dumps(sampling)]
    return arguments


def _require_gguf(kind: BackendKind, model: ModelFile) -> None:
    if model.kind != "gguf":
        raise ModelError(f"{model.path} is a model directory: llama.cpp needs a GGUF file (backend {kind})")


def _gpu_layers(device: Device, options: Options) -> str:
    layers = 0 if device is Device.CPU else options.n_gpu_layers
    if layers is not None and layers >= 0:
        return str(layers)
    return "auto" if options.fit_memory else "all"


def _flash_attention(slot: Slot, device: Device, options: Options, gpu: Gpu) -> str:
    if options.flash_attn is not None:
        return options.flash_attn
    if device is Device.GPU:
        return "off" if gpu == "amd" else "auto"
    return "on" if slot is Slot.EMBEDDING else "auto"
