"""The numbers of the second engine; none of this needs torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.backends.torch_engine.plan import CPU_BATCH, GPU_BATCH, Device, TorchOptions, plan_engine
from pipeline.core.errors import ModelError

MODEL = Path("model")


def test_a_processor_has_a_thread_for_each_context() -> None:
    plan = plan_engine(TorchOptions(MODEL), Device(on_gpu=False, cores=4, bfloat16=True), longest=512)
    assert (plan.contexts, plan.threads, plan.n_batch, plan.max_tokens) == (4, 1, CPU_BATCH, 512)
    many = plan_engine(TorchOptions(MODEL), Device(on_gpu=False, cores=32, bfloat16=True), longest=512)
    assert (many.contexts, many.threads) == (8, 4)


def test_a_gpu_has_one_context_with_large_batches() -> None:
    plan = plan_engine(TorchOptions(MODEL), Device(on_gpu=True, cores=16, bfloat16=False), longest=8192)
    assert (plan.contexts, plan.n_batch, plan.precision) == (1, GPU_BATCH, "float16")


@pytest.mark.parametrize(("bfloat16", "wanted"), [(True, "bfloat16"), (False, "float32")])
def test_half_precision_needs_instructions_for_it(bfloat16: bool, wanted: str) -> None:
    device = Device(on_gpu=False, cores=2, bfloat16=bfloat16)
    assert plan_engine(TorchOptions(MODEL), device, longest=8).precision == wanted
    assert plan_engine(TorchOptions(MODEL, dtype="half"), device, longest=8).precision == "float16"


def test_what_was_set_stays_and_must_make_sense() -> None:
    device = Device(on_gpu=False, cores=8, bfloat16=True)
    plan = plan_engine(TorchOptions(MODEL, contexts=2, n_batch=300, n_ubatch=128), device, longest=512)
    assert (plan.contexts, plan.threads, plan.n_batch, plan.max_tokens) == (2, 4, 300, 128)
    assert plan_engine(TorchOptions(MODEL, n_ubatch=4096), device, longest=512).max_tokens == 512
    with pytest.raises(ModelError, match="n_batch must be at least 1"):
        plan_engine(TorchOptions(MODEL, n_batch=0), device, longest=512)
