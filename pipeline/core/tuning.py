"""Finds the fastest options of an engine by measuring: which combination is next, and which one is the best. Pure.

A combination is one value of each dimension of a space, by its index. The search climbs: from the
combination that the engine would choose by itself it tries the neighbours in one dimension after
the other and goes on from the best that was found. What is left of the time goes into measuring the
leaders again, in turns, because one measurement on a busy machine proves nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Options: TypeAlias = Mapping[str, Any]
Combination: TypeAlias = tuple[int, ...]

REPEATS = 6
"""Measurements of each leader at the end; the first, which made it one, is not counted (see `measured`)."""

LEADERS = 3
"""Combinations that are measured again, besides the one to begin with."""

LEAST_GAIN = 0.02
"""Less than this is not worth other options than everybody has."""

SURENESS = 2.5
"""Standard errors: the best of several is compared, which is a lucky one more often than any single one."""

UNKNOWN_NOISE = 0.05
"""Of one measurement, where nothing was measured twice."""

BATCHES_ON_CPU = (128, 192, 256, 384, 512, 768, 1024, 2048)
BATCHES_ON_GPU = (256, 512, 1024, 2048, 4096, 8192, 16384)
CONTEXTS_ON_GPU = (1, 2, 4, 6, 8, 12, 16, 24, 32)
PADDED_BATCHES = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(frozen=True, slots=True)
class Dimension:
    """Something that can be chosen. values: what each choice sets. ordered: whether neighbours are alike."""

    name: str
    values: tuple[Options, ...]
    ordered: bool = True


@dataclass(frozen=True, slots=True)
class Space:
    """All that can be chosen, the dimension that matters most first. start: what the engine chooses by itself."""

    dimensions: tuple[Dimension, ...]
    start: Combination

    def options(self, combination: Combination) -> dict[str, Any]:
        """What a combination sets."""
        chosen: dict[str, Any] = {}
        for dimension, index in zip(self.dimensions, combination, strict=True):
            chosen |= dimension.values[index]
        return chosen

    def neighbours(self, combination: Combination) -> Iterator[Combination]:
        """The combinations that differ in one dimension: by one step, or by any where there is no order."""
        for place, dimension in enumerate(self.dimensions):
            here = combination[place]
            others = (here + 1, here - 1) if dimension.ordered else range(len(dimension.values))
            for index in others:
                if index != here and 0 <= index < len(dimension.values):
                    yield (*combination[:place], index, *combination[place + 1 :])


@dataclass(frozen=True, slots=True)
class Trial:
    """One measurement. rate: tokens a second; None where it failed, and `problem` says how. seconds: what it took."""

    combination: Combination
    rate: float | None
    problem: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is best. rate, start_rate: medians; start_rate is None where the start failed.

    noise: the gain that chance alone may make, as a share. proved: whether it is more than that, or
    the start failed; otherwise `best` is the start.
    """

    best: Combination
    rate: float
    start_rate: float | None
    noise: float
    proved: bool

    @property
    def gain(self) -> float:
        """Over the start, as a share; 0 where that is kept or failed."""
        return self.rate / self.start_rate - 1 if self.start_rate else 0.0


def next_trial(space: Space, trials: Sequence[Trial], seconds_left: float) -> Combination | None:
    """What to measure next; None where nothing is left to learn, or no time.

    The start is measured whatever time there is: without it nothing can be compared.
    """
    if not trials:
        return space.start
    cost = statistics.median(trial.seconds for trial in trials)
    if seconds_left < cost:
        return None
    total = seconds_left + sum(trial.seconds for trial in trials)
    kept_back = min(cost * (LEADERS + 1) * (REPEATS - 1), 0.5 * total)
    if seconds_left - cost >= kept_back:
        tried = {trial.combination for trial in trials}
        untried = (neighbour for neighbour in space.neighbours(_centre(space, trials)) if neighbour not in tried)
        found = next(untried, None)
        if found is not None:
            return found
    return _repeat(space, trials)


def measured(trials: Sequence[Trial]) -> dict[Combination, list[float]]:
    """The rates of each combination that never failed, best median first.

    Of three or more the first is left out. It is the one that made the combination a leader, so it
    is rather too high, and it was taken at another time than the rest.
    """
    failed = {trial.combination for trial in trials if trial.rate is None}
    rates: dict[Combination, list[float]] = {}
    for trial in trials:
        if trial.rate is not None and trial.combination not in failed:
            rates.setdefault(trial.combination, []).append(trial.rate)
    counted = {combination: found[1:] if len(found) >= 3 else found for combination, found in rates.items()}
    return dict(sorted(counted.items(), key=lambda item: -statistics.median(item[1])))


def judge(space: Space, trials: Sequence[Trial]) -> Verdict | None:
    """The best of what was measured; None where nothing worked.

    Only what was measured about as often as anything can win: a lucky measurement or two prove nothing.
    """
    rates = measured(trials)
    if not rates:
        return None
    start = rates.get(space.start)
    most = max(map(len, rates.values()))
    enough = max(most - 1, min(most, 2))
    fair = {found: values for found, values in rates.items() if len(values) >= enough or found == space.start}
    best = next(iter(fair))
    rate = statistics.median(fair[best])
    if start is None:
        return Verdict(best, rate, None, 0.0, proved=True)
    start_rate = statistics.median(start)
    noise = _noise(rates, len(fair[best]), len(start))
    if best == space.start or rate / start_rate - 1 < max(noise, LEAST_GAIN):
        return Verdict(space.start, start_rate, start_rate, noise, proved=False)
    return Verdict(best, rate, start_rate, noise, proved=True)


def llama_cpp_space(*, on_gpu: bool, cores: int, n_batch: int, contexts: int, threads: int, flash_attn: str) -> Space:
    """What can be chosen of our llama.cpp engine; the keyword arguments are what it chooses by itself.

    The capacity (n_ubatch) is no dimension: it follows from the batch and the longest input, and
    llama.cpp computes only what is in a batch.
    """
    batches = _ladder(BATCHES_ON_GPU if on_gpu else BATCHES_ON_CPU, n_batch)
    batch = Dimension("batch", tuple({"n_batch": size} for size in batches))
    flash = Dimension("flash attention", tuple({"flash_attn": one} for one in ("auto", "on", "off")), ordered=False)
    if on_gpu:
        side_by_side = _ladder(CONTEXTS_ON_GPU, contexts)
        layouts = tuple({"contexts": count, "threads": max(1, cores // count)} for count in side_by_side)
        layout = Dimension("contexts", layouts)
        start = {"n_batch": n_batch, "contexts": contexts, "threads": threads, "flash_attn": flash_attn}
        return _space((layout, batch, flash), start)
    layouts = tuple({"contexts": count, "threads": of_each} for count, of_each in cpu_layouts(cores))
    layout = Dimension("contexts", layouts, ordered=False)
    flash = Dimension("flash attention", tuple({"flash_attn": one} for one in ("on", "off")), ordered=False)
    repack = Dimension("repacked weights", ({"use_extra_bufts": True}, {"use_extra_bufts": False}), ordered=False)
    start = {
        "n_batch": n_batch,
        "contexts": contexts,
        "threads": threads,
        "flash_attn": flash_attn,
        "use_extra_bufts": True,
    }
    return _space((batch, layout, flash, repack), start)


def padded_space(*, on_gpu: bool, cores: int, n_batch: int, contexts: int, threads: int) -> Space:
    """What can be chosen of an engine that pads its batches; the keyword arguments are what it chooses by itself."""
    batch = Dimension("batch", tuple({"n_batch": size} for size in _ladder(PADDED_BATCHES, n_batch)))
    start = {"n_batch": n_batch, "contexts": contexts, "threads": threads}
    layouts = [(count, max(1, cores // count)) for count in (1, 2, 4)] if on_gpu else cpu_layouts(cores)
    shared_out = tuple({"contexts": count, "threads": of_each} for count, of_each in layouts)
    return _space((batch, Dimension("contexts", shared_out, ordered=False)), start)


def cpu_layouts(cores: int) -> list[tuple[int, int]]:
    """(contexts, threads of each) worth trying: all cores, half of them (where two are one in truth), and too many."""
    found = []
    for usable in (cores, max(1, cores // 2)):
        threads = 1
        while threads <= usable:
            found.append((max(1, usable // threads), threads))
            threads *= 2
        found.append((1, usable))
    found.append((2 * cores, 1))
    return list(dict.fromkeys((min(contexts, 64), threads) for contexts, threads in found))


def _space(dimensions: tuple[Dimension, ...], start: Options) -> Space:
    """The space with that start in it, as a value of its own where there is none."""
    completed, indices = [], []
    for dimension in dimensions:
        wanted = {name: start[name] for name in dimension.values[0]}
        values = dimension.values
        if wanted not in values:
            place = next((i for i, value in enumerate(values) if _first(value) == _first(wanted)), None)
            if place is None or not dimension.ordered:
                values = (*values, wanted)
            else:
                values = (*values[:place], wanted, *values[place + 1 :])
        completed.append(Dimension(dimension.name, values, dimension.ordered))
        indices.append(values.index(wanted))
    return Space(tuple(completed), tuple(indices))


def _first(options: Options) -> Any:
    return next(iter(options.values()))


def _ladder(steps: Sequence[int], own: int) -> list[int]:
    return sorted({*steps, own})


def _centre(space: Space, trials: Sequence[Trial]) -> Combination:
    return next(iter(measured(trials)), space.start)


def _repeat(space: Space, trials: Sequence[Trial]) -> Combination | None:
    """The leader that was measured least often; None where each was measured often enough."""
    rates = measured(trials)
    leaders = list(rates)[:LEADERS]
    if space.start in rates and space.start not in leaders:
        leaders.append(space.start)
    counts = {leader: sum(trial.combination == leader for trial in trials) for leader in leaders}
    if len(leaders) < 2 or min(counts.values()) >= REPEATS:
        return None
    return min(leaders, key=lambda leader: counts[leader])


def _noise(rates: Mapping[Combination, Sequence[float]], of_best: int, of_start: int) -> float:
    """`SURENESS` standard errors of a ratio of two medians, from how much repeated measurements differ.

    A median's error is 1.2533 times that of a mean, where deviations are normal.
    """
    off = [
        (rate / statistics.median(found) - 1) ** 2 * len(found) / (len(found) - 1)
        for found in rates.values()
        if len(found) >= 2
        for rate in found
    ]
    deviation = math.sqrt(statistics.mean(off)) if off else UNKNOWN_NOISE
    return SURENESS * 1.2533 * deviation * math.sqrt(1 / of_best + 1 / of_start)
