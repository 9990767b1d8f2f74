"""`switches`: the journal of mode switches, newest first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.padding import Padding
from rich.text import Text

from pipeline.cli.console import errors_explained, open_store, out, print_json
from pipeline.cli.view import printable
from pipeline.cli.words import as_called, moment
from pipeline.store.switches import Phase, StoredSwitch, SwitchOutcome, latest_switches

if TYPE_CHECKING:
    from rich.console import Console

_HEADER = ("when", "from -> to", "reason", "outcome", "seconds", "phases", "memory", "pids", "error")
_SECONDS = _HEADER.index("seconds")
_DETAILS = _HEADER.index("phases")
_GIB = 1 << 30


def switches_command(database: str | None, limit: int, *, as_json: bool) -> None:
    """Print the last `limit` switches."""
    with errors_explained(as_json=as_json), open_store(database) as (_, store), store.snapshot() as session:
        switches = latest_switches(session, limit)
    if as_json:
        print_json([switch_as_json(switch) for switch in switches])
    else:
        list_switches(switches, out())


def list_switches(switches: Sequence[StoredSwitch], console: Console) -> None:
    """A table, one switch to a line; on a terminal that is too narrow for it, a few lines to a switch."""
    if not switches:
        _print_line(console, as_called("No switches yet: `python -m pipeline daemon` makes them."))
        return
    rows = [tuple(printable(cell, console.encoding) for cell in _row(switch)) for switch in switches]
    widths = [max(cell_len(row[column]) for row in (_HEADER, *rows)) for column in range(len(_HEADER))]
    whole = [_joined(row, widths) for row in (_HEADER, *rows)]
    if not console.is_terminal or max(map(cell_len, whole)) <= console.width:
        for line, style in zip(whole, ("bold", *map(_style, switches)), strict=True):
            _print_line(console, line, style)
        return
    for switch, row in zip(switches, rows, strict=True):
        _print_line(console, _joined(row[:_DETAILS], widths), _style(switch))
        for name, cell in zip(_HEADER[_DETAILS:], row[_DETAILS:], strict=True):
            if cell:
                console.print(Padding(Text(f"{name}: {cell}", overflow="fold"), (0, 0, 0, 4)))


def switch_as_json(switch: StoredSwitch) -> dict[str, Any]:
    """A switch with instants in ISO 8601, UTC, and `seconds`: how long it took."""
    rest = dataclasses.asdict(switch)
    return {
        "id": rest.pop("id"),
        "from": rest.pop("from_mode"),
        "to": rest.pop("to_mode"),
        **rest,
        "started_at": switch.started_at.isoformat(),
        "finished_at": switch.finished_at.isoformat() if switch.finished_at else None,
        "seconds": switch.seconds,
    }


def _row(switch: StoredSwitch) -> tuple[str, ...]:
    return (
        moment(switch.started_at),
        f"{switch.from_mode} -> {switch.to_mode}",
        f"{switch.reason} ({switch.detail})" if switch.detail else switch.reason.value,
        switch.outcome.value,
        "" if switch.seconds is None else f"{switch.seconds:.2f}",
        _phases(switch.phases),
        _before_and_after(_gib(switch.memory_before), _gib(switch.memory_after)),
        _before_and_after(_pids(switch.pids_before), _pids(switch.pids_after)),
        switch.error or "",
    )


def _phases(seconds: Mapping[str, float]) -> str:
    """The phases in their order, whatever a roll-back repeated."""
    return " ".join(f"{phase} {seconds[phase]:.2f}" for phase in Phase if phase in seconds)


def _before_and_after(before: str, after: str) -> str:
    return f"{before or '-'} -> {after or '-'}" if before or after else ""


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / _GIB:.2f} GiB"


def _pids(pids: Sequence[int]) -> str:
    return ",".join(map(str, pids))


def _style(switch: StoredSwitch) -> str:
    return "" if switch.outcome in (SwitchOutcome.RUNNING, SwitchOutcome.DONE, SwitchOutcome.DEFERRED) else "red"


def _joined(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = []
    for column, cell in enumerate(row):
        space = " " * (widths[column] - cell_len(cell))
        cells.append(space + cell if column == _SECONDS else cell + space)
    return "  ".join(cells).rstrip()


def _print_line(console: Console, line: str, style: str = "") -> None:
    console.print(Text(line, style), soft_wrap=True)
