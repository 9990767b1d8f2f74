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


def shown(loaded: LoadedSettings, *, terminal: bool = False, width: int = 80, as_json: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, color_system=None, width=width)
    show_config(loaded, console, as_json=as_json)
    assert "hunter2" not in out.getvalue()
    assert "\x1b" not in out.getvalue()
    return out.getvalue()


def test_a_pipe_gets_one_aligned_line_for_each_setting(tmp_path: Path) -> None:
    lines = shown(some_settings(tmp_path)).splitlines()
    assert [line.split()[0] for line in lines] == [known.key for known in known_settings()]
    cells = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines}
    assert cells["chunk.tokens"] == ["300", "nightshift.toml"]
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
