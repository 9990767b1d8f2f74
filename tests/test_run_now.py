"""The program as its user meets it: the real model, real documents, a process of its own."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.corpus import write_corpus
from tests.runs import ROOT, SMALL_CHUNKS, Host, children, kill_and_reap, rows, wait_until

INBOX = ROOT / "data" / "inbox"
MODEL = ROOT / "data" / "models" / "all-MiniLM-L6-v2-F16.gguf"
PYTHON = shlex.quote(sys.executable)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Host, Any]:
    """The sample documents after one run over the inbox, and its report. Not to be changed."""
    data = tmp_path_factory.mktemp("data")
    shutil.copytree(INBOX, data / "inbox")
    host = Host(data, {})
    return host, host.run_json("run-now", process=True)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """An empty data folder with small chunks, and a folder for documents in it."""
    (tmp_path / "docs").mkdir()
    return Host(tmp_path, dict(SMALL_CHUNKS))


def add(host: Host, name: str, sample: str = "seed-store-incident.pdf") -> Path:
    path = host.data_dir / "docs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(INBOX / sample, path)
    return path


def embedded_files(host: Host) -> list[str]:
    documents = host.run_json("documents", "list", "--state", "embedded")
    return sorted(Path(document["file"]).name for document in documents)


def test_the_report_counts_what_is_there(ingested: tuple[Host, Any]) -> None:
    host, report = ingested
    states = ["total", "discovered", "extracted", "embedded", "empty", "encrypted", "failed"]
    assert list(report["documents"]) == states
    assert report["documents"]["total"] == len(list(INBOX.iterdir())) == 8
    assert report["documents"]["embedded"] == 7
    assert report["documents"]["empty"] == 1
    assert report["outcome"] == "complete"
    assert report["chunks"]["embedded"] == report["chunks"]["total"] == report["chunks_embedded"] > 30
    assert report["chunks_per_second"] == pytest.approx(report["chunks_embedded"] / report["seconds"], rel=0.01)
    status = host.run_json("status")
    assert status["documents"] == report["documents"]
    assert status["chunks"] == report["chunks"]
    assert status["last_run"]["run_id"] == report["run_id"]


def test_a_second_run_embeds_nothing_and_starts_no_model(ingested: tuple[Host, Any]) -> None:
    host, _ = ingested
    log = host.data_dir / "logs" / "embedding.log"
    before = log.read_bytes()
    report = host.run_json("run-now")
    assert report["chunks_embedded"] == 0
    assert report["outcome"] == "complete"
    assert log.read_bytes() == before


@pytest.mark.parametrize(
    ("question", "file", "page"),
    [
        ("why did the seed store become warm", "seed-store-incident.pdf", 1),
        ("how many orchid seed jars were lost", "seed-store-incident.pdf", 2),
        ("fee for a guest boat of 8 metres for one night", "harbour-committee-minutes.docx", None),
        ("replacing a failed disk", "heron-operations-handbook.pdf", None),
        ("when is food delivered to the mountain huts", "mountain-huts-supply-agreement.docx", None),
        ("number of clear nights at the observatory", "tarnvik-observatory-2024.pdf", None),
    ],
)
def test_search_finds_the_right_page(ingested: tuple[Host, Any], question: str, file: str, page: int | None) -> None:
    host, _ = ingested
    answer = host.run_json("search", question, "-k", "3")
    best = answer["results"][0]
    assert Path(best["file"]).name == file
    scores = [result["score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert len(answer["results"]) == 3
    assert best["text"].strip()
    if page is not None:
        assert best["pages"][0] <= page <= best["pages"][1]
    assert best["link"].startswith("file:///")
    assert best["link"].endswith(f"/{file}#page={best['pages'][0]}" if file.endswith(".pdf") else f"/{file}")


def test_search_shows_where_it_found_what(ingested: tuple[Host, Any]) -> None:
    host, _ = ingested
    result = host.run("search", "dredging the north basin", "-k", "1")
    assert result.returncode == 0
    assert "harbour-committee-minutes.docx" in result.stdout
    assert "1 Dredging of the north basin" in result.stdout


def test_documents_are_listed_and_shown(ingested: tuple[Host, Any]) -> None:
    host, _ = ingested
    (empty,) = host.run_json("documents", "--state", "empty")
    assert "needs OCR" in empty["reason"]
    shown = host.run_json("documents", "show", "harbour-committee-minutes.docx")
    assert shown["title"] == "Minutes of the harbour committee, 6 February 2025"
    assert [chunk["ordinal"] for chunk in shown["chunk_list"]] == list(range(shown["chunks"]))
    assert all(chunk["tokens"] <= 256 for chunk in shown["chunk_list"])
    assert shown["link"] == shown["chunk_list"][0]["link"]
    assert shown["link"].endswith("/harbour-committee-minutes.docx")
    text = host.run("documents", "show", str(shown["id"])).stdout
    assert "up to 7 metres | 14 | 70" in text
    missing = host.run("documents", "show", "nothing.pdf")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "no such document" in missing.stderr


def test_files_that_change_move_are_copied_and_go(host: Host) -> None:
    docs = host.data_dir / "docs"
    one, two = add(host, "one.pdf"), add(host, "two.docx", "harbour-committee-minutes.docx")
    first = host.run_json("run-now", str(docs))
    assert embedded_files(host) == ["one.pdf", "two.docx"]

    one.rename(docs / "renamed.pdf")
    shutil.copy(docs / "renamed.pdf", docs / "copy.pdf")
    second = host.run_json("run-now", str(docs))
    assert second["chunks_embedded"] == 0
    assert second["changes"] == {"new": 1, "changed": 0, "moved": 1, "removed": 0, "unchanged": 1, "remade": 0}
    assert embedded_files(host) == ["copy.pdf", "renamed.pdf", "two.docx"]

    os.utime(two)  # touched, but the same
    assert host.run_json("run-now", str(docs))["chunks_embedded"] == 0

    shutil.copy(INBOX / "mountain-huts-supply-agreement.docx", two)
    report = host.run_json("run-now", str(docs))
    assert 0 < report["chunks_embedded"] < first["chunks_embedded"] + 30
    assert report["changes"] == {"new": 0, "changed": 1, "moved": 0, "removed": 0, "unchanged": 2, "remade": 0}
    best = host.run_json("search", "dredging the north basin", "-k", "1")["results"][0]
    assert "harbour" not in best["text"].lower()

    (docs / "copy.pdf").unlink()
    two.unlink()
    assert "Found: 2 removed, 1 unchanged." in host.run("run-now", str(docs)).stdout
    assert embedded_files(host) == ["renamed.pdf"]
    chunks = rows(host.database, "SELECT count(*) FROM chunks")
    assert chunks == rows(host.database, "SELECT count(*) FROM embeddings")
    assert chunks == rows(host.database, "SELECT chunk_count FROM contents")


def test_a_source_that_vanished_or_emptied_deletes_nothing(host: Host) -> None:
    docs = host.data_dir / "docs"
    path = add(host, "one.pdf")
    add(host, "sub/two.docx", "harbour-committee-minutes.docx")
    host.run_json("run-now", str(docs))

    docs.rename(host.data_dir / "away")
    gone = host.run("run-now", str(docs))
    assert gone.returncode == 1
    assert gone.stderr == ""
    assert gone.stdout.startswith(f"Failed: the folder {docs} is not there: is it mounted?")
    assert f"-m pipeline documents forget {docs}`\nWhat is there: 2 of 2 documents embedded" in gone.stdout
    one = host.run("run-now", str(path))
    assert one.returncode == 2
    assert f"still in the index; if it is gone for good: `{PYTHON} -m pipeline documents forget" in one.stderr
    docs.mkdir()
    emptied = host.run("run-now", str(docs), "--json")
    assert emptied.returncode == 1
    assert "now holds none; nothing was deleted" in json.loads(emptied.stdout)["errors"][0]
    assert embedded_files(host) == ["one.pdf", "two.docx"]

    assert host.run("documents", "forget", str(docs), "--yes").returncode == 0
    assert embedded_files(host) == []
    shutil.rmtree(docs)
    (host.data_dir / "away").rename(docs)
    assert host.run_json("run-now", str(path))["documents"]["embedded"] == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_an_error_and_keeps_its_documents(host: Host) -> None:
    docs = host.data_dir / "docs"
    add(host, "one.pdf")
    add(host, "sub/two.docx", "harbour-committee-minutes.docx")
    host.run_json("run-now", str(docs))
    (docs / "sub").chmod(0)
    try:
        assert host.run("run-now", str(docs)).returncode == 1
    finally:
        (docs / "sub").chmod(0o755)
    assert embedded_files(host) == ["one.pdf", "two.docx"]


def test_bad_documents_end_in_states_of_their_own_and_the_run_is_complete(host: Host) -> None:
    docs = host.data_dir / "docs"
    add(host, "good.pdf")
    (docs / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    (docs / "zero.docx").write_bytes(b"")
    add(host, "mislabelled.docx", "seed-store-incident.pdf")
    add(host, "scan.pdf", "delivery-note-scan.pdf")
    (docs / "dangling.pdf").symlink_to(docs / "nowhere.pdf")
    (docs / "~$good.docx").write_bytes(b"Word's own lock file")
    (docs / ".hidden.pdf").write_bytes(b"hidden")
    (docs / "loop").symlink_to(docs)
    _encrypt(INBOX / "heron-operations-handbook.pdf", docs / "locked.PDF")
    report = host.run_json("run-now", str(docs))
    assert report["outcome"] == "complete"
    reasons = {Path(line["file"]).name: (line["state"], line["reason"]) for line in report["failing"]}
    assert {name: state for name, (state, _) in reasons.items()} == {
        "broken.pdf": "failed",
        "zero.docx": "failed",
        "scan.pdf": "empty",
        "dangling.pdf": "failed",
        "locked.PDF": "encrypted",
    }
    assert "password" in reasons["locked.PDF"][1]
    assert "a link to nothing" in reasons["dangling.pdf"][1]
    assert report["documents"]["embedded"] == 2  # the content counts, and not the suffix
    plain = host.run("run-now", str(docs))
    assert plain.returncode == 0
    for name in reasons:
        assert name in plain.stdout
    assert "Not embedded: 5 documents, none of them new" in plain.stdout
    # Told to try again, it comes to the same end; embedded ones are left alone.
    assert "3 documents" in host.run("documents", "retry", "--state", "failed").stdout
    again = host.run_json("run-now", str(docs))
    assert again["documents"] == report["documents"]
    assert again["chunks_embedded"] == 0


def _encrypt(source: Path, target: Path) -> None:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(source))
    writer.encrypt(user_password="secret", algorithm="AES-256")
    writer.write(target)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run-now", "nowhere"], 2, "nowhere: no such file or folder"),
        (["run-now"], 2, "share: no such file or folder: make it and put documents there, or name a PATH"),
        (["run-now", "--no-such-option"], 2, "No such option"),
        (["run-now", "docs", "--database", "sqlite:////proc/no/such.db"], 1, "cannot be used"),
        (["run-now", "docs", "--model", "missing.gguf"], 2, "missing.gguf (set in the option --model)"),
        (["run-now", "docs", "--model", "notes.txt"], 1, "(set in the option --model)"),
        (["run-now", "notes.txt"], 2, "its name should end in .pdf or .docx or .docm"),
        (["status", "--database", "nonsense"], 2, "database_url"),
        (["documents", "list", "--state", "lost"], 2, "no such state"),
        (["search", " "], 2, "nothing to look for"),
        (["run-now", ""], 2, "an empty PATH"),
        (["run-now", ".hidden.pdf"], 2, "hidden files are passed over"),
        (["run-now", "gone.pdf"], 2, "gone.pdf: no such file"),
        (["documents", "--state", "LOST"], 2, "no such state: LOST; there are discovered, extracted"),
        (["documents", "show", "--json", "7"], 2, "no such document"),
        (["db", "upgrade", "--json", "--database", "sqlite:////proc/no/such.db"], 1, "cannot be used"),
    ],
)
def test_what_is_wrong_is_one_clear_line_and_an_exit_code(
    host: Host, arguments: list[str], code: int, message: str
) -> None:
    (host.data_dir / "notes.txt").write_text("not a document")
    (host.data_dir / ".hidden.pdf").touch()
    host.settings["NIGHTSHIFT_INBOX"] = str(host.data_dir / "share")
    result = host.run(*arguments)
    assert result.returncode == code, result
    assert message in result.stderr
    lines = result.stderr.splitlines()
    if "--no-such-option" in arguments:  # the usage above it wraps where the path of the interpreter is long
        lines = [line for line in lines if line.startswith("Error:")]
    assert len(lines) == 1
    assert "documents 0 of 0" not in result.stdout
    if "--json" in arguments:
        assert message in json.loads(result.stdout)["error"]
    assert "Traceback" not in result.stderr


def test_search_and_status_of_nothing_say_what_to_do(host: Host) -> None:
    address = f"sqlite:///{host.database}"
    for command in (["search", "anything"], ["status"], ["documents"]):
        said = host.run(*command)
        assert said.stdout.startswith(f"There is no database at {address} yet: `{PYTHON} -m pipeline run-now`")
        assert said.returncode == 0
    assert host.run_json("search", "anything")["results"] == []
    status = host.run_json("status")
    assert (status["documents"]["total"], status["chunks"]["total"], status["sources"]) == (0, 0, [])
    assert host.run_json("db", "revision")["revision"] is None
    assert sorted(path.name for path in host.data_dir.iterdir()) == ["docs"]


def test_the_inbox_is_made_and_looked_at(host: Host) -> None:
    inbox = host.data_dir / "inbox"
    assert host.run_json("status")["never_looked_at"] == host.run_json("plan")["never_looked_at"] == [str(inbox)]
    assert f"{inbox}: never looked at; `{PYTHON} -m pipeline run-now {inbox}` looks" in host.run("plan").stdout
    said = host.run("run-now")
    assert said.returncode == 0, said
    assert f"put PDF or DOCX files into {inbox}" in said.stdout
    assert inbox.is_dir()
    assert host.run_json("status")["never_looked_at"] == []


def test_ctrl_c_stores_the_batch_in_flight_and_says_how_to_go_on(host: Host) -> None:
    docs = host.data_dir / "docs"
    write_corpus(docs, pages=24, pages_per_document=3)
    process = host.spawn("run-now", str(docs))
    wait_until(lambda: _stored(host) > 0)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "run the same command again to go on" in out
    stored = _stored(host)
    assert rows(host.database, "SELECT state, chunks_embedded FROM runs") == [("stopped", stored)]
    assert rows(host.database, "SELECT count(*) FROM contents WHERE claimed_by IS NOT NULL") == [(0,)]
    again = host.run("run-now", str(docs))
    assert "chunks 0 of" in again.stdout or "in this run" in again.stdout
    assert "Complete: 8 of 8 documents embedded" in again.stdout
    assert "Found: 8 unchanged." in again.stdout
    last = host.run_json("status")["last_run"]
    assert last["chunks_embedded"] == rows(host.database, "SELECT count(*) FROM embeddings")[0][0] - stored > 0


def test_a_second_ctrl_c_stops_at_once_and_leaves_no_process(host: Host) -> None:
    docs = host.data_dir / "docs"
    write_corpus(docs, pages=24, pages_per_document=3)
    process = host.spawn("run-now", str(docs))
    wait_until(lambda: _stored(host) > 0)
    started = children(process)
    assert started
    while process.poll() is None:  # two signals at the same moment are one
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "stopped at once" in errors
    assert rows(host.database, "SELECT state, error FROM runs") == [("stopped", "stopped at once")]
    wait_until(lambda: not any(child.is_running() for child in started))


def test_a_run_that_was_killed_is_known_as_dead(host: Host) -> None:
    docs = host.data_dir / "docs"
    write_corpus(docs, pages=90, pages_per_document=3)
    process = host.spawn("run-now", str(docs), "--quiet")
    wait_until(lambda: _stored(host) > 0)
    alive = host.run_json("status")["last_run"]
    assert (alive["outcome"], alive["pid"]) == ("running", process.pid)
    kill_and_reap(process)
    said = host.run("status").stdout
    assert ": died; the next run takes up what it left, started" in said
    assert f"pid {process.pid} on" in said


def _stored(host: Host) -> int:
    if not host.database.exists() or not rows(host.database, "SELECT 1 FROM sqlite_master WHERE name = 'embeddings'"):
        return 0
    return int(rows(host.database, "SELECT count(*) FROM embeddings")[0][0])


def test_a_second_run_beside_the_first_says_who_is_at_work(host: Host) -> None:
    docs = host.data_dir / "docs"
    write_corpus(docs, pages=24, pages_per_document=3)
    process = host.spawn("run-now", str(docs))
    wait_until(lambda: _stored(host) > 0)
    other = host.run("run-now", str(docs), "--json")
    assert other.returncode == 1
    assert f"pid {process.pid}" in other.stderr
    assert json.loads(other.stdout)["outcome"] == "failed"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_a_terminal_shows_a_live_view(host: Host) -> None:
    docs = host.data_dir / "docs"
    write_corpus(docs, pages=9, pages_per_document=3)
    leader, follower = pty.openpty()
    environment = host.environment() | {"TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run-now", str(docs)],
        env=environment,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=host.data_dir,
    )
    os.close(follower)
    seen = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ready, _, _ = select.select([leader], [], [], 1.0)
        if ready:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            seen += part
    os.close(leader)
    assert process.wait(timeout=60) == 0
    screen = seen.decode(errors="replace")
    assert "chunks/s" in screen  # the time left is for runs that last: tests/cli/test_view.py
    assert ".pdf" in screen
    assert "\x1b[" in screen
    assert "Complete: 3 of 3 documents" in screen


def test_another_model_of_chunks_rebuilds_what_is_there(host: Host) -> None:
    docs = host.data_dir / "docs"
    add(host, "one.pdf")
    before = host.run_json("run-now", str(docs))
    wider = Host(host.data_dir, {"NIGHTSHIFT_CHUNK_TOKENS": "128", "NIGHTSHIFT_CHUNK_OVERLAP": "0"})
    after = wider.run_json("run-now", str(docs))
    assert 0 < after["chunks_embedded"] == after["chunks"]["total"] < before["chunks"]["total"]
    assert after["changes"]["remade"] == 1
    assert rows(host.database, "SELECT count(*) FROM contents") == [(1,)]
    refused = Host(host.data_dir, {"NIGHTSHIFT_CHUNK_TOKENS": "600"}).run("run-now", str(docs))
    assert refused.returncode == 2
    assert "chunk.tokens" in refused.stderr
    assert "512" in refused.stderr
    assert host.run_json("status")["last_run"]["outcome"] == "complete"  # nothing was done, and nothing is on record
    assert rows(host.database, "SELECT count(*) FROM runs") == [(2,)]


def test_commands_show_warnings_unless_the_log_level_is_set(host: Host) -> None:
    add(host, "one.pdf")
    docs = str(host.data_dir / "docs")
    assert host.run("run-now", docs, "--quiet").stderr == ""
    add(host, "two.docx", "harbour-committee-minutes.docx")
    (host.data_dir / "docs" / "empty.pdf").touch()
    told = Host(host.data_dir, {**SMALL_CHUNKS, "NIGHTSHIFT_LOG_LEVEL": "info"}).run("run-now", docs, "--quiet")
    ready = next(line for line in told.stderr.splitlines() if "A model server is ready" in line)
    # Where it computes, not where it was planned to.
    (device,) = rows(host.database, "SELECT device FROM runs ORDER BY started_at DESC LIMIT 1")[0]
    assert f"device={device} " in ready
    assert rows(host.database, "SELECT reason FROM contents WHERE state = 'failed'") == [("the file has no bytes",)]


def test_a_new_version_that_cannot_be_read_leaves_the_last_good_one_searched(host: Host) -> None:
    docs = host.data_dir / "docs"
    path = add(host, "one.pdf")
    host.run_json("run-now", str(docs))
    path.write_bytes(b"%PDF-1.7 and no more")
    said = host.run("run-now", str(docs)).stdout
    assert "Not embedded: 1 document\n" in said
    assert "one.pdf: failed: " in said
    assert "; its earlier text is still searched" in said
    (failing,) = host.run_json("run-now", str(docs))["failing"]
    assert failing["searched"] is True
    assert "searched     its earlier text" in host.run("documents", "show", "one.pdf").stdout
    assert host.run_json("search", "why did it get warm", "-k", "1")["results"][0]["file"] == str(path)


def test_search_uses_the_old_model_until_all_is_embedded_by_the_new(host: Host) -> None:
    docs = host.data_dir / "docs"
    one = add(host, "one.pdf")
    add(host, "two.docx", "harbour-committee-minutes.docx")
    host.run_json("run-now", str(docs))
    other = host.data_dir / "other.gguf"
    other.write_bytes(MODEL.read_bytes() + bytes(32))
    said = host.run("run-now", str(one), "--model", str(other)).stdout
    assert "Search still uses MiniLM L6 H384 Uncased (all-MiniLM-L6-v2-F16.gguf, " in said
    assert "1 wait, and `" in said
    assert f"run-now --model {other}` without a path takes them up" in said
    assert "Try:" not in said
    status = host.run_json("status")
    assert status["model"]["path"] == str(MODEL)
    assert [(model["path"], model["waiting"]) for model in status["next_models"]] == [(str(other), 1)]
    assert "1 of 2 documents embedded; search moves over to it once all are" in host.run("status").stdout


def test_what_is_to_be_typed_next_names_the_database_of_the_run(host: Host) -> None:
    path = add(host, "one.pdf")
    elsewhere = f"sqlite:///{host.data_dir / 'small.db'}"
    said = host.run("run-now", str(path), "--database", elsewhere).stdout
    assert f'search --database {shlex.quote(elsewhere)} "what you want to know"' in said


def test_documents_of_any_name_are_listed_on_a_line_retried_and_forgotten(host: Host) -> None:
    docs = host.data_dir / "docs"
    add(host, "good.pdf")
    (docs / "two\nlines.pdf").write_bytes(b"no document")
    Path(os.fsdecode(os.fsencode(docs) + b"/caf\xe9.pdf")).write_bytes(b"neither")
    host.run_json("run-now", str(docs))
    header, *listed = host.run("documents").stdout.splitlines()
    assert header.split() == ["id", "state", "embedded/chunks", "file"]
    assert len(listed) == 3
    names = {line.split("/docs/")[1].split(".pdf")[0]: line.split()[0] for line in listed}
    assert set(names) == {"good", r"two\nlines", r"caf\xe9"}
    for name, number in sorted(names.items())[::2]:  # the two that cannot be typed as they are
        assert str(host.run_json("documents", "show", f"{name}.pdf")["id"]) == number
    assert len(host.run_json("documents", "--limit", "1")) == 1
    said = host.run("documents", "retry", names["good"]).stdout
    assert said.startswith("0 documents will be tried again")
    assert "good.pdf) is embedded: there is nothing to try again" in said
    assert host.run_json("documents", "retry", r"caf\xe9.pdf")["retried"] == 1
    unsure = host.run("documents", "forget", names["good"])
    assert (unsure.returncode, unsure.stdout) == (1, "")
    assert unsure.stderr.splitlines()[-1] == "nightshift: not confirmed, nothing was done"
    assert host.run_json("documents", "forget", names["good"], "--yes") == {"removed": 1}
    assert "No documents that are embedded." in host.run("documents", "--state", "EMBEDDED").stdout


def test_search_says_how_much_too_long_a_text_is(ingested: tuple[Host, Any]) -> None:
    host, _ = ingested
    refused = host.run("search", "why " * 600, "--json")
    assert refused.returncode == 2
    assert "the text is too long for the model: 602 tokens, and 512 are the most" in json.loads(refused.stdout)["error"]


def test_a_full_disk_behind_the_output_is_one_line(ingested: tuple[Host, Any]) -> None:
    host, _ = ingested
    with Path("/dev/full").open("w") as full:
        for command in (["status", "--json"], ["run-now"]):
            process = subprocess.run(
                [sys.executable, "-m", "pipeline", *command],
                env=host.environment(),
                cwd=host.data_dir,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
            )
            assert process.returncode == 1
            assert process.stderr == "nightshift: the output could not be written: No space left on device\n"


@pytest.mark.parametrize("after", [0.2, 0.5])
def test_ctrl_c_while_it_starts_is_no_traceback(host: Host, after: float) -> None:
    process = host.spawn("run-now", "docs", "--quiet")
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
    assert process.returncode in (0, 3, -signal.SIGINT)  # the last: before Python was there


def test_a_server_database_is_upgraded_by_its_command_and_then_used(host: Host, new_postgres_url: str) -> None:
    docs = host.data_dir / "docs"
    add(host, "one.pdf")
    refused = host.run("run-now", str(docs), "--database", new_postgres_url)
    assert refused.returncode == 1
    assert f"run `{PYTHON} -m pipeline db upgrade`" in refused.stderr
    upgraded = host.run("db", "upgrade", "--database", new_postgres_url)
    assert "upgraded from no tables to revision" in upgraded.stdout
    report = host.run_json("run-now", str(docs), "--database", new_postgres_url)
    assert report["documents"]["embedded"] == 1
    found = host.run_json("search", "why did it get warm", "--database", new_postgres_url)
    assert found["results"][0]["file"] == str(docs / "one.pdf")
