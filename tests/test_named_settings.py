"""An error that names a setting or its variable names the right one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.backends.launch import Programs, plan_launch
from pipeline.backends.models import ModelFile
from pipeline.backends.options import EmbeddingOptions, GenerationOptions
from pipeline.core.errors import ModelError
from pipeline.core.modes import Device, Slot
from pipeline.daemon.app import slot_models_of
from pipeline.runner.target import check_model
from pipeline.settings import known_settings, load
from pipeline.settings.fields import sections
from pipeline.settings.sources import FILE_VARIABLE
from pipeline.store.database import Database
from tests.runs import ROOT

OF_CHILDREN = {"NIGHTSHIFT_BACKEND_API_KEY", "NIGHTSHIFT_CHILD"}
"""Variables that we set for the servers that we start; nobody else does."""

SUFFIXES = ("md", "py", "toml", "json", "jsonl", "log", "db", "title", "id", "count", "created", "updated")
"""What follows the name of a section in the name of a file or of a kind of object."""


def texts() -> Iterator[tuple[Path, str]]:
    """Every text in the program, docstrings included."""
    for file in sorted((ROOT / "pipeline").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield file.relative_to(ROOT), node.value


def test_every_variable_that_is_named_exists() -> None:
    known = {setting.variable for setting in known_settings()} | OF_CHILDREN | {FILE_VARIABLE}
    named = {(file, name) for file, text in texts() for name in re.findall(r"NIGHTSHIFT_[A-Z]\w*", text)}
    assert len(named) > 5
    assert {(file, name) for file, name in named if name not in known} == set()


def test_every_setting_that_is_named_exists() -> None:
    known = {setting.key for setting in known_settings()}
    name = re.compile(rf"(?<![\w./-])((?:{'|'.join(sections())})\.([a-z_]+))(?![\w/(])")
    named = {(file, *found) for file, text in texts() for found in name.findall(text)}
    assert len(named) > 50
    assert {(file, key) for file, key, last in named if key not in known and last not in SUFFIXES} == set()


@pytest.mark.parametrize("slot", list(Slot))
@pytest.mark.parametrize("name", ["gone.gguf", "folder", "hf:no-owner", "notes.txt"])
async def test_a_model_that_cannot_be_used_names_the_setting_of_its_slot(slot: Slot, name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("no model")
    variable = f"NIGHTSHIFT_{slot.value.upper()}_MODEL"
    loaded = load(environ={variable: name}, cwd=tmp_path)
    with Database.open(f"sqlite:///{tmp_path}/test.db") as store:
        _, missing = await slot_models_of(loaded, store)
        assert missing[slot].startswith(f"{slot.value}.model: ")
        assert missing[slot].endswith(f" (set in the environment variable {variable})")
        other = next(each for each in Slot if each is not slot)
        assert other.value not in missing[slot]
        if slot is Slot.EMBEDDING:
            with pytest.raises(ModelError, match=r"^embedding\.model: "):
                await check_model(loaded.settings, store)


@pytest.mark.parametrize("slot", list(Slot))
async def test_a_remote_server_without_an_address_names_the_variable_for_it(slot: Slot, tmp_path: Path) -> None:
    prefix = f"NIGHTSHIFT_{slot.value.upper()}"
    loaded = load(environ={f"{prefix}_BACKEND": "remote", f"{prefix}_MODEL": "hf:a/b/c.gguf"}, cwd=tmp_path)
    with Database.open(f"sqlite:///{tmp_path}/test.db") as store:
        _, missing = await slot_models_of(loaded, store)
    assert missing[slot] == (
        f"{slot.value}.backend: is remote, and nothing says where: set {prefix}_URL "
        f"(set in the environment variable {prefix}_BACKEND)"
    )


@pytest.mark.parametrize("slot", list(Slot))
@pytest.mark.parametrize("kind", ["llama-server", "vllm"])
def test_a_server_that_cannot_be_started_names_the_backend_of_its_slot(slot: Slot, kind: str, tmp_path: Path) -> None:
    options = GenerationOptions() if slot is Slot.GENERATION else EmbeddingOptions(model="m.gguf")
    model = ModelFile(tmp_path / "m.gguf", "f", "m")
    with pytest.raises(ModelError, match=rf"set {slot.value}\.backend to llama-cpp"):
        plan_launch(kind, slot, Device.CPU, options, model, port=1, api_key="k", programs=Programs())  # type: ignore[arg-type]  # one of the kinds
