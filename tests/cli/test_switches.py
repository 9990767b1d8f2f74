"""The `switches` command: what a person, a pipe and a program see."""

from __future__ import annotations

import datetime as dt
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli.switches import list_switches, switches_command
from pipeline.cli.words import program
from pipeline.core.modes import Mode
from pipeline.store.database import Database
from pipeline.store.switches import (
    StoredSwitch,
    SwitchOutcome,
    SwitchReason,
    begin_switch,
    end_switch,
    note_progress,
)

NOW = dt.datetime(2026, 6, 2, 2, tzinfo=dt.UTC)
WHEN = f"{NOW.astimezone():%Y-%m-%d %H:%M:%S %Z}"
DONE = StoredSwitch(
    id=2,
    from_mode=Mode.GENERATION,
    to_mode=Mode.EMBEDDING,
    reason=SwitchReason.JOB,
    detail="nightly",
    started_at=NOW,
    finished_at=NOW + dt.timedelta(seconds=5.5),
    outcome=SwitchOutcome.DONE,
    phases={"close": 0.0, "start": 2.0, "stop": 0.25, "ready": 3.125},
    memory_before=9 << 30,
    memory_after=1 << 29,
    device="GPU 0",
    pids_before=[11, 12],
    pids_after=[],
    in_flight=3,
    cut=1,
    error=None,
)
FAILED = replace(
    DONE,
    reason=SwitchReason.OPERATOR,
    detail=None,
    outcome=SwitchOutcome.ROLLED_BACK,
    memory_before=None,
    memory_after=None,
    pids_before=[],
    error="the model [red]file\x1b[2J is not there",
)
RUNNING = replace(DONE, outcome=SwitchOutcome.RUNNING, finished_at=None, phases={}, memory_after=None)


def listed(*switches: StoredSwitch, terminal: bool = False, width: int = 10_000) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, color_system=None, width=width, highlight=False)
    list_switches(switches, console)
    return out.getvalue().splitlines()


def test_a_pipe_gets_one_aligned_line_for_each() -> None:
    lines = listed(DONE, FAILED, RUNNING)
    assert len(lines) == 4
    assert [cell.strip() for cell in lines[1].split("  ") if cell] == [
        WHEN, "generation -> embedding", "job (nightly)", "done", "5.38",
        "close 0.00 stop 0.25 start 2.00 ready 3.12", "9.00 GiB -> 0.50 GiB", "11,12 -> -",
    ]  # fmt: skip
    places = [lines[0].index(name) for name in ("from", "reason", "outcome", "phases", "memory", "pids", "error")]
    assert lines[2][places[2] :].startswith("rolled-back")
    assert lines[2][places[-1] :] == r"the model [red]file\x1b[2J is not there"
    assert lines[3][places[-3] :].rstrip() == "9.00 GiB -> -         11,12 -> -"
    assert "5.38" not in lines[3]


def test_a_wide_terminal_gets_the_same() -> None:
    assert listed(DONE, FAILED, terminal=True, width=220) == listed(DONE, FAILED)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_narrow_terminal_gets_a_few_lines_for_each(width: int) -> None:
    lines = listed(DONE, FAILED, terminal=True, width=width)
    assert [line for line in lines if not line.startswith("    ")] == [
        f"{WHEN}  generation -> embedding  job (nightly)  done            5.38",
        f"{WHEN}  generation -> embedding  operator       rolled-back     5.38",
    ]
    details = [line for line in lines if line.startswith("    ")]
    assert max(map(len, details)) <= width
    shown = " ".join(" ".join(details).split())
    assert "phases: close 0.00 stop 0.25 start 2.00 ready 3.12 memory: 9.00 GiB -> 0.50 GiB pids: 11,12 -> -" in shown
    assert shown.endswith(r"error: the model [red]file\x1b[2J is not there")


def test_without_a_switch_it_says_so() -> None:
    assert listed() == [f"No switches yet: `{program()} daemon` makes them."]


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a database with a switch that is done and one that runs."""
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path / 'x.db'}"
    with Database.open(url) as store, store.begin() as session:
        first = begin_switch(session, Mode.IDLE, Mode.GENERATION, SwitchReason.SCHEDULE, NOW, pids_before=[7])
        note_progress(session, first, {"ready": 1.5}, memory_after=5)
        end_switch(session, first, SwitchOutcome.DONE, NOW + dt.timedelta(seconds=2))
        begin_switch(session, Mode.GENERATION, Mode.MIXED, SwitchReason.OPERATOR, NOW, detail="ada")
    return url


def test_a_program_gets_every_field(journal: str, capsys: pytest.CaptureFixture[str]) -> None:
    switches_command(journal, 10, as_json=True)
    running, done = json.loads(capsys.readouterr().out)
    assert done == {
        "id": 1, "from": "idle", "to": "generation", "reason": "schedule", "detail": None,
        "started_at": "2026-06-02T02:00:00+00:00", "finished_at": "2026-06-02T02:00:02+00:00", "outcome": "done",
        "phases": {"ready": 1.5}, "memory_before": None, "memory_after": 5, "device": None, "pids_before": [7],
        "pids_after": [], "in_flight": 0, "cut": 0, "error": None, "seconds": 1.5,
    }  # fmt: skip
    assert (running["outcome"], running["finished_at"], running["seconds"]) == ("running", None, None)


def test_the_newest_come_first_and_no_more_than_asked_for(journal: str, capsys: pytest.CaptureFixture[str]) -> None:
    switches_command(journal, 1, as_json=False)
    _, line = capsys.readouterr().out.splitlines()
    assert "generation -> mixed" in line
    assert "operator (ada)" in line
