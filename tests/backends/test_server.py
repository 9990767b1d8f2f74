"""The real server with the default model, over HTTP."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import llama_cpp
import numpy as np
import pytest

from pipeline.backends.client import read_answer
from pipeline.backends.options import Tuned
from pipeline.backends.serving.child import bind
from pipeline.backends.serving.tuned import to_argument
from pipeline.core.engine_stats import EngineStats
from tests.backends.conftest import API_KEY, MODEL, RunningServer, start_server, stop_server

TEXTS = [
    "The drum crashed and the cymbals followed.",
    "Zur Nacht wird das Sprachmodell entladen.",
    "embedding",
    "밤에는 문서를 색인한다. 아침에는 대화한다.",
    "A much longer passage. " * 60,
    "Figures 3.14159 and 2.71828, e-mail a@b.example, and a snake_case_name().",
]


def ask(http: httpx.Client, **fields: object) -> httpx.Response:
    return http.post("/v1/embeddings", json=fields)


def vectors(response: httpx.Response) -> np.ndarray[Any, np.dtype[np.float32]]:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [entry["index"] for entry in data] == list(range(len(data)))
    return np.array(
        [
            np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4")
            if isinstance(entry["embedding"], str)
            else entry["embedding"]
            for entry in data
        ],
        dtype=np.float32,
    )


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    told: dict[str, Any] = body["error"]
    return told


def test_the_vectors_are_those_of_the_library(http: httpx.Client) -> None:
    library = llama_cpp.Llama(str(MODEL), embedding=True, n_batch=512, n_ubatch=512, verbose=False)
    expected = np.array(library.embed(TEXTS, normalize=True), dtype=np.float32)
    library.close()
    ours = vectors(ask(http, input=TEXTS))
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1.0, atol=1e-5)
    assert (ours * expected).sum(axis=1).min() > 0.999


def test_float_and_base64_are_the_same_numbers(http: httpx.Client) -> None:
    as_float = vectors(ask(http, input=TEXTS[:2], encoding_format="float"))
    as_base64 = vectors(ask(http, input=TEXTS[:2], encoding_format="base64"))
    np.testing.assert_allclose(as_float, as_base64, atol=1e-6)


def test_order_is_kept_and_company_changes_nothing(http: httpx.Client) -> None:
    texts = [f"{number} " + "word " * (number * 37 % 230) for number in range(40)]
    together = vectors(ask(http, input=texts, encoding_format="base64"))
    for number in (0, 7, 23, 39):
        alone = vectors(ask(http, input=texts[number], encoding_format="base64"))[0]
        assert float(alone @ together[number]) > 0.9999


def test_token_ids_mean_what_the_text_means(http: httpx.Client) -> None:
    tokens = [101, 7592, 2088, 102]  # [CLS] hello world [SEP]
    texts = vectors(ask(http, input="hello world", encoding_format="base64"))
    one = vectors(ask(http, input=tokens, encoding_format="base64"))
    several = vectors(ask(http, input=[tokens, tokens], encoding_format="base64"))
    assert one.shape == (1, 384)
    assert float((several @ one[0]).min()) > 0.9999
    assert float(texts[0] @ one[0]) > 0.9999


def test_usage_counts_tokens_and_the_answer_names_the_model(http: httpx.Client) -> None:
    body = ask(http, input=["hello world", "hello"], model="whatever", user="me").json()
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert body["object"] == "list"
    assert body["model"] == "MiniLM L6 H384 Uncased"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "input", "must be"),
        ({"input": []}, "input", "empty list"),
        ({"input": ""}, "input", "is empty"),
        ({"input": ["a", ""]}, "input[1]", "is empty"),
        ({"input": [[101], []]}, "input[1]", "is empty"),
        ({"input": ["a", [101]]}, "input", "strings only"),
        ({"input": [101, "a"]}, "input", "integers"),
        ({"input": [[101, 1.5]]}, "input[0]", "integers"),
        ({"input": [[True, False]]}, "input[0]", "integers"),
        ({"input": [[101, 30522]]}, "input[0]", "outside 0 to 30521"),
        ({"input": [[-1]]}, "input[0]", "outside 0 to 30521"),
        ({"input": [10**30]}, "input", "outside 0 to 30521"),
        ({"input": {"text": "a"}}, "input", "must be"),
        ({"input": [None]}, "input", "strings only"),
        ({"input": ["a"] * 2049}, "input", "at most 2048"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "float or base64"),
        ({"input": "a", "dimensions": 128}, "dimensions", "not known to allow shorter"),
        ({"input": "a", "dimensions": 385}, "dimensions", "have 384"),
        ({"input": "a", "dimensions": "384"}, "dimensions", "positive integer"),
        ({"input": "a", "model": 5}, "model", "string"),
    ],
)
def test_what_makes_no_sense_is_a_400_that_says_why(
    http: httpx.Client, fields: dict[str, object], param: str, message: str
) -> None:
    told = error(ask(http, **fields), 400)
    assert told["type"] == "invalid_request_error"
    assert told["param"] == param
    assert message in told["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"[" * 100_000, b"\xff\xfe"])
def test_a_body_that_is_no_json_object_is_a_400(http: httpx.Client, body: bytes) -> None:
    error(http.post("/v1/embeddings", content=body), 400)


def test_an_input_that_is_too_long_is_named_with_its_excess(http: httpx.Client) -> None:
    told = error(ask(http, input=["short", "word " * 600]), 400)
    assert told["param"] == "input[1]"
    assert told["code"] == "context_length_exceeded"
    assert "602 tokens, 90 more than the 512" in told["message"]
    assert error(ask(http, input=[101] * 513), 400)["param"] == "input"
    assert vectors(ask(http, input=[[101] * 512])).shape == (1, 384)


def test_dimensions_that_are_the_models_own_are_allowed(http: httpx.Client) -> None:
    assert vectors(ask(http, input="a", dimensions=384)).shape == (1, 384)


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic correct horse", "Bearer"])
def test_a_wrong_key_is_a_401(server: RunningServer, header: str | None) -> None:
    headers = {"Authorization": header} if header else {}
    for method, path in (("POST", "/v1/embeddings"), ("GET", "/v1/models")):
        answer = httpx.request(method, server.url + path, headers=headers, trust_env=False)
        assert error(answer, 401)["code"] == "invalid_api_key"


def test_health_needs_no_key_and_models_lists_the_one(server: RunningServer, http: httpx.Client) -> None:
    assert httpx.get(server.url + "/health", trust_env=False).json()["status"] == "ok"
    listed = http.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["MiniLM L6 H384 Uncased"]


def test_errors_of_the_router_have_the_same_form(http: httpx.Client) -> None:
    error(http.get("/v2/nothing"), 404)
    error(http.get("/v1/embeddings"), 405)


def test_gzip_bodies_are_read_up_to_a_bound(http: httpx.Client) -> None:
    def post(body: bytes, encoding: str = "gzip") -> httpx.Response:
        return http.post("/v1/embeddings", content=body, headers={"Content-Encoding": encoding})

    plain = json.dumps({"input": TEXTS, "encoding_format": "base64"}).encode()
    np.testing.assert_allclose(
        vectors(post(gzip.compress(plain))), vectors(http.post("/v1/embeddings", content=plain)), atol=1e-5
    )
    assert "gzip" in error(post(b"not gzip"), 400)["message"]
    assert "whole" in error(post(gzip.compress(plain)[:-9]), 400)["message"]
    bomb = gzip.compress(b" " * (40 * 2**20))
    assert len(bomb) < 100_000
    assert error(post(bomb), 413)["code"] == "request_too_large"
    error(post(plain, "br"), 415)


def test_a_body_without_end_is_cut_off(http: httpx.Client) -> None:
    assert error(http.post("/v1/embeddings", content=(b" " * 2**20 for _ in range(33))), 413)["code"]


def test_many_clients_at_once_each_get_their_own(http: httpx.Client) -> None:
    texts = [f"document number {number} " + "about things " * (number % 9) for number in range(48)]
    expected = vectors(ask(http, input=texts, encoding_format="base64"))

    def one(start: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return vectors(ask(http, input=texts[start : start + 4], encoding_format="base64"))

    with ThreadPoolExecutor(12) as pool:
        answers = np.concatenate(list(pool.map(one, range(0, 48, 4))))
    assert float((answers * expected).sum(axis=1).min()) > 0.9999


def test_the_work_of_a_client_that_hung_up_is_dropped(server: RunningServer, http: httpx.Client) -> None:
    before = EngineStats.from_json(http.get("/stats").json())
    body = json.dumps({"input": [[101] * 250] * 2000}).encode()  # more than a minute of work
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {API_KEY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(str(server.told["port"])))) as hasty:
        hasty.sendall(head.encode() + body)
        while not http.get("/stats").json()["queued_tokens"]:
            pass
    ask(http, input="next, please")
    after = EngineStats.from_json(http.get("/stats").json())
    assert after.queued_tokens == 0
    assert after.since(before).total.tokens < 250 * 2000


async def test_small_answers_do_not_wait_for_the_network_stack() -> None:
    """By Nagle's algorithm each answer would cost 40 ms; asyncio turns it off where a socket says that it is TCP."""
    taken: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = bind("127.0.0.1", 0)
    async with await asyncio.start_server(take, sock=listener):
        with socket.create_connection(listener.getsockname()):
            assert await taken != 0


def test_sigterm_finishes_what_is_in_flight_and_exits_cleanly() -> None:
    running = start_server()
    try:
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=running.url, timeout=60, trust_env=False) as client:
            client.get("/health")
            sent = threading.Event()
            # The server finds both when it goes on: a request on a connection that it knows, and the signal.
            running.process.send_signal(signal.SIGSTOP)
            answer = pool.submit(
                client.post,
                "/v1/embeddings",
                json={"input": [[101] * 250] * 4},
                extensions={
                    "trace": lambda name, _: sent.set() if name == "http11.send_request_body.complete" else None
                },
            )
            sent.wait()
            running.process.send_signal(signal.SIGTERM)
            running.process.send_signal(signal.SIGCONT)
            assert vectors(answer.result()).shape == (4, 384)
    finally:
        running.process.send_signal(signal.SIGCONT)
        status = stop_server(running)
    assert status == 0


def test_matryoshka_models_give_shorter_unit_vectors() -> None:
    running = start_server("--matryoshka", "--alias", "short", "--contexts", "1")
    with httpx.Client(base_url=running.url, trust_env=False) as client:
        whole = vectors(ask(client, input="cut me"))
        cut = vectors(ask(client, input="cut me", dimensions=64))
        assert cut.shape == (1, 64)
        np.testing.assert_allclose(cut[0], whole[0, :64] / np.linalg.norm(whole[0, :64]), atol=1e-5)
        assert ask(client, input="x").json()["model"] == "short"
    assert stop_server(running) == 0


def test_only_loopback_addresses_are_listened_on(capfd: pytest.CaptureFixture[str]) -> None:
    from pipeline.backends.llama_cpp.__main__ import main

    with pytest.raises(SystemExit):
        main(["--model", str(MODEL), "--host", "0.0.0.0"])
    assert "not a loopback address" in capfd.readouterr().err


def test_the_engine_counts_its_work_and_tells_those_with_the_key(server: RunningServer, http: httpx.Client) -> None:
    before = EngineStats.from_json(http.get("/stats").json())
    ask(http, input=[[101] * 250] * 3)
    after = EngineStats.from_json(http.get("/stats").json())
    done = after.since(before)
    assert after.follows(before)
    assert (done.total.tokens, done.total.sequences) == (750, 3)
    assert 1 <= done.total.batches <= 3
    assert done.total.computing > 0
    assert len(after.contexts) == server.told["contexts"]
    assert after.budget == server.told["n_batch"]
    assert error(httpx.get(server.url + "/stats", trust_env=False), 401)


def test_texts_are_tokenized_as_they_are_embedded(server: RunningServer, http: httpx.Client) -> None:
    assert http.post("/tokenize", json={"content": "hello world"}).json() == {"tokens": [101, 7592, 2088, 102]}
    assert error(http.post("/tokenize", json={"content": 5}), 400)["param"] == "content"
    assert error(http.post("/tokenize", json=["hello"]), 400)
    assert error(httpx.post(server.url + "/tokenize", json={"content": "a"}, trust_env=False), 401)


def test_the_server_takes_what_was_measured_with_its_build_on_its_device(server: RunningServer) -> None:
    device, build = str(server.told["device"]), str(server.told["build"])
    assert server.told["tuned_at"] is None
    tunings = [
        Tuned("another device", build, {"n_batch": 100}, "2026-01-01"),
        Tuned(device, "another build", {"n_batch": 101}, "2026-01-02"),
        Tuned(device, build, {"n_batch": 102, "contexts": 3, "threads": 2, "flash_attn": "off"}, "2026-01-03"),
    ]
    running = start_server("--tuned", to_argument(tunings), "--flash-attn", "on")
    told = running.told
    assert stop_server(running) == 0
    assert (told["n_batch"], told["contexts"], told["threads"]) == (102, 3, 2)
    assert told["flash_attn"] == "on", "what was asked for stays"
    assert told["tuned_at"] == "2026-01-03"


def test_who_accepts_it_gets_the_bare_numbers(http: httpx.Client) -> None:
    accepts = {"Accept": "application/octet-stream, application/json"}
    bare = http.post("/v1/embeddings", json={"input": TEXTS}, headers=accepts)
    assert bare.headers["content-type"] == "application/octet-stream"
    np.testing.assert_allclose(read_answer(bare, len(TEXTS)), vectors(ask(http, input=TEXTS)), atol=1e-5)
    refused = http.post("/v1/embeddings", json={"input": ""}, headers=accepts)
    assert error(refused, 400)["param"] == "input"
