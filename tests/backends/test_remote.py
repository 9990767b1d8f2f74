"""A server that somebody else runs, played by one of ours."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.backends.remote import RemoteServer
from pipeline.backends.served import BackendState
from pipeline.backends.server import free_port
from pipeline.core.errors import BackendBusy, BackendDied, BackendRefused, BackendStartFailed
from pipeline.core.modes import Slot
from tests.backends.conftest import API_KEY, RunningServer


def remote(url: str, *, key: str = API_KEY, stall: float = 5.0, slot: Slot = Slot.EMBEDDING) -> RemoteServer:
    return RemoteServer(slot, url, "m", api_key=key, start_stall=stall, trust_env=False)


async def test_a_remote_server_is_used_and_never_ended(server: RunningServer) -> None:
    used = remote(f"{server.url}/v1/")
    with pytest.raises(BackendDied, match="not in use"):
        await used.canary()
    await used.prepare()
    await used.launch()
    assert used.state is BackendState.STARTING
    await used.start()
    assert (used.base_url, used.pid, used.pids()) == (server.url, None, set())
    await used.canary()
    assert (await used.embedder.embed(["x"])).shape == (1, 384)
    await used.kill("it hangs")
    await used.stop()
    await used.stop()
    assert server.process.poll() is None
    await used.start()
    await used.canary()
    await used.stop()


async def test_a_remote_server_that_is_not_there_is_a_failed_start() -> None:
    absent = remote(f"http://127.0.0.1:{free_port()}", stall=0.1)
    with pytest.raises(BackendStartFailed, match="is not ready"):
        await absent.start()
    assert absent.state is BackendState.FAILED
    assert "not ready" in absent.exit_story


async def test_a_remote_server_whose_answer_cannot_be_unpacked_is_a_failed_start() -> None:
    async def unpackable(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(unpackable, "127.0.0.1", 0) as server:
        broken = remote(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", stall=0.1)
        with pytest.raises(BackendStartFailed, match="is not ready"):
            await broken.start()


async def test_a_remote_server_is_waited_for() -> None:
    port = free_port()
    late = remote(f"http://127.0.0.1:{port}", stall=10)
    starting = asyncio.create_task(late.start())
    await asyncio.sleep(0.2)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        await starting
    assert late.state is BackendState.READY
    await late.stop()


async def test_a_wrong_key_is_found_by_the_canary(server: RunningServer) -> None:
    wrong = remote(server.url, key="wrong")
    await wrong.start()
    with pytest.raises(BackendRefused, match="API key"):
        await wrong.canary()
    await wrong.stop()


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
async def test_an_embedding_server_that_is_busy_is_there_and_one_that_chats_is_not(status: str) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        busy = remote(url, stall=0.1)
        await busy.start()
        await busy.canary()
        assert busy.state is BackendState.READY
        with pytest.raises(BackendBusy, match=status[:3]):  # a run waits by itself: tests/ingest/test_outlasting.py
            await busy.embedder.embed(["x"])
        await busy.stop()
        with pytest.raises(BackendStartFailed, match=f"is not ready: HTTP {status[:3]}"):
            await remote(url, stall=0.1, slot=Slot.GENERATION).start()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999", "http://[::1", "http://h:8o80", "http://xn--a.example:1", "http://"]
)
@pytest.mark.parametrize("slot", list(Slot))
async def test_an_address_that_is_none_is_a_failed_start(url: str, slot: Slot) -> None:
    broken = remote(url, stall=0.1, slot=slot)
    with pytest.raises(BackendStartFailed, match="is not ready"):
        await broken.start()
    assert broken.state is BackendState.FAILED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1"),
        ("HTTP_PROXY", "nonsense://127.0.0.1:1"),
        ("HTTP_PROXY", "http://[::1"),
        ("SSL_CERT_FILE", "/nowhere/certificates.pem"),
    ],
)
async def test_an_environment_that_no_client_can_use_is_a_failed_start(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    used = RemoteServer(Slot.EMBEDDING, server.url, "m", api_key=API_KEY, start_stall=0.1)
    with pytest.raises(BackendStartFailed, match=r"is not ready: ."):
        await used.start()
