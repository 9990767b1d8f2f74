"""The help of every command: all of its words, on a terminal of any width and in a pipe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from pipeline.cli.app import app

root: Any = typer.main.get_command(app)


def commands(command: Any = root, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def help_of(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    root.main([*path, "--help"], prog_name="nightshift", standalone_mode=False)
    return capsys.readouterr().out


def squeezed(text: str) -> str:
    """Without spaces: a line may end between any two words, and behind a hyphen."""
    return "".join(text.split())


@pytest.mark.parametrize("columns", ["", "60", "80", "200"])  # the first: a pipe, and COLUMNS is not set
def test_help_shows_every_word(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    seen = 0
    for path, command in commands():
        seen += 1
        shown = help_of(path, capsys)
        said = squeezed(shown)
        texts = [command.help, *(parameter.help for parameter in command.params)]
        texts += [inner.help.split(".")[0] + "." for inner in getattr(command, "commands", {}).values()]
        assert all(texts), f"something in {path} has no help at all"
        assert [text for text in texts if squeezed(text) not in said] == [], path
        assert "..." not in shown.partition("\n\n")[2], path  # before it is the usage, where it means "more of these"
        assert max(map(len, shown.splitlines())) <= min(shutil.get_terminal_size().columns, 120), path
    assert seen > 30


def test_a_wide_terminal_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert 90 < max(map(len, help_of(("search",), capsys).splitlines())) <= 120
