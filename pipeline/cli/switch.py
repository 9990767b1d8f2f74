"""`switch`: the mode by hand."""

from __future__ import annotations

import datetime as dt

import typer

from pipeline.cli.console import errors_explained, load_settings, print_json
from pipeline.cli.remote import need_daemon
from pipeline.cli.view import duration
from pipeline.cli.words import moment
from pipeline.core.errors import UsageError
from pipeline.core.modes import Mode
from pipeline.core.windows import parse_duration

PATIENCE = 3600.0
"""Seconds: a big model on a cold disk takes its time, and the daemon ends what stalls."""


def switch_command(mode: str, hold: str | None, *, as_json: bool) -> None:
    """Switch, and wait until it is done."""
    with errors_explained(as_json=as_json):
        if mode not in {*Mode, "schedule"}:
            raise UsageError(f"no such mode: {mode}; there are {', '.join(Mode)}, and schedule to follow it again")
        try:
            seconds = None if hold is None else parse_duration(hold).total_seconds()
        except ValueError as error:
            raise UsageError(f"--hold {hold}: {error}") from error
        daemon = need_daemon(load_settings().settings)
        if mode == "schedule":
            answer = daemon.delete("/api/hold")
            if as_json:
                print_json(answer)
            else:
                typer.echo("The schedule is followed again.")
            return
        answer = daemon.post("/api/switch", {"mode": mode, "hold": seconds}, patience=PATIENCE)
    if as_json:
        print_json(answer)
        return
    held = answer.get("hold") or {}
    until = (
        f" until {moment(dt.datetime.fromisoformat(held['until']))}"
        if held.get("until")
        else " until it is taken back: `switch schedule`"
    )
    typer.echo(f"{answer['mode']} after {duration(answer['seconds'])}; it is kept{until}.")
