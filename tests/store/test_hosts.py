"""Several hosts on one server: claims, leases, looks at folders, and what each host remembers for itself."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.core.errors import LeaseLost, RunInProgress
from pipeline.core.modes import Mode
from pipeline.core.schedule import Hold
from pipeline.store import holds, hosts, jobs, library, loads, overview, queue, reports, runs, switches
from pipeline.store.database import Database, make_engine
from pipeline.store.models import Target
from pipeline.store.runs import Process
from pipeline.store.scopes import Scope
from pipeline.store.switches import SwitchReason
from pipeline.store.tables import ContentRow, RunRow, SourceHostRow
from tests.store import rows

NOW = dt.datetime(2026, 6, 2, 2, tzinfo=dt.UTC)
NAMES = ("north", "south", "west")


def nobody(_process: Process) -> bool:
    return False


@pytest.fixture
def stores(postgres_url: str, store_of_postgres: Database) -> Iterator[dict[str, Database]]:
    """One database, as three hosts open it."""
    with ExitStack() as opened:
        yield {name: opened.enter_context(Database.open(postgres_url, name)) for name in NAMES}


@pytest.fixture
def store_of_postgres(postgres_url: str) -> Iterator[Database]:
    with Database(make_engine(postgres_url)) as store:
        yield store


def begin(store: Database, run_id: str, **more: object) -> None:
    with store.begin() as session:
        runs.start_run(session, run_id, Process(store.host, 1, 0.0), [], rows.utc_now(), nobody, **more)  # type: ignore[arg-type]


def fall_silent(store: Database, run_id: str, seconds: float = 120) -> None:
    with store.begin() as session:
        silent = sa.func.now() - dt.timedelta(seconds=seconds)
        session.execute(sa.update(RunRow).where(RunRow.id == run_id).values(heartbeat_at=silent))


def end_dead(store: Database) -> None:
    with store.begin() as session:
        runs.end_dead_runs(session, Process(store.host, 1, 0.0), rows.utc_now(), lambda process: True)


def fill(store: Database, count: int) -> Target:
    with store.begin() as session:
        target = rows.add_target(session)
        source = library.ensure_source(session, "/docs", rows.utc_now())
        rows.register(session, source, target, **{f"d{number}": f"content {number}" for number in range(count)})
    return target


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_content_is_claimed_twice(stores: dict[str, Database], seed: int) -> None:
    """Three hosts read and embed as fast as they can; each content passes through two of their hands, once each."""
    target = fill(stores["north"], 60)
    for name, store in stores.items():
        begin(store, name)
    read: Counter[int] = Counter()
    embedded: Counter[int] = Counter()
    together = threading.Barrier(len(stores))

    def work(name: str) -> None:
        store, luck = stores[name], random.Random(f"{seed} {name}")
        together.wait()
        idle = 0
        while idle < 5:
            with store.begin() as session:
                found = queue.claim_to_extract(session, name, None, target, rows.utc_now(), luck.randint(1, 7))
            for content in found:
                read[content.content_id] += 1
                with store.begin() as session:
                    text = rows.extracted(f"text of {content.content_id}", f"more of {content.content_id}")
                    stored = queue.store_extracted(session, content.content_id, text, rows.utc_now(), run_id=name)
                    assert stored.chunks == 2
            with store.begin() as session:
                waiting = queue.claim_to_embed(session, name, None, target, rows.utc_now(), luck.randint(1, 7))
            for content_id in waiting:
                embedded[content_id] += 1
                with store.begin() as session:
                    chunks = queue.pending_chunks(session, content_id, 0, 9)
                    vectors = [(chunk, rows.vector(number)) for number, chunk in enumerate(chunks)]
                    assert queue.store_vectors(session, name, vectors, [], rows.utc_now()).vectors == 2
            idle = 0 if found or waiting else idle + 1

    with ThreadPoolExecutor(len(stores)) as pool:
        for done in [pool.submit(work, name) for name in stores]:
            done.result()
    assert (len(read), set(read.values())) == (60, {1})
    assert (len(embedded), set(embedded.values())) == (60, {1})
    with stores["west"].snapshot() as session:
        assert overview.count_documents(session)["embedded"] == 60
        assert sum(run.chunks_embedded for run in runs.living_runs(session)) == 120


def test_two_hosts_may_find_the_same_bytes_at_once(stores: dict[str, Database]) -> None:
    target = fill(stores["north"], 0)
    together = threading.Barrier(len(stores))

    def find(name: str) -> None:
        with stores[name].begin() as session:
            source = library.ensure_source(session, f"/docs of {name}", rows.utc_now())
        for number in range(20):
            together.wait()
            with stores[name].begin() as session:
                rows.register(session, source, target, **{f"{name} {number}": f"content {number}"})

    with ThreadPoolExecutor(len(stores)) as pool:
        for done in [pool.submit(find, name) for name in stores]:
            done.result()
    with stores["north"].snapshot() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(ContentRow)) == 20
        assert overview.count_documents(session)["discovered"] == 60


def test_a_host_has_one_run_and_others_have_theirs(stores: dict[str, Database]) -> None:
    begin(stores["north"], "first")
    begin(stores["south"], "second")
    with pytest.raises(RunInProgress, match="on north"), stores["north"].begin() as session:
        runs.start_run(session, "third", Process("north", 2, 0.0), [], NOW, lambda process: True)
    with stores["west"].snapshot() as session:
        assert [(run.id, run.process.host) for run in runs.living_runs(session)] == [
            ("first", "north"), ("second", "south"),
        ]  # fmt: skip


def test_a_live_run_takes_over_what_a_dead_host_held(stores: dict[str, Database]) -> None:
    target = fill(stores["north"], 3)
    begin(stores["north"], "dies")
    begin(stores["south"], "lives")
    with stores["north"].begin() as session:
        assert len(queue.claim_to_extract(session, "dies", None, target, rows.utc_now(), 9)) == 3
    end_dead(stores["south"])
    with stores["south"].begin() as session:
        assert queue.claim_to_extract(session, "lives", None, target, rows.utc_now(), 9) == []
    fall_silent(stores["north"], "dies")
    end_dead(stores["south"])
    with stores["south"].begin() as session:
        assert len(queue.claim_to_extract(session, "lives", None, target, rows.utc_now(), 9)) == 3
        dead = runs.find_run(session, "dies")
    assert dead is not None
    assert (dead.state, dead.finished_at) == ("interrupted", dead.heartbeat_at)


@pytest.mark.parametrize("wrong", [dt.timedelta(days=-400), dt.timedelta(days=400)])
def test_a_host_whose_clock_is_wrong_neither_dies_of_it_nor_kills(
    stores: dict[str, Database], wrong: dt.timedelta
) -> None:
    begin(stores["north"], "right")
    with stores["south"].begin() as session:
        me = Process("south", 1, 0.0)
        runs.start_run(session, "wrong", me, [], rows.utc_now() + wrong, nobody)
        runs.heartbeat(session, "wrong", rows.utc_now() + wrong)
        runs.end_dead_runs(session, me, rows.utc_now() + wrong, lambda process: True)
    end_dead(stores["west"])
    with stores["west"].snapshot() as session:
        assert {run.id for run in runs.living_runs(session)} == {"right", "wrong"}


def test_a_run_that_was_taken_for_dead_stores_nothing_of_what_it_held(stores: dict[str, Database]) -> None:
    target = fill(stores["north"], 2)
    begin(stores["north"], "sleeps")
    begin(stores["south"], "lives")
    with stores["north"].begin() as session:
        held = queue.claim_to_extract(session, "sleeps", None, target, rows.utc_now(), 9)
    fall_silent(stores["north"], "sleeps")
    end_dead(stores["south"])
    with stores["south"].begin() as session:
        (taken, _) = queue.claim_to_extract(session, "lives", None, target, rows.utc_now(), 9)
        queue.store_extracted(session, taken.content_id, rows.extracted("new"), rows.utc_now(), run_id="lives")
    late = rows.extracted("old", "text")
    with stores["north"].begin() as session:
        for content in held:
            stored = queue.store_extracted(session, content.content_id, late, rows.utc_now(), run_id="sleeps")
            assert stored.chunks == 0
            state = DocumentState.FAILED
            queue.end_extraction(session, content.content_id, state, "cannot be read", run_id="sleeps")
            queue.postpone(session, content.content_id, "locked", NOW, run_id="sleeps")
        assert overview.count_documents(session)["failed"] == 0
        assert overview.count_chunks(session)["total"] == 1
        claims = sa.select(ContentRow.state, ContentRow.claimed_by, ContentRow.attempts).order_by(ContentRow.state)
        assert [tuple(row) for row in session.execute(claims)] == [("discovered", "lives", 0), ("extracted", None, 0)]
    for refused in (
        lambda session: runs.heartbeat(session, "sleeps", rows.utc_now()),
        lambda session: queue.claim_to_extract(session, "sleeps", None, target, rows.utc_now(), 9),
        lambda session: queue.claim_to_embed(session, "sleeps", None, target, rows.utc_now(), 9),
    ):
        with pytest.raises(LeaseLost), stores["north"].begin() as session:
            refused(session)


def test_a_heartbeat_that_comes_after_the_end_is_no_loss(stores: dict[str, Database]) -> None:
    begin(stores["north"], "done")
    with stores["north"].begin() as session:
        runs.finish_run(session, "done", "complete", None, rows.utc_now())
        assert runs.heartbeat(session, "done", rows.utc_now()) is None
        run = runs.find_run(session, "done")
    assert run is not None
    assert run.state == "complete"


def test_one_run_at_a_time_looks_at_a_source(stores: dict[str, Database]) -> None:
    fill(stores["north"], 1)
    begin(stores["north"], "first")
    begin(stores["south"], "second")
    with stores["north"].begin() as session:
        (source,) = library.sources(session).values()
        assert hosts.begin_look(session, source, "first", NOW) is None
        assert hosts.begin_look(session, source, "first", NOW) is None
    with stores["south"].begin() as session:
        assert hosts.begin_look(session, source, "second", NOW) == "north"
        target = rows.add_target(session)
        (other,) = hosts.others_at_work(session, "second", None, target, [source])
        assert (other.host, other.looks) == ("north", True)
        assert hosts.others_at_work(session, "first", None, target, [source]) == []
    fall_silent(stores["north"], "first")
    end_dead(stores["south"])
    with stores["south"].begin() as session:
        assert hosts.begin_look(session, source, "second", NOW) is None
        hosts.end_looks(session, "second")
    begin(stores["north"], "third")
    with stores["north"].begin() as session:
        assert hosts.begin_look(session, source, "third", NOW) is None


def test_what_a_host_cannot_read_it_leaves_and_embeds_all_the_same(stores: dict[str, Database]) -> None:
    target = fill(stores["north"], 2)
    begin(stores["north"], "first")
    begin(stores["south"], "second")
    with stores["north"].begin() as session:
        (source,) = library.sources(session).values()
        hosts.begin_look(session, source, "first", NOW)
        assert hosts.sources_to_read(session) == {source: "/docs"}
    with stores["south"].begin() as session:
        assert hosts.sources_to_read(session) == {}  # the other host is at work, and has never been seen to share it
        assert queue.claim_to_extract(session, "second", None, target, rows.utc_now(), 9, within=[]) == []
    with stores["north"].begin() as session:
        for content in queue.claim_to_extract(session, "first", None, target, rows.utc_now(), 9, within=[source]):
            queue.store_extracted(session, content.content_id, rows.extracted("one"), rows.utc_now(), run_id="first")
    with stores["south"].begin() as session:
        assert len(queue.claim_to_embed(session, "second", None, target, rows.utc_now(), 9)) == 2
    with stores["north"].begin() as session:
        runs.finish_run(session, "first", "complete", None, rows.utc_now())
    with stores["south"].snapshot() as session:
        assert hosts.sources_to_read(session) == {source: "/docs"}


def test_own_folders_at_one_path_are_sources_of_their_own(stores: dict[str, Database]) -> None:
    """Every host has an inbox; most have it at the same path."""
    found = {}
    for name in ("north", "south"):
        with stores[name].begin() as session:
            target = rows.add_target(session)
            found[name] = library.ensure_source(session, "/data/inbox", NOW, mark=name * 2)
            rows.register(session, found[name], target, **{f"of {name}": name})
    assert found["north"] != found["south"]
    for name, store in stores.items():
        with store.begin() as session:
            seen = library.sources(session)
            assert seen == ({"/data/inbox": found[name]} if name in found else {})
            for source in seen.values():
                assert [known.path for known in library.known_documents(session, Scope(source))] == [f"of {name}.pdf"]
                assert library.ensure_source(session, "/data/inbox", NOW, mark=name * 2) == source
    with stores["west"].snapshot() as session:
        assert [line.file for line in overview.list_documents(session)] == [
            "/data/inbox/of north.pdf", "/data/inbox (south)/of south.pdf",
        ]  # fmt: skip


def test_an_own_folder_that_was_known_before_there_were_marks_stays_what_it_is(stores: dict[str, Database]) -> None:
    with stores["north"].begin() as session:
        old = library.ensure_source(session, "/data/inbox", NOW)
        assert library.ensure_source(session, "/data/inbox", NOW, mark="one") == old
        assert library.ensure_source(session, "/data/inbox", NOW, mark="made anew") == old
    with stores["south"].begin() as session:
        assert library.ensure_source(session, "/data/inbox", NOW, mark="two") != old
        # The same share at the same path: it has the same mark.
        assert library.ensure_source(session, "/data/inbox", NOW, mark="made anew") == old
        known = sa.select(SourceHostRow.host).where(SourceHostRow.source_id == old).order_by(SourceHostRow.host)
        assert session.scalars(known).all() == ["north", "south"]


def test_a_folder_around_one_that_another_run_is_at_work_on_waits(stores: dict[str, Database]) -> None:
    fill(stores["north"], 1)
    begin(stores["north"], "first")
    begin(stores["south"], "second")
    with pytest.raises(RunInProgress, match="on north"), stores["south"].begin() as session:
        library.ensure_source(session, "/", NOW, run_id="second")
    with stores["north"].begin() as session:
        runs.finish_run(session, "first", "complete", None, rows.utc_now())
    with stores["south"].begin() as session:
        outer = library.ensure_source(session, "/", NOW, run_id="second")
        assert library.sources(session) == {"/": outer}


def test_what_a_host_remembers_is_its_own(stores: dict[str, Database]) -> None:
    for number, (name, mode) in enumerate(zip(NAMES, (Mode.MIXED, Mode.IDLE, Mode.EMBEDDING), strict=True)):
        with stores[name].begin() as session:
            holds.set_hold(session, Hold(mode, None), name, NOW)
            jobs.note_started(session, "nightly", NOW + dt.timedelta(hours=number), window_start=NOW)
            loads.note_load(session, "f", "llama-server", "gpu", float(number), NOW)
            switches.begin_switch(session, Mode.IDLE, mode, SwitchReason.JOB, NOW)
    with stores["south"].begin() as session:
        (interrupted,) = switches.interrupt_switches(session, NOW)
        assert interrupted.to_mode is Mode.IDLE
        holds.clear_hold(session)
    for number, name in enumerate(NAMES):
        with stores[name].snapshot() as session:
            held = holds.current_hold(session, NOW)
            assert (held is None) == (name == "south")
            assert jobs.job_states(session)["nightly"].last_started == NOW + dt.timedelta(hours=number)
            assert [load.seconds for load in loads.measured_loads(session)] == [number]
            assert [switch.outcome == "interrupted" for switch in switches.latest_switches(session, 9)] == [
                name == "south"
            ]


def test_a_run_that_died_is_reported_by_one_host(stores: dict[str, Database]) -> None:
    begin(stores["north"], "dies")
    fall_silent(stores["north"], "dies")
    end_dead(stores["south"])
    told = []
    for name in ("south", "west"):
        with stores[name].begin() as session:
            told.append(reports.save_first_report(session, "dies", {"by": name}))
    assert told == [True, False]
    with stores["north"].snapshot() as session:
        assert reports.find_report(session, "dies") == {"by": "south"}


def test_a_host_that_falls_asleep_in_a_transaction_does_not_hold_up_the_others(stores: dict[str, Database]) -> None:
    with stores["north"].snapshot() as session:
        assert session.scalar(sa.text("SHOW idle_in_transaction_session_timeout")) == "1min"


def test_transactions_that_meet_are_done_one_after_the_other(stores: dict[str, Database]) -> None:
    """Two hosts that take the same rows in another order: the server ends one of them, which begins anew."""
    target = fill(stores["north"], 2)
    assert target.model_id
    with stores["north"].snapshot() as session:
        first, second = session.scalars(sa.select(ContentRow.id).order_by(ContentRow.id)).all()
    taken = {name: threading.Event() for name in ("north", "south")}

    def both(name: str, one: int, other: int) -> None:
        def change(session: Session) -> None:
            for number, content_id in enumerate((one, other)):
                update = sa.update(ContentRow).where(ContentRow.id == content_id)
                session.execute(update.values(attempts=ContentRow.attempts + 1))
                if number == 0:
                    taken[name].set()
                    taken["south" if name == "north" else "north"].wait()

        asyncio.run(stores[name].write(change))

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(both, "north", first, second), pool.submit(both, "south", second, first)]:
            done.result()
    with stores["west"].snapshot() as session:
        assert session.scalars(sa.select(ContentRow.attempts)).all() == [2, 2]
