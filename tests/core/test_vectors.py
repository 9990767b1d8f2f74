from __future__ import annotations

import struct
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.vectors import TopK, from_blobs, normalise, to_blob

numbers = st.floats(-1e6, 1e6, width=32)


def test_normalise_makes_unit_rows_and_leaves_zeros() -> None:
    rows = normalise(np.array([[3.0, 4.0], [0.0, 0.0], [1e30, 1e30]], dtype=np.float32))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 0.0], [0.5**0.5, 0.5**0.5]], rtol=1e-6)


def test_normalise_refuses_a_vector() -> None:
    with pytest.raises(ValueError, match="matrix"):
        normalise([1.0, 2.0])


@given(
    st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), max_size=30), max_size=8),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_top_k_is_that_of_sorting_everything(blocks: list[list[float]], k: int, random: Random) -> None:
    scores = [score for block in blocks for score in block]
    ids = list(range(len(scores)))
    random.shuffle(ids)
    best, start = TopK(k), 0
    for block in blocks:
        part = ids[start : start + len(block)]
        best.add(np.array(part, dtype=np.int64), np.array(block, dtype=np.float32))
        start += len(block)
    expected = sorted(zip(ids, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))[:k]
    assert best.result() == expected


def test_top_k_of_a_large_block() -> None:
    scores = np.random.default_rng(0).random(10_000, dtype=np.float32)
    best = TopK(3)
    best.add(np.arange(10_000, dtype=np.int64), scores)
    assert [identity for identity, _ in best.result()] == np.argsort(-scores)[:3].tolist()


def test_top_k_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TopK(0)
    with pytest.raises(ValueError, match="not a number"):
        TopK(1).add(np.array([1], dtype=np.int64), np.array([np.nan], dtype=np.float32))
    with pytest.raises(ValueError, match="expected ids"):
        TopK(1).add(np.array([1, 2], dtype=np.int64), np.array([0.5], dtype=np.float32))


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), max_size=5))
def test_blobs_round_trip(rows: list[list[float]]) -> None:
    matrix = np.array(rows, dtype=np.float32).reshape(len(rows), 3)
    np.testing.assert_array_equal(from_blobs([to_blob(row) for row in matrix], 3), matrix)


def test_blobs_are_little_endian_float32() -> None:
    assert to_blob([1.0, -2.5]) == struct.pack("<2f", 1.0, -2.5)


def test_a_blob_of_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="vector 1 has 8 bytes, not 12"):
        from_blobs([b"\0" * 12, b"\0" * 8], 3)
