"""From options to command lines: a table, row by row, and then whether the real programs take them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.backends.launch import (
    BackendKind,
    Gpu,
    Options,
    Programs,
    choose_backend,
    llama_server_arguments,
    own_arguments,
    plan_launch,
    vllm_arguments,
)
from pipeline.backends.llama_cpp.__main__ import _parser
from pipeline.backends.models import ModelFile
from pipeline.backends.options import EmbeddingOptions, GenerationOptions
from pipeline.backends.torch_engine.__main__ import _parser as torch_parser
from pipeline.core.errors import ModelError
from pipeline.core.modes import Device, Slot
from tests.backends.conftest import llama_server_binary

GGUF = ModelFile(Path("/models/m.gguf"), "f", "a model")
FOLDER = ModelFile(Path("/models/m"), "f", "a model", "directory")
BINARY = Path("/usr/bin/llama-server")


def generation(**options: Any) -> GenerationOptions:
    return GenerationOptions(**options)


def embedding(**options: Any) -> EmbeddingOptions:
    return EmbeddingOptions("m", **options)


def server_flags(options: Options, *, device: Device = Device.GPU, gpu: Gpu = "nvidia") -> list[str]:
    slot = Slot.GENERATION if isinstance(options, GenerationOptions) else Slot.EMBEDDING
    return llama_server_arguments(slot, device, options, GGUF, gpu)


def own_flags(options: Options, *, device: Device = Device.GPU, gpu: Gpu = "nvidia") -> list[str]:
    slot = Slot.GENERATION if isinstance(options, GenerationOptions) else Slot.EMBEDDING
    return own_arguments(slot, device, options, GGUF, gpu)


def vllm_flags(options: Options) -> list[str]:
    slot = Slot.GENERATION if isinstance(options, GenerationOptions) else Slot.EMBEDDING
    return vllm_arguments(slot, options, FOLDER)


def holds(flags: list[str], wanted: str) -> bool:
    """Whether the words of `wanted` follow one another in `flags`."""
    words = wanted.split(" ")
    return any(flags[start : start + len(words)] == words for start in range(len(flags)))


LLAMA_SERVER_GENERATION = [
    ({}, "--ctx-size 4096"),
    ({"n_ctx": 8192}, "--ctx-size 8192"),
    ({}, "--n-gpu-layers all"),
    ({"n_gpu_layers": 0}, "--n-gpu-layers 0"),
    ({"n_gpu_layers": 20}, "--n-gpu-layers 20"),
    ({"fit_memory": True}, "--n-gpu-layers auto"),
    ({}, "--batch-size 2048"),
    ({"n_batch": 64}, "--batch-size 64"),
    ({}, "--ubatch-size 2048"),
    ({"n_ubatch": 32}, "--ubatch-size 32"),
    ({}, "--flash-attn auto"),
    ({"flash_attn": "on"}, "--flash-attn on"),
    ({"flash_attn": "off"}, "--flash-attn off"),
    ({}, "--cont-batching"),
    ({"cont_batching": False}, "--no-cont-batching"),
    ({"mlock": True}, "--load-mode mmap+mlock"),
    ({}, "--fit off"),
    ({"fit_memory": True}, "--fit on"),
    ({}, "--jinja"),
    ({"jinja": False}, "--no-jinja"),
    ({"pooling": "last"}, "--pooling last"),
    ({"threads": 3}, "--threads 3"),
    ({"use_extra_bufts": False}, "--no-repack"),
    ({}, "--temp 0.7"),
    ({"temperature": 0.2}, "--temp 0.2"),
    ({}, "--top-p 0.9"),
    ({"top_p": 0.5}, "--top-p 0.5"),
    ({}, "--predict 2048"),
    ({"max_tokens": 77}, "--predict 77"),
    ({}, "--repeat-penalty 1.1"),
    ({"repeat_penalty": 1.3}, "--repeat-penalty 1.3"),
]


@pytest.mark.parametrize(("options", "flags"), LLAMA_SERVER_GENERATION)
def test_llama_server_for_generation(options: dict[str, Any], flags: str) -> None:
    assert holds(server_flags(generation(**options)), flags)


@pytest.mark.parametrize("flag", ["--load-mode", "--pooling", "--threads", "--no-repack", "--embedding", "--device"])
def test_llama_server_is_told_nothing_that_was_not_asked_for(flag: str) -> None:
    assert flag not in server_flags(generation())


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, "--embedding"),
        ({}, "--batch-size 2048 --ubatch-size 2048"),
        ({"n_ubatch": 1001, "n_batch": 10}, "--batch-size 1000 --ubatch-size 1000"),
        ({"n_batch": 512}, "--batch-size 512 --ubatch-size 512"),
        ({"contexts": 3, "n_ubatch": 512}, "--parallel 3 --kv-unified --batch-size 510 --ubatch-size 510"),
        ({}, "--parallel 4 --kv-unified"),
        ({"n_ctx": 512}, "--ctx-size 512"),
        ({"pooling": "mean"}, "--pooling mean"),
        ({"mlock": True}, "--load-mode mmap+mlock"),
        ({"threads": 2}, "--threads 2"),
        ({"n_gpu_layers": 7}, "--n-gpu-layers 7"),
        ({"flash_attn": "off"}, "--flash-attn off"),
    ],
)
def test_llama_server_for_embedding(options: dict[str, Any], flags: str) -> None:
    assert holds(server_flags(embedding(**options)), flags)


@pytest.mark.parametrize(
    "flag", ["--jinja", "--no-jinja", "--cont-batching", "--no-cont-batching", "--pooling", "--temp", "--predict"]
)
def test_an_embedding_server_is_not_told_what_is_for_generation(flag: str) -> None:
    assert flag not in server_flags(embedding())


@pytest.mark.parametrize("options", [generation(n_gpu_layers=-1), embedding(n_gpu_layers=-1)])
def test_on_the_cpu_nothing_touches_the_gpu(options: Options) -> None:
    flags = server_flags(options, device=Device.CPU)
    assert holds(flags, "--n-gpu-layers 0")
    assert holds(flags, "--device none")
    assert "--n-gpu-layers=0" in own_flags(options, device=Device.CPU)
    slot = Slot.GENERATION if isinstance(options, GenerationOptions) else Slot.EMBEDDING
    launch = plan_launch("llama-cpp", slot, Device.CPU, options, GGUF, port=0, api_key="k")
    assert launch.env["CUDA_VISIBLE_DEVICES"] == launch.env["HIP_VISIBLE_DEVICES"] == "-1"
    launch = plan_launch("llama-cpp", slot, Device.GPU, options, GGUF, port=0, api_key="k")
    assert "CUDA_VISIBLE_DEVICES" not in launch.env


@pytest.mark.parametrize(
    ("options", "device", "gpu", "wanted"),
    [
        (generation(), Device.GPU, "nvidia", "auto"),
        (generation(), Device.GPU, "amd", "off"),
        (generation(), Device.CPU, "amd", "auto"),
        (embedding(), Device.CPU, None, "on"),
        (embedding(), Device.GPU, "nvidia", "auto"),
        (embedding(flash_attn="on"), Device.GPU, "amd", "on"),
    ],
)
def test_flash_attention_by_device(options: Options, device: Device, gpu: Gpu, wanted: str) -> None:
    assert holds(server_flags(options, device=device, gpu=gpu), f"--flash-attn {wanted}")


OWN = [
    (embedding(), {"slot": "embedding", "n_batch": None, "contexts": None, "flash_attn": None, "pooling": ""}),
    (
        embedding(n_gpu_layers=-1, threads=2, n_batch=256, n_ubatch=512, contexts=3, flash_attn="auto"),
        {"n_gpu_layers": -1, "threads": 2, "n_batch": 256, "n_ubatch": 512, "contexts": 3, "flash_attn": "auto"},
    ),
    (embedding(pooling="cls", mlock=True), {"pooling": "cls", "mlock": True, "no_extra_bufts": False}),
    (embedding(use_extra_bufts=False), {"no_extra_bufts": True, "mlock": False}),
    (
        generation(),
        {"slot": "generation", "n_ctx": 4096, "n_gpu_layers": -1, "n_batch": 2048, "n_ubatch": 2048, "threads": None},
    ),
    (generation(), {"temperature": 0.7, "top_p": 0.9, "max_tokens": 2048, "repeat_penalty": 1.1}),
    (generation(n_ctx=512, n_gpu_layers=20, threads=3), {"n_ctx": 512, "n_gpu_layers": 20, "threads": 3}),
    (generation(temperature=0.0, max_tokens=5, mlock=True), {"temperature": 0.0, "max_tokens": 5, "mlock": True}),
]


@pytest.mark.parametrize(("options", "wanted"), OWN)
def test_our_own_server_takes_what_it_is_given(options: Options, wanted: dict[str, Any]) -> None:
    given = vars(_parser().parse_args(own_flags(options)))
    assert {name: given[name] for name in wanted} == wanted
    assert (given["model"], given["alias"]) == (Path("/models/m.gguf"), "a model")


def test_our_own_server_on_an_amd_gpu() -> None:
    assert holds(own_flags(generation(), gpu="amd"), "--flash-attn off")
    assert "--flash-attn" not in own_flags(generation(), device=Device.CPU, gpu="amd")


VLLM = [
    (generation(), "serve /models/m --served-model-name"),
    (generation(), "--gpu-memory-utilization 0.9"),
    (generation(gpu_memory_utilization=0.5), "--gpu-memory-utilization 0.5"),
    (generation(), "--tensor-parallel-size 1"),
    (generation(tensor_parallel_size=4), "--tensor-parallel-size 4"),
    (generation(), "--max-model-len 4096"),
    (generation(max_model_len=32768), "--max-model-len 32768"),
    (generation(), "--max-num-seqs 256"),
    (generation(max_num_seqs=8), "--max-num-seqs 8"),
    (generation(), "--dtype auto"),
    (generation(dtype="bfloat16"), "--dtype bfloat16"),
    (generation(quantization="awq"), "--quantization awq"),
    (generation(quantization="gptq"), "--quantization gptq"),
    (generation(quantization="fp8"), "--quantization fp8"),
    (generation(), "--enable-prefix-caching"),
    (generation(enable_prefix_caching=False), "--no-enable-prefix-caching"),
    (embedding(), "--runner pooling"),
    (embedding(max_model_len=512), "--max-model-len 512"),
]


@pytest.mark.parametrize(("options", "flags"), VLLM)
def test_vllm(options: Options, flags: str) -> None:
    assert holds(vllm_flags(options), flags)


def test_vllm_is_told_nothing_that_was_not_asked_for() -> None:
    assert "--quantization" not in vllm_flags(generation())
    assert "--runner" not in vllm_flags(generation())
    assert "--max-model-len" not in vllm_flags(embedding())
    assert not any("prefix-caching" in flag for flag in vllm_flags(embedding()))


def test_vllm_has_its_sampling_defaults_as_a_generation_config() -> None:
    flags = vllm_flags(generation(temperature=0.1))
    config = json.loads(flags[flags.index("--override-generation-config") + 1])
    assert config == {"temperature": 0.1, "top_p": 0.9, "repetition_penalty": 1.1, "max_new_tokens": 2048}
    flags = vllm_flags(embedding(pooling="last"))
    assert json.loads(flags[flags.index("--pooler-config") + 1]) == {"pooling_type": "LAST"}


@pytest.mark.parametrize(
    ("kind", "model", "variable"),
    [
        ("llama-cpp", GGUF, "NIGHTSHIFT_BACKEND_API_KEY"),
        ("llama-server", GGUF, "LLAMA_API_KEY"),
        ("vllm", FOLDER, "VLLM_API_KEY"),
    ],
)
def test_a_key_is_in_the_environment_and_never_on_the_command_line(
    kind: BackendKind, model: ModelFile, variable: str
) -> None:
    launch = plan_launch(
        kind,
        Slot.GENERATION,
        Device.GPU,
        generation(),
        model,
        port=4711,
        api_key="sesame",
        programs=Programs(llama_server=BINARY),
    )
    assert launch.env[variable] == "sesame"
    assert not any("sesame" in argument for argument in launch.argv)
    assert "sesame" not in repr(launch)


def test_servers_listen_on_loopback_and_are_leashed_unless_they_watch_us() -> None:
    programs = Programs(llama_server=BINARY, vllm=("python", "-m", "vllm"))
    server = plan_launch(
        "llama-server", Slot.GENERATION, Device.GPU, generation(), GGUF, port=4711, api_key="k", programs=programs
    )
    assert server.argv[0] == str(BINARY)
    assert server.argv[-4:] == ("--host", "127.0.0.1", "--port", "4711")
    assert (server.health_url, server.base_url) == ("http://127.0.0.1:4711/health", "http://127.0.0.1:4711")
    assert server.leashed
    vllm = plan_launch(
        "vllm", Slot.GENERATION, Device.GPU, generation(), FOLDER, port=1, api_key="k", programs=programs
    )
    assert vllm.argv[:4] == ("python", "-m", "vllm", "serve")
    assert vllm.leashed
    own = plan_launch("llama-cpp", Slot.GENERATION, Device.GPU, generation(), GGUF, port=1, api_key="k", wait=True)
    assert (own.health_url, own.base_url, own.leashed, own.argv[-1]) == (None, None, False, "--wait")


@pytest.mark.parametrize(
    ("kind", "model", "device", "message"),
    [
        ("llama-cpp", FOLDER, Device.GPU, "needs a GGUF file"),
        ("llama-server", FOLDER, Device.GPU, "needs a GGUF file"),
        ("llama-server", GGUF, Device.GPU, "was not found"),
        ("vllm", FOLDER, Device.CPU, "on a GPU only"),
        ("remote", GGUF, Device.CPU, "not started from here"),
        ("sentence-transformers", FOLDER, Device.CPU, "makes vectors only"),
    ],
)
def test_what_cannot_be_served_is_refused_with_a_reason(
    kind: BackendKind, model: ModelFile, device: Device, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        plan_launch(kind, Slot.GENERATION, device, generation(), model, port=1, api_key="k")


@pytest.mark.parametrize(
    ("slot", "gpu", "directory", "binary", "wanted"),
    [
        (Slot.GENERATION, None, False, None, "llama-cpp"),
        (Slot.GENERATION, None, False, BINARY, "llama-server"),
        (Slot.GENERATION, "amd", False, BINARY, "llama-server"),
        (Slot.GENERATION, "nvidia", False, BINARY, "llama-server"),
        (Slot.GENERATION, "nvidia", False, None, "llama-cpp"),
        (Slot.GENERATION, "nvidia", True, BINARY, "vllm"),
        (Slot.EMBEDDING, "nvidia", False, BINARY, "llama-cpp"),
        (Slot.EMBEDDING, "amd", False, BINARY, "llama-cpp"),
        (Slot.EMBEDDING, None, False, None, "llama-cpp"),
    ],
)
def test_the_automatic_choice(slot: Slot, gpu: Gpu, directory: bool, binary: Path | None, wanted: BackendKind) -> None:
    chosen = choose_backend("auto", slot=slot, gpu=gpu, model_is_directory=directory, llama_server=binary, vllm=True)
    assert chosen == wanted


def test_a_model_directory_for_embedding_is_for_sentence_transformers() -> None:
    for gpu in ("nvidia", "amd", None):
        where: Gpu = gpu
        chosen = choose_backend(
            "auto",
            slot=Slot.EMBEDDING,
            gpu=where,
            model_is_directory=True,
            llama_server=BINARY,
            vllm=True,
            sentence_transformers=True,
        )
        assert chosen == "sentence-transformers"


def test_the_torch_servers_own_parser_takes_what_it_is_given() -> None:
    options = EmbeddingOptions(
        str(FOLDER.path), threads=2, n_batch=512, n_ubatch=128, contexts=3, pooling="cls", dtype="float32"
    )
    launch = plan_launch("sentence-transformers", Slot.EMBEDDING, Device.CPU, options, FOLDER, port=0, api_key="k")
    given = torch_parser().parse_args(launch.argv[launch.argv.index("--model") :])
    assert (given.threads, given.n_batch, given.n_ubatch, given.contexts) == (2, 512, 128, 3)
    assert (given.pooling, given.dtype, given.alias, given.wait) == ("cls", "float32", FOLDER.name, False)
    assert launch.env["NIGHTSHIFT_BACKEND_API_KEY"] == "k"
    assert launch.env["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(ModelError, match="is a GGUF file"):
        plan_launch("sentence-transformers", Slot.EMBEDDING, Device.CPU, options, GGUF, port=0, api_key="k")


def test_what_was_asked_for_comes_first() -> None:
    for asked in ("llama-cpp", "sentence-transformers", "llama-server", "vllm", "remote"):
        kind: BackendKind = asked
        assert kind == choose_backend(
            kind, slot=Slot.EMBEDDING, gpu=None, model_is_directory=False, llama_server=None, vllm=False
        )


@pytest.mark.parametrize(
    ("slot", "gpu", "vllm"),
    [
        (Slot.GENERATION, "nvidia", False),
        (Slot.GENERATION, "amd", True),
        (Slot.GENERATION, None, True),
        (Slot.EMBEDDING, "nvidia", True),
    ],
)
def test_a_model_directory_without_vllm_is_explained(slot: Slot, gpu: Gpu, vllm: bool) -> None:
    with pytest.raises(ModelError, match="give a GGUF file"):
        choose_backend("auto", slot=slot, gpu=gpu, model_is_directory=True, llama_server=BINARY, vllm=vllm)


def test_the_real_llama_server_knows_every_flag() -> None:
    known = subprocess.run([llama_server_binary(), "--help"], capture_output=True, text=True, check=True).stdout
    words = {word.strip(",") for word in known.split()}
    everything: list[Options] = [
        generation(mlock=True, threads=1, use_extra_bufts=False, pooling="last"),
        generation(jinja=False, cont_batching=False),
        embedding(n_ctx=1, mlock=True, pooling="cls"),
    ]
    for options in everything:
        for device in Device:
            flags = {flag for flag in server_flags(options, device=device) if flag.startswith("--")}
            assert flags <= words
