"""What a real daemon tells systemd, by the protocol of sd_notify(3)."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.daemon.notify import notify
from tests.daemon.daemons import make_place


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket that systemd would hold; its path is that of a test's folder, and so short enough."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "notify"))
        bound.settimeout(30)
        yield bound


def heard(listener: socket.socket, until: str) -> list[str]:
    """The messages up to the one that is waited for."""
    messages = [listener.recv(4096).decode()]
    while messages[-1] != until:
        messages.append(listener.recv(4096).decode())
    return messages


def test_a_daemon_says_when_it_is_ready_that_it_is_alive_and_that_it_stops(
    tmp_path: Path, listener: socket.socket
) -> None:
    place = make_place(tmp_path, mode="idle", language_model=False)
    place.settings["NOTIFY_SOCKET"] = str(tmp_path / "notify")
    with place.daemon() as daemon:
        assert heard(listener, "READY=1") == ["READY=1"]
        assert heard(listener, "WATCHDOG=1") == ["WATCHDOG=1"]
        daemon.switch("embedding")  # each look at the host is a sign of life, and this wakes it
        assert set(heard(listener, "WATCHDOG=1")) == {"WATCHDOG=1"}
    assert heard(listener, "STOPPING=1")[-1] == "STOPPING=1"
    listener.settimeout(0.2)
    with pytest.raises(TimeoutError):  # nothing after it: systemd would take that for life
        listener.recv(4096)


def test_it_is_the_daemon_itself_that_speaks(tmp_path: Path, listener: socket.socket) -> None:
    # systemd is told to listen to the main process alone (NotifyAccess=main); the pid must be the daemon's own.
    place = make_place(tmp_path, mode="idle", language_model=False)
    place.settings["NOTIFY_SOCKET"] = str(tmp_path / "notify")
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with place.daemon() as daemon:
        daemon.switch("embedding")
        deadline = time.monotonic() + 3
        senders = set()
        listener.settimeout(0.5)
        while time.monotonic() < deadline:
            try:
                _, ancillary, *_ = listener.recvmsg(4096, socket.CMSG_SPACE(12))
            except TimeoutError:
                break
            senders |= {int.from_bytes(data[:4], "little") for _, _, data in ancillary}
        assert senders == {daemon.process.pid}


def test_a_socket_without_a_name_in_the_file_system_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"nightshift-test-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind("\0" + name)
        bound.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify("READY=1")
        assert bound.recv(100) == b"READY=1"


def test_without_systemd_nothing_is_sent_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify("READY=1")
