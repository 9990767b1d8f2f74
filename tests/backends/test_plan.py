from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.backends.llama_cpp.plan import EngineOptions, EnginePlan, plan_engine
from pipeline.core.errors import ModelError


def plan(
    *, n_ctx_train: int = 512, causal: bool = False, cores: int = 4, on_gpu: bool = False, **options: Any
) -> EnginePlan:
    return plan_engine(
        EngineOptions(Path("m.gguf"), **options),
        n_ctx_train=n_ctx_train,
        causal=causal,
        max_sequences=256,
        cores=cores,
        on_gpu=on_gpu,
    )


def test_a_cpu_gets_a_context_of_one_thread_for_each_core() -> None:
    assert plan() == EnginePlan(
        contexts=4, threads=1, n_batch=384, n_ubatch=512, n_seq_max=16, max_tokens=512, flash_attn="on"
    )
    assert (plan(cores=32).contexts, plan(cores=32).threads) == (8, 4)
    assert (plan(contexts=2).contexts, plan(contexts=2).threads) == (2, 2)
    assert plan(cores=1, threads=3).threads == 3


def test_a_gpu_gets_several_small_contexts_and_flash_attention_as_it_can() -> None:
    chosen = plan(on_gpu=True, cores=16)
    assert (chosen.contexts, chosen.threads, chosen.n_batch, chosen.flash_attn) == (8, 2, 1024, "auto")
    assert plan(on_gpu=True, cores=4).contexts == 4
    assert plan(on_gpu=True, cores=16, causal=True).contexts == 1
    assert plan(on_gpu=True, cores=16, contexts=3).contexts == 3
    assert plan(on_gpu=True, flash_attn="off").flash_attn == "off"


@pytest.mark.parametrize("n_ctx_train", [128, 512, 2048, 3000, 4096, 8192, 40_000])
@pytest.mark.parametrize("n_batch", [None, 256, 4096, 16_384])
def test_contexts_of_a_gpu_share_a_bounded_memory(n_ctx_train: int, n_batch: int | None) -> None:
    chosen = plan(on_gpu=True, cores=64, n_ctx_train=n_ctx_train, n_batch=n_batch)
    assert chosen.contexts == 1 or chosen.contexts * chosen.n_ubatch**2 <= 8 * 2048**2


def test_a_decoder_gets_one_context_of_all_cores() -> None:
    assert (plan(causal=True).contexts, plan(causal=True).threads) == (1, 4)


def test_the_longest_input_is_the_models_up_to_a_bound_or_what_was_asked() -> None:
    assert plan(n_ctx_train=32_768).max_tokens == 8192
    assert plan(n_ctx_train=32_768, n_ubatch=20_000).max_tokens == 20_000
    assert plan(n_ctx_train=2048, n_ubatch=20_000).max_tokens == 2048
    assert plan(n_ubatch=256).max_tokens == 256
    assert plan(n_ubatch=256).n_batch == 256


@pytest.mark.parametrize("n_batch", [1, 7, 100, 384, 1000, 4096])
@pytest.mark.parametrize("n_ctx_train", [1, 129, 512, 8192])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_capacity_holds_a_batch_and_divides_by_the_sequences(n_batch: int, n_ctx_train: int, on_gpu: bool) -> None:
    chosen = plan(n_batch=n_batch, n_ctx_train=n_ctx_train, on_gpu=on_gpu)
    assert chosen.n_ubatch % chosen.n_seq_max == 0
    assert chosen.n_ubatch >= max(chosen.n_batch, chosen.max_tokens)
    assert 1 <= chosen.n_seq_max <= min(chosen.n_batch, 256)


def test_contradictions_are_explained() -> None:
    with pytest.raises(ModelError, match=r"n_ubatch \(256\) is smaller than n_batch \(512\)"):
        plan(n_batch=512, n_ubatch=256)
    with pytest.raises(ModelError, match="threads must be at least 1, not 0"):
        plan(threads=0)
