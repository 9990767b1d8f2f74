"""`report`: the report of a run, as it was made at its end."""

from __future__ import annotations

from pipeline.cli.console import errors_explained, not_there_yet, open_store, out, print_json
from pipeline.cli.view import printable
from pipeline.cli.words import as_called
from pipeline.core.errors import UsageError
from pipeline.runner.morning_text import as_markdown, as_shown
from pipeline.store import reports, runs


def report_command(run_id: str | None, database: str | None, *, as_json: bool) -> None:
    """Print the report of a run, or of the last one that had something to do."""
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
    for line in as_markdown(report).splitlines():
        shown = as_called(as_shown(line)) if console.is_terminal else line
        console.print(printable(shown, console.encoding), soft_wrap=True, markup=False)


def _why_none(run_id: str | None, *, known: bool, last: str | None) -> str:
    if run_id is None:
        return as_called("there is no report yet: each run that has something to do makes one")
    newest = f"; the last report is of run {last}" if last else "; there is no report yet"
    if known:
        return f"run {run_id} has no report: it is not over, was cut off, or had nothing to do{newest}"
    return f"there is no run {run_id}{newest}"
