"""Several hosts on one database: real runs of the real program, at once, killed, and asleep.

Each host has its own data folder and name; the folder of documents is the same for all.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.store.database import make_engine, upgrade
from pipeline.store.tables import ChunkRow, ContentRow, DocumentRow, EmbeddingRow, PendingChunkRow, RunRow
from tests.runs import Host, kill_and_reap, wait_until

DOCUMENTS = 100
LEASE = 6
WORDS = ["harbour", "tide", "pilot", "berth", "crane", "ledger", "winter", "channel", "buoy", "signal", "cargo", "keel"]
SMALL_STEPS = {
    "NIGHTSHIFT_RUN_REQUEST_CHUNKS": "4",
    "NIGHTSHIFT_RUN_LOOK_AHEAD": "16",
    "NIGHTSHIFT_RUN_REQUESTS_IN_FLIGHT": "1",
    "NIGHTSHIFT_RUN_LEASE": str(LEASE),
    "NIGHTSHIFT_EXTRACT_WORKERS": "1",
    "NIGHTSHIFT_EMBEDDING_THREADS": "1",
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small documents, one of which has a copy."""
    folder = tmp_path_factory.mktemp("documents")
    for number in range(DOCUMENTS):
        words = [WORDS[(number * 7 + place * (number % 5 + 1)) % len(WORDS)] for place in range(60)]
        text = f"Report {number}. " + " ".join(words)
        (folder / f"report {number:03}.text").write_text(json.dumps({"text": text, "metadata": {}}), "utf-8")
    (folder / "copy.text").write_bytes((folder / "report 001.text").read_bytes())
    return folder


class Shared:
    """A database that hosts share."""

    def __init__(self, url: str, folder: Path) -> None:
        self.engine = make_engine(url)
        upgrade(self.engine)
        self.url, self.folder = url, folder

    def host(self, name: str) -> Host:
        (self.folder / name).mkdir()
        own = {"NIGHTSHIFT_DATABASE_URL": self.url, "NIGHTSHIFT_NODE": name}
        return Host(self.folder / name, SMALL_STEPS | own)

    def all(self, query: sa.Executable) -> list[tuple[Any, ...]]:
        with Session(self.engine) as session:
            return [tuple(row) for row in session.execute(query)]

    def count(self, column: Any) -> int:
        return int(self.all(sa.select(sa.func.count(column)))[0][0])

    def runs(self) -> dict[str, str]:
        return dict(self.all(sa.select(RunRow.host, RunRow.state).order_by(RunRow.started_at)))

    def put_to_sleep(self, process: subprocess.Popen[str]) -> None:
        """Stop a host that is the only one at work, between two of its transactions."""
        busy = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND state <> 'idle'"
        )

        def asleep() -> bool:
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.2)  # what it sent last has arrived by then, and may have begun a transaction
            with self.engine.connect() as connection:
                if connection.scalar(busy) == 0:
                    return True
            process.send_signal(signal.SIGCONT)
            return False

        wait_until(asleep)

    @contextmanager
    def gate(self, vectors: int) -> Iterator[None]:
        """Meanwhile no host stores more once there are so many vectors, so that none of them ends its work."""
        function = "gate() RETURNS trigger LANGUAGE plpgsql"
        with self.engine.connect() as keeper:
            keeper.execute(sa.text("SELECT pg_advisory_lock(1)"))
            keeper.execute(
                sa.text(
                    f"CREATE FUNCTION {function} AS $$ BEGIN "
                    f"IF (SELECT count(*) FROM embeddings) >= {vectors} THEN PERFORM pg_advisory_xact_lock(1); END IF; "
                    "RETURN NULL; END $$"
                )
            )
            keeper.execute(
                sa.text("CREATE TRIGGER gate BEFORE INSERT ON embeddings FOR EACH STATEMENT EXECUTE FUNCTION gate()")
            )
            keeper.commit()
            yield
            keeper.execute(sa.text("SELECT pg_advisory_unlock(1)"))

    def wait_for_vectors(self, more_than: int = 0) -> None:
        wait_until(lambda: self.count(EmbeddingRow.chunk_id) > more_than)


@pytest.fixture
def shared(postgres_url: str, tmp_path: Path) -> Any:
    database = Shared(postgres_url, tmp_path)
    yield database
    database.engine.dispose()


@pytest.fixture(scope="module")
def alone(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Any]:
    """The vectors that one host makes of the documents by itself, on SQLite."""
    folder = tmp_path_factory.mktemp("alone")
    host = Host(folder, SMALL_STEPS)
    assert host.run_json("run-now", str(documents))["outcome"] == "complete"
    engine = make_engine(f"sqlite:///{host.database}")
    with Session(engine) as session:
        found = vectors(session)
    engine.dispose()
    return found


def vectors(session: Session) -> dict[tuple[str, int], Any]:
    rows = session.execute(
        sa.select(ContentRow.sha256, ChunkRow.ordinal, EmbeddingRow.vector)
        .join(ChunkRow, ChunkRow.content_id == ContentRow.id)
        .join(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id)
    )
    return {(sha256, ordinal): np.frombuffer(vector, "<f4") for sha256, ordinal, vector in rows}


def assert_complete(shared: Shared, alone: dict[tuple[str, int], Any]) -> None:
    """All that one host alone would have made is there, made once, and nothing is held or waits."""
    with Session(shared.engine) as session:
        found = vectors(session)
    assert found.keys() == alone.keys()
    assert min(float(found[key] @ alone[key]) for key in alone) > 0.9999
    assert shared.count(PendingChunkRow.chunk_id) == 0
    assert shared.count(DocumentRow.id) == DOCUMENTS + 1
    states = sa.select(ContentRow.state, ContentRow.claimed_by, sa.func.count()).group_by(
        ContentRow.state, "claimed_by"
    )
    assert shared.all(states) == [("embedded", None, DOCUMENTS)]
    # What the runs say that they stored adds up to what is there: no vector was stored twice.
    assert shared.all(sa.select(sa.func.sum(RunRow.chunks_embedded))) == [(len(alone),)]


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, (out, err)
    return dict(json.loads(out))


@pytest.mark.timeout(300)
def test_two_hosts_at_once_do_the_work_of_one(
    shared: Shared, documents: Path, alone: dict[tuple[str, int], Any]
) -> None:
    both = [shared.host(name).spawn("run-now", str(documents), "--json") for name in ("north", "south")]
    reports = [ended(process) for process in both]
    assert [report["outcome"] for report in reports] == ["complete", "complete"]
    assert sum(report["chunks_embedded"] for report in reports) == len(alone)
    assert_complete(shared, alone)
    assert shared.runs() == {"north": "complete", "south": "complete"}


@pytest.mark.timeout(300)
def test_a_host_that_is_killed_leaves_the_rest_to_the_other(
    shared: Shared, documents: Path, alone: dict[tuple[str, int], Any]
) -> None:
    dying = shared.host("north").spawn("run-now", str(documents), "--json")
    shared.wait_for_vectors()
    living = shared.host("south").spawn("run-now", str(documents), "--json")
    wait_until(lambda: shared.runs().get("south") == "running")
    kill_and_reap(dying)
    assert ended(living)["outcome"] == "complete"
    assert_complete(shared, alone)
    assert shared.runs() == {"north": "interrupted", "south": "complete"}


@pytest.mark.timeout(300)
def test_a_host_that_slept_notices_that_it_was_taken_for_dead(
    shared: Shared, documents: Path, alone: dict[tuple[str, int], Any]
) -> None:
    sleeper = shared.host("north").spawn("run-now", str(documents), "--json")
    try:
        shared.wait_for_vectors()
        shared.put_to_sleep(sleeper)
        assert ended(shared.host("south").spawn("run-now", str(documents), "--json"))["outcome"] == "complete"
        assert shared.runs() == {"north": "interrupted", "south": "complete"}
        sleeper.send_signal(signal.SIGCONT)
        out, _ = sleeper.communicate(timeout=120)
    finally:
        sleeper.kill()
        sleeper.wait()
    assert sleeper.returncode == 1, out
    assert "taken for dead" in json.loads(out)["error"]
    assert_complete(shared, alone)


@pytest.mark.timeout(300)
def test_a_third_host_finishes_what_two_that_were_killed_began(
    shared: Shared, documents: Path, alone: dict[tuple[str, int], Any]
) -> None:
    with shared.gate(vectors=1):
        both = [shared.host(name).spawn("run-now", str(documents), "--json") for name in ("north", "south")]
        shared.wait_for_vectors()
        wait_until(lambda: shared.runs() == {"north": "running", "south": "running"})
        for process in both:
            kill_and_reap(process)
    assert ended(shared.host("west").spawn("run-now", str(documents), "--json"))["outcome"] == "complete"
    assert_complete(shared, alone)
    # One that held nothing need not be missed yet.
    states = shared.runs()
    assert (states.pop("west"), set(states.values()) <= {"interrupted", "running"}) == ("complete", True)


def write_text(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.text").write_text(json.dumps({"text": text, "metadata": {}}), "utf-8")


@pytest.mark.timeout(300)
def test_a_host_embeds_what_another_one_read_of_its_own_folder(shared: Shared) -> None:
    north, south = shared.host("north"), shared.host("south")
    write_text(north.data_dir / "inbox", "of north", "The pilot boards at the outer buoy.")
    write_text(south.data_dir / "inbox", "of south", "The crane is out of order.")
    read = north.run_json("run-now", "--extract-only")
    assert (read["outcome"], read["documents_read"]) == ("complete", 1)
    (north.data_dir / "inbox").rename(north.data_dir / "away")
    report = south.run_json("run-now")
    assert (report["outcome"], report["chunks_embedded"], report["not_looked_at"]) == ("complete", 2, [])
    assert report["documents"]["embedded"] == 2
    status = south.run_json("status")
    assert (status["last_run"]["host"], status["other_runs"]) == ("south", [])
    # What is away on one host is deleted by none.
    missing = north.run("run-now")
    assert missing.returncode != 0
    assert shared.count(DocumentRow.id) == 2


@pytest.mark.timeout(300)
def test_a_host_reads_nothing_of_folders_that_it_does_not_have(shared: Shared) -> None:
    north, south = shared.host("north"), shared.host("south")
    for host in (north, south):
        write_text(host.data_dir / "inbox", "one", f"Of {host.data_dir.name}.")
    stopped = north.spawn("run-now", "--quiet")
    wait_until(lambda: shared.count(ContentRow.id) == 1)
    kill_and_reap(stopped)
    (north.data_dir / "inbox").rename(north.data_dir / "away")
    report = south.run_json("run-now")
    assert (report["outcome"], report["failing"]) == ("complete", [])
    states = dict(
        shared.all(
            sa.select(DocumentRow.source_id, ContentRow.attempts).join(
                ContentRow, ContentRow.id == sa.func.coalesce(DocumentRow.pending_id, DocumentRow.current_id)
            )
        )
    )
    assert set(states.values()) == {0}


@pytest.mark.timeout(300)
def test_another_folder_at_the_same_path_is_left_alone(shared: Shared, tmp_path: Path) -> None:
    north, south, folder = shared.host("north"), shared.host("south"), tmp_path / "documents"
    for number in range(5):
        write_text(folder, f"of north {number}", f"The pilot boards at buoy {number}.")
    write_text(folder, "same name", "The tide table of the north.")
    assert north.run_json("run-now", str(folder))["outcome"] == "complete"
    found = shared.all(sa.select(DocumentRow.path, DocumentRow.sha256).order_by(DocumentRow.path))

    folder.rename(tmp_path / "of north")
    write_text(folder, "of south", "The crane is out of order.")
    write_text(folder, "same name", "The tide table of the south, which is a longer one.")
    refused = south.run_json("run-now", str(folder), code=1)
    assert "nothing here of what other hosts found" in " ".join(refused["errors"])
    # Nor are its files read for those of the same path that still wait.
    assert shared.all(sa.select(DocumentRow.path, DocumentRow.sha256).order_by(DocumentRow.path)) == found

    # A file that was kept is enough, whatever else changed; and so is a person's word.
    (tmp_path / "of north" / "of north 3.text").rename(folder / "of north 3.text")
    report = south.run_json("run-now", str(folder))
    assert (report["outcome"], report["changes"]["removed"]) == ("complete", 4)
    for kept in folder.iterdir():
        kept.unlink()
    for number in range(9):
        write_text(folder, f"all new {number}", f"Page {number} of the new ledger.")
    assert south.run_json("run-now", str(folder), "--confirm-deletions")["outcome"] == "complete"
    assert shared.count(DocumentRow.id) == 9
