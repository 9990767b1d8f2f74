"""Who may come in, and how much they may send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import structlog
from starlette.datastructures import Headers

from pipeline.web.guard import plan_entry
from pipeline.web.options import WebOptions, is_loopback
from tests.web.conftest import Build, Gateway
from tests.web.waiting import until

KEY = "sesame"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}


async def test_with_a_key_everything_but_health_wants_it(build: Build) -> None:
    api = build(WebOptions(api_key=KEY))
    assert (await api.http.get("/health")).json() == {"status": "healthy"}
    paths = api.app.openapi()["paths"]
    for path in [*paths, "/openapi.json", "/docs", "/nowhere"]:
        if path == "/health":
            continue
        for method in paths.get(path, {"get": ...}):
            for headers in ({}, {"Authorization": "Bearer guess"}, {"Authorization": KEY}):
                answer = await api.http.request(method, path, headers=headers)
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
    assert not api.world.switches
    assert not api.world.texts


async def test_the_refusal_has_the_form_of_its_api(build: Build) -> None:
    api = build(WebOptions(api_key=KEY))
    error = (await api.http.post("/v1/chat/completions")).json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("invalid_api_key", "authentication_error", None)
    assert (await api.http.get("/api/status")).json() == {"detail": "the API key is missing or wrong"}


async def test_the_key_opens(build: Build) -> None:
    api = build(WebOptions(api_key=KEY))
    for headers in (WITH_KEY, {"Authorization": f"bearer {KEY}"}):
        assert (await api.http.get("/api/status", headers=headers)).status_code == 200
    # A key that came from a page of another origin was given to it by whoever has it.
    elsewhere = WITH_KEY | {"Host": "gpu.example.com", "Origin": "https://chat.example.com"}
    assert (await api.http.delete("/api/hold", headers=elsewhere)).status_code == 404


async def test_a_page_whose_name_was_bent_to_this_address_is_refused(build: Build) -> None:
    api = build(WebOptions())
    for path in ("/api/status", "/v1/models", "/metrics"):
        assert (await api.http.get(path, headers={"Host": "evil.example.com:8080"})).status_code == 403
    assert (await api.http.get("/health", headers={"Host": "evil.example.com"})).status_code == 200
    open_to_names = build(WebOptions(check_host=False))
    assert (await open_to_names.http.get("/api/status", headers={"Host": "evil.example.com"})).status_code == 200


@pytest.mark.parametrize(
    ("method", "headers", "options", "status"),
    [
        ("GET", {"host": "127.0.0.1:80"}, WebOptions(), None),
        ("GET", {"host": "localhost"}, WebOptions(), None),
        ("GET", {"host": "[::1]:80"}, WebOptions(), None),
        ("GET", {"host": "box.lan"}, WebOptions(), 403),
        ("GET", {}, WebOptions(), 403),
        ("GET", {"host": "[::1"}, WebOptions(), 403),
        ("GET", {"host": "box.lan"}, WebOptions(allowed_hosts=("Box.lan",)), None),
        ("GET", {"host": "box.lan"}, WebOptions(host="0.0.0.0"), None),
        ("POST", {"host": "localhost", "origin": "https://evil.example.com"}, WebOptions(), 403),
        ("POST", {"host": "localhost", "origin": "null"}, WebOptions(), 403),
        ("POST", {"host": "localhost", "origin": "http://localhost:3000"}, WebOptions(), 403),
        ("POST", {"host": "localhost:8642"}, WebOptions(), None),
        ("POST", {"host": "localhost:8642", "origin": "http://localhost:8642"}, WebOptions(), None),
        ("POST", {"host": "localhost:8642", "origin": "http://LOCALHOST:8642"}, WebOptions(), None),
        ("POST", {"host": "localhost:8642", "origin": "http://127.0.0.1:8642"}, WebOptions(), None),
        ("POST", {"host": "127.0.0.1:8642", "origin": "http://localhost:8642"}, WebOptions(), None),
        ("POST", {"host": "[::1]:8642", "origin": "http://localhost:8642"}, WebOptions(), None),
        ("POST", {"host": "localhost", "origin": "http://localhost:80"}, WebOptions(), None),
        ("POST", {"host": "localhost:9000", "origin": "http://localhost:9000"}, WebOptions(), None),  # ssh -L
        ("POST", {"host": "127.0.0.1:8642", "origin": "http://127.0.0.1:8643"}, WebOptions(), 403),
        ("POST", {"host": "127.0.0.1:8642", "origin": "http://127.0.0.2:8642"}, WebOptions(), 403),
        ("POST", {"host": "localhost:8642", "origin": "http://other.localhost:8642"}, WebOptions(), 403),
        ("POST", {"host": "localhost:8642", "origin": "https://localhost:8642"}, WebOptions(), 403),
        ("POST", {"host": "localhost:8642", "origin": "http://localhost"}, WebOptions(), 403),
        ("POST", {"host": "localhost:8642", "origin": "http://localhost:8642@evil.com"}, WebOptions(), 403),
        ("POST", {"host": "localhost:8642", "origin": "http://localhost:8642/x"}, WebOptions(), 403),
        ("POST", {"host": "localhost:8642", "origin": ""}, WebOptions(), 403),
        ("DELETE", {"host": "localhost:8642", "origin": "http://localhost:3000"}, WebOptions(), 403),
        ("PUT", {"host": "localhost:8642", "origin": "file://"}, WebOptions(), 403),
        ("POST", {"host": "localhost:8642", "sec-fetch-site": "cross-site"}, WebOptions(), 403),
        ("POST", {"host": "localhost:8642", "sec-fetch-site": "same-site"}, WebOptions(), 403),
        ("POST", {"host": "localhost:8642", "sec-fetch-site": "same-origin"}, WebOptions(), None),
        ("POST", {"host": "localhost:8642", "sec-fetch-site": "none"}, WebOptions(), None),
        ("GET", {"host": "localhost:8642", "sec-fetch-site": "cross-site"}, WebOptions(), None),
        ("POST", {"host": "box.lan", "origin": "https://box.lan"}, WebOptions(allowed_hosts=("box.lan",)), None),
        ("POST", {"host": "localhost:1", "origin": "https://box.lan"}, WebOptions(allowed_hosts=("box.lan",)), None),
        ("POST", {"host": "localhost:1", "origin": "http://box.lan:3000"}, WebOptions(allowed_hosts=("box.lan",)), 403),
        ("POST", {"host": "[::1]:1", "origin": "http://b:99"}, WebOptions(allowed_hosts=("b", "b:99")), None),
        ("POST", {"host": "box.lan:1", "origin": "http://box.lan:2"}, WebOptions(host="0.0.0.0"), 403),
        ("GET", {"host": "localhost:80@evil.com"}, WebOptions(), 403),
        ("GET", {"host": "evil.com#@localhost"}, WebOptions(), 403),
        ("POST", {"host": "box.lan", "origin": "http://box.lan"}, WebOptions(host="0.0.0.0"), None),
        ("POST", {"host": "box.lan", "origin": "http://evil.com"}, WebOptions(host="0.0.0.0"), 403),
        ("GET", {"host": "localhost", "origin": "https://evil.example.com"}, WebOptions(), None),
    ],
)
def test_entry(method: str, headers: dict[str, str], options: WebOptions, status: int | None) -> None:
    refused = plan_entry(method, Headers(headers), options)
    assert (refused and refused[0]) == status


def test_names_of_this_machine() -> None:
    assert all(is_loopback(name) for name in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "LOCALHOST", "a.localhost."))
    assert not any(
        is_loopback(name) for name in ("0.0.0.0", "", "127.0.0.1.evil.com", "localhost.evil.com", "10.0.0.1")
    )


async def test_bodies_that_are_too_large_are_refused(build: Build) -> None:
    api = build(WebOptions(max_body=100, max_upload=200))

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 10

    for path in ("/v1/embeddings", "/embed"):
        for content in (b"x" * 101, endless()):
            answer = await api.http.post(path, content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == 413, path
    for content in (b"x" * 201, endless()):
        assert (await api.http.put("/api/documents/a.pdf", content=content)).status_code == 413
    assert (await api.http.put("/api/documents/a.pdf", content=b"x" * 200)).status_code == 201
    assert [path.name for path in api.world.inbox.iterdir()] == ["a.pdf"]


async def test_a_request_has_an_id_and_is_logged(build: Build) -> None:
    api = build(WebOptions())
    with structlog.testing.capture_logs() as logged:
        given = await api.http.get("/health", headers={"X-Request-Id": "abc-123"})
        made = await api.http.get("/health", headers={"X-Request-Id": "a b\tc"})
    assert given.headers["x-request-id"] == "abc-123"
    assert len(made.headers["x-request-id"]) == 16
    assert [(line["path"], line["status"], line["outcome"], line["log_level"]) for line in logged] == [
        ("/health", 200, "ok", "debug")
    ] * 2


async def test_nothing_of_a_question_is_logged(build: Build) -> None:
    api = build(WebOptions())
    with structlog.testing.capture_logs() as logged:
        await api.http.get("/api/search", params={"q": "private words"})
    assert "private" not in json.dumps(logged)


async def test_an_upload_that_breaks_off_leaves_nothing(gateway: Gateway) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PUT /api/documents/a.pdf HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n%PDF")
    await writer.drain()
    await until(lambda: any(gateway.world.inbox.iterdir()))
    writer.close()
    await until(lambda: not any(gateway.world.inbox.iterdir()))


async def _closes(gateway: Gateway, request: str) -> str:
    """What is answered on a connection, which ends."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request.replace("\n", "\r\n").encode())
    answer = (await reader.read()).decode()
    writer.close()
    return answer


@pytest.mark.parametrize(
    "head",
    [
        "POST /v1/embeddings HTTP/1.1\nHost: h\nContent-Length: 4\nTransfer-Encoding: chunked",
        "POST /health HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\nContent-Length: 4",
        "POST /v1/embeddings HTTP/1.0\nHost: h\nTransfer-Encoding: chunked",
        "POST /v1/embeddings HTTP/1.1\nHost: h\nTransfer-Encoding: gzip, chunked",
        "POST /v1/embeddings HTTP/1.1\nHost: h\nContent-Length: 4\nContent-Length: 5",
        "POST /v1/embeddings HTTP/1.1\nHost: h\nContent-Length: +4",
        f"POST /v1/embeddings HTTP/1.1\nHost: h\nContent-Length: {'9' * 19}",
    ],
)
async def test_a_request_of_two_ends_is_refused_and_nothing_after_it_is_read(gateway: Gateway, head: str) -> None:
    answer = await _closes(gateway, f"{head}\n\n0\n\nGET /health HTTP/1.1\nHost: h\n\n")
    assert answer.count("HTTP/1.1 ") == 1
    assert answer.startswith(("HTTP/1.1 4", "HTTP/1.1 501"))
    assert "connection: close" in answer.lower()
    assert not gateway.upstream.received


@pytest.mark.parametrize(
    "address",
    [
        "/api/documents/%ff.pdf",
        "/api/documents/%ED%A0%80.pdf",
        "/api/documents/a%00.pdf",
        "/v1/models/a%0Ab",
        "/api/runs/%00/report",
        "/api/search?q=%ff",
        "/api/search?q=a%00b",
        "/api/search?q=a&path=%ED%A0%80",
    ],
)
async def test_an_address_that_means_nothing_is_refused(build: Build, address: str) -> None:
    api = build(WebOptions())
    answer = await api.http.request("PUT" if address.endswith(".pdf") else "GET", address, content=b"%PDF")
    assert (answer.status_code, "address" in answer.text) == (400, True)
    assert not list(api.world.inbox.iterdir())
