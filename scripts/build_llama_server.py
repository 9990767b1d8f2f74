"""Builds llama-server from the sources that the installed llama-cpp-python was built from.

    python scripts/build_llama_server.py [--portable] [--force]

The source archive of llama-cpp-python holds the whole of llama.cpp, so that the server and the library
are of one version, and nothing else is downloaded. The binary goes to .cache/llama-server/VERSION/llama-server,
where the daemon finds it; its path is the last line on standard output. A copy stays in the user's cache folder
($XDG_CACHE_HOME, else ~/.cache), by version and build options, so that the next checkout need not build it.

On Linux only the server itself is compiled, which takes about a minute on two cores: the libraries that
llama-cpp-python was installed with are put beside it. So it computes on the devices that they were built for.
With CMAKE_ARGS, --portable, or on another system all of llama.cpp is compiled, which takes four minutes.
A C++ compiler is needed; CMake and Ninja come from PyPI where they are not on the PATH.

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
import sysconfig
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

SERVER_ONLY = """
cmake_minimum_required(VERSION 3.18)
project(llama-server LANGUAGES C CXX)
find_package(Threads REQUIRED)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_INSTALL_RPATH "$ORIGIN")
# RPATH and not RUNPATH: it holds for what the libraries need of each other, too.
add_link_options(-Wl,--disable-new-dtags)
foreach(name ggml-base ggml llama mtmd llama-common)
  add_library(${name} SHARED IMPORTED GLOBAL)
  set_target_properties(${name} PROPERTIES IMPORTED_LOCATION ${LIBRARIES}/lib${name}.so)
endforeach()
# Their CMake files call these; they set warnings and collect licences.
function(llama_add_compile_flags)
endfunction()
function(license_add_file)
endfunction()
include_directories(include ggml/include common tools/mtmd vendor)
foreach(folder vendor/nlohmann vendor/sheredom vendor/cpp-httplib tools/ui tools/server)
  add_subdirectory(${folder})
endforeach()
target_link_libraries(server-context PUBLIC llama ggml ggml-base)
"""
"""In place of llama.cpp's own CMakeLists.txt, where the libraries are there already, in the folder LIBRARIES."""


def binary_path() -> Path:
    """Where the daemon looks for the binary of the installed version, whether it is there or not."""
    return CACHE / version("llama-cpp-python") / "llama-server"


def libraries(*, portable: bool) -> list[Path]:
    """llama.cpp as llama-cpp-python brought it, by the names that a program asks for; empty where it is compiled."""
    if portable or os.environ.get("CMAKE_ARGS") or sys.platform != "linux":
        return []
    folder = Path(sysconfig.get_path("platlib")) / "lib"
    found = sorted(path for path in folder.glob("lib*.so.*") if path.suffix[1:].isdigit() and path.name.count(".") == 2)
    return found if any(path.name.startswith("libllama-common.") for path in found) else []


def build_options(linked: list[Path], *, portable: bool) -> list[str]:
    """What CMake is told. linked: libraries that are not compiled."""
    return [
        *OPTIONS,
        *([f"-DLIBRARIES={linked[0].parent}"] if linked else []),
        *(["-DGGML_NATIVE=OFF"] if portable else []),
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    ]


def kept_path(linked: list[Path], options: list[str]) -> Path:
    """Where a binary that was built like this for this machine stays, whether it is there or not."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    options = [option for option in options if not option.startswith("-DLIBRARIES=")]
    built_for = "\n".join([*options, *map(digest, linked), platform.machine(), platform.node()])
    name = hashlib.sha256(built_for.encode()).hexdigest()[:12]
    return cache / "nightshift" / "llama-server" / version("llama-cpp-python") / name / "llama-server"


def digest(path: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def put(binary: Path, linked: list[Path], target: Path) -> None:
    """Copy a binary to `target`, and its libraries beside it. Whoever looks for it finds all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for file, place in [*((path, target.parent / path.name) for path in linked), (binary, target)]:
        unfinished = place.with_name(f"{place.name}.{os.getpid()}")
        shutil.copy2(file, unfinished)
        unfinished.replace(place)


def build(target: Path, linked: list[Path], options: list[str]) -> None:
    """Download the sources, compile what is not linked, and put the binary at `target`."""
    with tempfile.TemporaryDirectory(prefix="llama-server-") as name:
        folder = Path(name)
        sources = unpack(download(folder), folder)
        if linked:
            (sources / "CMakeLists.txt").write_text(SERVER_ONLY, encoding="utf-8")
        environment = with_build_tools(folder)
        output = folder / "build"
        run(["cmake", "-G", "Ninja", "-S", str(sources), "-B", str(output), *options], environment)
        run(["cmake", "--build", str(output), "--target", "llama-server", "--parallel", str(cores())], environment)
        put(output / "bin" / "llama-server", linked, target)


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
    linked = libraries(portable=given.portable)
    options = build_options(linked, portable=given.portable)
    kept = kept_path(linked, options)
    if given.force or not (target.is_file() or kept.is_file()):
        try:
            build(target, linked, options)
        except subprocess.CalledProcessError as error:
            print(f"{error.cmd[0]} failed with exit status {error.returncode}", file=sys.stderr)
            return 1
        with contextlib.suppress(OSError):  # a home that cannot be written to only costs the next checkout a build
            put(target, linked, kept)
    elif not target.is_file():
        put(kept, linked, target)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
