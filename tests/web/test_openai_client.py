"""OpenAI's own client against the gateway."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator

import openai
import pytest

from pipeline.core.modes import Mode, Slot
from pipeline.switcher.admission import Gate
from pipeline.web.options import WebOptions
from tests.web.conftest import Gateway, Start
from tests.web.upstream import Connection, Received
from tests.web.waiting import until
from tests.web.world import KEY

API_KEY = "sesame"


@pytest.fixture
async def keyed(start: Start) -> Gateway:
    """The application with a key."""
    return await start(WebOptions(api_key=API_KEY))


@pytest.fixture
async def client(keyed: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    """The client; it tries nothing again, so that a test sees the first answer."""
    async with openai.AsyncOpenAI(base_url=f"{keyed.url}/v1", api_key=API_KEY, max_retries=0) as opened:
        yield opened


def part(text: str) -> bytes:
    """A chunk of a chat, as an event."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


async def as_llama_server(request: Received, connection: Connection) -> None:
    """The answers that the client asks for here."""
    assert request.headers["authorization"] == f"Bearer {KEY}"
    asked = json.loads(request.body)
    if request.path == "/v1/embeddings":
        assert asked["encoding_format"] == "base64"
        vector = base64.b64encode(struct.pack("<2f", 0.5, -1.0)).decode()
        data = [{"object": "embedding", "index": place, "embedding": vector} for place in range(len(asked["input"]))]
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        body = {"object": "list", "model": "tiny", "data": data, "usage": usage}
        await connection.answer(json.dumps(body).encode())
    elif asked.get("stream"):
        await connection.start_stream()
        for text in ("Good", " night"):
            await connection.chunk(part(text))
        await connection.chunk(b"data: [DONE]\n\n")
        await connection.chunk(b"")
    else:
        message = {"role": "assistant", "content": "Good night"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice]}
        await connection.answer(json.dumps(answer).encode())


async def test_chat_streaming_embeddings_and_models(keyed: Gateway, client: openai.AsyncOpenAI) -> None:
    keyed.upstream.behave = as_llama_server
    chat = await client.chat.completions.create(model="tiny-llama", messages=[{"role": "user", "content": "hi"}])
    assert chat.choices[0].message.content == "Good night"

    stream = await client.chat.completions.create(
        model="tiny-llama", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    assert [event.choices[0].delta.content async for event in stream] == ["Good", " night"]

    embeddings = await client.embeddings.create(model="tiny-minilm", input=["a", "b"])
    assert [item.embedding for item in embeddings.data] == [[0.5, -1.0]] * 2

    models = await client.models.list()
    assert [(model.id, model.object, model.owned_by) for model in models.data] == [
        ("tiny-llama", "model", "nightshift"),
        ("tiny-minilm", "model", "nightshift"),
    ]
    assert (await client.models.retrieve("tiny-minilm")).id == "tiny-minilm"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("huge-llama")


async def test_the_client_understands_refusals(keyed: Gateway, client: openai.AsyncOpenAI) -> None:
    keyed.world.enter(Mode.EMBEDDING)
    keyed.world.retry_after = 300.0
    with pytest.raises(openai.InternalServerError) as refused:
        await client.chat.completions.create(model="tiny-llama", messages=[])
    assert (refused.value.status_code, refused.value.type) == (503, "mode_unavailable")
    assert refused.value.response.headers["retry-after"] == "300"

    keyed.world.admission._max_waiting = 0
    keyed.world.admission.set_gate(Slot.EMBEDDING, Gate.SOON)
    with pytest.raises(openai.RateLimitError):
        await client.embeddings.create(model="tiny-minilm", input="a")
    with pytest.raises(openai.AuthenticationError) as unknown:
        await client.with_options(api_key="guess").models.list()
    assert unknown.value.code == "invalid_api_key"


async def test_the_client_understands_a_stream_that_is_cut(keyed: Gateway, client: openai.AsyncOpenAI) -> None:
    async def behave(request: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(part("Good"))
        await keyed.upstream.hang(request, connection)

    keyed.upstream.behave = behave
    stream = await client.chat.completions.create(model="tiny-llama", messages=[], stream=True)
    assert (await anext(stream)).choices[0].delta.content == "Good"
    keyed.world.admission.cut(Slot.GENERATION)
    with pytest.raises(openai.APIError, match="taken out of service"):
        await anext(stream)


async def test_the_client_tries_again_until_a_switch_is_over(keyed: Gateway, client: openai.AsyncOpenAI) -> None:
    keyed.upstream.behave = as_llama_server
    keyed.world.enter(Mode.EMBEDDING)
    keyed.world.retry_after = 0.0
    refused = keyed.metrics.registry.get_sample_value
    labels = {"route": "/v1/chat/completions", "outcome": "not_serving"}

    async def chat() -> str | None:
        patient = client.with_options(max_retries=2)
        answer = await patient.chat.completions.create(model="tiny-llama", messages=[])
        return answer.choices[0].message.content

    asked = asyncio.create_task(chat())
    await until(lambda: bool(refused("nightshift_requests_total", labels)))
    keyed.world.enter(Mode.MIXED)
    assert await asked == "Good night"
