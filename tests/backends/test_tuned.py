"""What was measured fills in what nobody asked for, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.backends.llama_cpp.plan import EngineOptions, plan_engine
from pipeline.backends.options import Tuned
from pipeline.backends.serving.tuned import Host, device_name, fill, from_argument, own_tuning, to_argument

MEASURED = Tuned("d", "b", {"n_batch": 768, "contexts": 3, "threads": 2, "flash_attn": "on"}, "2026-06-01")


def options(**given: Any) -> EngineOptions:
    return EngineOptions(Path("m.gguf"), **given)


def test_what_was_not_asked_for_is_filled() -> None:
    filled = fill(options(pooling="cls"), MEASURED)
    assert filled == options(pooling="cls", n_batch=768, contexts=3, threads=2, flash_attn="on")
    assert fill(options(), None) == options()


def test_what_was_asked_for_stays() -> None:
    assert fill(options(n_batch=100, flash_attn="off"), MEASURED).n_batch == 100
    assert fill(options(flash_attn="off"), MEASURED).flash_attn == "off"
    assert fill(options(threads=7), MEASURED).threads == 7
    assert fill(options(contexts=1), MEASURED).threads is None, "threads were measured for another number of contexts"


def test_weights_are_repacked_only_where_both_allow_it() -> None:
    without = Tuned("d", "b", {"use_extra_bufts": False}, "")
    repacked = Tuned("d", "b", {"use_extra_bufts": True}, "")
    assert fill(options(), repacked).use_extra_bufts
    assert not fill(options(), without).use_extra_bufts
    assert not fill(options(use_extra_bufts=False), repacked).use_extra_bufts


def test_what_is_stored_cannot_set_anything_else() -> None:
    odd = Tuned("d", "b", {"model": "/etc/passwd", "mlock": True, "n_gpu_layers": 0, "unheard_of": 1}, "")
    assert fill(options(), odd) == options()


@given(n_ubatch=st.integers(1, 4096), n_batch=st.integers(1, 20_000))
def test_what_is_filled_never_contradicts_a_capacity(n_ubatch: int, n_batch: int) -> None:
    filled = fill(options(n_ubatch=n_ubatch), Tuned("d", "b", {"n_batch": n_batch}, ""))
    plan = plan_engine(filled, n_ctx_train=512, causal=False, max_sequences=256, cores=2, on_gpu=False)
    assert plan.n_batch <= n_ubatch


def test_a_tuning_is_that_of_one_device_and_one_build() -> None:
    assert own_tuning([MEASURED], Host("d", "b")) is MEASURED
    assert own_tuning([MEASURED], Host("d", "another")) is None
    assert own_tuning([MEASURED], Host("another", "b")) is None
    assert own_tuning([], Host("d", "b")) is None


def test_tunings_travel_as_an_argument() -> None:
    assert from_argument(to_argument([MEASURED])) == [MEASURED]


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '[{"device": "d"}]', '[{"device": "d", "build": "b", "options": 5}]', "5"]
)
def test_an_argument_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        from_argument(text)


def test_a_processor_is_named_with_its_cores() -> None:
    assert device_name(on_gpu=False).endswith(" cores")
