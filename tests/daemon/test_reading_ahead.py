"""Documents are read by day beside the language model, and make room for whatever needs the embedding model."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from benchmarks.corpus import write_corpus
from tests.daemon.daemons import Daemon, add_samples, make_place, wait_for

AHEAD = 'cron = "0 0 * * *"\nuntil = "24:00"\ntimezone = "UTC"\ntask = "extract"\n'
NIGHT = (
    'cron = "0 0 * * *"\nuntil = "24:00"\ntimezone = "UTC"\nmode = "mixed"\ntask = "ingest"\npriority = 1\n'
    'sources = ["../small"]\n'
)
SAMPLES = ("harbour-committee-minutes.docx", "heron-operations-handbook.pdf", "mountain-huts-supply-agreement.docx")
PAGES = 240
"""Enough that nobody reads them before something else is asked for."""


def run_of(daemon: Daemon, **wanted: object) -> dict[str, Any] | None:
    found = daemon.get("/api/runs?limit=50")
    return next((run for run in found if all(run[key] == value for key, value in wanted.items())), None)


def extracted(daemon: Daemon) -> int:
    return int(daemon.get("/api/status")["documents"]["extracted"])


@pytest.mark.timeout(300)
def test_what_came_in_is_read_while_the_language_model_serves(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    (place.jobs / "ahead.toml").write_text(AHEAD)
    add_samples(place, *SAMPLES)
    with place.daemon() as daemon:
        wait_for(lambda: daemon.mode() == "generation", "the day", 120)
        wait_for(lambda: run_of(daemon, job="ahead", outcome="complete"), "a run of the job", 120)
        status = daemon.get("/api/status")
        assert status["documents"]["extracted"] == 3
        assert status["chunks"]["embedded"] == 0
        assert [slot["state"] for slot in status["host"]["slots"] if slot["slot"] == "embedding"] == ["stopped"]
        assert [switch["target"] for switch in daemon.get("/api/switches")] == ["generation"]
        chat = daemon.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
        assert chat.status_code == 200
        report = daemon.get("/api/reports/latest")
        assert (report["task"], report["job"], report["done"]["documents_read"]) == ("extract", "ahead", 3)
        assert daemon.get(f"/api/runs/{report['run_id']}/report") == report
        pending = daemon.get("/api/plan")["pending"]
        assert (pending["documents_to_read"], pending["documents_read"]) == (0, 3)
        assert pending["chunks"] == status["chunks"]["total"] > 0
        (job,) = [job for job in daemon.get("/api/jobs")["jobs"] if job["name"] == "ahead"]
        assert job["mode"] is None


@pytest.mark.timeout(400)
def test_reading_makes_room_for_a_person_and_for_the_night_and_goes_on_after_them(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    (place.jobs / "ahead.toml").write_text(AHEAD)
    write_corpus(place.data / "inbox", pages=PAGES, pages_per_document=1)
    small = tmp_path / "small"
    small.mkdir()
    (small / "a.docx").write_bytes(_sample())
    with place.daemon() as daemon:
        wait_for(lambda: extracted(daemon) > 0, "the first document", 120)
        run_id = daemon.post("/api/runs", {"paths": [str(small)]}).json()["run_id"]
        wait_for(lambda: run_of(daemon, run_id=run_id, outcome="complete"), "the person's run", 120)
        first = run_of(daemon, job="ahead", outcome="stopped")
        mine = run_of(daemon, run_id=run_id)
        assert first is not None
        assert mine is not None
        assert dt.datetime.fromisoformat(first["finished_at"]) <= dt.datetime.fromisoformat(mine["started_at"])
        assert daemon.get("/api/status")["documents"]["embedded"] == 1
        before = extracted(daemon)
        wait_for(lambda: extracted(daemon) > before or extracted(daemon) == PAGES, "reading goes on", 120)
        # A night begins.
        (small / "b.pdf").write_bytes(_sample("heron-operations-handbook.pdf"))
        (place.jobs / "night.toml").write_text(NIGHT)
        wait_for(lambda: run_of(daemon, job="night", outcome="complete"), "the night's run", 120)
        assert daemon.get("/api/status")["documents"]["embedded"] == 2
        before = extracted(daemon)
        wait_for(lambda: extracted(daemon) > before or extracted(daemon) == PAGES, "reading goes on again", 120)


@pytest.mark.timeout(300)
def test_reading_by_hand_needs_no_model_and_no_mode(tmp_path: Path) -> None:
    place = make_place(tmp_path, mode="idle", language_model=False)
    add_samples(place, *SAMPLES)
    with place.daemon() as daemon:
        result = place.command("run-now", "--extract-only", "--json")
        assert result.returncode == 0, (result.stdout, result.stderr)
        assert (daemon.mode(), extracted(daemon)) == ("idle", 3)
        assert daemon.get("/api/status")["chunks"]["embedded"] == 0


def _sample(name: str = SAMPLES[0]) -> bytes:
    return (Path(__file__).parents[2] / "data" / "inbox" / name).read_bytes()
