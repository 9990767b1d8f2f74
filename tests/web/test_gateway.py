"""Requests through the gateway: what comes and goes, byte for byte, and what can go wrong on the way."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from typing import Any

import httpx
import pytest

from pipeline.core.modes import Mode, Slot
from pipeline.switcher.admission import Gate
from pipeline.web.options import WebOptions
from tests.web.conftest import Gateway, Start
from tests.web.upstream import Connection, Received
from tests.web.waiting import until
from tests.web.world import KEY

CHAT = {"model": "whatever", "messages": [{"role": "user", "content": "hello"}], "stream": True}
WHOLE = b'data: {"choices":[{"delta":{"content":"h\xc3\xa9"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def last_events(stream: bytes) -> tuple[dict[str, Any], bytes]:
    """The error and the end of a stream that failed."""
    *_, error, end, rest = stream.split(b"\n\n")
    assert rest == b""
    return json.loads(error.removeprefix(b"data: "))["error"], end


async def stream_bytes(gateway: Gateway) -> bytes:
    """A whole streaming answer, as its bytes came."""
    async with gateway.http.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
        assert answer.status_code == 200
        return b"".join([part async for part in answer.aiter_raw()])


async def test_a_stream_passes_byte_for_byte(gateway: Gateway) -> None:
    sent = (
        WHOLE
        + b": keep-alive\n\n"
        + b'data: {"a": 1}\r\n\r\nevent: x\r\ndata: 2\r\n\r\n'
        + WHOLE * 50
        + DONE
        + b"odd end"
    )

    async def behave(_: Received, connection: Connection) -> None:
        await connection.start_stream()
        for start in range(0, len(sent), 7):
            await connection.chunk(sent[start : start + 7])
        await connection.chunk(b"")

    gateway.upstream.behave = behave
    assert await stream_bytes(gateway) == sent


async def test_events_are_passed_on_as_they_come(gateway: Gateway) -> None:
    go_on = asyncio.Event()

    async def behave(_: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(WHOLE)
        await go_on.wait()
        await connection.chunk(DONE)
        await connection.chunk(b"")

    gateway.upstream.behave = behave
    async with asyncio.timeout(30), gateway.http.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
        parts = answer.aiter_raw()
        assert await anext(parts) == WHOLE
        assert gateway.world.admission.in_flight(Slot.GENERATION) == 1
        go_on.set()
        assert await anext(parts) == DONE


async def test_headers_of_the_backend_are_kept_but_for_those_that_are_not_for_the_client(gateway: Gateway) -> None:
    async def behave(_: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(DONE)
        await connection.chunk(b"")

    gateway.upstream.behave = behave
    answer = await gateway.http.post("/v1/chat/completions", json=CHAT)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-upstream"] == "kept"
    assert not {"access-control-allow-origin", "server", "set-cookie"} & set(answer.headers)


async def test_a_request_goes_up_untouched(gateway: Gateway) -> None:
    body = b'{"model" : "other",  "messages": [], "unknown": 1.50}'
    headers = {"Authorization": "Bearer of-the-client", "Cookie": "a=b", "Content-Type": "application/json"}
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/completions?api-version=1"):
        answer = await gateway.http.post(path, content=body, headers=headers)
        assert answer.status_code == 200
        received = gateway.upstream.received.pop()
        assert (received.path, received.body) == (path, body)
        assert received.headers["authorization"] == f"Bearer {KEY}"
        assert received.headers["x-request-id"] == answer.headers["x-request-id"]
        assert "cookie" not in received.headers
        assert "of-the-client" not in answer.text


async def test_errors_of_the_backend_pass_as_they_are(gateway: Gateway) -> None:
    async def behave(_: Received, connection: Connection) -> None:
        await connection.answer(b'{"error":  "bad"}', status="400 Bad Request", headers="X-Why: because\r\n")

    gateway.upstream.behave = behave
    answer = await gateway.http.post("/v1/embeddings", json={})
    assert (answer.status_code, answer.content, answer.headers["x-why"]) == (400, b'{"error":  "bad"}', "because")


async def test_a_backend_that_still_loads_says_when_to_come_back(gateway: Gateway) -> None:
    async def behave(_: Received, connection: Connection) -> None:
        await connection.answer(b"{}", status="503 Service Unavailable")

    gateway.upstream.behave = behave
    answer = await gateway.http.post("/v1/embeddings", json={})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_a_backend_that_refuses_our_key_does_not_blame_the_client(gateway: Gateway) -> None:
    async def behave(_: Received, connection: Connection) -> None:
        await connection.answer(b"{}", status="401 Unauthorized")

    gateway.upstream.behave = behave
    assert (await gateway.http.post("/v1/embeddings", json={})).status_code == 502


async def test_the_name_of_the_model_is_rewritten_where_the_backend_wants_it(gateway: Gateway) -> None:
    gateway.world.rewrite_model = True
    await gateway.http.post("/v1/chat/completions", json={"model": "gpt-4", "n": 1})
    assert json.loads(gateway.upstream.received[0].body) == {"model": "tiny-llama", "n": 1}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"not json", b"[1]", b"\xff{}", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\\ud800"}', b'{"a": "\\uDC00x"}',
        b'{"\\ud800": 1}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", '{"a": 1}'.encode("utf-16"),
        b'{"a": "' + b"x" * 100_000 + b'\\ud800"}', b'{"a": "\xed\xa0\x80"}', b'{"a": 1} {}',
    ],
)  # fmt: skip
async def test_what_no_backend_can_read_is_refused_in_any_mode(gateway: Gateway, body: bytes) -> None:
    for mode in (Mode.MIXED, Mode.IDLE):
        gateway.world.enter(mode)
        answer = await gateway.http.post("/v1/embeddings", content=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert not gateway.upstream.received


async def test_what_a_backend_can_read_goes_there_as_it_came(gateway: Gateway) -> None:
    body = '{"a": "é \\ud83d\\ude00 \\\\ud800", "n": 1e300}'.encode()
    headers = {b"User-Agent": "é".encode("latin-1"), b"Content-Type": b"text/strange"}
    assert (await gateway.http.post("/v1/embeddings?x=%C3%A9", content=body, headers=headers)).status_code == 200
    (received,) = gateway.upstream.received
    assert (received.body, received.path) == (body, "/v1/embeddings?x=%C3%A9")
    assert (received.headers["user-agent"], received.headers["content-type"]) == ("é", "text/strange")


async def test_a_gzip_body_is_unpacked_for_the_backend(gateway: Gateway) -> None:
    packed = gzip.compress(b'{"input": "a"}')
    await gateway.http.post("/v1/embeddings", content=packed, headers={"Content-Encoding": "gzip"})
    (received,) = gateway.upstream.received
    assert received.body == b'{"input": "a"}'
    assert "content-encoding" not in received.headers


async def test_packed_bodies_that_are_refused(start: Start) -> None:
    gateway = await start(WebOptions(max_body=1_000_000))
    for body, encoding, status in (
        (gzip.compress(b"0" * 2_000_000), "gzip", 413),
        (b"not gzip", "gzip", 400),
        (gzip.compress(b"{}")[:-4], "gzip", 400),
        (gzip.compress(b"{}") * 2, "gzip", 400),
        (b"{}", "br", 415),
    ):
        answer = await gateway.http.post("/v1/embeddings", content=body, headers={"Content-Encoding": encoding})
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")
    assert not gateway.upstream.received


async def test_a_client_that_hangs_up_in_a_stream_ends_the_backends_request(gateway: Gateway) -> None:
    async def behave(request: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(WHOLE)
        await gateway.upstream.hang(request, connection)

    gateway.upstream.behave = behave
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        async with client.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
            assert await anext(answer.aiter_raw()) == WHOLE
        async with asyncio.timeout(30):
            await gateway.upstream.gone.wait()
    await until(lambda: gateway.world.admission.in_flight(Slot.GENERATION) == 0)
    await until(lambda: counted(gateway, "client_gone") == 1)


async def test_a_client_that_hangs_up_before_the_answer_ends_the_backends_request(gateway: Gateway) -> None:
    gateway.upstream.behave = gateway.upstream.hang
    with pytest.raises(httpx.ReadTimeout):
        await gateway.http.post("/v1/chat/completions", json=CHAT, timeout=1.5)  # by then it has arrived
    async with asyncio.timeout(30):
        await gateway.upstream.gone.wait()
    await until(lambda: gateway.world.admission.in_flight(Slot.GENERATION) == 0)


async def test_a_client_that_hangs_up_while_it_waits_gives_up_its_place(gateway: Gateway) -> None:
    gateway.world.admission.set_gate(Slot.GENERATION, Gate.SOON)
    with pytest.raises(httpx.ReadTimeout):
        await gateway.http.post("/v1/chat/completions", json=CHAT, timeout=0.3)
    await until(lambda: gateway.world.admission.waiting(Slot.GENERATION) == 0)
    assert not gateway.upstream.received


async def test_a_stream_that_is_cut_ends_with_an_error_event(gateway: Gateway) -> None:
    async def behave(request: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(WHOLE + b'data: {"choi')
        await gateway.upstream.hang(request, connection)

    gateway.upstream.behave = behave
    stream = asyncio.create_task(stream_bytes(gateway))
    await until(lambda: bool(gateway.upstream.received))
    await asyncio.sleep(0.1)
    assert gateway.world.admission.cut(Slot.GENERATION) == 1
    async with asyncio.timeout(30):
        got = await stream
        await gateway.upstream.gone.wait()
    assert got.startswith(WHOLE + b'data: {"error"')  # the beginning of an event was kept back
    error, end = last_events(got)
    assert (error["code"], end) == ("interrupted", b"data: [DONE]")
    assert gateway.world.admission.in_flight(Slot.GENERATION) == 0
    await until(lambda: counted(gateway, "cut") == 1)


async def test_a_cut_after_the_end_of_the_stream_adds_nothing(gateway: Gateway) -> None:
    async def behave(request: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(WHOLE + DONE)
        await gateway.upstream.hang(request, connection)

    gateway.upstream.behave = behave
    stream = asyncio.create_task(stream_bytes(gateway))
    await until(lambda: bool(gateway.upstream.received))
    await asyncio.sleep(0.1)
    gateway.world.admission.cut(Slot.GENERATION)
    async with asyncio.timeout(30):
        assert await stream == WHOLE + DONE


async def half_an_answer(gateway: Gateway, request: Received, connection: Connection) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    await gateway.upstream.hang(request, connection)


@pytest.mark.parametrize("half", [False, True])
async def test_an_answer_that_is_cut_before_its_first_byte_is_a_503(gateway: Gateway, *, half: bool) -> None:
    gateway.world.retry_after = 90.5

    async def behave(request: Received, connection: Connection) -> None:
        await (half_an_answer(gateway, request, connection) if half else gateway.upstream.hang(request, connection))

    gateway.upstream.behave = behave
    asked = asyncio.create_task(gateway.http.post("/v1/embeddings", json={}))
    await until(lambda: bool(gateway.upstream.received))
    await asyncio.sleep(0.05)
    gateway.world.admission.cut(Slot.EMBEDDING)
    async with asyncio.timeout(30):
        answer = await asked
        await gateway.upstream.gone.wait()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "91")
    assert answer.json()["error"]["code"] == "interrupted"


async def test_a_client_that_does_not_read_cannot_hold_the_slot_against_a_cut(gateway: Gateway) -> None:
    async def behave(_: Received, connection: Connection) -> None:
        await connection.start_stream()
        while True:
            await connection.chunk(WHOLE * 2000)

    gateway.upstream.behave = behave
    body = json.dumps(CHAT).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as deaf:
        deaf.sendall(head.encode() + body)
        await until(lambda: gateway.world.admission.in_flight(Slot.GENERATION) == 1)
        await asyncio.sleep(0.3)
        gateway.world.admission.cut(Slot.GENERATION)
        assert await gateway.world.admission.drained(Slot.GENERATION, 30.0)


async def test_a_backend_that_dies_in_a_stream_ends_it_with_an_error_event(gateway: Gateway) -> None:
    async def behave(_: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(WHOLE)
        await asyncio.sleep(0.05)
        connection.die()

    gateway.upstream.behave = behave
    got = await stream_bytes(gateway)
    error, end = last_events(got)
    assert got.startswith(WHOLE)
    assert (error["code"], end) == ("backend_failed", b"data: [DONE]")


async def test_a_backend_that_dies_before_its_answer_is_there_is_a_503(gateway: Gateway) -> None:
    heads = [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", b"HTTP/1.1 200 OK\r\n"]

    async def behave(_: Received, connection: Connection) -> None:
        await connection.send(heads.pop())
        await asyncio.sleep(0.05)
        connection.die()

    gateway.upstream.behave = behave
    while heads:
        answer = await gateway.http.post("/v1/embeddings", json={})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["error"]["code"] == "backend_failed"
        assert gateway.world.admission.in_flight(Slot.EMBEDDING) == 0


async def test_a_backend_that_is_not_there_is_a_503(gateway: Gateway) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gateway.world.upstream = f"http://127.0.0.1:{closed.getsockname()[1]}"
    answer = await gateway.http.post("/v1/embeddings", json={})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_a_backend_that_says_nothing_for_too_long_is_a_504(start: Start) -> None:
    gateway = await start(WebOptions(read_timeout=0.2))
    gateway.upstream.behave = gateway.upstream.hang
    answer = await gateway.http.post("/v1/embeddings", json={})
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout_error")
    assert gateway.upstream.gone.is_set()


async def test_the_wrong_mode_says_when_to_come_back(gateway: Gateway) -> None:
    gateway.world.enter(Mode.EMBEDDING)
    for seconds, header in ((0.0, "1"), (0.2, "1"), (61.2, "62"), (18000, "18000"), (None, None)):
        gateway.world.retry_after = seconds
        answer = await gateway.http.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 503
        assert answer.headers.get("retry-after") == header
        error = answer.json()["error"]
        assert (error["type"], error["param"]) == ("mode_unavailable", None)
        assert "mode embedding" in error["message"]
    assert (await gateway.http.post("/v1/embeddings", json={})).status_code == 200


async def test_a_slot_without_a_model_is_not_found(gateway: Gateway) -> None:
    gateway.world.enter(Mode.EMBEDDING)
    del gateway.world.models[Slot.GENERATION]
    answer = await gateway.http.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_failed_backend_is_said_to_have_failed(gateway: Gateway) -> None:
    gateway.world.failed[Slot.GENERATION] = "died 5 times"
    gateway.world.admission.set_gate(Slot.GENERATION, Gate.CLOSED)
    answer = await gateway.http.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 503
    assert "failed" in answer.json()["error"]["message"]


async def test_requests_wait_for_a_switch_and_too_many_are_told_so(gateway: Gateway) -> None:
    gateway.world.admission.set_gate(Slot.EMBEDDING, Gate.SOON)
    waiting = [asyncio.create_task(gateway.http.post("/v1/embeddings", json={})) for _ in range(2)]
    await until(lambda: gateway.world.admission.waiting(Slot.EMBEDDING) == 2)
    refused = await gateway.http.post("/v1/embeddings", json={})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
    assert refused.json()["error"]["code"] == "queue_full"
    gateway.world.admission.set_gate(Slot.EMBEDDING, Gate.OPEN)
    assert [(await answer).status_code for answer in waiting] == [200, 200]


async def test_a_request_that_waited_too_long_is_a_503(gateway: Gateway) -> None:
    gateway.world.admission._max_wait = 0.1
    gateway.world.admission.set_gate(Slot.EMBEDDING, Gate.SOON)
    answer = await gateway.http.post("/v1/embeddings", json={})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["code"] == "waited_too_long"


async def test_a_reservation_is_held_to_the_last_byte(gateway: Gateway) -> None:
    go_on = asyncio.Event()

    async def behave(_: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(WHOLE + DONE)
        await go_on.wait()
        await connection.chunk(b"")

    gateway.upstream.behave = behave
    admission = gateway.world.admission
    async with gateway.http.stream("POST", "/v1/completions", json=CHAT) as answer:
        parts = answer.aiter_raw()
        await anext(parts)
        assert not await admission.drained(Slot.GENERATION, 0.1)
        go_on.set()
        assert [part async for part in parts] == []
    assert await admission.drained(Slot.GENERATION, 1.0)


def counted(gateway: Gateway, outcome: str) -> float:
    """How often a chat ended so."""
    labels = {"route": "/v1/chat/completions", "outcome": outcome}
    return gateway.metrics.registry.get_sample_value("nightshift_requests_total", labels) or 0.0
