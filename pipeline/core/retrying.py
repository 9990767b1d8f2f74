"""When to try again what may work later."""

from __future__ import annotations

import datetime as dt

FIRST = dt.timedelta(seconds=20)
AWAY_FIRST = dt.timedelta(minutes=2)
LONGEST = dt.timedelta(hours=6)
_GROWTH = 4


def retry_delay(attempts: int, luck: float, first: dt.timedelta = FIRST) -> dt.timedelta:
    """How long to wait after `attempts` earlier tries: four times as long each time, and a random half less.

    luck: a random number from 0 to 1. Without it, a thousand files of one share that failed together would be tried
    together again.
    """
    longest = first
    for _ in range(attempts):
        longest = min(longest * _GROWTH, LONGEST)
        if longest == LONGEST:
            break
    return longest * (0.5 + luck / 2)
