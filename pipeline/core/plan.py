"""What is pending, what of it fits into a time, and how many nights the whole of it takes.

`plan_window` is the one piece of arithmetic: the forecast asks it what fits into a night, and a run asks it,
before each document and each request, whether that one still fits before its deadline.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.core.rates import Rate, Rates

LeastLikelyMost = Literal["low", "likely", "high"]

NEGLIGIBLE = 0.01
"""Of a page or a token: what arithmetic leaves over."""

MOST_WINDOWS = 1000
"""Windows that a forecast looks ahead."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits.

    documents: that are to be read; their `pages`, and the `new_tokens` that they will give, are estimates.
    tokens: of chunks that only wait for their vector.
    """

    documents: int = 0
    pages: float = 0.0
    new_tokens: float = 0.0
    tokens: float = 0.0

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return self.pages <= NEGLIGIBLE and self.new_tokens + self.tokens <= NEGLIGIBLE

    @property
    def all_tokens(self) -> float:
        """To be embedded, read or not."""
        return self.new_tokens + self.tokens


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """What of a backlog fits into a time. seconds: how long the whole backlog takes, infinite at an unknown rate."""

    pages: float
    tokens: float
    seconds: float
    left: Backlog

    @property
    def complete(self) -> bool:
        """Whether all of it fits."""
        return self.left.empty


@dataclass(frozen=True, slots=True)
class WorkTime:
    """A time that work may use, in the future. reads_only: nothing is embedded in it."""

    start: dt.datetime
    end: dt.datetime
    job: str
    reads_only: bool = False

    @property
    def seconds(self) -> float:
        """How long it is."""
        return max(0.0, (self.end - self.start).total_seconds())


@dataclass(frozen=True, slots=True)
class Night:
    """What a window is likely to get done. done_at: when the backlog is done, if it is by then."""

    time: WorkTime
    pages: float
    tokens: float
    done_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Finish:
    """When the backlog is done. nights: windows with embedding that it takes; None: not in those looked at."""

    nights: int | None
    at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """How the backlog is worked off. soonest, likely, latest: at the rates' upper end, middle and lower end.

    known: whether there are rates for all that waits. nights: the windows in order, up to the one that is likely
    to finish it.
    """

    known: bool
    soonest: Finish
    likely: Finish
    latest: Finish
    nights: Sequence[Night]


def plan_window(
    backlog: Backlog,
    rates: Rates,
    seconds: float,
    *,
    reads_only: bool = False,
    at: LeastLikelyMost = "likely",
) -> WindowPlan:
    """What of a backlog is done in so many seconds.

    Reading and embedding overlap: a window ends with whichever takes longer, and what is not read by then
    cannot be embedded. Of a backlog whose rate is not known nothing is promised.

    at: which end of the rates' ranges to count with.
    """
    seconds = max(0.0, seconds)
    reading, embedding = _value(rates.pages, at), _value(rates.tokens, at)
    pages = min(backlog.pages, seconds * reading)
    share = 1.0 if backlog.pages <= NEGLIGIBLE else pages / backlog.pages
    came = backlog.new_tokens * share
    tokens = 0.0 if reads_only else min(backlog.tokens + came, seconds * embedding)
    left = Backlog(
        documents=round(backlog.documents * (1 - share)),
        pages=backlog.pages - pages,
        new_tokens=backlog.new_tokens - came,
        tokens=backlog.tokens + came - tokens,
    )
    needed = _time(backlog.pages, reading)
    if not reads_only:
        needed = max(needed, _time(backlog.all_tokens, embedding))
    return WindowPlan(pages, tokens, needed, left)


def plan_nights(backlog: Backlog, rates: Rates, times: Iterable[WorkTime]) -> Forecast:
    """How the backlog is worked off in the times ahead, in their order."""
    times = [time for _, time in zip(range(MOST_WINDOWS), times, strict=False)]
    known = (rates.pages is not None or backlog.pages <= NEGLIGIBLE) and (
        rates.tokens is not None or backlog.all_tokens <= NEGLIGIBLE
    )
    nights = _nights(backlog, rates, times, "likely")
    return Forecast(
        known=known,
        soonest=_finish(_nights(backlog, rates, times, "high"), backlog),
        likely=_finish(nights, backlog),
        latest=_finish(_nights(backlog, rates, times, "low"), backlog),
        nights=nights,
    )


def _nights(backlog: Backlog, rates: Rates, times: Sequence[WorkTime], at: LeastLikelyMost) -> list[Night]:
    nights: list[Night] = []
    left = backlog
    for time in times:
        if left.empty:
            break
        plan = plan_window(left, rates, time.seconds, reads_only=time.reads_only, at=at)
        done_at = time.start + dt.timedelta(seconds=plan.seconds) if plan.left.empty else None
        nights.append(Night(time, plan.pages, plan.tokens, done_at))
        left = plan.left
    return nights


def _finish(nights: Sequence[Night], backlog: Backlog) -> Finish:
    if backlog.empty:
        return Finish(0, None)
    done_at = nights[-1].done_at if nights else None
    if done_at is None:
        return Finish(None, None)
    return Finish(sum(not night.time.reads_only for night in nights), done_at)


def _value(rate: Rate | None, at: LeastLikelyMost) -> float:
    return 0.0 if rate is None else {"low": rate.low, "likely": rate.likely, "high": rate.high}[at]


def _time(amount: float, rate: float) -> float:
    if amount <= NEGLIGIBLE:
        return 0.0
    return amount / rate if rate > 0 else float("inf")
