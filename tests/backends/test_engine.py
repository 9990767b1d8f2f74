"""The engine itself, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from benchmarks.tiny_models import with_number, write_decoder
from pipeline.backends.llama_cpp import engine as engine_module
from pipeline.backends.llama_cpp.engine import Engine
from pipeline.backends.llama_cpp.plan import EngineOptions
from pipeline.backends.serving.sequences import Course, EngineError, Tokens
from pipeline.core.errors import ModelError
from tests.backends.conftest import MODEL


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    loaded = Engine(EngineOptions(MODEL, contexts=2, threads=1))
    yield loaded
    loaded.close()
    loaded.close()


def tokens(*ids: int) -> Tokens:
    return np.array(ids, dtype=np.int32)


def test_it_knows_its_model(engine: Engine) -> None:
    assert (engine.dimension, engine.vocabulary, engine.name) == (384, 30522, "MiniLM L6 H384 Uncased")
    assert engine.plan.max_tokens == 512
    assert len(engine.contexts) == 2


def test_tokenize_gives_special_tokens_and_takes_what_looks_like_one_as_text(engine: Engine) -> None:
    assert engine.tokenize("hello world").tolist() == [101, 7592, 2088, 102]
    assert engine.tokenize("").tolist() == [101, 102]
    assert 102 not in engine.tokenize("a [SEP] b")[1:-1].tolist()
    assert engine.tokenize("\ud800").size > 0


def test_a_packed_batch_equals_its_members_alone(engine: Engine) -> None:
    random = np.random.default_rng(1)
    sequences = [random.integers(1000, 30000, size).astype(np.int32) for size in (1, 5, 60, 120, 17)]
    packed, finite = engine.contexts[0].embed(sequences)
    assert packed.dtype == np.float32
    assert finite.tolist() == [True] * 5
    for row, sequence in enumerate(sequences):
        alone, _ = engine.contexts[1].embed([sequence])
        assert float(alone[0] @ packed[row]) > 0.9999


def test_a_slow_batch_tells_how_far_it_is_and_is_given_up_where_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "WORTH_FOLLOWING", 0.0)
    engine = Engine(EngineOptions(MODEL, contexts=1, threads=1))
    (context,) = engine.contexts
    course = Course()
    context.embed([tokens(101, 7592, 102)], course)
    assert course.steps > 50
    again = Course()
    context.embed([tokens(101, *[7592] * 200, 102)], again)
    assert (again.steps, again.all_steps, again.share) == (course.steps, course.steps, 1.0)
    with pytest.raises(EngineError, match="nobody waits"):
        context.embed([tokens(101, 7592, 102)], Course(unwanted=True))
    assert context.embed([tokens(101, 7592, 102)])[1].all()
    monkeypatch.setattr(engine_module, "WORTH_FOLLOWING", 60.0)
    context.embed([tokens(101, 7592, 102)])
    quick = Course()
    assert context.embed([tokens(101, 7592, 102)], quick)[1].all()
    assert quick.steps == 0, "a quick batch is not counted: that costs time"
    engine.close()


def test_what_would_abort_the_process_is_refused(engine: Engine) -> None:
    context = engine.contexts[0]
    for sequences in (
        [],
        [tokens()],
        [tokens(*range(513))],
        [tokens(-1)],
        [tokens(30522)],
        [tokens(1)] * (engine.plan.n_seq_max + 1),
        [tokens(*[5] * 300)] * 2,
    ):
        with pytest.raises(ValueError):
            context.embed(sequences)
    assert context.embed([tokens(101, 102)])[1].all()


def test_pooling_is_the_models_own_unless_said_otherwise() -> None:
    text = "the weights decide"
    found = []
    for pooling in ("", "mean", "cls", "last"):
        loaded = Engine(EngineOptions(MODEL, contexts=1, pooling=pooling))
        found.append(loaded.contexts[0].embed([loaded.tokenize(text)])[0][0])
        loaded.close()
    assert float(found[0] @ found[1]) > 0.9999
    assert float(found[0] @ found[2]) < 0.99
    assert float(found[2] @ found[3]) < 0.99


def test_a_model_without_pooling_asks_for_it(tmp_path: Path) -> None:
    path = with_number(MODEL, "bert.pooling_type", 0, tmp_path / "unpooled.gguf")
    with pytest.raises(ModelError, match=r"set embedding\.pooling to mean, cls or last"):
        Engine(EngineOptions(path, contexts=1))
    loaded = Engine(EngineOptions(path, contexts=1, pooling="mean"))
    assert loaded.contexts[0].embed([tokens(101, 102)])[1].all()
    loaded.close()


def test_a_reranker_is_refused(tmp_path: Path) -> None:
    path = with_number(MODEL, "bert.pooling_type", 4, tmp_path / "reranker.gguf")
    with pytest.raises(ModelError, match="reranker"):
        Engine(EngineOptions(path, contexts=1))


@pytest.mark.parametrize("pooling", [gguf.PoolingType.LAST, gguf.PoolingType.MEAN])
def test_a_decoder_forgets_between_batches_and_keeps_sequences_apart(tmp_path: Path, pooling: gguf.PoolingType) -> None:
    write_decoder(tmp_path / "decoder.gguf", pooling=pooling)
    loaded = Engine(EngineOptions(tmp_path / "decoder.gguf"))
    try:
        assert (loaded.dimension, loaded.plan.max_tokens, len(loaded.contexts)) == (64, 128, 1)
        context = loaded.contexts[0]
        sequences = [loaded.tokenize(text) for text in ("night shift", "a", "the night shift begins", "zzz " * 20)]
        first, finite = context.embed(sequences)
        assert finite.all()
        for row, sequence in enumerate(sequences):
            np.testing.assert_allclose(context.embed([sequence])[0][0], first[row], atol=2e-3)
        np.testing.assert_allclose(context.embed(sequences)[0], first, atol=2e-3)
        assert float(first[0] @ first[2]) < 0.999
    finally:
        loaded.close()


def test_a_file_that_is_no_model_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match="cannot load"):
        Engine(EngineOptions(tmp_path / "x.gguf"))


def test_loading_reports_its_progress() -> None:
    seen: list[float] = []
    Engine(EngineOptions(MODEL, contexts=1), on_progress=seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
