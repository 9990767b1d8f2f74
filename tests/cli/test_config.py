"""The `config` command: each value, and where it came from."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from pipeline.cli.config import show_config
from pipeline.settings import LoadedSettings, known_settings, load


def some_settings(folder: Path) -> LoadedSettings:
    (folder / "nightshift.toml").write_text("[chunk]\ntokens = 300\n", encoding="utf-8")
    environ = {
        "NIGHTSHIFT_API_KEY": "hunter2",
        "NIGHTSHIFT_DATABASE_URL": "postgresql://me:hunter2@host/d",
        "NIGHTSHIFT_JOBS_DIR": "/j\x1b[2J[red]",
    }
    return load({"embedding.model": "hf:a/b/c"}, environ=environ, cwd=folder)


def shown(
    loaded: LoadedSettings,
    *,
    terminal: bool = False,
    width: int = 80,
    as_json: bool = False,
    changed_only: bool = False,
) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, color_system=None, width=width)
    show_config(loaded, console, as_json=as_json, changed_only=changed_only)
    assert "hunter2" not in out.getvalue()
    assert "\x1b" not in out.getvalue()
    return out.getvalue()


def test_a_pipe_gets_one_aligned_line_for_each_setting(tmp_path: Path) -> None:
    lines = shown(some_settings(tmp_path)).splitlines()
    assert [line.split()[0] for line in lines] == [known.key for known in known_settings()]
    cells = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines}
    assert cells["chunk.tokens"] == ["300", "nightshift.toml, line 2"]
    assert cells["embedding.model"] == ["hf:a/b/c", "option --model"]
    assert cells["api_key"] == ["********", "NIGHTSHIFT_API_KEY"]
    assert cells["jobs_dir"] == [r"/j\x1b[2J[red]", "NIGHTSHIFT_JOBS_DIR"]
    assert cells["embedding.mlock"] == ["false", "default"]
    assert len({line.rindex("default") for line in lines if line.endswith("default")}) == 1


def test_a_terminal_gets_a_table_that_fits(tmp_path: Path) -> None:
    table = shown(some_settings(tmp_path), terminal=True, width=70)
    assert table.splitlines()[0].split() == ["setting", "value", "set", "in"]
    assert max(len(line) for line in table.splitlines()) <= 70
    assert all(known.key in table for known in known_settings())


def test_json_is_for_programs(tmp_path: Path) -> None:
    document = json.loads(shown(some_settings(tmp_path), as_json=True, width=20))
    assert list(document) == [known.key for known in known_settings()]
    assert document["chunk.tokens"] == {"value": 300, "origin": "nightshift.toml"}
    assert document["generation.model"] == {"value": None, "origin": "default"}
    assert document["jobs_dir"]["value"] == "/j\x1b[2J[red]"
    assert document["database_url"]["value"] == "postgresql://me:********@host/d"


def test_what_differs_from_the_defaults_is_shown_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "nightshift.toml").write_text("port = 8642\n\n[chunk]\ntokens = 300\n", encoding="utf-8")
    environ = {
        "NIGHTSHIFT_API_KEY": "hunter2",
        "NIGHTSHIFT_DATA_DIR": str(tmp_path / "elsewhere"),
        "NIGHTSHIFT_INBOX": str(tmp_path / "elsewhere" / "inbox"),
        "NIGHTSHIFT_JOBS_DIR": str(tmp_path / "jobs"),
        "NIGHTSHIFT_NODE": "북쪽",
    }
    loaded = load({"embedding.model": "hf:a/b/c"}, environ=environ, cwd=tmp_path)
    # Not those that were set to what they would be anyway: the port, the inbox, the folder of the jobs.
    expected = {
        "data_dir": (str(tmp_path / "elsewhere"), "NIGHTSHIFT_DATA_DIR"),
        "node": ("북쪽", "NIGHTSHIFT_NODE"),
        "api_key": ("********", "NIGHTSHIFT_API_KEY"),
        "embedding.model": ("hf:a/b/c", "option --model"),
        "chunk.tokens": ("300", "nightshift.toml, line 4"),
    }
    lines = [line.split(maxsplit=2) for line in shown(loaded, changed_only=True).splitlines()]
    assert {key: (value, place) for key, value, place in lines} == expected
    assert [key for key, *_ in lines] == list(expected)
    document = json.loads(shown(loaded, as_json=True, changed_only=True))
    assert list(document) == list(expected)
    assert document["chunk.tokens"] == {"value": 300, "origin": "nightshift.toml"}
    table = shown(loaded, terminal=True, changed_only=True, width=300).splitlines()
    assert [line.split()[0] for line in table] == ["setting", *expected]


def test_nothing_that_differs_is_said(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in the place of the default folder")
    loaded = load(environ={"NIGHTSHIFT_DATA_DIR": str(tmp_path)}, cwd=tmp_path)
    assert shown(loaded, changed_only=True).split()[0] == "data_dir"
    (tmp_path / "data").unlink()
    assert shown(load(environ={}, cwd=tmp_path), changed_only=True) == "Every setting has its default.\n"
