"""Long texts in contexts of their own: the real engine, and the real server's two routes to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import gguf
import httpx
import numpy as np
import pytest

from benchmarks.tiny_models import write_decoder
from pipeline.backends.client import EmbeddingClient
from pipeline.backends.embedding import EmbeddingBackend
from pipeline.backends.llama_cpp.engine import Engine
from pipeline.backends.llama_cpp.plan import EngineOptions
from pipeline.backends.llama_cpp.whole import WholeTexts, plan_longest
from pipeline.backends.models import ModelFile
from pipeline.backends.options import EmbeddingOptions
from pipeline.backends.serving.sequences import Course, EngineError, Tokens
from pipeline.core.engine_stats import EngineStats
from pipeline.core.errors import BackendRefused
from tests.backends.conftest import API_KEY, MODEL, RunningServer, start_server, stop_server

NOBODY = Course()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    loaded = Engine(EngineOptions(MODEL, contexts=1, threads=1))
    yield loaded
    loaded.close()


def some_tokens(count: int, seed: int = 1) -> Tokens:
    inside = np.random.default_rng(seed).integers(1000, 30000, count - 2).astype(np.int32)
    return np.concatenate([[101], inside, [102]]).astype(np.int32)


def test_the_mean_of_token_vectors_is_the_pooled_vector(engine: Engine) -> None:
    tokens = some_tokens(300)
    pooled, _ = engine.contexts[0].embed([tokens])
    texts = WholeTexts(engine)
    assert float(texts.spans(tokens, [(0, 300)], NOBODY)[0] @ pooled[0]) > 0.9999
    assert float(texts.vector(tokens, NOBODY)[0] @ pooled[0]) > 0.9999
    assert texts.spans_agree(NOBODY)


def test_a_span_knows_of_the_text_around_it(engine: Engine) -> None:
    texts = WholeTexts(engine)
    tokens = some_tokens(200)
    (inside,) = texts.spans(tokens, [(50, 100)], NOBODY)
    (other,) = texts.spans(np.concatenate([some_tokens(50, 2), tokens[50:]]).astype(np.int32), [(50, 100)], NOBODY)
    assert 0.5 < float(inside @ other) < 0.999
    two = texts.spans(tokens, [(50, 100), (0, 1)], NOBODY)
    assert float(two[0] @ inside) > 0.9999
    np.testing.assert_allclose(np.linalg.norm(two, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("pooling", [gguf.PoolingType.LAST, gguf.PoolingType.MEAN, gguf.PoolingType.CLS])
def test_a_decoder_computes_a_long_text_piece_by_piece(tmp_path: Path, pooling: gguf.PoolingType) -> None:
    write_decoder(tmp_path / "decoder.gguf", pooling=pooling)
    loaded = Engine(EngineOptions(tmp_path / "decoder.gguf"))
    try:
        tokens = loaded.tokenize("the night shift begins when the last lamp goes out " * 4)[:100]
        pooled, _ = loaded.contexts[0].embed([tokens])
        texts = WholeTexts(loaded, piece=16)
        assert float(texts.vector(tokens, NOBODY)[0] @ pooled[0]) > 0.999
        assert texts.spans_agree(NOBODY) is (pooling is gguf.PoolingType.MEAN)
    finally:
        loaded.close()


def test_a_text_that_nobody_waits_for_is_given_up(engine: Engine) -> None:
    gone = Course(unwanted=True)
    with pytest.raises(EngineError, match="nobody waits"):
        WholeTexts(engine).vector(some_tokens(500), gone)
    assert engine.contexts[0].embed([some_tokens(20)])[1].all()


def test_the_longest_text_is_as_asked_and_as_the_model_allows(engine: Engine) -> None:
    assert plan_longest(engine, None) == 512
    assert plan_longest(engine, 100) == 512  # an input among others may be that long
    small = Engine(EngineOptions(MODEL, contexts=1, n_ubatch=256, n_batch=256))
    assert [plan_longest(small, asked) for asked in (None, 0, 400)] == [512, 256, 400]
    small.close()


@pytest.fixture(scope="module")
def small_server() -> Iterator[RunningServer]:
    """One whose batches hold 128 tokens, and whose texts may have 512."""
    running = start_server("--n-ubatch", "128", "--n-batch", "128", api_key=API_KEY)
    yield running
    stop_server(running)


@pytest.fixture
async def client(small_server: RunningServer) -> AsyncIterator[EmbeddingClient]:
    async with EmbeddingClient(small_server.url, api_key=API_KEY, trust_env=False) as opened:
        yield opened


async def test_texts_longer_than_a_batch_come_from_a_lane_of_their_own(
    client: EmbeddingClient, small_server: RunningServer, engine: Engine
) -> None:
    assert (small_server.told["max_tokens"], small_server.told["longest"]) == (128, 512)
    inputs = [some_tokens(count, count) for count in (20, 400, 60, 512)]
    vectors = await client.embed([tokens.tolist() for tokens in inputs])
    for tokens, vector in zip(inputs, vectors, strict=True):
        assert float(engine.contexts[0].embed([tokens])[0][0] @ vector) > 0.9999
    with pytest.raises(BackendRefused, match="513 tokens, 1 more than the 512"):
        await client.embed([some_tokens(513).tolist()])


async def test_spans_come_back_for_each_text(client: EmbeddingClient, engine: Engine) -> None:
    inputs = [some_tokens(200, 1), some_tokens(40, 2)]
    spans = [[(0, 100), (100, 200)], [(0, 40)]]
    first, second = await client.embed_spans([tokens.tolist() for tokens in inputs], spans)
    assert (first.shape, second.shape) == ((2, 384), (1, 384))
    expected = WholeTexts(engine).spans(inputs[0], spans[0], NOBODY)
    assert float((expected * first).sum(axis=1).min()) > 0.9999
    assert float(engine.contexts[0].embed([inputs[1]])[0][0] @ second[0]) > 0.9999


async def test_what_is_computed_by_itself_is_counted(client: EmbeddingClient, small_server: RunningServer) -> None:
    def counted() -> EngineStats:
        headers = {"Authorization": f"Bearer {API_KEY}"}
        return EngineStats.from_json(httpx.get(f"{small_server.url}/stats", headers=headers, trust_env=False).json())

    before = counted()
    await client.embed([some_tokens(300).tolist(), some_tokens(50).tolist()])
    await client.embed_spans([some_tokens(40).tolist()], [[(0, 20)]])
    done = counted().since(before)
    assert (done.whole.sequences, done.whole.tokens, done.total.tokens) == (2, 340, 50)
    assert done.whole.computing > 0


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ({"input": [[101, 102]]}, "a list of spans for each input"),
        ({"input": [[101, 102]], "spans": [[[0, 1]], []]}, "a list of spans for each input"),
        ({"input": [[101, 102]], "spans": [[]]}, "must be a list"),
        ({"input": [[101, 102]], "spans": [[[0, 3]]]}, "no part of 2 tokens"),
        ({"input": [[101, 102]], "spans": [[[1, 1]]]}, "no part of 2 tokens"),
        ({"input": [[101, 102]], "spans": [[[-1, 1]]]}, "no part of 2 tokens"),
        ({"input": [[101, 102]], "spans": [["a"]]}, "no part of 2 tokens"),
        ({"input": ["text"], "spans": [[[0, 1]]]}, "must hold lists of token ids"),
        ({"input": [[101] * 513], "spans": [[[0, 1]]]}, "513 tokens"),
    ],
)
def test_spans_that_make_no_sense_are_refused(small_server: RunningServer, payload: object, problem: str) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    answer = httpx.post(f"{small_server.url}/v1/embeddings/spans", json=payload, headers=headers, trust_env=False)
    assert answer.status_code == 400
    assert problem in answer.json()["error"]["message"]


def test_spans_need_the_key(small_server: RunningServer) -> None:
    answer = httpx.post(f"{small_server.url}/v1/embeddings/spans", json={}, trust_env=False)
    assert answer.status_code == 401


async def test_a_model_that_pools_otherwise_refuses_spans(model: ModelFile, tmp_path: Path) -> None:
    options = EmbeddingOptions(str(MODEL), pooling="cls")
    async with EmbeddingBackend(options, model, tmp_path) as backend:
        assert backend.longest == 512
        with pytest.raises(BackendRefused, match="not the mean of its tokens"):
            await backend.embed_spans([some_tokens(40).tolist()], [[(0, 20)]])
        (vector,) = await backend.embed_whole([some_tokens(300).tolist()])
        np.testing.assert_allclose(np.linalg.norm(vector), 1.0, atol=1e-4)
