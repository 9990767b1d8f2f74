"""Vectors in few bytes, to find out quickly which are worth comparing exactly: 8-bit numbers, and one bit a number.

A first pass counts in how many signs a vector differs from the question; of those that differ least, a second one takes
products of the 8-bit numbers. Neither decides a score: what they leave is compared by the vectors themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.core.vectors import similarities

LEVELS = 127
WORD = 64
"""Signs in one number of the first pass."""

BLOCK = 1 << 15
"""Vectors at a time in the first pass: what it works on stays in a core's own cache."""

DEVIATIONS = 6.0
"""Of the rounding of a product, within which it is taken to lie; beyond that is one in 500 million."""

AUTO = 20_000
"""Vectors from which a copy is made where nothing else is wanted: to search as many exactly takes some 40 ms."""

OUTDATED = 0.1
"""Of the vectors in a copy: when so many more could be in it, or are there no more, it is made anew."""

Bits = NDArray[np.uint64]
Wanted: TypeAlias = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class Rounded:
    """Vectors [n, d] as `numbers` int8[n, d] times `scales` float32[n]."""

    numbers: NDArray[np.int8]
    scales: NDArray[np.float32]


def rounded(vectors: NDArray[np.float32]) -> Rounded:
    """Vectors [n, d], each by the largest of its numbers."""
    scales = (np.abs(vectors).max(axis=1, initial=0.0) / LEVELS).astype(np.float32)
    steps = np.where(scales > 0, scales, np.float32(1.0))[:, None]
    return Rounded(np.rint(vectors / steps).astype(np.int8), scales)


def products(some: Rounded, question: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The scalar products of rounded vectors with a unit vector, [n], and how far each may be off."""
    values = similarities(some.numbers.astype(np.float32), question) * some.scales
    # Each number is off by up to half a step, evenly; against a unit vector all together deviate as one of them does.
    return values.astype(np.float32), (some.scales * np.float32(DEVIATIONS / np.sqrt(12))).astype(np.float32)


def worthwhile(values: NDArray[np.float32], errors: NDArray[np.float32], k: int) -> NDArray[np.bool_]:
    """Which of [n] may be among the `k` largest, each value being off by up to its error."""
    if len(values) <= k:
        return np.ones(len(values), np.bool_)
    surely = np.partition(values - errors, -k)[-k]
    may_be: NDArray[np.bool_] = values + errors >= surely
    return may_be


def signs(vectors: NDArray[np.float32], middle: NDArray[np.float32]) -> Bits:
    """On which side of `middle` [d] the numbers of vectors [n, d] lie: uint64[words, n], a column for each vector."""
    count, dimension = vectors.shape
    sides = np.zeros((count, words(dimension) * WORD), np.bool_)
    np.greater(vectors, middle, out=sides[:, :dimension])
    return np.ascontiguousarray(np.packbits(sides, axis=1).view("<u8").T)


def words(dimension: int) -> int:
    """How many numbers the signs of one vector take."""
    return -(-dimension // WORD)


def differences(bits: Bits, asked: Bits) -> NDArray[np.uint16]:
    """In how many signs each of `bits` [words, n] differs from `asked` [words]."""
    found = np.zeros(bits.shape[1], np.uint16)
    other, counts = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint8)
    for begin in range(0, len(found), BLOCK):
        here = found[begin : begin + BLOCK]
        size = len(here)
        for word, signs_asked in zip(bits, asked, strict=True):
            np.bitwise_xor(word[begin : begin + size], signs_asked, out=other[:size])
            np.bitwise_count(other[:size], out=counts[:size])
            here += counts[:size]
    return found


def least(numbers: NDArray[np.uint16], count: int) -> NDArray[np.intp]:
    """Where the `count` smallest of [n] are, in their order; and others that equal the largest of these."""
    if count >= len(numbers):
        return np.arange(len(numbers))
    reached = np.cumsum(np.bincount(numbers))
    return np.flatnonzero(numbers <= np.searchsorted(reached, count))


def first_candidates(vectors: int, k: int) -> int:
    """How many of so many vectors go on from the first pass, for the `k` best ones."""
    return max(2_000, 100 * k, vectors // 50)


@dataclass(frozen=True, slots=True)
class Standing:
    """Of a model's vectors: how many there are; and of its copy, none where `rows` is 0.

    rows: vectors in the copy. addable: those that it could hold besides. gone: those in it that are no longer there.
    """

    vectors: int
    rows: int = 0
    addable: int = 0
    gone: int = 0


def plan_copy(standing: Standing, wanted: Wanted) -> Literal["build", "keep", "drop", "none"]:
    """What is to be done about a model's copy."""
    outdated = standing.addable + standing.gone > OUTDATED * standing.rows
    if wanted == "off" or not standing.vectors:
        return "drop" if standing.rows else "none"
    if wanted == "auto" and standing.vectors < AUTO:
        # One that a person had made stays as long as it is of use.
        return "none" if not standing.rows else "drop" if outdated else "keep"
    return "build" if outdated else "keep" if standing.rows else "none"
