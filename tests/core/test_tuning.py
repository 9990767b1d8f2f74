"""The search for the fastest options, over made-up machines."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.tuning import (
    LEAST_GAIN,
    REPEATS,
    Combination,
    Dimension,
    Space,
    Trial,
    cpu_layouts,
    judge,
    llama_cpp_space,
    next_trial,
    padded_space,
)

Machine = Callable[[Combination], float | None]


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    dimensions = tuple(
        Dimension(f"d{number}", tuple({f"o{number}": value} for value in range(size)), ordered=draw(st.booleans()))
        for number, size in enumerate(sizes)
    )
    return Space(dimensions, tuple(draw(st.integers(0, size - 1)) for size in sizes))


def search(space: Space, machine: Machine, budget: float = 1e9, cost: float = 1.0) -> list[Trial]:
    """Every trial until the search ends; each takes `cost` seconds."""
    trials: list[Trial] = []
    while (combination := next_trial(space, trials, budget - cost * len(trials))) is not None:
        rate = machine(combination)
        trials.append(Trial(combination, rate, "" if rate else "SIGSEGV", cost))
        assert len(trials) < 2000, "the search does not end"
    return trials


@settings(deadline=None)
@given(spaces(), st.randoms(use_true_random=False))
def test_a_search_ends_stays_inside_and_repeats_no_failure(space: Space, chance: random.Random) -> None:
    def machine(_: Combination) -> float | None:
        return chance.choice([None, chance.uniform(50, 150)])

    trials = search(space, machine)
    assert trials[0].combination == space.start
    failed: set[Combination] = set()
    for trial in trials:
        assert len(trial.combination) == len(space.dimensions)
        assert set(space.options(trial.combination)) == {f"o{number}" for number in range(len(space.dimensions))}
        assert trial.combination not in failed
        if trial.rate is None:
            failed.add(trial.combination)
    counts = [sum(one.combination == trial.combination for one in trials) for trial in trials]
    assert max(counts) <= REPEATS
    verdict = judge(space, trials)
    assert verdict is None or verdict.best not in failed


@settings(deadline=None)
@given(spaces(), st.floats(0, 40), st.floats(0.1, 5))
def test_a_search_keeps_to_its_time_after_the_start(space: Space, budget: float, cost: float) -> None:
    trials = search(space, lambda combination: 100.0 + sum(combination), budget, cost)
    assert len(trials) * cost <= max(cost, budget + 1e-6)
    assert trials


@settings(deadline=None)
@given(spaces(), st.data())
def test_on_a_quiet_machine_where_each_option_matters_by_itself_the_best_is_found(
    space: Space, data: st.DataObject
) -> None:
    peaks = [data.draw(st.integers(0, len(dimension.values) - 1)) for dimension in space.dimensions]

    def machine(combination: Combination) -> float:
        rate = 1000.0
        for index, peak in zip(combination, peaks, strict=True):
            rate *= 0.9 ** abs(index - peak)
        return rate

    trials = search(space, machine)
    verdict = judge(space, trials)
    assert verdict is not None
    assert verdict.best == tuple(peaks)
    assert verdict.rate == pytest.approx(1000.0)
    assert verdict.proved is (tuple(peaks) != space.start)
    assert verdict.gain == pytest.approx(1000.0 / machine(space.start) - 1)


@pytest.mark.parametrize("noise", [0.001, 0.03, 0.2])
@pytest.mark.parametrize("sizes", [(2,), (6, 3), (6, 6, 2, 2)])
def test_where_nothing_matters_the_start_is_kept_whatever_the_noise(noise: float, sizes: tuple[int, ...]) -> None:
    dimensions = tuple(Dimension(f"d{n}", tuple({f"o{n}": value} for value in range(s))) for n, s in enumerate(sizes))
    space = Space(dimensions, (1,) * len(sizes))
    chance = random.Random(7)
    kept = []
    for _ in range(50):
        verdict = judge(space, search(space, lambda _: 1000.0 * chance.lognormvariate(0, noise)))
        assert verdict is not None
        kept.append(verdict.best == space.start)
    assert sum(kept) >= 43


def hill(chance: random.Random) -> Machine:
    """The fourth value is the best, by 12 % over its neighbours; measurements differ by 2 %."""
    return lambda combination: 1000 * 1.12 ** -abs(combination[0] - 4) * chance.gauss(1, 0.02)


def test_a_gain_that_is_larger_than_the_noise_is_found() -> None:
    space = Space((Dimension("d", tuple({"o": value} for value in range(6))),), (1,))
    found = []
    for seed in range(50):
        verdict = judge(space, search(space, hill(random.Random(seed))))
        assert verdict is not None
        found.append(verdict.best == (4,))
    assert sum(found) >= 45


def test_a_gain_that_is_hardly_one_keeps_the_start() -> None:
    space = Space((Dimension("d", ({"o": 0}, {"o": 1})),), (0,))
    verdict = judge(space, search(space, lambda combination: 1000.0 * (1 + 0.9 * LEAST_GAIN * combination[0])))
    assert verdict is not None
    assert (verdict.best, verdict.proved, verdict.gain) == ((0,), False, 0.0)


def test_a_start_that_crashes_gives_way_to_what_works() -> None:
    space = Space((Dimension("d", ({"o": 0}, {"o": 1})),), (0,))
    verdict = judge(space, search(space, lambda combination: 500.0 if combination[0] else None))
    assert verdict is not None
    assert (verdict.best, verdict.start_rate, verdict.proved) == ((1,), None, True)
    assert judge(space, search(space, lambda _: None)) is None


def test_the_leaders_are_measured_in_turns() -> None:
    space = Space((Dimension("d", tuple({"o": value} for value in range(3)), ordered=False),), (1,))
    trials = search(space, lambda combination: 100.0 + 30 * combination[0])
    assert [trial.combination[0] for trial in trials[:3]] == [1, 0, 2]
    repeats = [trial.combination[0] for trial in trials[3:]]
    assert all(sorted(repeats[turn : turn + 3]) == [0, 1, 2] for turn in range(0, len(repeats), 3))
    assert all(repeats.count(value) == REPEATS - 1 for value in range(3))


def test_one_lucky_measurement_wins_nothing() -> None:
    space = Space((Dimension("d", tuple({"o": value} for value in range(3))),), (1,))
    trials = [Trial((1,), rate) for rate in (100.0, 101, 99)] + [Trial((2,), 140.0)]
    verdict = judge(space, trials)
    assert verdict is not None
    assert verdict.best == (1,)


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 6, 16, 192])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_the_space_of_our_engine_begins_where_the_engine_does(cores: int, on_gpu: bool) -> None:
    own = {"n_batch": 1000, "contexts": min(cores, 5), "threads": 3, "flash_attn": "auto" if on_gpu else "on"}
    space = llama_cpp_space(on_gpu=on_gpu, cores=cores, **own)  # type: ignore[arg-type]
    assert own.items() <= space.options(space.start).items()
    for neighbour in space.neighbours(space.start):
        options = space.options(neighbour)
        assert min(options["contexts"], options["threads"], options["n_batch"]) >= 1
        assert options["contexts"] <= 64
    batches = [
        value["n_batch"] for dimension in space.dimensions if dimension.name == "batch" for value in dimension.values
    ]
    assert batches == sorted(set(batches))


def test_the_space_of_a_padding_engine_begins_where_the_engine_does() -> None:
    for on_gpu in (True, False):
        own = {"n_batch": 5000, "contexts": 3, "threads": 2}
        space = padded_space(on_gpu=on_gpu, cores=6, **own)
        assert space.options(space.start) == own
        assert {"contexts": 2, "threads": 3} in space.dimensions[1].values or not on_gpu


def test_layouts_of_a_cpu() -> None:
    assert cpu_layouts(1) == [(1, 1), (2, 1)]
    assert cpu_layouts(2) == [(2, 1), (1, 2), (1, 1), (4, 1)]
    assert set(cpu_layouts(8)) == {(8, 1), (4, 2), (2, 4), (1, 8), (4, 1), (2, 2), (1, 4), (16, 1)}
    assert all(contexts <= 64 for contexts, _ in cpu_layouts(192))


def test_rates_are_medians() -> None:
    space = Space((Dimension("d", ({"o": 0}, {"o": 1})),), (0,))
    rates = [90.0, 100.0, 104.0, 250.0, 101.0]
    verdict = judge(space, [Trial((0,), rate) for rate in rates])
    assert verdict is not None
    assert verdict.rate == statistics.median(rates[1:])
