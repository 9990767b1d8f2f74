"""`config`: every setting, its value, and where it was set."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from pipeline.cli.view import printable

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.settings import LoadedSettings
    from pipeline.settings.description import Plain


def show_config(loaded: LoadedSettings, console: Console, *, as_json: bool = False, changed_only: bool = False) -> None:
    """A table on a terminal, aligned lines in a pipe, or one JSON object; passwords are masked.

    changed_only: what somebody set to another value than the default.
    JSON: dotted key -> {"value": ..., "origin": ...}, with null for what is not set.
    """
    values = loaded.settings.flatten()
    if changed_only:
        values = {key: values[key] for key in loaded.changed()}
    if as_json:
        document = {key: {"value": value, "origin": loaded.origins[key]} for key, value in values.items()}
        _print_line(console, json.dumps(document, indent=2))
        return
    if not values:
        _print_line(console, "Every setting has its default.")
        return
    rows = [
        tuple(printable(cell, console.encoding) for cell in (key, _cell(value), _place(loaded, key)))
        for key, value in values.items()
    ]
    if console.is_terminal:
        console.print(_table(rows))
        return
    widths = [max(cell_len(row[column]) for row in rows) for column in (0, 1)]
    for *cells, origin in rows:
        padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
        _print_line(console, "  ".join([*padded, origin]))


def _table(rows: list[tuple[str, ...]]) -> Table:
    """Every setting that is not a default stands out."""
    table = Table("setting", "value", "set in", box=None, pad_edge=False, header_style="bold")
    table.columns[0].no_wrap = True
    table.columns[1].overflow = table.columns[2].overflow = "fold"
    for key, value, origin in rows:
        table.add_row(Text(key), Text(value), Text(origin), style="dim" if origin == "default" else "")
    return table


def _place(loaded: LoadedSettings, key: str) -> str:
    """Where a setting was set: a variable, an option, or a file with its line where that is known."""
    origin, place = loaded.origins[key], loaded.place(key)
    return place if place.startswith(origin) else origin


def _cell(value: Plain) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    return (f"{value:g}" if isinstance(value, float) else str(value)) or "empty"


def _print_line(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=True)
