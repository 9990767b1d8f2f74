"""The pauses between tries: longer each time, never for ever, and not all at once."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.retrying import AWAY_FIRST, FIRST, LONGEST, retry_delay

attempts = st.integers(0, 10_000)
luck = st.floats(0, 1)
firsts = st.sampled_from([FIRST, AWAY_FIRST, dt.timedelta(seconds=1)])


@given(attempts, luck, firsts)
def test_a_pause_is_never_longer_than_the_longest(tries: int, chance: float, first: dt.timedelta) -> None:
    assert first / 2 <= retry_delay(tries, chance, first) <= LONGEST


@given(attempts, luck, luck, firsts)
def test_later_pauses_are_no_shorter_whatever_the_luck(
    tries: int, one: float, other: float, first: dt.timedelta
) -> None:
    before, after = retry_delay(tries, one, first), retry_delay(tries + 1, other, first)
    assert after >= before or before > LONGEST / 2
    assert retry_delay(tries, one, first) == before  # nothing is drawn in here


def test_luck_spreads_what_failed_together() -> None:
    assert (retry_delay(0, 0.0), retry_delay(0, 1.0)) == (FIRST / 2, FIRST)
    assert retry_delay(1, 0.0) == 2 * FIRST
    assert retry_delay(2, 1.0) == 16 * FIRST
