"""`status`: what an operator sees of a host, with and without a daemon, and on either database."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import typer
from rich.cells import cell_len
from rich.console import Console

from pipeline.cli import status
from pipeline.cli.status_text import rows_of
from pipeline.core.documents import DocumentState
from pipeline.core.modes import Device, Mode, Slot
from pipeline.core.schedule import Hold
from pipeline.runner.ownership import own_host
from pipeline.runner.untold import this_process
from pipeline.store import holds, library, queue, runs, switches
from pipeline.store.database import Database
from pipeline.store.switches import SwitchOutcome, SwitchReason
from pipeline.web import shapes
from tests.store import rows

NOW = dt.datetime.now(dt.UTC)
HOUR = dt.timedelta(hours=1)
NIGHT = 'cron = "0 0 * * *"\nuntil = "24:00"\nmode = "embedding"\ntask = "ingest"\ntimezone = "UTC"\n'
KEYS = {  # what programs were given before there was more
    "documents", "chunks", "model", "found_after_move", "next_models", "tunings", "sources", "deletions", "mirror",
    "daemon", "last_run", "other_runs",
}  # fmt: skip
UNKNOWN = {"free_bytes": None, "total_bytes": None, "database_bytes": None}
Show = Callable[..., Any]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "jobs").mkdir()
    for name in [name for name in os.environ if name.startswith("NIGHTSHIFT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NIGHTSHIFT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("NIGHTSHIFT_JOBS_DIR", str(tmp_path / "jobs"))
    monkeypatch.setattr(status, "utc_now", lambda: NOW)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


@pytest.fixture
def show(data: Path, capsys: pytest.CaptureFixture[str]) -> Show:
    """What `status` prints: its lines by name, or its JSON."""

    def run(url: str | None = None, *, as_json: bool = False) -> Any:
        status.show_status(url, as_json=as_json)
        out = capsys.readouterr().out
        return json.loads(out) if as_json else by_name(out)

    return run


def by_name(out: str) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for line in out.splitlines():
        name = line[:11].strip() or name
        found[name] = f"{found[name]}\n{line[11:]}" if name in found else line[11:]
    return found


def work(store: Database) -> None:
    """A run of this process that embeds for a job, three documents that wait, and one that failed."""
    with store.begin() as session:
        source, target = library.ensure_source(session, "/docs", NOW), rows.add_target(session)
        runs.start_run(
            session, "20261201T020000-run", this_process(store.host), ["/docs"], NOW - HOUR, lambda process: True,
            job="night", stop_at=NOW + 2 * HOUR,
        )  # fmt: skip
        rows.register(session, source, target, 보고서="a", 예산안="b", third="c", fourth="d")
        first, second, *_ = queue.claim_to_extract(session, "20261201T020000-run", None, target, NOW, 2, "oldest")
        queue.store_extracted(session, first.content_id, rows.extracted("one ", "two ", "three"), NOW)
        queue.end_extraction(session, second.content_id, DocumentState.FAILED, "it is broken")


def daemon_says(data: Path, answer: bytes) -> Any:
    """A daemon of this data folder that gives this answer."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/api/status"
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    @contextmanager
    def serving() -> Iterator[str]:
        with HTTPServer(("127.0.0.1", 0), Answers) as server, own_host(data, "daemon") as tell:
            url = f"http://127.0.0.1:{server.server_port}"
            tell(url)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield url
            finally:
                server.shutdown()
                thread.join()

    return serving()


def answer_of(**more: Any) -> bytes:
    host: dict[str, Any] = {
        "mode": Mode.EMBEDDING, "since": NOW - 2 * HOUR, "wanted": Mode.EMBEDDING,
        "wanted_because": "schedule job night", "next_change": NOW + 3 * HOUR, "next_mode": Mode.GENERATION,
        "slots": [
            shapes.SlotState(
                slot=Slot.GENERATION, model="tiny", kind="llama-server", device=None, state="failed", gate="closed",
                why_failed="it died 6 times within 600 s",
            ),
            shapes.SlotState(
                slot=Slot.EMBEDDING, model="minilm", kind="llama-cpp", device=Device.GPU, state="ready", gate="open"
            ),
        ],
        "gpu": shapes.GpuMemory(used_bytes=2 * 10**9, total_bytes=24 * 10**9, name="A GPU"),
        "problems": ["generation: it died 6 times within 600 s"],
    }  # fmt: skip
    run = shapes.RunProgress(
        run_id="20261201T020000-run", phase="working", seconds=3600, documents_total=40, documents_read=20,
        documents_done=10, documents_failed=2, chunks_total=900, chunks_done=300, chunks_per_second=0.05,
        seconds_left=12_000, current="보고서/예산안.pdf",
    )  # fmt: skip
    whole = shapes.Status(
        version="1", started_at=NOW - 5 * HOUR, host=shapes.HostState(**(host | more)), run=run, documents={},
        chunks={}, texts={"queued": 7}, model=None, last_run=None, deletions=[],
    )  # fmt: skip
    return whole.model_dump_json().encode()


def test_nothing_at_all_yet(show: Show, data: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs" / "night.toml").write_text(NIGHT)
    said = show()
    assert f"none on the data folder {data}: " in said["daemon"]
    assert said["mode"].startswith("none without a daemon; wanted: embedding")
    assert said["mode"].endswith("job night")
    assert said["hold"] == "none"
    assert said["language"] == "no model: NIGHTSHIFT_GENERATION_MODEL is not set"
    assert said["embedding"] == "all-MiniLM-L6-v2-F16: not loaded"
    assert said["last run"].startswith("none yet")
    assert " free of " in said["disk"]
    assert said["database"] == f"sqlite:///{data}/nightshift.db"
    assert not data.exists()
    assert "what is free cannot be told" in dict(rows_of(show(as_json=True) | {"disk": UNKNOWN}, NOW))["disk"]
    document = show(as_json=True)
    assert document.keys() >= KEYS
    assert (document["daemon"], document["run"], document["disk"]["database_bytes"]) == (None, None, None)


def test_a_run_without_a_daemon_is_told_from_the_database(store: Database, show: Show, database_url: str) -> None:
    work(store)
    with store.begin() as session:
        holds.set_hold(session, Hold(Mode.MIXED, NOW + 3 * HOUR), "operator", NOW)
    said = show(database_url)
    about, pace = said["run"].splitlines()
    assert about.startswith("20261201T020000-run: job night, since ")
    assert "(1 h)" in about
    assert "(in 2 h)" in about
    assert pace == "documents 0 of 3, chunks 0 of 3"
    assert said["waits"] == "2 documents to read, 1 document to embed (3 chunks)"
    assert said["documents"] == "4: 2 discovered, 1 extracted, 1 failed"
    assert said["hold"].startswith("mixed until ")
    assert said["mode"].startswith("none without a daemon; wanted: mixed, until ")
    assert said["mode"].endswith(": held by hand")
    assert ".pdf: failed: it is broken" in said["failed"]
    assert float(said["database"].split(": ")[-1].split()[0]) > 0
    document = show(database_url, as_json=True)
    assert document.keys() >= KEYS
    assert (document["run"]["job"], document["run"]["chunks_total"]) == ("night", 3)
    assert document["disk"]["database_bytes"] > 10_000
    assert [one["what"] for one in document["failures"]] == ["document"]
    assert document["hold"]["mode"] == "mixed"


def test_the_daemon_is_asked_and_the_deadline_is_held_against_what_is_left(
    store: Database, show: Show, data: Path, database_url: str
) -> None:
    work(store)
    with daemon_says(data, answer_of()) as url:
        said = show(database_url)
        document = show(database_url, as_json=True)
    assert said["daemon"].startswith(f"{url} (pid {os.getpid()}), since ")
    assert said["daemon"].endswith("(5 h)")
    assert said["problem"] == "generation: it died 6 times within 600 s"
    assert said["mode"].startswith("embedding since ")
    assert "(2 h), until " in said["mode"]
    assert said["mode"].endswith(": job night")
    assert said["hold"] == "none"
    assert said["next"].startswith("generation at ")
    assert said["language"] == "tiny (llama-server): failed (it died 6 times within 600 s)"
    assert said["embedding"] == "minilm (llama-cpp on gpu): serves"
    assert said["gpu"] == "A GPU: 2.0 GB of 24.0 GB in use"
    assert said["run"].splitlines()[1:] == [
        "documents 12 of 40 (2 could not be read), chunks 300 of 900, 0.05 chunks/s, about 3 h 20 min left: more than "
        "fits, the rest is the next night's",
        "now 보고서/예산안.pdf",
    ]
    assert said["waits"].endswith(", 7 texts")
    assert document["host"]["mode"] == document["daemon"]["mode"] == "embedding"
    assert document["daemon"]["models"] == {"generation": "tiny", "embedding": "minilm"}
    assert document["run"]["current"] == "보고서/예산안.pdf"


def test_a_switch_under_way_and_a_mode_that_is_not_the_wanted_one(show: Show, data: Path) -> None:
    under_way = shapes.Switching(
        source=Mode.MIXED, target=Mode.IDLE, phase="drain", reason="operator", seconds=61.0
    )  # fmt: skip
    held = shapes.HoldState(mode=Mode.IDLE)
    wants = {"wanted": Mode.IDLE, "wanted_because": "operator", "next_change": None, "next_mode": None}
    with daemon_says(data, answer_of(switching=under_way, hold=held, **wants)):
        said = show()
    assert said["switching"] == "mixed to idle: drain, for 1 min 1 s"
    assert said["mode"].endswith("; idle is wanted: held by hand")
    assert said["hold"].startswith("idle until it is taken back: ")
    assert said["next"].startswith("no other mode is in sight")


def test_a_daemon_that_talks_nonsense_or_nothing_leaves_the_rest(
    store: Database, show: Show, data: Path, database_url: str
) -> None:
    work(store)
    with daemon_says(data, b"what?"):
        assert "cannot be understood" in show(database_url)["daemon"]
    with daemon_says(data, b'{"host": {}}'):
        said = show(database_url)
        assert "cannot be understood" in said["daemon"]
        assert said["run"].startswith("20261201T020000-run: job night")
    with own_host(data, "run-now"):
        assert f"run-now is at work there (pid {os.getpid()}, since " in show(database_url)["daemon"]
    with own_host(data, "daemon") as tell:
        tell("http://127.0.0.1:9")
        assert "cannot be reached" in show(database_url)["daemon"]


def test_the_last_failures_are_told_in_words(store: Database, show: Show, database_url: str) -> None:
    with store.begin() as session:
        me = this_process(store.host)
        for number, error in enumerate(["an older one", "the model server\ndid not start"]):
            runs.start_run(session, f"run{number}", me, [], NOW - (4 - number) * HOUR, lambda process: True)
            runs.finish_run(session, f"run{number}", "failed", error, NOW - (3 - number) * HOUR)
        runs.start_run(session, "run9", me, [], NOW - HOUR, lambda process: True)
        runs.finish_run(session, "run9", "complete", None, NOW)
        switch = switches.begin_switch(session, Mode.IDLE, Mode.EMBEDDING, SwitchReason.SCHEDULE, NOW)
        switches.end_switch(session, switch, SwitchOutcome.ROLLED_BACK, NOW, error="no room on the GPU; idle is back")
    said = show(database_url)
    run, switched = said["failed"].splitlines()
    assert run.startswith("run run1 (")
    assert run.endswith("): the model server did not start")
    assert switched.startswith("switch idle to embedding (")
    assert switched.endswith("): no room on the GPU; idle is back")
    assert said["last run"].startswith("run9: complete, started ")
    assert "why" not in said


def test_the_documents_that_failed_last_come_first(store: Database, show: Show, database_url: str) -> None:
    with store.begin() as session:
        runs.start_run(session, "run", rows.ME, [], NOW, lambda process: False)
        source, target = library.ensure_source(session, "/docs", NOW), rows.add_target(session)
        for number in range(5):
            rows.register(session, source, target, **{f"n{number}": f"text {number}"})
            (claimed,) = queue.claim_to_extract(session, "run", None, target, NOW, 1, "oldest")
            queue.end_extraction(session, claimed.content_id, DocumentState.EMPTY, f"reason {number}")
        library.note_unreadable(session, source, [library.UnreadableFile("locked.pdf", 1, "permission denied")], NOW)
    lines = show(database_url)["failed"].splitlines()
    assert [line.split(": ", 1)[0] for line in lines] == ["/docs/locked.pdf", "/docs/n4.pdf", "/docs/n3.pdf"]


def test_a_database_that_cannot_be_used_leaves_the_host_s_part(
    new_postgres_url: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for as_json in (False, True):  # a server database without tables: only `db upgrade` makes them
        with daemon_says(data, answer_of()) as url, pytest.raises(typer.Exit) as ended:
            status.show_status(new_postgres_url, as_json=as_json)
        assert ended.value.exit_code == 1
        said = capsys.readouterr()
        assert "db upgrade" in said.err
        assert len(said.err.splitlines()) == 1
        if as_json:
            document = json.loads(said.out)
            assert "db upgrade" in document["error"]
            assert document["daemon"]["url"] == url
        else:
            lines = by_name(said.out)
            assert lines["mode"].startswith("embedding since ")
            assert " free of " in lines["disk"]


def test_a_terminal_gets_two_columns_that_fit(
    store: Database, database_url: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(store)
    with daemon_says(data, answer_of()):
        for width in (200, 80, 40, 24):
            console = Console(force_terminal=True, width=width, record=True, file=io.StringIO(), highlight=False)
            monkeypatch.setattr(status, "out", lambda console=console: console)
            status.show_status(database_url, as_json=False)
            lines = console.export_text().splitlines()
            assert max(map(cell_len, lines)) <= width
            together = "".join(line[11:].strip() for line in lines).replace(" ", "")
            assert "now보고서/예산안.pdf" in together
            assert {line[10:11] for line in lines if line.strip()} == {" "}  # nothing reaches into the gap
            assert width < 200 or len(lines) <= 24


def test_a_screen_s_lines_are_plain_where_colours_are_not_wanted(
    show: Show, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the output for a terminal
    status.show_status(None, as_json=False)
    out = capsys.readouterr().out
    assert "daemon" in out
    assert "\x1b" not in out
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.delenv("FORCE_COLOR")
    status.show_status(None, as_json=False)
    assert "\x1b" not in capsys.readouterr().out


def test_the_size_of_a_database_is_what_it_takes(store: Database) -> None:
    from pipeline.store.overview import database_bytes

    with store.snapshot() as session:
        size = database_bytes(session)
    if store.engine.dialect.name == "sqlite":
        file = Path(str(store.engine.url.database))
        with store.engine.connect() as connection:
            connection.execute(sa.text("PRAGMA wal_checkpoint(TRUNCATE)"))
        assert size == file.stat().st_size
    else:
        assert size > 1_000_000
