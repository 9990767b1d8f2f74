"""How good rankings are, and whether one is better than another.

A ranking is, for each result from the best on, which of a question's relevant places it shows. A place counts once, at
the first result that shows it: further passages of the same page are results like any other that show nothing new.

recall@k: the share of the places that the first k results show. Reciprocal rank: 1 over the rank of the first result
that shows one (Voorhees, 1999). nDCG@k: gains discounted by log2(rank + 1), over the most there could be (Järvelin and
Kekäläinen, 2002); the gain of a result is the best grade that it shows first, as it stands, as in trec_eval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ranking = Sequence[Set[int]]

RESAMPLES = 10_000
SEED = 7
"""The same numbers give the same intervals."""

CONFIDENCE = 0.95
EXACT = 14
"""Questions that differ up to which all ways to swap them are counted, 2 to this power."""


def recall(ranking: Ranking, places: int, k: int) -> float:
    """The share of `places` places that the first `k` results show, 0 to 1."""
    return len({place for shown in ranking[:k] for place in shown}) / places


def reciprocal_rank(ranking: Ranking) -> float:
    """1 over the rank of the first result that shows a place; 0 where none does."""
    return next((1 / rank for rank, shown in enumerate(ranking, start=1) if shown), 0.0)


def ndcg(ranking: Ranking, grades: Sequence[float], k: int) -> float:
    """The discounted gain of the first `k` results over that of the best ranking there could be, 0 to 1."""
    known: set[int] = set()
    gains = []
    for shown in ranking[:k]:
        gains.append(max((grades[place] for place in shown - known), default=0.0))
        known |= shown
    return _discounted(gains) / _discounted(sorted(grades, reverse=True)[:k])


def _discounted(gains: Sequence[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over questions, and the interval that it is in with CONFIDENCE, by the percentile bootstrap."""

    value: float
    low: float
    high: float


def mean(values: Sequence[float]) -> Mean:
    """Of at least one value."""
    numbers = np.asarray(values, np.float64)
    rng = np.random.default_rng(SEED)
    means = np.concatenate(
        [
            numbers[rng.integers(0, len(numbers), (some, len(numbers)))].mean(axis=1)
            for some in _portions(RESAMPLES, len(numbers))
        ]
    )
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Mean(float(numbers.mean()), float(low), float(high))


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better one side is, question by question. p: how often chance alone would differ so much.

    better, worse, equal: questions.
    """

    mean: Mean
    better: int
    worse: int
    equal: int
    p: float


def compare(these: Sequence[float], those: Sequence[float]) -> Difference:
    """`these` against `those`, of the same questions in the same order.

    p by the two-sided randomisation test of the paired differences (Smucker, Allan and Carterette, 2007), exact where
    few differ.
    """
    differences = np.asarray(these, np.float64) - np.asarray(those, np.float64)
    differences[np.abs(differences) < 1e-12] = 0.0
    return Difference(
        mean(differences.tolist()),
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
        equal=int((differences == 0).sum()),
        p=_randomised(differences[differences != 0]),
    )


def _randomised(differences: NDArray[np.float64]) -> float:
    n = len(differences)
    if n == 0:
        return 1.0
    seen = abs(differences.sum()) - 1e-9
    if n <= EXACT:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ differences) >= seen).mean())
    rng = np.random.default_rng(SEED)
    extreme = sum(
        int((np.abs(rng.choice((-1.0, 1.0), (some, n)) @ differences) >= seen).sum())
        for some in _portions(RESAMPLES, n)
    )
    # With the one that was seen: a p of zero would say more than so many tries can.
    return (extreme + 1) / (RESAMPLES + 1)


def _portions(total: int, width: int) -> list[int]:
    """`total` in parts whose rows of `width` numbers stay small."""
    most = max(1, min(total, 4_000_000 // width))
    return [most] * (total // most) + ([total % most] if total % most else [])
