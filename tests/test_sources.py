"""Folders, passwords and the brake as their user meets them: the real program in processes of its own."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import threading
import time
from pathlib import Path

import psutil
import pytest
from pypdf import PdfReader, PdfWriter

from pipeline.core.errors import SettingsError
from pipeline.runner.looking import passwords
from pipeline.settings import load
from tests.daemon.daemons import make_place
from tests.ingest.test_discover import old, pdf
from tests.runs import SMALL_CHUNKS, Host

SECRET = "correct horse, battery"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "docs").mkdir()
    return Host(tmp_path, dict(SMALL_CHUNKS))


def fill(folder: Path, count: int) -> list[Path]:
    """Copies of one document."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.pdf" for number in range(count)]
    for path in paths:
        path.write_bytes(pdf("the same"))
    old(*paths)
    return paths


def locked(path: Path, password: str) -> None:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf(path.name))))
    writer.encrypt(user_password=password, algorithm="AES-256")
    writer.write(path)
    old(path)


def test_the_brake_waits_for_a_yes_and_says_so(host: Host) -> None:
    docs = host.data_dir / "docs"
    paths = fill(docs, 30)
    host.run_json("run-now", str(docs))
    for path in paths[:12]:
        path.unlink()
    (docs / "new.pdf").write_bytes(pdf("what came in meanwhile"))
    held = host.run("run-now", str(docs))
    assert held.returncode == 1
    assert f"Failed: 12 of the 30 documents of {docs} are gone; none of them was deleted." in held.stdout
    status = host.run_json("status")
    assert status["documents"]["embedded"] == 31  # the rest of the run went on, and nothing is lost to search
    assert "--confirm-deletions" in status["last_run"]["error"]
    waits = host.run("status").stdout
    assert f"gone       the files of 12 documents in {docs}, since " in waits
    assert f"-m pipeline run-now {docs} --confirm-deletions`" in waits
    assert [one["documents"] for one in status["deletions"]] == [12]
    # Nor does it hold up a move to another model that every document has been through, as copies of one are.
    host.settings["NIGHTSHIFT_EMBEDDING_POOLING"] = "cls"
    host.run_json("run-now", str(docs), code=1)
    assert host.run_json("status")["model"]["fingerprint"].startswith("cls:")
    done = host.run_json("run-now", str(docs), "--confirm-deletions")
    assert (done["changes"]["removed"], done["documents"]["total"], done["errors"]) == (12, 19, [])
    (host.data_dir / "inbox").mkdir(exist_ok=True)
    assert host.run_json("run-now")["not_looked_at"] == [str(docs)]


def test_a_daemon_holds_deletions_back_until_it_is_told(tmp_path: Path) -> None:
    place = make_place(tmp_path, mode="embedding", language_model=False)
    paths = fill(tmp_path / "docs", 20)
    with place.daemon() as daemon:
        assert place.command("run-now", str(tmp_path / "docs"), "--json").returncode == 0
        for path in paths[:11]:
            path.unlink()
        held = place.command("run-now", str(tmp_path / "docs"), "--json")
        assert held.returncode == 1
        assert "11 of the 20 documents" in json.loads(held.stdout)["error"]
        assert json.loads(held.stdout)["changes"]["unchanged"] == 9  # what a run by itself says, too
        assert not {"failing", "unsettled", "documents", "model"} - json.loads(held.stdout).keys()
        (tmp_path / "else").mkdir()
        assert "Found: 1 new." in place.command("run-now", str(fill(tmp_path / "else", 1)[0])).stdout
        status = daemon.get("/api/status")
        assert status["last_run"]["error"] is None  # a later run over something else hides nothing
        (waiting,) = status["deletions"]
        assert (waiting["root"], waiting["documents"]) == (str(tmp_path / "docs"), 11)
        assert status["documents"]["embedded"] == 21
        told = place.command("run-now", str(tmp_path / "docs"), "--confirm-deletions", "--json")
        assert told.returncode == 0, told.stdout
        status = daemon.get("/api/status")
        assert (status["documents"]["embedded"], status["deletions"]) == (10, [])


def test_passwords_open_documents_and_are_shown_nowhere(host: Host) -> None:
    docs = host.data_dir / "docs"
    locked(docs / "one.pdf", SECRET)
    locked(docs / "other.pdf", "another one")
    first = host.run_json("run-now", str(docs))
    assert first["documents"]["encrypted"] == 2

    host.settings["NIGHTSHIFT_EXTRACT_PASSWORDS"] = f"wrong\n{SECRET}"
    arguments: set[str] = set()
    over = threading.Event()
    process = host.spawn("run-now", str(docs), "--json")

    def watch() -> None:
        while not over.is_set():
            with contextlib.suppress(psutil.Error):  # each may end while it is looked at
                run = psutil.Process(process.pid)
                for each in [run, *run.children(recursive=True)]:
                    arguments.update(each.cmdline())

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    out, errors = process.communicate(timeout=120)
    over.set()
    watching.join()
    second = json.loads(out)
    assert (second["documents"]["embedded"], second["documents"]["encrypted"]) == (1, 1)
    assert any("pipeline.ingest.worker" in argument for argument in arguments)
    said = [out, errors, *arguments]
    said += [host.run(*command).stdout for command in (["config"], ["config", "--json"], ["documents", "--json"])]
    said.append(host.run("documents", "show", "other.pdf", "--json").stdout)
    said.append(host.run("documents", "show", "one.pdf").stdout)
    assert "own vector   by the model, over the whole text" in said[-1]
    said += [path.read_text(errors="replace") for path in (host.data_dir / "logs").glob("*")]
    said.append(host.database.read_bytes().decode("latin-1"))
    assert not [text for text in said if SECRET in text]

    file = host.data_dir / "passwords.txt"
    file.write_text("another one\n", encoding="utf-8")
    host.settings["NIGHTSHIFT_EXTRACT_PASSWORD_FILE"] = str(file)
    assert host.run_json("run-now", str(docs))["documents"]["embedded"] == 2
    file.unlink()
    gone = host.run("run-now", str(docs))
    assert gone.returncode == 2
    assert "extract.password_file" in gone.stderr


def test_a_file_that_is_written_to_all_the_time_is_named_and_left(host: Host) -> None:
    host.settings["NIGHTSHIFT_SOURCES_SETTLE"] = "2"
    docs = host.data_dir / "docs"
    old(*fill(docs, 1))
    busy = docs / "busy.pdf"
    busy.write_bytes(pdf("what is never done"))
    over = threading.Event()

    def write() -> None:
        for later in itertools.count(int(time.time()) + 10**6):  # far ahead, so that no pause makes it old
            os.utime(busy, (later, later))
            if over.wait(0.02):
                return

    writing = threading.Thread(target=write)
    writing.start()
    try:
        process = host.run("run-now", str(docs))
    finally:
        over.set()
        writing.join()
    assert process.returncode == 0, process.stderr
    assert f"Still being written to, and left for the next run: 1 file ({busy})." in process.stdout
    assert "Complete: 1 of 1 document embedded" in process.stdout
    assert host.run_json("run-now", str(docs))["unsettled"] == []


def test_what_the_globs_keep_out_cannot_be_named_either(host: Host) -> None:
    docs = host.data_dir / "docs"
    fill(docs / "drafts", 1)
    host.settings["NIGHTSHIFT_SOURCES_EXCLUDE"] = "drafts/, *.tmp"
    assert host.run_json("run-now", str(docs))["documents"]["total"] == 0
    for path in (docs / "drafts", docs / "drafts" / "000.pdf"):
        refused = host.run("run-now", str(path))
        if refused.returncode == 0:  # a folder of its own is a source of its own, and its name no part of any path
            assert path.is_dir()
            continue
        assert refused.returncode == 2
        assert "kept out by sources.include and sources.exclude" in refused.stderr


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('[sources]\nexclude = ["!a"]\n', 'sources.exclude: should not begin with "!" (!a)'),
        ('[sources]\ninclude = "["\n', 'sources.include: should have a "]" for each "[" ([)'),
        ("[sources]\nsettle = -1\n", "sources.settle: should be at least 0, not -1"),
        ("[extract]\npasswords = [1234567]\n", "extract.passwords: should be text (set"),
    ],
)
def test_a_setting_that_makes_no_sense_is_said_and_no_password_with_it(tmp_path: Path, toml: str, said: str) -> None:
    (tmp_path / "nightshift.toml").write_text(toml, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load(environ={}, cwd=tmp_path)
    assert said in str(caught.value)
    assert "1234567" not in str(caught.value)


def test_passwords_come_from_the_list_and_the_file_each_once(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("\ufefftwo\r\n\nthr\u00ebe\n one\n", encoding="utf-8")
    (tmp_path / "nightshift.toml").write_text(
        '[extract]\npasswords = ["one", "two"]\npassword_file = "secret"\n[sources]\nexclude = ["a", "b"]\n'
    )
    settings = load(environ={}, cwd=tmp_path).settings
    assert passwords(settings) == ["one", "two", "thr\u00ebe", " one"]
    shown = settings.flatten()
    assert (shown["extract.passwords"], shown["sources.exclude"]) == ("********", "a, b")
    assert not [text for text in (repr(settings), str(settings), json.dumps(shown)) if "two" in text]
    (tmp_path / "secret").write_bytes(b"caf\xe9\n")
    with pytest.raises(SettingsError, match="is not UTF-8 text") as caught:
        passwords(settings)
    assert caught.value.__cause__ is None
