"""A database file that may only be read, that goes away, or that is damaged, as a real file system has it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline.core.errors import StoreError
from pipeline.store.backup import back_up
from pipeline.store.database import Database
from pipeline.store.sqlite_file import uri_for_reading
from pipeline.store.tables import Table
from tests.store.library import fill_library

ROOT = Path(__file__).parents[2]

READING = [
    ["status"],
    ["search", "--by", "text", "hull"],
    ["documents"],
    ["plan"],
    ["models"],
    ["switches"],
    ["export", "OUT/export"],
    ["db", "backup", "OUT/backup.db"],
]
WRITING = [["documents", "forget", "1", "--yes"], ["run-now"]]

SEVERAL = """
import contextlib, io, json, sys
from pipeline.cli.app import run
answers = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["nightshift", *arguments]
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        code = run()
    answers.append([code, said.getvalue(), complained.getvalue()])
print(json.dumps(answers))
"""
"""Several commands in one process, because each new one takes seconds to begin."""

READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


@pytest.fixture
def library(tmp_path: Path, sqlite_template: Path) -> Path:
    """A data folder with a database that somebody has filled and closed."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copyfile(sqlite_template, folder / "nightshift.db")
    with Database.open(f"sqlite:///{folder / 'nightshift.db'}") as store, store.begin() as session:
        fill_library(session)
    assert not (folder / "nightshift.db-wal").exists()
    return folder


def environment(folder: Path) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSHIFT_")}
    return mine | {"NIGHTSHIFT_DATA_DIR": str(folder), "PYTHONPATH": str(ROOT)}


def on_read_only_media(folder: Path, *command: str) -> str:
    """What a command prints for which this folder is on a read-only file system, and for no other process."""
    wrapped = ["unshare", "--mount", "sh", "-c", READ_ONLY, str(folder)]
    if not shutil.which("unshare") or subprocess.run([*wrapped, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a folder read-only")
    done = subprocess.run(
        [*wrapped, *command], capture_output=True, text=True, check=True, env=environment(folder), cwd=folder.parent
    )
    return done.stdout


def answers(folder: Path, commands: list[list[str]]) -> Iterator[tuple[list[str], int, str, str]]:
    found = json.loads(on_read_only_media(folder, sys.executable, "-c", SEVERAL, json.dumps(commands)))
    for command, (code, said, complained) in zip(commands, found, strict=True):
        yield command, code, said, complained


def test_on_read_only_media_commands_that_read_answer_and_the_others_say_which_folder(library: Path) -> None:
    out = library.parent / "out"
    out.mkdir()
    reading = [[part.replace("OUT", str(out)) for part in command] for command in READING]
    for command, code, said, complained in answers(library, [*reading, *WRITING]):
        if command in WRITING:
            assert code == 1, command
            assert str(library) in complained
            assert "ead-only" in complained, command
            assert complained.count("\n") == 1, complained
        else:
            assert code == 0, (command, complained)
            assert said, command
            assert command != ["documents"] or "harbour.pdf" in said
    with closing(sqlite3.connect(out / "backup.db")) as copy:
        assert copy.execute("SELECT count(*) FROM documents").fetchone() == (5,)


COUNT = """
import sys
from pipeline.core.errors import StoreError
from pipeline.store.database import Database
import sqlalchemy as sa
try:
    with Database.open(sys.argv[1]) as store, store.snapshot() as session:
        print(session.scalar(sa.text("SELECT count(*) FROM sources")))
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("left", ["both", "the log", "an empty log"])
def test_what_a_process_that_was_cut_off_left_on_read_only_media(library: Path, tmp_path: Path, left: str) -> None:
    file, cut_off = library / "nightshift.db", tmp_path / "cut off"
    with Database.open(f"sqlite:///{file}") as store, store.begin() as session:
        session.execute(sa.text("INSERT INTO sources (root, created_at) VALUES ('/new', '2026-01-01 00:00:00')"))
        session.commit()
        shutil.copytree(library, cut_off)
    log, index = (cut_off / f"nightshift.db-{ending}" for ending in ("wal", "shm"))
    assert log.stat().st_size
    if left != "both":
        index.unlink()
    if left == "an empty log":
        log.write_bytes(b"")
    said = on_read_only_media(cut_off, sys.executable, "-c", COUNT, f"sqlite:///{cut_off / 'nightshift.db'}")
    if left == "the log":
        assert "nightshift.db-wal beside it holds a part of it" in said
        assert "copy both files to a folder that can be written" in said
    else:
        assert said == ("3\n" if left == "both" else "2\n")


def test_where_sqlite_may_write_nothing_is_opened_in_another_way(library: Path) -> None:
    assert uri_for_reading(library / "nightshift.db") is None
    assert uri_for_reading(library / "no.db") is None


@pytest.mark.parametrize("what", ["deleted", "replaced", "its folder is gone"])
def test_a_file_that_goes_away_is_noticed_by_whoever_uses_it(library: Path, tmp_path: Path, what: str) -> None:
    file = library / "nightshift.db"
    back_up(file, tmp_path / "other.db")
    with Database.open(f"sqlite:///{file}") as store:
        with store.snapshot() as session:
            assert session.scalar(sa.text("SELECT count(*) FROM documents")) == 5
        assert store.lost is None
        match what:
            case "deleted":
                file.unlink()
            case "replaced":
                (tmp_path / "other.db").replace(file)
            case _:
                library.rename(tmp_path / "elsewhere")
        for opened in (store.begin, store.snapshot):
            said = "replaced by another one" if what == "replaced" else "deleted"
            with pytest.raises(StoreError, match=f"{file} was {said} while it was in use"), opened():
                pytest.fail("a transaction began")
        assert f"{file} was {said}" in (store.lost or "")
    assert file.exists() is (what == "replaced")


def test_a_file_that_is_written_and_vacuumed_is_the_same_one(library: Path) -> None:
    with Database.open(f"sqlite:///{library / 'nightshift.db'}") as store:
        with closing(sqlite3.connect(library / "nightshift.db", isolation_level=None)) as other:
            other.execute("VACUUM")
        with store.begin() as session:
            session.execute(sa.text("UPDATE documents SET problem = 'x' WHERE id = 1"))


@pytest.mark.parametrize(
    ("damage", "read"),
    [
        ("UPDATE documents SET found_at = 'never'", "SELECT found_at FROM documents"),
        ("UPDATE contents SET details = '{'", "SELECT details FROM contents"),
        ("UPDATE documents SET path = CAST(X'ff' AS TEXT) WHERE id = 1", "SELECT path FROM documents"),
    ],
)
def test_a_value_that_cannot_be_read_is_no_traceback(library: Path, damage: str, read: str) -> None:
    table, column = read.split()[3], read.split()[1]
    with Database.open(f"sqlite:///{library / 'nightshift.db'}") as store:
        with store.begin() as session:
            session.execute(sa.text(damage))
        with pytest.raises(StoreError, match=r"nightshift\.db"), store.snapshot() as session:
            session.execute(sa.select(Table.metadata.tables[table].c[column])).all()
        # What this program gets wrong itself is not the database's fault.
        with pytest.raises(ValueError, match="mine"), store.snapshot():
            raise ValueError("mine")


def read_all(url: str) -> None:
    with Database.open(url) as store, store.snapshot() as session:
        for table in Table.metadata.sorted_tables:
            session.execute(sa.select(table)).all()


def test_a_damaged_page_is_told_with_what_to_do(library: Path) -> None:
    file = library / "nightshift.db"
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(size // 4)
        opened.write(b"\xff" * (size // 2))
    with pytest.raises(StoreError) as told:
        read_all(f"sqlite:///{file}")
    for words in ("db restore FILE", "verify", f"sqlite3 {file} .recover", "embeds all documents anew"):
        assert words in str(told.value)
