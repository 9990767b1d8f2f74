"""A GPU is noticed, by programs of drivers that are real processes here, where llama.cpp would not use it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.backends.gpus import Gpu, build_of, find_gpu, server_devices, unused_by_server, unused_gpu
from pipeline.backends.launch import Programs as ServerPrograms
from pipeline.backends.options import GenerationOptions
from pipeline.backends.serving.tuned import device_name
from pipeline.core.modes import Slot
from pipeline.daemon.servers import SlotModel, with_device
from tests.runs import ROOT

NVIDIA = "GPU 0: NVIDIA H200 (UUID: GPU-1)\n  MIG 1g.18gb Device 0: (UUID: MIG-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)"
AMD = """
*******
Agent 1
*******
  Name:                    AMD EPYC 9354
  Marketing Name:          AMD EPYC 9354
  Device Type:             CPU
*******
Agent 2
*******
  Name:                    gfx1100
  Marketing Name:          AMD Radeon RX 7900 XTX
  Device Type:             GPU
"""
ARC = """Devices:
========
GPU0:
\tdeviceType         = PHYSICAL_DEVICE_TYPE_CPU
\tdeviceName         = llvmpipe (LLVM 15.0.6, 256 bits)
GPU1:
\tdeviceType         = PHYSICAL_DEVICE_TYPE_DISCRETE_GPU
\tdeviceName         = Intel(R) Arc(tm) A770
"""
ONLY_DRAWS = ARC.partition("GPU1")[0]
PYTHON = shlex.quote(sys.executable)
CUDA = 'CMAKE_ARGS="-DGGML_CUDA=on"'


class Programs:
    """A folder that is all of the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(self, name: str, prints: str, *, status: int = 0) -> Path:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{prints}\nEND\nexit {status}\n")
        path.chmod(0o755)
        return path


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    found = Programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(found.folder))
    for name in ("CUDA_VISIBLE_DEVICES", "CMAKE_ARGS"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """Those of a llama.cpp for the processor."""
    folder = tmp_path / "lib"
    folder.mkdir()
    for name in ("libggml-base.so", "libggml-cpu.so.0.25.3", "libllama.so"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("program", "prints", "described", "option"),
    [
        ("nvidia-smi", NVIDIA, "an NVIDIA GPU (NVIDIA H200)", "GGML_CUDA"),
        ("rocminfo", AMD, "an AMD GPU (AMD Radeon RX 7900 XTX)", "GGML_HIP"),
        ("vulkaninfo", ARC, "a GPU (Intel(R) Arc(tm) A770)", "GGML_VULKAN"),
    ],
)
def test_each_makers_program_shows_its_gpu(
    programs: Programs, program: str, prints: str, described: str, option: str
) -> None:
    programs.add(program, prints)
    gpu = find_gpu()
    assert gpu is not None
    assert (gpu.described, gpu.option) == (described, option)


@pytest.mark.parametrize(
    ("program", "prints", "status"),
    [
        ("nvidia-smi", "No devices were found", 6),
        ("nvidia-smi", NVIDIA, 9),
        ("nvidia-smi", "", 0),
        ("rocminfo", AMD.partition("Agent 2")[0], 0),
        ("vulkaninfo", ONLY_DRAWS, 0),
    ],
)
def test_a_program_without_a_device_shows_no_gpu(programs: Programs, program: str, prints: str, status: int) -> None:
    assert find_gpu() is None
    programs.add(program, prints, status=status)
    assert find_gpu() is None


def test_cuda_goes_before_vulkan_and_a_hidden_gpu_is_none(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    programs.add("nvidia-smi", NVIDIA)
    programs.add("vulkaninfo", ARC)
    gpu = find_gpu()
    assert gpu is not None
    assert gpu.option == "GGML_CUDA"
    (programs.folder / "vulkaninfo").unlink()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_gpu() is None


def test_a_gpu_that_llama_cpp_was_built_without_is_named_with_the_remedy(programs: Programs, libraries: Path) -> None:
    assert unused_gpu(libraries) is None
    programs.add("nvidia-smi", NVIDIA)
    said = unused_gpu(libraries)
    assert said is not None
    assert said.startswith("an NVIDIA GPU (NVIDIA H200) is here, but llama.cpp was built without it")
    assert f"`{CUDA} {PYTHON} -m pip install --force-reinstall --no-deps --no-cache-dir llama-cpp" in said
    assert said.endswith("That needs NVIDIA's CUDA toolkit (nvcc), which is not on the PATH.")
    programs.add("nvcc", "")
    assert (unused_gpu(libraries) or "").endswith("which is on the PATH.")
    (libraries / "libggml-cuda.so").touch()
    assert unused_gpu(libraries) is None


def test_a_llama_server_without_a_device_is_named_too(programs: Programs) -> None:
    program = programs.add("llama-server", "Available devices:\n  CUDA0: NVIDIA H200 (143771 MiB, 143200 MiB free)")
    programs.add("nvidia-smi", NVIDIA)
    assert server_devices(program) == ["NVIDIA H200"]
    assert unused_by_server(program, ["NVIDIA H200"]) is None
    programs.add("llama-server", "Available devices:")
    assert server_devices(program) == []
    said = unused_by_server(program, [])
    assert f"{CUDA} {PYTHON} scripts/build_llama_server.py --force" in (said or "")


def test_a_build_in_words() -> None:
    told = {"library": "llama-cpp-python", "build": "0.3.36 (CUDA: ARCHS 900 CPU: AVX2)"}
    assert build_of(told) == "llama-cpp-python 0.3.36 for CUDA and CPU"
    assert build_of({"build": "torch 2.13.0"}) == "torch 2.13.0"
    assert build_of({}) is None


def before_it_is_compiled(**environment: str) -> str:
    """What the program prints where nothing is installed."""
    command = [sys.executable, "-S", "-m", "pipeline.backends.gpus"]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def test_it_is_said_before_llama_cpp_is_compiled(programs: Programs) -> None:
    assert before_it_is_compiled() == ""
    programs.add("nvidia-smi", NVIDIA)
    said = before_it_is_compiled()
    assert "Here is an NVIDIA GPU (NVIDIA H200). llama.cpp is about to be built for the processor alone." in said
    assert f"\n    {CUDA} make run\n" in said
    for settled in ("", "-DGGML_CUDA=on"):
        assert before_it_is_compiled(CMAKE_ARGS=settled) == ""


@pytest.mark.parametrize("arguments", ["", "-DGGML_CUDA=on"])
def test_make_looks_before_it_installs(tmp_path: Path, arguments: str) -> None:
    make = shutil.which("make") or pytest.skip("there is no make")
    command = [make, "-n", f"PYTHON={sys.executable}", f"VENV={tmp_path}", f"CMAKE_ARGS={arguments}", "run"]
    planned = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert 0 < planned.index("-m pipeline.backends.gpus") < planned.index("--editable .")
    # What pip kept of an earlier build may be for another device.
    assert ("install --no-cache-dir --require-hashes" in planned) == bool(arguments)
    newest = subprocess.run([*command, "LOCKED="], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert ("install --no-cache-dir --upgrade" in newest) == bool(arguments)
    assert "--require-hashes" not in newest


def test_the_readme_has_the_line() -> None:
    for gpu in (
        Gpu("NVIDIA", "", "GGML_CUDA", "", ""),
        Gpu("AMD", "", "GGML_HIP", "", ""),
        Gpu("", "", "GGML_VULKAN", "", ""),
    ):
        assert f"{gpu.arguments} make run" in (ROOT / "README.md").read_text()


def test_the_daemon_knows_the_device_of_a_llama_server_before_it_starts(programs: Programs, tmp_path: Path) -> None:
    program = programs.add("llama-server", "Available devices:")
    model = SlotModel(Slot.GENERATION, "m", "f", "llama-server", GenerationOptions())
    known = with_device(model, ServerPrograms(llama_server=program))
    assert (known.unused_gpu, known.told["device"]) == (None, device_name(on_gpu=False))
    programs.add("nvidia-smi", NVIDIA)
    known = with_device(model, ServerPrograms(llama_server=program))
    assert known.unused_gpu is not None
    assert "llama-server" in known.unused_gpu
    programs.add("llama-server", "Available devices:\n  CUDA0: NVIDIA H200 (143771 MiB, 143200 MiB free)")
    known = with_device(model, ServerPrograms(llama_server=program))
    assert (known.unused_gpu, known.told["device"]) == (None, "NVIDIA H200")
    # A processor that was asked for is no fault.
    programs.add("llama-server", "Available devices:")
    asked = replace(model, options=GenerationOptions(n_gpu_layers=0))
    assert with_device(asked, ServerPrograms(llama_server=program)).unused_gpu is None
