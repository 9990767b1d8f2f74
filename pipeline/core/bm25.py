"""How well a text answers to words: BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009).

The rarity of words is Lucene's form of it, which is never negative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

K1 = 1.2
"""How soon another occurrence of a word stops to count."""

B = 0.75
"""How much a long text has to say a word more often: from 0, not at all, to 1."""


def rarity(texts: int, holding: int) -> float:
    """What a word is worth that `holding` of so many texts hold."""
    return math.log1p((max(texts, holding) - holding + 0.5) / (holding + 0.5))


def shares(counts: Mapping[str, int], rarities: Mapping[str, float], length: float, average: float) -> dict[str, float]:
    """What each word that a text holds adds to its score; the words are those that `rarities` knows.

    counts: how often each word stands in the text. length, average: of the text and of all of them, in the same unit.
    """
    slow = K1 * (1 - B + B * (length / average if average > 0 else 1))
    return {
        word: rare * counts[word] * (K1 + 1) / (counts[word] + slow)
        for word, rare in rarities.items()
        if counts.get(word)
    }


def most(rarities: Mapping[str, float]) -> float:
    """What no text without any other word can exceed."""
    return (K1 + 1) * sum(rarities.values())
