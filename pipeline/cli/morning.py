"""`report`: the report of a run, as it was made at its end. Laid out on a terminal, Markdown in a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from pipeline.cli.console import errors_explained, not_there_yet, open_store, out, print_json
from pipeline.cli.view import printable
from pipeline.cli.words import as_called
from pipeline.core.errors import UsageError
from pipeline.runner.morning_text import as_markdown, as_shown
from pipeline.store import reports, runs

if TYPE_CHECKING:
    from rich.console import Console

_COLOURS = {"complete": "bold green", "stopped": "bold yellow"}
_FAILED = "bold red"


def report_command(run_id: str | None, database: str | None, *, as_json: bool, markdown: bool = False) -> None:
    """Print the report of a run, or of the last one that had something to do. markdown: as such on a terminal too."""
    with errors_explained(as_json=as_json), open_store(database) as (loaded, store):
        with store.snapshot() as session:
            report = reports.find_report(session, run_id)
            known = run_id is not None and runs.find_run(session, run_id) is not None
            last = next(iter(reports.list_reports(session, 1)), None)
        if report is None:
            raise UsageError(not_there_yet(loaded) or _why_none(run_id, known=known, last=last))
    if as_json:
        print_json(report)
        return
    console = out()
    if console.is_terminal and not markdown:
        lay_out(report, console)
        return
    for line in as_markdown(report).splitlines():
        console.print(printable(line, console.encoding), soft_wrap=True, markup=False)


def lay_out(report: Mapping[str, Any], console: Console) -> None:
    """The report with headings and indented points. No line is wider than the console."""
    dot = "\N{BULLET}" if console.encoding.lower().startswith("utf") else "*"
    for line in as_markdown(report).splitlines():
        mark, _, rest = line.partition(" ")
        shown = printable(as_called(as_shown(rest if mark in ("#", "##", "-") else line)), console.encoding)
        if mark == "-":
            point = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
            point.add_column(no_wrap=True)
            point.add_column(overflow="fold")
            point.add_row(f"  {dot}", Text(shown))
            console.print(point)
            continue
        style = {"#": _COLOURS.get(report["outcome"], _FAILED), "##": "bold"}.get(mark, "")
        console.print(Text(shown, style="" if console.no_color else style, overflow="fold"))


def _why_none(run_id: str | None, *, known: bool, last: str | None) -> str:
    if run_id is None:
        return as_called("there is no report yet: each run that has something to do makes one")
    newest = f"; the last report is of run {last}" if last else "; there is no report yet"
    if known:
        return f"run {run_id} has no report: it is not over, was cut off, or had nothing to do{newest}"
    return f"there is no run {run_id}{newest}"
