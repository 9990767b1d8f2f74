"""scripts/build_llama_server.py: where a binary that was built once is found again."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "build_llama_server.py"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh checkout, in which nothing was built yet."""
    (tmp_path / "scripts").mkdir()
    shutil.copy2(SCRIPT, tmp_path / "scripts")
    return tmp_path


def build(checkout: Path, cache: Path, cmake_args: str = "") -> subprocess.CompletedProcess[str]:
    # No pip and no compiler within reach: what is not there cannot be built.
    environment = {"XDG_CACHE_HOME": str(cache), "CMAKE_ARGS": cmake_args, "PATH": "", "PIP_NO_INDEX": "1"}
    command = [sys.executable, str(checkout / "scripts" / "build_llama_server.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_second_checkout_takes_what_the_first_one_built(checkout: Path, tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        patch.setenv("CMAKE_ARGS", "")
        linked = script["libraries"](portable=False)
        kept = script["kept_path"](linked, script["build_options"](linked, portable=False))
    assert isinstance(kept, Path)
    kept.parent.mkdir(parents=True)
    kept.write_text("a binary")

    built = build(checkout, tmp_path / "cache")

    target = checkout / ".cache" / "llama-server" / version("llama-cpp-python") / "llama-server"
    assert (built.returncode, built.stdout.splitlines()[-1]) == (0, str(target)), built.stderr
    assert target.read_text() == "a binary"
    assert sorted(path.name for path in target.parent.iterdir()) == sorted(
        ["llama-server", *(path.name for path in linked)]
    )
    assert build(checkout, tmp_path / "elsewhere").returncode == 0  # it is in the checkout now


def test_one_that_was_built_with_other_options_is_not_taken(checkout: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    kept = cache / "nightshift" / "llama-server" / version("llama-cpp-python") / "other" / "llama-server"
    kept.parent.mkdir(parents=True)
    kept.write_text("a binary")

    built = build(checkout, cache, cmake_args="-DGGML_CUDA=on")

    assert built.returncode == 1
    assert "failed with exit status" in built.stderr
