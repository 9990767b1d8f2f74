"""Counters add up, over contexts and over servers that come and go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.engine_stats import FILL_BOUNDS, ContextStats, EngineStats, RunningTotal

BATCHES = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 64)), max_size=20)


def context(batches: list[tuple[int, int]], budget: int = 1000) -> ContextStats:
    made = ContextStats(computing=0.5 * len(batches), waiting=1.0)
    for tokens, sequences in batches:
        made = made.with_batch(tokens, sequences, budget)
    return made


def counters(stats: EngineStats) -> tuple[int, int, int, tuple[int, ...]]:
    return (stats.total.batches, stats.total.tokens, stats.total.sequences, stats.total.fills)


@given(BATCHES)
def test_each_batch_counts_once_and_by_how_full_it_was(batches: list[tuple[int, int]]) -> None:
    made = context(batches)
    assert (made.batches, made.tokens) == (len(batches), sum(tokens for tokens, _ in batches))
    assert sum(made.fills) == len(batches)
    for number, bound in enumerate(FILL_BOUNDS):
        assert sum(made.fills[: number + 1]) == sum(tokens / 1000 <= bound for tokens, _ in batches)
    assert made.fill_sum == pytest.approx(sum(tokens for tokens, _ in batches) / 1000)


def test_shares_of_nothing_are_not_known() -> None:
    assert ContextStats().fill is None
    assert ContextStats().waiting_share is None
    assert ContextStats(computing=3.0, waiting=1.0).waiting_share == 0.25
    assert context([(500, 1), (1000, 2)]).fill == 0.75


@given(BATCHES, BATCHES)
def test_what_came_after_is_the_difference(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    before, after = EngineStats((context(first),), 1000), EngineStats((context(first + second),), 1000)
    assert after.follows(before)
    assert counters(after.since(before)) == counters(EngineStats((context(second),)))


@given(st.lists(st.lists(BATCHES, min_size=1, max_size=4), max_size=5), st.booleans())
def test_totals_go_on_over_servers_that_come_and_go(
    servers: list[list[list[tuple[int, int]]]], same_name: bool
) -> None:
    total, expected, shown = RunningTotal(), 0, 0
    for number, looks in enumerate(servers):
        done: list[tuple[int, int]] = []
        for more in looks:
            done += more
            total = total.seen(0 if same_name and len(looks) > 1 else number, EngineStats((context(done),), 1000))
            assert total.total.total.tokens >= shown, "a total never goes down"
            shown = total.total.total.tokens
        expected += sum(tokens for tokens, _ in done)
    if not same_name:
        assert shown == expected


@given(st.lists(st.integers(1, 9000), max_size=5), st.lists(st.integers(1, 9000), min_size=1, max_size=5))
def test_texts_computed_by_themselves_count_apart_from_batches(first: list[int], second: list[int]) -> None:
    def stats(texts: list[int]) -> EngineStats:
        whole = ContextStats(len(texts), len(texts), sum(texts), computing=0.1 * len(texts))
        return EngineStats((context([(900, 3)]),), 1000, whole=whole)

    before, after = stats(first), EngineStats.from_json(stats(first + second).as_json())
    assert after == stats(first + second)
    assert after.tokens == 900 + sum(first + second)
    assert (after.since(before).tokens, after.since(before).total.tokens) == (sum(second), 0)
    assert (after.follows(before), before.follows(after)) == (True, False)
    assert RunningTotal().seen(1, after).seen(2, after).total.tokens == 2 * after.tokens
    told = after.as_json()
    del told["whole"]  # a server that has no such lane
    assert EngineStats.from_json(told).tokens == 900


def test_a_server_that_begins_anew_under_the_same_name_is_another() -> None:
    total = (
        RunningTotal().seen("a", EngineStats((context([(900, 1)] * 3),))).seen("a", EngineStats((context([(100, 1)]),)))
    )
    assert total.total.total.tokens == 2800
    grown = total.seen("a", EngineStats((context([(100, 1)] * 2), ContextStats())))
    assert grown.total.total.tokens == 3000, "of another number of contexts, it is another too"


def test_counters_travel_as_json() -> None:
    stats = EngineStats((context([(10, 1), (2000, 3)]), ContextStats()), 1000, 5, 6)
    assert EngineStats.from_json(stats.as_json()) == stats


@pytest.mark.parametrize("told", [{}, {"contexts": 5}, {"contexts": [{}]}, [], None])
def test_counters_that_make_no_sense_are_refused(told: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        EngineStats.from_json(told)  # type: ignore[arg-type]


def test_nothing_waits_where_no_server_lives() -> None:
    total = RunningTotal().seen("a", EngineStats((context([(900, 1)]),), 1000, 7, 8)).idle().total
    assert (total.total.tokens, total.queued_tokens, total.queued_requests) == (900, 0, 0)
