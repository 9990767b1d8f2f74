"""The measures, against their definitions worked out by hand and by brute force."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.evaluation import EXACT, Difference, Mean, compare, mean, ndcg, recall, reciprocal_rank

PLACES = 4
rankings = st.lists(st.frozensets(st.integers(0, PLACES - 1), max_size=3), max_size=8)
grades = st.lists(st.integers(1, 3).map(float), min_size=PLACES, max_size=PLACES)
cuts = st.integers(1, 9)


def test_by_hand() -> None:
    ranking = [frozenset[int](), frozenset({1}), frozenset({1}), frozenset({0, 1}), frozenset[int]()]
    assert [recall(ranking, 2, k) for k in (1, 2, 3, 4, 5)] == [0.0, 0.5, 0.5, 1.0, 1.0]
    assert reciprocal_rank(ranking) == 0.5
    # Place 1 at rank 2 and place 0 at rank 4; at best they are at ranks 1 and 2, the better first.
    expected = (1 / math.log2(3) + 3 / math.log2(5)) / (3 / math.log2(2) + 1 / math.log2(3))
    assert ndcg(ranking, [3.0, 1.0], 10) == pytest.approx(expected)
    assert ndcg(ranking, [3.0, 1.0], 1) == 0.0
    assert reciprocal_rank([frozenset[int]()]) == reciprocal_rank([]) == 0.0


def test_further_passages_of_a_page_count_for_nothing_and_take_their_rank() -> None:
    crowded = [frozenset({0}), frozenset({0}), frozenset({0}), frozenset({1})]
    spread = [frozenset({0}), frozenset({1})]
    assert recall(crowded, 2, 3) == 0.5
    assert ndcg(crowded, [1.0, 1.0], 4) < ndcg(spread, [1.0, 1.0], 4) == 1.0


def defined_ndcg(ranking: list[frozenset[int]], of: list[float], k: int) -> float:
    """As the definition reads: the most that any order of the places could gain is below the line."""
    found: set[int] = set()
    total = 0.0
    for rank in range(1, min(k, len(ranking)) + 1):
        new = ranking[rank - 1] - found
        found |= ranking[rank - 1]
        total += max([of[place] for place in new] or [0.0]) / math.log2(1 + rank)
    best = max(
        sum(of[place] / math.log2(1 + rank) for rank, place in enumerate(order[:k], start=1))
        for order in itertools.permutations(range(len(of)))
    )
    return total / best


@given(rankings, grades, cuts)
def test_the_measures_are_their_definitions(ranking: list[frozenset[int]], of: list[float], k: int) -> None:
    assert ndcg(ranking, of, k) == pytest.approx(defined_ndcg(ranking, of, k))
    shown = sum(any(place in hit for hit in ranking[:k]) for place in range(PLACES))
    assert recall(ranking, PLACES, k) == Fraction(shown, PLACES)
    firsts = [rank for rank, hit in enumerate(ranking, start=1) if hit]
    assert reciprocal_rank(ranking) == (1 / firsts[0] if firsts else 0)


@given(rankings, grades, cuts)
def test_all_are_between_nothing_and_everything(ranking: list[frozenset[int]], of: list[float], k: int) -> None:
    assert 0 <= recall(ranking, PLACES, k) <= recall(ranking, PLACES, k + 1) <= 1
    assert 0 <= ndcg(ranking, of, k) <= 1 + 1e-12
    ideal = [frozenset({place}) for place in sorted(range(PLACES), key=lambda place: -of[place])]
    assert ndcg(ideal, of, k) == pytest.approx(1.0)
    # What comes after the cut changes nothing, and a useless result on top can only harm.
    assert ndcg(ranking[:k], of, k) == ndcg(ranking, of, k)
    assert ndcg([frozenset(), *ranking], of, k) <= ndcg(ranking, of, k) + 1e-12


def test_a_mean_has_an_interval_that_shrinks_with_more_questions() -> None:
    few, many = mean([0.0, 1.0] * 10), mean([0.0, 1.0] * 200)
    assert few.value == many.value == 0.5
    assert few.low < many.low < 0.5 < many.high < few.high
    # Of a fair coin: 1.96 standard errors of the mean, sqrt(0.25 / n).
    assert many.high - 0.5 == pytest.approx(1.96 * math.sqrt(0.25 / 400), rel=0.1)
    assert mean([0.25] * 5) == Mean(0.25, 0.25, 0.25)
    assert mean([1.0]) == Mean(1.0, 1.0, 1.0)
    assert mean([0.0, 1.0] * 10) == few


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=8))
def test_the_randomisation_test_counts_all_signs(differences: list[float]) -> None:
    found = compare(differences, [0.0] * len(differences))
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    assert found.p == pytest.approx(sum(abs(one) >= abs(sum(differences)) for one in sums) / len(sums))
    assert (found.better, found.worse, found.equal) == (
        sum(d > 0 for d in differences),
        sum(d < 0 for d in differences),
        sum(d == 0 for d in differences),
    )


def test_what_chance_would_not_do_has_a_small_p_and_what_it_would_a_large_one() -> None:
    assert EXACT < 40
    assert compare([1.0] * 40, [0.0] * 40).p < 0.001
    assert compare([1.0, 0.0] * 20, [0.0, 1.0] * 20).p > 0.9
    same = compare([0.5] * 30, [0.5] * 30)
    assert same == Difference(Mean(0.0, 0.0, 0.0), 0, 0, 30, 1.0)
    one, other = compare([1.0, 0.5, 0.2], [0.0, 0.5, 0.4]), compare([0.0, 0.5, 0.4], [1.0, 0.5, 0.2])
    assert (one.better, one.worse, one.p) == (other.worse, other.better, other.p)
    assert one.mean.value == -other.mean.value
