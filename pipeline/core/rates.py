"""How fast a host reads and embeds, from what its last runs measured.

Pages and tokens are the work; seconds are those in which anything was read or embedded, so that a
run that mostly waited says as much about its speed as one that was busy throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CHARACTERS_A_PAGE = 3000
"""Of a format that knows no pages, such as DOCX: a printed page of running text."""

RECENT = 0.5
"""Each run counts half as much as the one after it."""

LAST = 3
"""Runs whose slowest request counts; one that had to wait for a server long ago is forgotten."""

LEAST_SECONDS = 1.0
"""A shorter measurement is mostly the start of something, and counts only where there is no longer one."""

LEAST_SPREAD = 0.1
"""No range is narrower than this share of its middle to each side: another night's documents are others."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run measured. request_seconds: the slowest request for vectors that it sent."""

    pages: int = 0
    read_seconds: float = 0.0
    tokens: int = 0
    embed_seconds: float = 0.0
    request_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Something per second: what is likely, and between which values the runs lay. 0 < low <= likely <= high."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True)
class Rates:
    """Pages read and tokens embedded per second; None where that was never measured here.

    request_seconds: what the slowest request of the runs took, 0.0 where none was sent.
    runs: how many runs this is from.
    """

    pages: Rate | None = None
    tokens: Rate | None = None
    request_seconds: float = 0.0
    runs: int = 0


def measure_rates(samples: Sequence[Sample]) -> Rates:
    """The rates of a host, from its runs, newest first."""
    return Rates(
        pages=_rate(samples, lambda sample: (sample.pages, sample.read_seconds)),
        tokens=_rate(samples, lambda sample: (sample.tokens, sample.embed_seconds)),
        request_seconds=max((sample.request_seconds for sample in samples[:LAST]), default=0.0),
        runs=len(samples),
    )


def pages_of(page_count: int, characters: int) -> int:
    """The pages of a document that was read; of a format without pages, those that its text would fill."""
    return page_count or math.ceil(characters / CHARACTERS_A_PAGE)


def _rate(samples: Sequence[Sample], part: Callable[[Sample], tuple[int, float]]) -> Rate | None:
    """The weighted mean, and the range of the runs; a run weighs by its age and by how long it measured."""
    measured = [(amount, seconds) for amount, seconds in map(part, samples) if amount > 0 and seconds > 0]
    measured = [each for each in measured if each[1] >= LEAST_SECONDS] or measured
    if not measured:
        return None
    weights = [RECENT**age for age in range(len(measured))]
    amount = sum(weight * each[0] for weight, each in zip(weights, measured, strict=True))
    seconds = sum(weight * each[1] for weight, each in zip(weights, measured, strict=True))
    likely = amount / seconds
    each_run = [amount / seconds for amount, seconds in measured]
    return Rate(
        min(*each_run, likely * (1 - LEAST_SPREAD)),
        likely,
        max(*each_run, likely * (1 + LEAST_SPREAD)),
    )
