"""Builds llama-server from the sources that the installed llama-cpp-python was built from.

    python scripts/build_llama_server.py [--portable] [--force]

The source archive of llama-cpp-python holds the whole of llama.cpp, so that the server and the library
are of one version, and nothing else is downloaded. The binary goes to .cache/llama-server/VERSION/llama-server,
where the daemon finds it; its path is the last line on standard output. A copy stays in the user's cache folder
($XDG_CACHE_HOME, else ~/.cache), by version and build options, so that the next checkout need not build it.
Takes about four minutes on two cores, and needs a C++ compiler; CMake and Ninja come from PyPI where they are not
on the PATH.

CMAKE_ARGS adds options, as it does for llama-cpp-python: CMAKE_ARGS="-DGGML_CUDA=on" for an NVIDIA GPU.
--portable builds for any x86-64 with AVX2 (or plain ARM64) instead of for this processor: for a cache that
several machines share.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
CACHE = ROOT / ".cache" / "llama-server"
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


def binary_path() -> Path:
    """Where the daemon looks for the binary of the installed version, whether it is there or not."""
    return CACHE / version("llama-cpp-python") / "llama-server"


def build_options(*, portable: bool) -> list[str]:
    """What CMake is told."""
    return [
        *OPTIONS,
        *(["-DGGML_NATIVE=OFF"] if portable else []),
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    ]


def kept_path(options: list[str]) -> Path:
    """Where a binary that was built with `options` for this machine stays, whether it is there or not."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built_for = "\n".join([*options, platform.machine(), platform.node()])
    name = hashlib.sha256(built_for.encode()).hexdigest()[:12]
    return cache / "nightshift" / "llama-server" / version("llama-cpp-python") / name / "llama-server"


def copy(binary: Path, target: Path) -> None:
    """Put a copy at `target` in one step: whoever looks for it finds all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copy2(binary, unfinished)
    unfinished.replace(target)


def build(target: Path, options: list[str]) -> None:
    """Download the sources, compile them, and put the binary at `target`."""
    with tempfile.TemporaryDirectory(prefix="llama-server-") as name:
        folder = Path(name)
        sources = unpack(download(folder), folder)
        environment = with_build_tools(folder)
        output = folder / "build"
        run(["cmake", "-G", "Ninja", "-S", str(sources), "-B", str(output), *options], environment)
        run(["cmake", "--build", str(output), "--target", "llama-server", "--parallel", str(cores())], environment)
        copy(output / "bin" / "llama-server", target)


def download(folder: Path) -> Path:
    """The source archive of the installed version of llama-cpp-python."""
    wanted = f"llama-cpp-python=={version('llama-cpp-python')}"
    run([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), wanted])
    return next(folder.glob("llama_cpp_python-*.tar.gz"))


def unpack(archive: Path, folder: Path) -> Path:
    """The folder of llama.cpp within the unpacked archive."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))


def with_build_tools(folder: Path) -> dict[str, str]:
    """An environment in which CMake and Ninja are on the PATH."""
    missing = [tool for tool in ("cmake", "ninja") if shutil.which(tool) is None]
    if not missing:
        return dict(os.environ)
    tools = folder / "tools"
    run([sys.executable, "-m", "venv", str(tools)])
    run([str(tools / "bin" / "python"), "-m", "pip", "install", "--quiet", *missing])
    return {**os.environ, "PATH": f"{tools / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command, its output going to standard error; the first that fails ends the program."""
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)


def cores() -> int:
    """Compilers to run side by side."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> int:
    """Build what is missing; print where it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--portable", action="store_true", help="for any processor of this kind, not for this one")
    parser.add_argument("--force", action="store_true", help="build even if the binary is there")
    given = parser.parse_args()
    target = binary_path()
    options = build_options(portable=given.portable)
    kept = kept_path(options)
    if given.force or not (target.is_file() or kept.is_file()):
        try:
            build(target, options)
        except subprocess.CalledProcessError as error:
            print(f"{error.cmd[0]} failed with exit status {error.returncode}", file=sys.stderr)
            return 1
        with contextlib.suppress(OSError):  # a home that cannot be written to only costs the next checkout a build
            copy(target, kept)
    elif not target.is_file():
        copy(kept, target)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
