"""Puts sequences of tokens into batches. Pure: it knows lengths, never texts, models or time.

An encoder attends over everything that is packed with a sequence, so the work grows with the
square of a batch's size: a batch is filled to a budget and not to what memory would hold.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


def pack(lengths: Sequence[int], budget: int, max_sequences: int) -> list[list[int]]:
    """Indices of `lengths` in batches of at most `budget` tokens and `max_sequences` sequences.

    The longest that is left opens a batch and the longest that still fit fill it (first-fit
    decreasing: at most 11/9 of the fewest possible batches, Johnson 1973). A sequence longer
    than the budget gets a batch of its own. Every index appears exactly once.
    """
    _positive(budget=budget, max_sequences=max_sequences)
    waiting = sorted((length, -index) for index, length in enumerate(lengths))
    batches: list[list[int]] = []
    while waiting:
        taken = take_fitting(waiting, budget, max_sequences, force_first=True)
        batches.append([-index for _, index in taken])
    return batches


def take_fitting(
    waiting: list[tuple[int, int]], room: int, slots: int, *, force_first: bool = False
) -> list[tuple[int, int]]:
    """Remove from `waiting` what fits into `room` tokens and `slots` sequences, the longest first.

    `waiting` holds (length, key) in ascending order and stays so. With `force_first` the longest
    is taken even where it alone exceeds the room, so that it is never left waiting for ever.
    """
    taken: list[tuple[int, int]] = []
    if force_first and waiting and slots > 0:
        taken.append(waiting.pop())
        room -= taken[0][0]
    while waiting and len(taken) < slots:
        place = bisect_right(waiting, room, key=lambda entry: entry[0])
        if place == 0:
            break
        taken.append(waiting.pop(place - 1))
        room -= taken[-1][0]
    return taken


def take_alike(
    waiting: list[tuple[int, int]], room: int, slots: int, *, longest: int = 0, held: int = 0
) -> list[tuple[int, int]]:
    """Remove from `waiting` what joins a batch that is padded to its longest, the longest first.

    `waiting` holds (length, key) in ascending order and stays so. A padded batch costs its number of sequences times
    the longest of them, and `room` is the most that may be. `held` sequences of up to `longest` tokens are in
    it; where there are none, the longest that waits opens it, however long it is. What is shorter than
    half of the longest waits for a batch of its own kind: most of its row would be padding.
    """
    taken: list[tuple[int, int]] = []
    if not held and waiting and slots > 0:
        taken.append(waiting.pop())
        longest = taken[0][0]
    while waiting and len(taken) < slots and (held + len(taken) + 1) * longest <= room:
        place = bisect_right(waiting, longest, key=lambda entry: entry[0])
        if place == 0 or waiting[place - 1][0] * 2 < longest:
            break
        taken.append(waiting.pop(place - 1))
    return taken


def halve(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """The first and the second half of `items`, which are at least two; the first is never the smaller."""
    if len(items) < 2:
        raise ValueError(f"cannot halve {len(items)} item(s)")
    middle = (len(items) + 1) // 2
    return list(items[:middle]), list(items[middle:])


def plan_share(waiting: int, workers: int, budget: int, least: int = 64) -> int:
    """Tokens for the next batch, so that `waiting` tokens keep all `workers` busy to the end.

    The whole budget while there is plenty; near the end an equal share for each, but not below
    `least`, where a batch's fixed cost begins to show.
    """
    return min(budget, max(least, -(-waiting // workers)))


def plan_ubatch(budget: int, max_input: int, n_seq_max: int) -> int:
    """The capacity in tokens of one native batch: holds the budget and the longest single input.

    Rounded up to a multiple of `n_seq_max`: llama.cpp lays its pooling matrix out as tokens by
    sequences and aborts the process on any other number.
    """
    _positive(budget=budget, max_input=max_input, n_seq_max=n_seq_max)
    return -(-max(budget, max_input) // n_seq_max) * n_seq_max


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
