"""The plan and the report of the real program: read ahead, forecast, embed, killed and told."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import sqlite3
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.corpus import write_corpus
from pipeline.backends.gpus import unused_gpu
from tests.runs import ROOT, SMALL_CHUNKS, Host, kill_and_reap, rows, wait_until

INBOX = ROOT / "data" / "inbox"
NIGHT = (
    'cron = "0 2 * * *"\nuntil = "08:00"\ntimezone = "UTC"\nmode = "embedding"\ntask = "ingest"\non_finish = "stay"\n'
)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "night.toml").write_text(NIGHT)
    (tmp_path / "data" / "inbox").mkdir(parents=True)
    settings = SMALL_CHUNKS | {"NIGHTSHIFT_JOBS_DIR": str(tmp_path / "jobs"), "NIGHTSHIFT_SOURCES_SETTLE": "0"}
    return Host(tmp_path / "data", settings)


def report_files(host: Host) -> list[Path]:
    return sorted((host.data_dir / "reports").glob("*.json"))


def one_is_read(host: Host) -> bool:
    try:
        return bool(rows(host.database, "SELECT 1 FROM contents WHERE state = 'extracted'"))
    except sqlite3.OperationalError:  # it is not there yet
        return False


def test_a_plan_says_what_it_does_not_know_and_then_what_it_measured(host: Host) -> None:
    empty = host.run("plan")
    assert empty.returncode == 0
    assert "Nothing waits" in empty.stdout
    assert "not known yet" in empty.stdout
    assert not host.database.exists()
    assert host.run("report").returncode == 2
    shutil.copy(INBOX / "heron-operations-handbook.pdf", host.data_dir / "inbox")
    shutil.copy(INBOX / "harbour-committee-minutes.docx", host.data_dir / "inbox")
    (host.data_dir / "inbox" / "broken.pdf").write_bytes(b"%PDF-1.7\nand then nothing")

    read = host.run_json("run-now", "--extract-only")
    assert (read["outcome"], read["documents"]["extracted"], read["chunks_embedded"]) == ("complete", 2, 0)
    assert read["documents_read"] == 2
    plan = host.run_json("plan")
    assert plan["pending"]["documents_read"] == 2
    assert plan["pending"]["tokens"] > 0
    assert plan["rates"]["pages_per_second"]["likely"] > 0
    assert (plan["known"], plan["rates"]["tokens_per_second"], plan["nights"]["likely"]["nights"]) == (
        False,
        None,
        None,
    )
    assert any("how fast this model embeds here is not known" in each for each in plan["assumed"])
    (source,) = plan["pending"]["by_source"]
    assert source["source"] == str(host.data_dir / "inbox")
    window = plan["next_window"]
    assert window["job"] == "night"
    assert dt.datetime.fromisoformat(window["start"]) > dt.datetime.fromisoformat(plan["made_at"]) or window["seconds"]

    assert host.run_json("run-now")["outcome"] == "complete"
    done = host.run_json("plan")
    assert done["known"]
    assert (done["nights"]["likely"]["nights"], done["pending"]["tokens"]) == (0, 0)
    rate = done["rates"]["tokens_per_second"]
    assert 0 < rate["low"] <= rate["likely"] <= rate["high"]

    assert "Nothing waits" in host.run("plan").stdout
    host.settings["NIGHTSHIFT_CHUNK_TOKENS"] = "40"
    assert host.run_json("plan")["pending"]["documents_to_read"] == 3
    assert "The settings changed: 3 documents will be made anew" in host.run("plan").stdout
    host.settings["NIGHTSHIFT_CHUNK_TOKENS"] = SMALL_CHUNKS["NIGHTSHIFT_CHUNK_TOKENS"]

    shutil.copy(INBOX / "seed-store-incident.pdf", host.data_dir / "inbox")
    assert "Try:" not in host.run("run-now", "--extract-only").stdout
    ahead = host.run_json("plan")
    assert ahead["known"]
    assert ahead["nights"]["likely"]["nights"] == ahead["nights"]["latest"]["nights"] == 1
    assert ahead["next_window"]["done_at"] is not None
    assert "Done in 1 night" in host.run("plan").stdout


def test_each_run_with_work_is_reported_and_one_without_is_not(host: Host) -> None:
    shutil.copy(INBOX / "harbour-committee-minutes.docx", host.data_dir / "inbox")
    shutil.copy(INBOX / "delivery-note-scan.pdf", host.data_dir / "inbox")
    for number in range(3):
        (host.data_dir / "inbox" / f"broken {number}.pdf").write_bytes(b"%PDF-1.7\nand then nothing" + b"!" * number)
    run = host.run_json("run-now")
    (file,) = report_files(host)
    report = json.loads(file.read_text())
    assert host.run_json("report", run["run_id"]) == report
    assert (report["run_id"], report["outcome"], report["job"], report["task"]) == (
        run["run_id"], "complete", None, "ingest",
    )  # fmt: skip
    assert report["done"]["documents_embedded"] == 1
    assert report["done"]["tokens"] > 0
    assert [(cause["count"], cause["state"], len(cause["examples"])) for cause in report["failed"]] == [
        (3, "failed", 3),
        (1, "empty", 1),
    ]
    assert (report["needs_ocr"]["documents"], report["needs_ocr"]["pages"]) == (1, 2)
    assert report["next"]["pending"]["documents_to_read"] == 0
    text = file.with_suffix(".md").read_text()
    assert "3 documents failed" in text
    assert "1 document without any text (2 pages)" in text
    assert host.run("report").stdout == text
    (stored,) = rows(host.database, "SELECT device, documents_done, tokens_embedded > 0, fingerprint IS NULL FROM runs")
    assert tuple(stored)[1:] == (1, 1, 0)
    again = host.run_json("run-now")
    assert report_files(host) == [file]
    assert host.run("report", again["run_id"]).returncode == 2
    unknown = host.run("report", "nosuch")
    assert (unknown.returncode, run["run_id"] in unknown.stderr) == (2, True)


def test_a_run_that_lost_its_power_is_told_of_by_the_next(host: Host) -> None:
    write_corpus(host.data_dir / "inbox", pages=120, pages_per_document=1)
    process = host.spawn("run-now", "--extract-only", "--quiet")
    try:
        wait_until(lambda: one_is_read(host))
    finally:
        kill_and_reap(process)
    ((dead, state),) = rows(host.database, "SELECT id, state FROM runs")
    assert state == "running"
    report = host.run_json("run-now", "--extract-only")
    assert report["documents"]["extracted"] == 120
    late, told = (json.loads(file.read_text()) for file in report_files(host))
    assert [earlier["run_id"] for earlier in told["interrupted"]] == [dead]
    assert f"Run {dead} before it was interrupted" in report_files(host)[-1].with_suffix(".md").read_text()
    assert (late["run_id"], late["outcome"]) == (dead, "interrupted")  # of which nobody had heard yet


def test_documents_are_read_in_the_order_that_is_asked_for(host: Host, tmp_path: Path) -> None:
    """The order of the rows that were made of them: one worker, one after the other."""
    folders = [tmp_path / name for name in ("second", "first")]
    for number, folder in enumerate(folders):
        write_corpus(folder, pages=3, pages_per_document=1)
        for age, path in enumerate(sorted(folder.rglob("*.pdf"))):
            path.write_bytes(path.read_bytes() + b"%" * (10 * number + age))
            os.utime(path, (1_700_000_000 + age, 1_700_000_000 + age))
    host.settings["NIGHTSHIFT_RUN_ORDER"] = "oldest"
    first, second = str(folders[1]), str(folders[0])
    host.run_json("run-now", "--extract-only", first, second)
    made = rows(
        host.database,
        "SELECT s.root, d.mtime_ns FROM chunks k JOIN documents d ON d.pending_id = k.content_id "
        "JOIN sources s ON s.id = d.source_id WHERE k.ordinal = 0 ORDER BY k.id",
    )
    assert [root for root, _ in made][-1] == second
    of_second = [time for root, time in made if root == second]
    assert of_second == sorted(of_second)


def test_the_device_the_build_and_a_gpu_that_is_not_used_are_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(INBOX / "harbour-committee-minutes.docx", host.data_dir / "inbox")
    driver = host.data_dir / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{driver.parent}{os.pathsep}{os.environ['PATH']}")
    unused = unused_gpu()  # none where llama.cpp is built for a GPU here
    run = host.run_json("run-now")
    report = host.run_json("report")
    device = host.run_json("status")["device"]
    assert run["device_name"] == report["device_name"] == device["name"] != ""
    assert run["build"] == report["build"] == device["build"]
    assert run["build"].startswith(f"llama-cpp-python {version('llama-cpp-python')} for ")
    assert run["unused_gpu"] == report["unused_gpu"] == device["unused_gpu"] == unused
    text = (host.data_dir / "reports" / f"{run['run_id']}.md").read_text()
    assert f"Computed on {device['name']}" in text
    assert unused is None or unused[1:] in text
