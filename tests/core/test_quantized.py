"""Vectors in few bytes: what the first passes leave is what may be among the best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.core.quantized import (
    AUTO,
    Standing,
    differences,
    first_candidates,
    least,
    plan_copy,
    products,
    rounded,
    signs,
    words,
    worthwhile,
)
from pipeline.core.vectors import normalise, similarities

seeds = st.integers(0, 2**32 - 1)


def unit_vectors(seed: int, count: int, dimension: int) -> NDArray[np.float32]:
    return normalise(np.random.default_rng(seed).standard_normal((count, dimension)))


@given(seeds, st.integers(1, 40), st.integers(1, 200))
def test_rounded_numbers_are_off_by_half_a_step_at_most(seed: int, count: int, dimension: int) -> None:
    vectors = unit_vectors(seed, count, dimension)
    made = rounded(vectors)
    assert made.numbers.dtype == np.int8
    off = np.abs(made.numbers * made.scales[:, None] - vectors)
    assert (off <= made.scales[:, None] * 0.5001).all()


def test_a_vector_of_zeros_is_rounded_to_zeros() -> None:
    made = rounded(np.zeros((2, 3), np.float32))
    assert not made.numbers.any()
    assert not made.scales.any()


@given(seeds, st.integers(2, 500), st.sampled_from([3, 64, 384]))
def test_products_are_as_near_as_they_say(seed: int, count: int, dimension: int) -> None:
    vectors = unit_vectors(seed, count, dimension)
    values, errors = products(rounded(vectors), vectors[0])
    assert (np.abs(values - similarities(vectors, vectors[0])) <= errors + 1e-6).all()


@given(seeds, st.integers(1, 300), st.integers(1, 20))
def test_none_of_the_best_is_left_out(seed: int, count: int, k: int) -> None:
    random = np.random.default_rng(seed)
    exact = random.integers(0, 50, count).astype(np.float32)  # with ties
    errors = random.uniform(0, 3, count).astype(np.float32)
    values = (exact + errors * random.uniform(-0.99, 0.99, count)).astype(np.float32)
    best = np.sort(exact)[::-1][:k][-1]
    assert worthwhile(values, errors, k)[exact > best].all()
    assert worthwhile(values, errors, k).sum() >= min(k, count)


@given(seeds, st.integers(1, 100), st.integers(1, 200))
def test_differences_are_signs_that_differ(seed: int, count: int, dimension: int) -> None:
    vectors, middle = unit_vectors(seed, count + 1, dimension), unit_vectors(seed + 1, 1, dimension)[0]
    bits = signs(vectors, middle)
    assert bits.shape == (words(dimension), count + 1)
    sides = vectors > middle
    assert differences(bits[:, 1:], bits[:, 0]).tolist() == (sides[1:] != sides[0]).sum(axis=1).tolist()


def test_differences_go_on_beyond_a_block() -> None:
    bits = signs(unit_vectors(1, 70_000, 65), np.zeros(65, np.float32))
    found = differences(bits, bits[:, 69_999])
    assert found[69_999] == 0
    assert np.flatnonzero(found == 0).tolist() == [69_999]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, 250))
def test_the_smallest_are_found_with_their_equals(numbers: list[int], count: int) -> None:
    found = least(np.array(numbers, np.uint16), count)
    largest = sorted(numbers)[: min(count, len(numbers))][-1]
    assert {numbers[at] for at in found} == {number for number in numbers if number <= largest} or count >= len(numbers)
    assert len(found) >= min(count, len(numbers))
    assert found.tolist() == sorted(found.tolist())


def test_the_passes_find_what_is_nearest() -> None:
    """In clusters, which is what real vectors lie in: what is nearest is among others that are near."""
    random = np.random.default_rng(5)
    centres = unit_vectors(6, 50, 128)
    spread = random.standard_normal((30_020, 128)) / np.sqrt(128)
    vectors = normalise(centres[random.integers(0, 50, 30_020)] + spread)
    vectors, questions = vectors[20:], vectors[:20]
    middle = vectors.mean(axis=0)
    bits, numbers = signs(vectors, middle), rounded(vectors)
    found = 0
    for question in questions:
        places = least(differences(bits, signs(question[None], middle)[:, 0]), first_candidates(len(vectors), 10))
        assert len(places) < len(vectors) // 5
        some = rounded(vectors[places])
        assert (some.numbers == numbers.numbers[places]).all()
        left = places[worthwhile(*products(some, question), 10)]
        assert len(left) < 100
        found += len(np.intersect1d(left, np.argsort(-similarities(vectors, question))[:10]))
    assert found >= 198


@pytest.mark.parametrize(
    ("standing", "wanted", "plan"),
    [
        (Standing(0), "on", "none"),
        (Standing(1, addable=1), "on", "build"),
        (Standing(AUTO - 1, addable=AUTO - 1), "auto", "none"),
        (Standing(AUTO, addable=AUTO), "auto", "build"),
        (Standing(AUTO, addable=0), "auto", "none"),
        (Standing(AUTO - 1, AUTO, 0, 1), "auto", "keep"),
        (Standing(AUTO - 1, 5, AUTO - 6), "auto", "drop"),
        (Standing(0, 5, 0, 5), "on", "drop"),
        (Standing(AUTO, AUTO), "off", "drop"),
        (Standing(AUTO, addable=AUTO), "off", "none"),
        (Standing(AUTO, AUTO), "auto", "keep"),
        (Standing(1000 + 100, 1000, 100), "on", "keep"),
        (Standing(1000 + 101, 1000, 101), "on", "build"),
        (Standing(1000 - 60 + 50, 1000, 50, 60), "on", "build"),
    ],
)
def test_a_copy_is_made_where_it_is_worth_it(standing: Standing, wanted: str, plan: str) -> None:
    assert plan_copy(standing, wanted) == plan  # type: ignore[arg-type]
