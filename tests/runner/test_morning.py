"""The report of a run: what it says, and its files."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.ingest.progress import Progress
from pipeline.runner.ending import Ending
from pipeline.runner.morning import Facts, cut_off, make_report, write_report
from pipeline.runner.morning_text import as_markdown, as_shown, local
from pipeline.scheduler.jobs import load_jobs
from pipeline.settings import Settings
from pipeline.store import absent, library, queue, reports, runs
from pipeline.store.database import Database
from pipeline.store.scopes import Scope
from tests.store import rows

NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)


def facts(progress: Progress | None = None, **more: object) -> Facts:
    blank = {
        "run_id": "20260601T120000-abc", "job": "nightly", "task": "ingest", "outcome": "complete", "started_at": NOON,
        "finished_at": NOON + dt.timedelta(hours=2), "seconds": 7200.0,
        "progress": progress or Progress(started_monotonic=0.0),
    }  # fmt: skip
    return Facts(**(blank | more))  # type: ignore[arg-type]


def test_a_run_without_work_has_nothing_to_report_and_any_other_has() -> None:
    assert facts().empty
    busy = Progress(started_monotonic=0.0)
    busy.changes.unchanged = 9
    assert facts(busy).empty
    busy.changes.removed = 1
    assert not facts(busy).empty
    settings_changed = Progress(started_monotonic=0.0)
    settings_changed.changes.remade = 1
    assert not facts(settings_changed).empty
    assert not facts(outcome="stopped").empty
    assert not facts(errors=["away"]).empty
    assert not facts(interrupted=[("killed", NOON)]).empty


def test_a_report_says_what_was_done_what_failed_and_what_waits(store: Database) -> None:
    progress = Progress(started_monotonic=0.0)
    for number in range(1000):
        progress.document_failed(f"scans/{number}.pdf", "failed", f"took longer than {number} s")
    progress.document_failed("[odd](name)\x1b[31m.pdf", "failed", "it is <b>broken</b>")
    progress.meter.document_read(12, 30_000)
    progress.meter.request_done(5000, 2.0)
    progress.chunks_embedded(50, 1.0)
    progress.changes.unchanged, progress.changes.remade = 40, 38
    with store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        source = library.ensure_source(session, "/docs", NOON)
        rows.register(session, source, target, a="a", b="b")
        absent.note_absent(session, [library.known_documents(session, Scope(source))[0].id], [], NOON)
        for content in queue.claim_to_extract(session, "run", None, target, NOON, 1):
            queue.end_extraction(session, content.content_id, DocumentState.ENCRYPTED, "needs a password")
        report = make_report(
            session,
            facts(
                progress,
                errors=["/mnt is away"],
                interrupted=[("20260531T020000-dead", NOON - dt.timedelta(hours=9))],
            ),
        )
    assert json.loads(json.dumps(report)) == report
    like, odd = report["failed"]
    assert (like["count"], like["cause"], len(like["examples"])) == (1000, "took longer than N s", 3)
    assert odd["count"] == 1
    assert report["waits_for_a_person"] == {
        "deletions": [
            "Documents of /docs whose files are gone since 2026-06-01: 1. They stay until it is confirmed: "
            "`python -m pipeline run-now /docs --confirm-deletions`"
        ],
        "encrypted": 1,
    }
    assert report["done"]["pages"] == 12
    assert report["index"]["documents"]["total"] == 2
    text = as_markdown(report)
    assert "1,000 documents failed: took longer than N s (scans/0.pdf, scans/1.pdf, scans/2.pdf, ...)" in text
    assert "20260531T020000-dead before it was interrupted" in text
    assert "Documents of /docs whose files are gone" in text
    assert "1 encrypted document: it needs its password; the setting `extract.passwords`" in text
    assert "/mnt is away" in text
    assert "- Found: 40 unchanged.\n- Made anew: 38 documents; the model or the settings" in text
    assert "\x1b" not in text  # names of files are written such that neither Markdown nor a terminal obeys them
    assert "\\[odd\\](name)" in text
    shown = "\n".join(map(as_shown, text.splitlines()))
    assert "[odd](name)" in shown
    assert "`python -m pipeline run-now /docs --confirm-deletions`" in shown
    assert "\\" not in shown
    assert "<b>" not in text.replace("\\<b\\>", "")


def test_files_are_whole_and_those_that_are_too_old_go(tmp_path: Path) -> None:
    now = dt.datetime(2026, 6, 10, tzinfo=dt.UTC)
    report: dict[str, object] = {
        "run_id": "", "interrupted": [], "errors": [], "failed": [],
        "job": None, "task": "ingest", "outcome": "complete", "started_at": NOON.isoformat(), "seconds": 1.0,
        "finished_at": NOON.isoformat(), "done": dict.fromkeys(
            ("documents_read", "chunks", "chunks_reused"), 0), "found": {}, "next": None,
        "waits_for_a_person": {"deletions": [], "encrypted": 0},
        "needs_ocr": {"documents": 0, "pages": 0, "partly": 0, "partly_pages": 0},
        "index": {"documents": {"total": 0}, "chunks": {"total": 0, "embedded": 0}, "failing": []},
    }  # fmt: skip
    folder = tmp_path / "reports"
    for day in range(1, 10):
        write_report(folder, report | {"run_id": f"2026060{day}T020000-a"}, keep=5, keep_days=3, now=now)
    (folder / "notes.txt").write_text("mine")
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"2026060{day}T020000-a.{suffix}" for day in (7, 8, 9) for suffix in ("json", "md")),
        "notes.txt",
    ]
    write_report(folder, report | {"run_id": "20260609T030000-b"}, keep=2, keep_days=0, now=now)
    assert sorted(path.stem for path in folder.glob("*.md")) == ["20260609T020000-a", "20260609T030000-b"]
    assert json.loads((folder / "20260609T030000-b.json").read_text())["outcome"] == "complete"
    write_report(tmp_path / "none", report, keep=0, keep_days=0, now=now)
    assert not (tmp_path / "none").exists()


async def test_a_run_that_its_window_cut_off_says_what_waits_and_when_it_goes_on(
    store: Database, tmp_path: Path
) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "nightly.toml").write_text(
        'cron = "0 2 * * *"\nuntil = "08:00"\ntimezone = "UTC"\nmode = "embedding"\ntask = "ingest"\n'
    )

    def wait(session: Session) -> None:
        target = rows.add_target(session)
        source = library.ensure_source(session, "/docs", NOON)
        rows.register(session, source, target, a="a", b="b")
        rows.begin(session)

    await store.write(wait)
    known = load_jobs(tmp_path / "jobs").jobs
    settings = Settings(data_dir=tmp_path)
    ending = Ending("run", settings, Progress(started_monotonic=0.0), job="nightly", jobs=known, until=NOON)
    await ending.end(store, "stopped", [])
    run = await store.read(runs.find_run, "run")
    report = await store.read(reports.find_report, "run")
    assert run is not None
    assert report is not None
    assert run.error == ending.cut_off == report["cut_off"]
    assert ending.cut_off is not None
    assert f"its time was over at {local(NOON.isoformat())} (`until` of the job nightly)" in ending.cut_off
    assert "2 documents with 0 chunks cut so far wait" in ending.cut_off
    start = report["next"]["next_window"]["start"]
    assert f"it goes on in the next window of nightly, {local(start)}, or now by `python -m pipeline run-now`" in (
        ending.cut_off
    )
    assert f"It was stopped: {ending.cut_off}." in as_markdown(report)
    assert "no later window is in sight, or now by" in cut_off("nightly", NOON, None)


def test_a_report_that_cannot_be_written_leaves_no_half_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    (folder / "x.json").mkdir(parents=True)
    (folder / "x.json" / "in the way").touch()
    with pytest.raises(OSError, match=r"x\.json"):
        write_report(folder, {"run_id": "x"}, keep=5, keep_days=0, now=NOON)
    assert [path.name for path in folder.iterdir()] == ["x.json"]
