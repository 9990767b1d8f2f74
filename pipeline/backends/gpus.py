"""Which GPUs are here, by the programs of their makers, and how llama.cpp is built for them.

Also a program, `python -m pipeline.backends.gpus`: before llama.cpp is compiled it says that there is a GPU which would
not be used. It needs nothing but Python, because it runs before anything is installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 10.0
"""How long a program of a driver may take; one that hangs shows no GPU."""

GPU_LIBRARIES = ("cuda", "hip", "vulkan", "metal", "sycl", "musa", "cann", "opencl")
"""The libraries `libggml-NAME` that compute on GPUs."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, and how llama.cpp is built for it."""

    maker: str
    """Such as `NVIDIA`; empty where the program that shows the GPU does not say."""

    name: str

    option: str
    """The option of llama.cpp's build."""

    compiler: str
    """The program of the toolkit that the build needs."""

    toolkit: str
    """What that toolkit is called."""

    @property
    def described(self) -> str:
        """With its article: `an NVIDIA GPU (NVIDIA H200)`."""
        kind = {"NVIDIA": "an NVIDIA GPU", "AMD": "an AMD GPU"}.get(self.maker, "a GPU")
        return f"{kind} ({self.name})"

    @property
    def arguments(self) -> str:
        """What goes before the command that builds llama.cpp."""
        return f'CMAKE_ARGS="-D{self.option}=on"'

    @property
    def needs(self) -> str:
        """What has to be installed for that, and whether it seems to be."""
        there = "is on the PATH" if shutil.which(self.compiler) else "is not on the PATH"
        return f"That needs {self.toolkit} ({self.compiler}), which {there}."


def find_gpu() -> Gpu | None:
    """The GPU that a program of its maker shows: NVIDIA's before AMD's before what Vulkan finds; None where none is."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        for name in re.findall(r"^GPU \d+: (.+?)(?: \(UUID: .*\))?$", _output("nvidia-smi", "-L"), re.MULTILINE):
            return Gpu("NVIDIA", name, "GGML_CUDA", "nvcc", "NVIDIA's CUDA toolkit")
    for agent in re.split(r"^Agent \d+", _output("rocminfo"), flags=re.MULTILINE):
        if re.search(r"Device Type:\s+GPU", agent):
            name = re.search(r"Marketing Name:[ \t]+(\S.*)", agent) or re.search(r"Name:\s+(\S.*)", agent)
            return Gpu("AMD", name[1].strip() if name else "unnamed", "GGML_HIP", "hipcc", "AMD's ROCm")
    for device in re.split(r"^GPU\d+:", _output("vulkaninfo", "--summary"), flags=re.MULTILINE)[1:]:
        name = re.search(r"deviceName\s*=\s*(\S.*)", device)
        # Vulkan also lists programs that draw on the processor.
        if name and not re.search(r"deviceType\s*=\s*PHYSICAL_DEVICE_TYPE_(CPU|OTHER)", device):
            return Gpu("", name[1].strip(), "GGML_VULKAN", "glslc", "Vulkan's headers and shader compiler")
    return None


def unused_gpu(libraries_in: Path | None = None) -> str | None:
    """That there is a GPU which llama.cpp was built without, and what to type; None where all is well.

    libraries_in: where its libraries are; None is where the installed package has them.
    """
    folder = libraries_in or _installed_libraries()
    libraries = {file.name.partition(".")[0] for file in folder.glob("*ggml*")} if folder else set()
    if not libraries or any(library.endswith(f"ggml-{name}") for library in libraries for name in GPU_LIBRARIES):
        return None
    gpu = find_gpu()
    if gpu is None:
        return None
    from importlib.metadata import version

    return (
        f"{gpu.described} is here, but llama.cpp was built without it and computes on the processor. To build it again:"
        f" `{gpu.arguments} {shlex.quote(sys.executable)} -m pip install --force-reinstall --no-deps --no-cache-dir "
        f"llama-cpp-python=={version('llama-cpp-python')}`. {gpu.needs}"
    )


def build_of(told: Mapping[str, Any]) -> str | None:
    """What a model server was built with, by what it told: `llama-cpp-python 0.3.36 for CUDA and CPU`."""
    build = told.get("build")
    if build is None or "library" not in told:
        return build
    version, _, compiled_for = str(build).partition(" ")
    devices = " and ".join(re.findall(r"(\w+):", compiled_for))
    return f"{told['library']} {version} for {devices or 'this host'}"


def _installed_libraries() -> Path | None:
    found = importlib.util.find_spec("llama_cpp")
    places = found.submodule_search_locations if found else None
    return Path(places[0]) / "lib" if places else None


def unused_by_server(program: Path, devices: Sequence[str]) -> str | None:
    """The same for a llama-server. devices: the GPUs that it can use."""
    gpu = None if devices else find_gpu()
    if gpu is None:
        return None
    return (
        f"{gpu.described} is here, but llama-server ({program}) was built without it and computes on the processor. "
        f"To build it again: `{gpu.arguments} {shlex.quote(sys.executable)} scripts/build_llama_server.py --force`. "
        f"{gpu.needs}"
    )


def server_devices(program: Path) -> list[str]:
    """The GPUs that a llama-server can use, by name; none where it does not list any."""
    listed = _output(str(program), "--list-devices").partition("Available devices:")[2]
    return [name.strip() for name in re.findall(r"^\s+\w+: (.+?)(?: \(\d+ MiB.*)?$", listed, re.MULTILINE)]


def _output(program: str, *arguments: str) -> str:
    """What a program prints; nothing where it is missing, fails or hangs."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, stdin=subprocess.DEVNULL, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else (done.stdout + b"\n" + done.stderr).decode("utf-8", "replace")


def main() -> int:
    """Say before llama.cpp is compiled that there is a GPU; nothing where CMAKE_ARGS says how it is to be built."""
    settled = "CMAKE_ARGS" in os.environ or importlib.util.find_spec("llama_cpp") is not None
    gpu = None if settled else find_gpu()
    if gpu is not None:
        print(  # noqa: T201
            f"Here is {gpu.described}. llama.cpp is about to be built for the processor alone. For the GPU, stop here "
            f"(Ctrl-C) and type:\n\n    {gpu.arguments} make run\n\n{gpu.needs} If the processor is meant: "
            "CMAKE_ARGS= make run\n",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
