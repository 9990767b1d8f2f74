"""Measured loads: the estimate is not exceeded lightly, and forgets what is long past."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.database import Database
from pipeline.store.loads import StoredLoad, measured_loads, note_load, upper_estimate

NOW = dt.datetime(2026, 6, 2, 2, tzinfo=dt.UTC)
SECONDS = st.floats(0, 3600)


def test_a_slow_load_counts_at_once_and_fast_ones_bring_it_down_slowly(store: Database) -> None:
    estimates = []
    for number, seconds in enumerate([5.0, 60.0, 5.0, 5.0]):
        with store.begin() as session:
            note_load(session, "f", "llama-server", "gpu", seconds, NOW + dt.timedelta(days=number))
        with store.snapshot() as session:
            (load,) = measured_loads(session)
            estimates.append(load.seconds_max)
    assert estimates == pytest.approx([5.0, 60.0, 54.5, 49.55])
    assert load == StoredLoad("f", "llama-server", "gpu", 5.0, load.seconds_max, 4, NOW + dt.timedelta(days=3))


def test_each_model_server_and_device_is_measured_by_itself(store: Database) -> None:
    keys = [("f", "vllm", "gpu"), ("g", "vllm", "gpu"), ("f", "llama-server", "gpu"), ("f", "vllm", "cpu")]
    with store.begin() as session:
        for number, key in enumerate(keys):
            note_load(session, *key, float(number), NOW + dt.timedelta(seconds=number))
    with store.snapshot() as session:
        found = measured_loads(session)
    assert [(load.fingerprint, load.kind, load.device) for load in found] == keys[::-1]
    assert [load.seconds for load in found] == [3.0, 2.0, 1.0, 0.0]


@given(st.lists(SECONDS, min_size=1, max_size=30))
def test_the_estimate_lies_between_the_last_load_and_the_slowest(loads: list[float]) -> None:
    estimate: float | None = None
    for seconds in loads:
        estimate = upper_estimate(estimate, seconds)
    assert estimate is not None
    assert loads[-1] <= estimate <= max(loads)


@given(SECONDS, SECONDS)
def test_after_a_month_of_nights_a_slow_load_is_all_but_forgotten(one: float, other: float) -> None:
    estimate, fast = max(one, other), min(one, other)
    for _ in range(60):
        estimate = upper_estimate(estimate, fast)
    assert estimate - fast <= 0.002 * abs(one - other) + 1e-9
