"""Several rankings made one, by reciprocal ranks (Cormack, Clarke and Büttcher, 2009)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

RRF_K = 60
"""As in the paper: how little the first ranks of one ranking count against agreement of several."""


class By(StrEnum):
    """What passages are ranked by: the meaning, the words, or both."""

    FUSED = "fused"
    VECTOR = "vector"
    TEXT = "text"


def weight_of(coverage: float) -> float:
    """How much a place in a ranking by words counts: the square of what the text covers of the question, 0 to 1.

    A text that shares only common words with a question is first where no text has the others, and says nothing.
    """
    return coverage * coverage


def share(rank: int, weight: float = 1.0, k: int = RRF_K) -> float:
    """What a rank, from 1, adds to the score of an id."""
    return weight / (k + rank)


def fuse(rankings: Mapping[str, Sequence[tuple[int, float]]], k: int = RRF_K) -> list[tuple[int, float]]:
    """Ids with the sum of weight / (k + rank) over the rankings that hold them, best first; ties by id.

    rankings: ids with their weights (1 in plain reciprocal rank fusion), best first, each at most once in a ranking.
    """
    scores: dict[int, float] = {}
    for ranking in rankings.values():
        for rank, (one, weight) in enumerate(ranking, start=1):
            scores[one] = scores.get(one, 0.0) + share(rank, weight, k)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
