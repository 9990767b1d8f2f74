"""Our generation server's edge, with a generator that does as it is told; and its view of requests."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from pipeline.backends.llama_cpp import chat
from pipeline.backends.llama_cpp.chat import ChatService, make_chat_app
from pipeline.backends.llama_cpp.generator import GivenUp, check_request
from pipeline.backends.llama_cpp.protocol import ApiError

CHAT = {"messages": [{"role": "user", "content": "x"}]}


class Scripted:
    """Answers at once, unless the request's `user` says: `slow` until it is given up, `break` after two pieces."""

    def __init__(self) -> None:
        self.given_up = threading.Event()
        self.started = threading.Event()
        self.at_once = 0
        self.most_at_once = 0

    def answer(self, request: Mapping[str, Any], *, chat: bool, given_up: threading.Event) -> dict[str, Any]:
        return {"pieces": list(self.stream(request, chat=chat, given_up=given_up)), "chat": chat}

    def stream(self, request: Mapping[str, Any], *, chat: bool, given_up: threading.Event) -> Iterator[dict[str, Any]]:
        self.started.set()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if request.get("user") == "refuse":
                raise ApiError(400, "no", param="user")
            yield {"piece": 1}
            if request.get("user") == "slow":
                given_up.wait(10)
                self.given_up.set()
                raise GivenUp
            yield {"piece": 2}
            if request.get("user") == "break":
                raise RuntimeError("the library failed")
        finally:
            self.at_once -= 1


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    yield


def client(generator: Scripted) -> httpx.AsyncClient:
    app = make_chat_app(ChatService(generator, "m", "sesame"), lifespan)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://x", headers={"Authorization": "Bearer sesame"})


async def test_whole_answers_and_streams() -> None:
    async with client(Scripted()) as asked:
        answer = await asked.post("/v1/chat/completions", json=CHAT)
        assert answer.json() == {"pieces": [{"piece": 1}, {"piece": 2}], "chat": True}
        assert (await asked.post("/v1/completions", json={"prompt": "x"})).json()["chat"] is False
        stream = await asked.post("/v1/chat/completions", json=CHAT | {"stream": True})
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.text == 'data: {"piece": 1}\n\ndata: {"piece": 2}\n\ndata: [DONE]\n\n'
        assert (await asked.get("/health")).json() == {"status": "ok", "model": "m"}
        assert (await asked.get("/v1/models")).json()["data"][0]["id"] == "m"


async def test_errors_are_openais() -> None:
    async with client(Scripted()) as asked:
        refused = await asked.post("/v1/chat/completions", json=CHAT | {"user": "refuse", "stream": True})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "user")
        assert (await asked.post("/v1/completions", content="{")).status_code == 400
        assert (await asked.post("/v1/completions", json=[1])).status_code == 400
        failed = await asked.post("/v1/chat/completions", json=CHAT | {"user": "break"})
        assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
        assert "library" not in failed.text
        broken = await asked.post("/v1/chat/completions", json=CHAT | {"user": "break", "stream": True})
        *_, last = [line for line in broken.text.split("\n\n") if line]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        stranger = await asked.post("/v1/completions", json={"prompt": "x"}, headers={"Authorization": "Bearer no"})
        assert stranger.status_code == 401


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_hangs_up_ends_the_computation_and_the_next_has_its_turn(stream: bool) -> None:
    generator = Scripted()
    app = make_chat_app(ChatService(generator, "m"), lifespan)
    body = json.dumps(CHAT | {"user": "slow", "stream": stream}).encode()
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    await messages.put({"type": "http.request", "body": body, "more_body": False})
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b"",
        "http_version": "1.1", "asgi": {"spec_version": "2.3", "version": "3.0"},
    }  # fmt: skip
    serving = asyncio.create_task(app(scope, messages.get, send))
    await asyncio.to_thread(generator.started.wait, 5)
    await asyncio.sleep(0.05)
    await messages.put({"type": "http.disconnect"})
    await asyncio.wait_for(serving, 30)
    assert await asyncio.to_thread(generator.given_up.wait, 5)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as asked:
        assert (await asked.post("/v1/completions", json={"prompt": "x"})).status_code == 200


async def test_one_at_a_time_and_no_more_waiting_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_WAITING", 3)
    generator = Scripted()
    async with client(generator) as asked:
        answers = await asyncio.gather(*(asked.post("/v1/completions", json={"prompt": "x"}) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 503, 503]
        assert generator.most_at_once == 1


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "x", "n": 2}, "n"),
        ({"prompt": "x", "logprobs": 3}, "logprobs"),
        ({"prompt": "x", "temperature": "hot"}, "temperature"),
        ({"prompt": "x", "temperature": True}, "temperature"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "x", "seed": "one"}, "seed"),
    ],
)
def test_requests_that_make_no_sense_are_refused(request_: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        check_request(request_, chat=False)
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize("messages", [None, [], "x", [1], [{"content": "x"}]])
def test_messages_have_a_form(messages: object) -> None:
    with pytest.raises(ApiError, match="messages"):
        check_request({"messages": messages}, chat=True)


def test_what_is_not_known_is_passed_over() -> None:
    given = CHAT | {"model": "m", "user": "u", "max_completion_tokens": 5, "top_p": None, "n": 1, "stream": True}
    assert check_request(given, chat=True) == CHAT | {"max_tokens": 5, "stream": True}
