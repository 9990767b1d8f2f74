from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.batching import halve, pack, plan_share, plan_ubatch, take_alike, take_fitting

lengths_lists = st.lists(st.integers(1, 600), max_size=200)


@given(lengths_lists, st.integers(1, 512), st.integers(1, 32))
def test_pack_loses_nothing_and_keeps_both_limits(lengths: list[int], budget: int, most: int) -> None:
    batches = pack(lengths, budget, most)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= most
        assert sum(lengths[index] for index in batch) <= budget or len(batch) == 1


@given(lengths_lists, st.integers(1, 512), st.integers(1, 32))
def test_pack_takes_the_longest_first(lengths: list[int], budget: int, most: int) -> None:
    batches = pack(lengths, budget, most)
    first = [lengths[batch[0]] for batch in batches]
    assert first == sorted(first, reverse=True)
    assert all(lengths[batch[0]] == max(lengths[index] for index in batch) for batch in batches)


@given(lengths_lists.filter(bool), st.integers(600, 2000))
def test_pack_leaves_no_two_batches_that_fit_together(lengths: list[int], budget: int) -> None:
    sizes = sorted(sum(lengths[index] for index in batch) for batch in pack(lengths, budget, len(lengths)))
    assert len(sizes) < 2 or sizes[0] + sizes[1] > budget


def test_pack_fills_the_gap_a_long_sequence_leaves() -> None:
    assert pack([100, 250, 300, 200], 400, 8) == [[2, 0], [1], [3]]


def test_pack_of_equals_keeps_their_order() -> None:
    assert pack([5, 5, 5, 5], 10, 8) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("budget", "most"), [(0, 1), (1, 0)])
def test_pack_refuses_limits_that_nothing_fits_in(budget: int, most: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        pack([1], budget, most)


def test_take_fitting_takes_nothing_that_does_not_fit_unless_forced() -> None:
    waiting = [(300, 0), (400, 1)]
    assert take_fitting(waiting, 200, 4) == []
    assert take_fitting(waiting, 200, 4, force_first=True) == [(400, 1)]
    assert waiting == [(300, 0)]
    assert take_fitting(waiting, 300, 0, force_first=True) == []


@given(lengths_lists, st.integers(1, 4096), st.integers(1, 64))
def test_padded_batches_lose_nothing_and_keep_both_limits(lengths: list[int], room: int, slots: int) -> None:
    waiting = sorted((length, -index) for index, length in enumerate(lengths))
    batches = []
    while waiting:
        batch = take_alike(waiting, room, slots)
        assert waiting == sorted(waiting)
        batches.append(batch)
    assert sorted(-key for batch in batches for _, key in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(length for length, _ in batch)
        assert 1 <= len(batch) <= slots
        assert len(batch) * longest <= room or len(batch) == 1
        assert min(length for length, _ in batch) * 2 >= longest


def test_a_padded_batch_is_joined_by_what_is_like_it() -> None:
    waiting = [(40, 0), (90, 1), (100, 2), (300, 3)]
    assert take_alike(waiting, 400, 8, longest=100, held=2) == [(100, 2), (90, 1)]
    assert waiting == [(40, 0), (300, 3)]
    assert take_alike(waiting, 100, 8) == [(300, 3)]
    assert take_alike(waiting, 400, 0) == []


@given(st.lists(st.integers(), min_size=2))
def test_halves_are_the_whole(items: list[int]) -> None:
    first, second = halve(items)
    assert first + second == items
    assert 0 <= len(first) - len(second) <= 1


def test_one_item_has_no_halves() -> None:
    with pytest.raises(ValueError, match="cannot halve 1"):
        halve(["x"])


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 256))
def test_ubatch_holds_both_and_divides(budget: int, longest: int, sequences: int) -> None:
    capacity = plan_ubatch(budget, longest, sequences)
    assert capacity >= max(budget, longest)
    assert capacity % sequences == 0
    assert capacity - max(budget, longest) < sequences


def test_the_end_of_the_work_is_shared_out() -> None:
    assert plan_share(10_000, 2, 384) == 384
    assert plan_share(500, 2, 384) == 250
    assert plan_share(10, 2, 384) == 64
    assert plan_share(10, 2, 32) == 32
