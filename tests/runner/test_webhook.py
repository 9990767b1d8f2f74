"""Reports to a receiver: a real one on loopback, that may refuse, fail, or not be there."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import stamina
from pydantic import SecretStr

from pipeline.runner.webhook import AGAIN, ROUNDS, deliver_due, keep_delivering
from pipeline.settings import Settings
from pipeline.settings.fields import ReportSettings
from pipeline.store import reports, runs
from pipeline.store.database import Database
from tests.store import rows

NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)


@dataclass
class Receiver:
    """Answers with the statuses in turn, then with 204; keeps what came."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(told.statuses.pop(0) if told.statuses else 204)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    try:
        yield told
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


@pytest.fixture
def endless() -> Iterator[str]:
    """The beginning of the URL of a receiver whose answers never end."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            piece = b"X-More: of it\r\n" if self.path == "/head" else b"x" * 65_536
            self.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"" if self.path == "/head" else b"\r\n"))
            with contextlib.suppress(OSError):
                while not over.wait(0.05):
                    self.wfile.write(piece)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        over.set()
        server.shutdown()
        serving.join()
        server.server_close()


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Database]:
    with Database.open(sqlite_url) as opened:
        yield opened


def owe(store: Database, *run_ids: str) -> None:
    with store.begin() as session:
        for run_id in run_ids:
            rows.begin(session, run_id)
            runs.finish_run(session, run_id, "complete", None, NOON)
            reports.save_report(session, run_id, {"run_id": run_id, "outcome": "größer"}, owed_from=NOON)


def owed(store: Database) -> list[tuple[str, int, str | None]]:
    with store.snapshot() as session:
        return list(reports.undelivered(session))


async def test_a_report_is_posted_once_with_its_key_and_its_signature(store: Database, receiver: Receiver) -> None:
    owe(store, "one", "two")
    settings = ReportSettings(webhook=SecretStr(receiver.url), token=SecretStr("tell"), secret=SecretStr("sign"))
    assert await deliver_due(store, settings, NOON) == 2
    assert await deliver_due(store, settings, NOON + dt.timedelta(days=9)) == 0
    assert [headers["x-nightshift-run"] for headers, _ in receiver.got] == ["one", "two"]
    headers, body = receiver.got[0]
    assert json.loads(body) == {"run_id": "one", "outcome": "größer"}
    assert headers["authorization"] == "Bearer tell"
    assert headers["x-nightshift-signature"] == "sha256=" + hmac.new(b"sign", body, hashlib.sha256).hexdigest()
    assert owed(store) == []


def test_a_report_that_a_clock_that_was_ahead_put_off_is_due(store: Database) -> None:
    owe(store, "one")
    with store.begin() as session:
        reports.note_failed(session, "one", "away", NOON + dt.timedelta(days=30))
        assert [delivery.run_id for delivery in reports.due_deliveries(session, NOON)] == ["one"]
        reports.note_failed(session, "one", "away", NOON + dt.timedelta(seconds=max(AGAIN)))
        assert reports.due_deliveries(session, NOON) == []
        reports.note_failed(session, "one", "away", None)
        assert reports.due_deliveries(session, NOON + dt.timedelta(days=99)) == []


async def test_without_keys_none_are_sent(store: Database, receiver: Receiver) -> None:
    owe(store, "one")
    await deliver_due(store, ReportSettings(webhook=SecretStr(receiver.url)), NOON)
    ((headers, _),) = receiver.got
    assert not {"authorization", "x-nightshift-signature"} & headers.keys()


async def test_a_receiver_that_stumbles_is_asked_again_at_once(store: Database, receiver: Receiver) -> None:
    owe(store, "one")
    receiver.statuses = [500, 503]
    assert await deliver_due(store, ReportSettings(webhook=SecretStr(receiver.url)), NOON) == 1
    assert len(receiver.got) == 3


@pytest.mark.parametrize("status", [404, 302])
async def test_a_receiver_that_says_no_is_asked_again_later(store: Database, receiver: Receiver, status: int) -> None:
    owe(store, "one")
    receiver.statuses = [status]
    settings = ReportSettings(webhook=SecretStr(receiver.url))
    assert await deliver_due(store, settings, NOON) == 0
    assert len(receiver.got) == 1  # a redirection is not followed, and no is not asked twice
    assert owed(store) == [("one", 1, f"the receiver answered {status}")]
    assert await deliver_due(store, settings, NOON) == 0  # not yet
    assert await deliver_due(store, settings, NOON + dt.timedelta(minutes=1)) == 1
    assert owed(store) == []


async def test_a_report_outlives_a_receiver_that_is_away_and_is_given_up_in_the_end(store: Database) -> None:
    with socket.socket() as held:  # bound, and nobody listens
        held.bind(("127.0.0.1", 0))
        settings = ReportSettings(webhook=SecretStr(f"http://127.0.0.1:{held.getsockname()[1]}/"))
        owe(store, "one")
        now, waits = NOON, []
        for _ in range(ROUNDS):
            with stamina.set_testing(True):  # one try a round, and no pauses
                assert await deliver_due(store, settings, now) == 0
            with store.snapshot() as session:
                due = reports.next_delivery(session)
            waits.append(None if due is None else due - now)
            now = due or now
    assert waits[-1] is None
    real = [wait for wait in waits if wait is not None]
    assert real == sorted(real)
    ((run_id, attempts, error),) = owed(store)
    assert (run_id, attempts) == ("one", ROUNDS)
    assert error is not None
    assert "ConnectError" in error


@pytest.mark.parametrize("answer", ["a head without an end", "a body without an end"])
async def test_a_receiver_without_an_end_costs_neither_memory_nor_the_reports_after_it(
    store: Database, endless: str, answer: str
) -> None:
    owe(store, "one", "two")
    settings = ReportSettings(webhook=SecretStr(f"{endless}{'head' if 'head' in answer else 'body'}"))
    taken = await deliver_due(store, settings, NOON, longest=2.0)
    if "body" in answer:  # which nobody reads
        assert (taken, owed(store)) == (2, [])
        return
    assert taken == 0
    # The second one goes first the next time.
    assert owed(store) == [("one", 1, "the receiver did not answer within 2 s"), ("two", 0, None)]
    with store.snapshot() as session:
        assert [delivery.run_id for delivery in reports.due_deliveries(session, NOON)] == ["two"]


async def test_the_daemon_delivers_what_an_earlier_one_owed(store: Database, receiver: Receiver) -> None:
    owe(store, "one")
    wake = asyncio.Event()
    keeper = asyncio.create_task(keep_delivering(store, ReportSettings(webhook=SecretStr(receiver.url)), 3600, wake))
    try:
        async with asyncio.timeout(60):
            while owed(store):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            owe(store, "two")
            wake.set()
            while owed(store):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
    assert [headers["x-nightshift-run"] for headers, _ in receiver.got] == ["one", "two"]


def test_an_address_that_is_none_is_refused_and_a_real_one_is_shown_to_nobody() -> None:
    for wrong in ("hooks.example.org/abc", "file:///etc/passwd", "https://"):
        with pytest.raises(ValueError, match="should begin with http"):
            Settings(report=ReportSettings(webhook=SecretStr(wrong)))
    settings = Settings(report=ReportSettings(webhook=SecretStr("https://hooks.example.org/T0P")))
    assert "T0P" not in f"{settings.flatten()} {settings!r}"
