"""`report`: laid out on a terminal, Markdown in a pipe."""

from __future__ import annotations

import datetime as dt
import io
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipeline.cli import morning
from pipeline.core.causes import Causes
from pipeline.ingest.progress import Progress
from pipeline.runner.morning import Facts, make_report
from pipeline.runner.morning_text import as_markdown
from pipeline.store import reports, runs
from pipeline.store.database import Database, make_engine, upgrade
from tests.store import rows

NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
NAME = "보고서/2026년 예산안 [최종] *검토용*_v2.pdf"


@pytest.fixture
def report(tmp_path: Path) -> Any:
    progress = Progress(started_monotonic=0.0, causes=Causes())
    progress.document_failed(NAME, "failed", "암호화된 파일입니다: `암호`가 필요합니다")
    progress.document_failed(unicodedata.normalize("NFD", "회의록.docx"), "failed", "it is <b>broken</b>\x1b[31m")
    facts = Facts(
        run_id="20260601T120000-abc", job="야간작업", task="ingest", outcome="failed", started_at=NOON,
        finished_at=NOON + dt.timedelta(hours=2), seconds=7200.0, progress=progress, errors=["/mnt/문서 is away"],
    )  # fmt: skip
    engine = make_engine(f"sqlite:///{tmp_path / 'some.db'}")
    upgrade(engine)
    engine.dispose()
    with Database.open(f"sqlite:///{tmp_path / 'some.db'}") as store, store.begin() as session:
        rows.begin(session, facts.run_id)
        made = make_report(session, facts)
        reports.save_first_report(session, facts.run_id, made)
        runs.finish_run(session, facts.run_id, "failed", None, NOON)
    return made


def laid_out(report: Any, width: int, **options: Any) -> str:
    file = io.StringIO()
    morning.lay_out(report, Console(file=file, force_terminal=True, width=width, highlight=False, **options))
    return file.getvalue()


@pytest.mark.parametrize("width", [200, 80, 40, 20])
def test_a_terminal_gets_no_markdown_and_no_line_that_is_too_long(report: Any, width: int) -> None:
    shown = laid_out(report, width, color_system=None)
    lines = shown.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert not [line for line in lines if line.startswith(("#", "- "))]
    assert "\\" not in shown.replace(r"\x1b", "")
    points = [line for line in lines if line.startswith("  \N{BULLET} ")]
    assert len(points) == sum(line.startswith("- ") for line in as_markdown(report).splitlines())
    assert all(
        line.startswith(("  \N{BULLET} ", "    ")) for line in lines[lines.index("Errors") + 2 :] if " " in line[:3]
    )
    together = "".join("".join(lines).split()).replace("\N{BULLET}", "")
    assert "".join(NAME.split()) in together
    assert "".join(unicodedata.normalize("NFD", "회의록.docx").split()) in together
    assert "\x1b" not in shown


def test_colours_are_left_out_where_they_are_not_wanted(report: Any) -> None:
    assert "\x1b[1;31m" in laid_out(report, 80, color_system="standard")
    assert "\x1b" not in laid_out(report, 80, color_system="standard", no_color=True)


def test_a_terminal_without_unicode_gets_what_it_can_show(report: Any) -> None:
    console = Console(file=io.TextIOWrapper(io.BytesIO(), "ascii"), force_terminal=True, width=80, color_system=None)
    morning.lay_out(report, console)  # it would fail to encode


def test_a_pipe_gets_markdown_and_a_terminal_on_demand(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_DATABASE_URL", f"sqlite:///{tmp_path / 'some.db'}")
    monkeypatch.setenv("NIGHTSHIFT_DATA_DIR", str(tmp_path))
    morning.report_command(None, None, as_json=False)
    assert capsys.readouterr().out == as_markdown(report)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the output for a terminal
    morning.report_command(None, None, as_json=False)
    assert "\N{BULLET} " in capsys.readouterr().out
    morning.report_command(None, None, as_json=False, markdown=True)
    assert "\n## Errors\n\n- " in capsys.readouterr().out
