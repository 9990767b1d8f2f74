"""The `jobs` commands: what a person, a pipe and a program see."""

from __future__ import annotations

import io
import json
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from rich.console import Console

from pipeline.cli.jobs import check_jobs, list_jobs
from pipeline.cli.words import program
from pipeline.core.modes import Mode
from pipeline.core.schedule import Hold, desired_mode
from pipeline.scheduler.jobs import LoadedJobs, load_jobs

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 6, 2, 3, tzinfo=BERLIN)
FILES = {
    "night": 'cron = "0 2 * * *"\nuntil = "08:00"\nmode = "embedding"\ntask = "ingest"\n',
    "day": 'cron = "0 8 * * *"\nuntil = "18:00"\nmode = "generation"\n',
    "off": 'cron = "0 2 * * *"\nuntil = "08:00"\nmode = "idle"\nenabled = false\n',
    "seoul": 'cron = "0 17 * * sun"\nuntil = "1d"\nmode = "idle"\ntimezone = "Asia/Seoul"\npriority = 1\n',
}


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedJobs:
    return load_with(tmp_path, FILES)


def load_with(folder: Path, files: dict[str, str]) -> LoadedJobs:
    (folder / "jobs").mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / "jobs" / f"{name}.toml").write_text(text, encoding="utf-8")
    return load_jobs(folder / "jobs", now=NOW, zone=lambda: BERLIN)


def console(out: io.StringIO, *, terminal: bool = False, width: int = 10_000) -> Console:
    return Console(file=out, force_terminal=terminal, color_system=None, width=width, highlight=False)


def listed(loaded: LoadedJobs, now: datetime = NOW, *, terminal: bool = False, width: int = 10_000) -> list[str]:
    out = io.StringIO()
    list_jobs(loaded, now, console(out, terminal=terminal, width=width))
    return out.getvalue().splitlines()


def test_a_pipe_gets_aligned_lines_and_what_is_wanted_now(loaded: LoadedJobs) -> None:
    assert listed(loaded) == [
        "   day    generation               Tue 2026-06-02 08:00 to 18:00                 Europe/Berlin",
        "*  night  embedding   until 08:00  Wed 2026-06-03 02:00 to 08:00                 Europe/Berlin  ingest",
        "   seoul  idle                     Sun 2026-06-07 17:00 to Mon 2026-06-08 17:00  Asia/Seoul",
        "   off    idle        off                                                        Europe/Berlin",
        "",
        "wanted now: embedding until Tue 2026-06-02 08:00 CEST (job night)",
    ]


def test_they_come_in_the_order_of_their_next_starts(loaded: LoadedJobs) -> None:
    def names(now: datetime) -> list[str]:
        return [line[3:].split()[0] for line in listed(loaded, now)[:4]]

    assert names(NOW) == ["day", "night", "seoul", "off"]
    assert names(NOW.replace(hour=9)) == ["night", "day", "seoul", "off"]  # the open one is the last to start again
    assert names(NOW.replace(day=7, hour=9)) == ["seoul", "night", "day", "off"]
    out = io.StringIO()
    list_jobs(loaded, NOW.replace(hour=9), console(out), as_json=True)
    assert [job["name"] for job in json.loads(out.getvalue())["jobs"]] == ["night", "day", "seoul", "off"]


def test_a_window_that_another_goes_before_is_open_without_a_star(loaded: LoadedJobs) -> None:
    lines = listed(loaded, NOW + timedelta(days=6))
    assert [line.split()[1] for line in lines[:4] if line.startswith("*")] == ["seoul"]
    assert "until 08:00" in next(line for line in lines if "night" in line)
    assert lines[-1] == "wanted now: idle until Mon 2026-06-08 10:00 CEST (job seoul)"


def test_what_goes_beside_any_mode_has_a_star_while_it_is_open(tmp_path: Path) -> None:
    reads = 'cron = "0 1 * * *"\nuntil = "13:00"\ntask = "extract"\n'
    lines = listed(load_with(tmp_path, FILES | {"reads": reads}))
    assert [line.split()[:2] for line in lines if line.startswith("*")] == [["*", "reads"], ["*", "night"]]
    late = listed(load_with(tmp_path, FILES | {"reads": reads}), NOW.replace(hour=14))
    assert [line.split()[1] for line in late if line.startswith("*")] == ["day"]


def test_a_terminal_gets_a_table(loaded: LoadedJobs) -> None:
    lines = listed(loaded, terminal=True, width=120)
    assert lines[0].split() == ["job", "mode", "open", "next", "time", "zone", "task"]
    assert max(map(len, lines)) <= 120


def test_without_an_open_window_the_default_is_wanted(loaded: LoadedJobs) -> None:
    assert listed(loaded, NOW.replace(hour=20))[-1] == (
        "wanted now: idle until Wed 2026-06-03 02:00 CEST (no window is open)"
    )
    assert listed(LoadedJobs()) == ["wanted now: idle (no window is open)"]


def test_a_hold_is_shown(loaded: LoadedJobs) -> None:
    out = io.StringIO()
    desired = desired_mode(loaded.jobs, NOW, Hold(Mode.MIXED, NOW + timedelta(hours=2)))
    list_jobs(loaded, NOW, console(out), desired=desired)
    assert "wanted now: mixed until Tue 2026-06-02 05:00 CEST (held by an operator)" in out.getvalue()
    assert "*" not in out.getvalue()


def test_a_program_gets_instants_with_their_offset(loaded: LoadedJobs) -> None:
    out = io.StringIO()
    list_jobs(loaded, NOW, console(out, width=20), as_json=True)
    document = json.loads(out.getvalue())
    assert document["now"] == "2026-06-02T03:00:00+02:00"
    assert document["wanted"] == {
        "mode": "embedding", "job": "night", "reason": "schedule", "until": "2026-06-02T08:00:00+02:00",
    }  # fmt: skip
    jobs = {job["name"]: job for job in document["jobs"]}
    assert [job["name"] for job in document["jobs"] if job["current"]] == ["night"]
    assert jobs["night"]["open"] == {"start": "2026-06-02T02:00:00+02:00", "end": "2026-06-02T08:00:00+02:00"}
    assert jobs["seoul"]["next"][0] == {"start": "2026-06-07T17:00:00+09:00", "end": "2026-06-08T17:00:00+09:00"}
    assert len(jobs["day"]["next"]) == 3
    assert (jobs["off"]["open"], jobs["off"]["next"]) == (None, [])
    assert document["problems"] == []


def test_check_says_that_nothing_is_wrong(loaded: LoadedJobs) -> None:
    out = io.StringIO()
    assert check_jobs(loaded, console(out)) == 0
    assert out.getvalue() == "4 jobs, nothing wrong\n"


def test_check_names_the_file_and_the_line(tmp_path: Path) -> None:
    loaded = load_with(tmp_path, FILES | {"day": 'cron = "0 8 * * 1"\nuntil = "18:00"\nmode = "\\u001b[2J[red]"\n'})
    out = io.StringIO()
    assert check_jobs(loaded, console(out, width=20), cwd=tmp_path) == 1
    first, second = out.getvalue().splitlines()
    assert first.startswith('jobs/day.toml:1: cron: weekday "1" should be names')
    assert second.startswith("jobs/day.toml:3: mode: should be")
    assert second.endswith('[2J[red]"')
    assert "\x1b" not in second
    assert listed(loaded)[-1] == f"2 problems: {program()} jobs check"


def test_check_tells_programs_the_same(tmp_path: Path) -> None:
    loaded = load_with(tmp_path, {"day": FILES["day"], "bad": "mode = 1"})
    out = io.StringIO()
    assert check_jobs(loaded, console(out), as_json=True) == 1
    document = json.loads(out.getvalue())
    assert document["jobs"] == ["day"]
    assert [(problem["line"], problem["message"].split(":")[0]) for problem in document["problems"]] == [
        (None, "cron"), (None, "until"), (1, "mode"),
    ]  # fmt: skip
    assert {problem["file"] for problem in document["problems"]} == {str(tmp_path / "jobs" / "bad.toml")}


def test_paths_elsewhere_are_left_whole(tmp_path: Path) -> None:
    out = io.StringIO()
    check_jobs(load_with(tmp_path, {"bad": "x"}), console(out), cwd=tmp_path / "elsewhere")
    assert out.getvalue().startswith(f"{tmp_path}/jobs/bad.toml:1: is not TOML")
