"""What words weigh."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import bm25


def test_the_numbers_of_the_paper() -> None:
    # Two words in a text of average length, one of them twice; 1000 texts, of which 10 and 100 hold them.
    rarities = {"pump": bm25.rarity(1000, 10), "seal": bm25.rarity(1000, 100), "no": 1.0}
    assert rarities["pump"] == pytest.approx(math.log(1 + 990.5 / 10.5))
    shares = bm25.shares({"pump": 2, "seal": 1, "other": 9}, rarities, 50, 50)
    assert shares == {
        "pump": pytest.approx(rarities["pump"] * 2 * 2.2 / 3.2),
        "seal": pytest.approx(rarities["seal"]),
    }


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_a_word_is_never_worth_less_than_nothing(texts: int, holding: int) -> None:
    assert bm25.rarity(texts, holding) > 0
    assert bm25.rarity(texts, holding) >= bm25.rarity(texts, holding + 1)


@given(st.integers(1, 1000), st.floats(1, 1e6), st.floats(1, 1e6))
def test_a_word_counts_the_more_the_more_often_it_is_there_up_to_a_bound(
    count: int, length: float, average: float
) -> None:
    rarities = {"pump": 3.0}
    once, more = (bm25.shares({"pump": number}, rarities, length, average)["pump"] for number in (count, count + 1))
    assert 0 < once <= more <= bm25.most(rarities) + 1e-9
    longer = bm25.shares({"pump": count}, rarities, 2 * length, average)["pump"]
    assert longer <= once
