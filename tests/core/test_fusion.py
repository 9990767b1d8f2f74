"""Rankings are fused by reciprocal ranks and what each place weighs, whatever their scores were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.fusion import RRF_K, fuse, share, weight_of

WEIGHTED = st.tuples(st.integers(1, 30), st.floats(0, 1))
RANKINGS = st.dictionaries(
    st.sampled_from("abc"), st.lists(WEIGHTED, unique_by=lambda pair: pair[0], max_size=20), max_size=3
)


def plain(*ids: int) -> list[tuple[int, float]]:
    return [(one, 1.0) for one in ids]


def test_the_score_is_the_sum_of_reciprocal_ranks() -> None:
    fused = fuse({"vector": plain(7, 3), "text": plain(3, 9)})
    assert fused == [
        (3, 1 / (RRF_K + 2) + 1 / (RRF_K + 1)),
        (7, 1 / (RRF_K + 1)),
        (9, 1 / (RRF_K + 2)),
    ]


def test_agreement_beats_one_first_place() -> None:
    assert fuse({"a": plain(1, 2), "b": plain(3, 2)})[0][0] == 2


def test_a_first_place_for_little_of_the_question_stands_behind_one_for_all_of_it() -> None:
    assert weight_of(0) == 0
    assert weight_of(1) == 1
    by_words = [(1, weight_of(0.2)), (2, weight_of(0.2))]
    assert [one for one, _ in fuse({"text": by_words, "vector": plain(9, 8, 7)})] == [9, 8, 7, 1, 2]
    by_words = [(1, weight_of(1.0)), (2, weight_of(0.2))]
    assert [one for one, _ in fuse({"text": by_words, "vector": plain(9, 8, 1)})] == [1, 9, 8, 2]


def test_ties_go_by_id_and_nothing_gives_nothing() -> None:
    assert [one for one, _ in fuse({"a": plain(5), "b": plain(4)})] == [4, 5]
    assert fuse({}) == fuse({"a": []}) == []


@given(RANKINGS)
def test_everything_is_in_it_once_and_best_first(rankings: dict[str, list[tuple[int, float]]]) -> None:
    fused = fuse(rankings)
    assert sorted(one for one, _ in fused) == sorted({one for ranking in rankings.values() for one, _ in ranking})
    assert fused == sorted(fused, key=lambda pair: (-pair[1], pair[0]))
    for one, score in fused:
        assert score == pytest.approx(
            sum(share(rank, w) for r in rankings.values() for rank, (id_, w) in enumerate(r, start=1) if id_ == one)
        )


@given(st.lists(st.integers(1, 30), unique=True, max_size=20))
def test_one_plain_ranking_stays_as_it_is(ids: list[int]) -> None:
    assert [one for one, _ in fuse({"a": plain(*ids)})] == ids


@given(RANKINGS.filter(lambda rankings: len(rankings) == 2))
def test_the_order_of_two_rankings_does_not_matter(rankings: dict[str, list[tuple[int, float]]]) -> None:
    backwards = dict(reversed(rankings.items()))
    assert [one for one, _ in fuse(rankings)] == [one for one, _ in fuse(backwards)]
