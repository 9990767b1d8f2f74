"""What fits into a time, and how many nights a backlog takes."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.plan import NEGLIGIBLE, Backlog, WorkTime, plan_nights, plan_window
from pipeline.core.rates import LEAST_SPREAD, Rate, Rates, Sample, measure_rates, pages_of

EVENING = dt.datetime(2026, 6, 1, 22, tzinfo=dt.UTC)

amounts = st.floats(0, 1e9) | st.just(0.0)
backlogs = st.builds(
    lambda documents, pages, a_page, tokens: Backlog(documents, pages, pages * a_page, tokens),
    st.integers(0, 10**6),
    amounts,
    st.floats(1, 1000),
    amounts,
)
speeds = st.floats(0.01, 1e6).flatmap(
    lambda likely: st.builds(
        lambda down, up: Rate(likely * down, likely, likely * up), st.floats(0.1, 1), st.floats(1, 9)
    )
)
rates = st.builds(Rates, pages=speeds, tokens=speeds)
seconds = st.floats(0, 1e6)


@given(backlogs, rates, seconds, st.booleans())
def test_what_is_done_and_what_is_left_are_all_there_was(
    backlog: Backlog, known: Rates, time: float, reads_only: bool
) -> None:
    plan = plan_window(backlog, known, time, reads_only=reads_only)
    assert plan.pages + plan.left.pages == pytest.approx(backlog.pages)
    assert plan.tokens + plan.left.all_tokens == pytest.approx(backlog.all_tokens, rel=1e-9, abs=1e-6)
    left = plan.left
    assert min(plan.pages, plan.tokens, left.documents, left.pages, left.new_tokens, left.tokens) >= -NEGLIGIBLE
    assert known.pages is not None
    assert known.tokens is not None
    assert plan.pages <= time * known.pages.likely * (1 + 1e-9)
    assert plan.tokens <= time * known.tokens.likely * (1 + 1e-9)
    assert not (reads_only and plan.tokens)


@given(backlogs, rates, seconds)
def test_it_is_complete_just_where_there_is_time_enough(backlog: Backlog, known: Rates, time: float) -> None:
    plan = plan_window(backlog, known, time)
    assert plan_window(backlog, known, plan.seconds * (1 + 1e-9) + 1e-9).complete
    if plan.complete:
        assert known.pages is not None
        assert known.tokens is not None
        slack = NEGLIGIBLE / known.pages.likely + 2 * NEGLIGIBLE / known.tokens.likely
        assert plan.seconds <= time * (1 + 1e-9) + slack


@given(backlogs, rates, seconds, seconds)
def test_more_time_never_does_less(backlog: Backlog, known: Rates, one: float, other: float) -> None:
    short, long = (plan_window(backlog, known, time) for time in sorted((one, other)))
    assert short.pages <= long.pages * (1 + 1e-9)
    assert short.tokens <= long.tokens * (1 + 1e-9)
    slow, likely, fast = (plan_window(backlog, known, one, at=end) for end in ("low", "likely", "high"))
    assert slow.pages * (1 - 1e-9) <= likely.pages <= fast.pages * (1 + 1e-9)
    assert slow.seconds >= likely.seconds >= fast.seconds


@given(backlogs)
def test_nothing_is_promised_where_nothing_was_measured(backlog: Backlog) -> None:
    plan = plan_window(backlog, Rates(), 3600)
    assert (plan.pages, plan.tokens) == (0.0, 0.0)
    assert plan.complete == backlog.empty
    forecast = plan_nights(backlog, Rates(), nights(3))
    assert forecast.known == (backlog.pages <= NEGLIGIBLE and backlog.all_tokens <= NEGLIGIBLE)
    if not forecast.known:
        assert forecast.likely.at is None


def nights(count: int, hours: float = 6, *, by_day: bool = False) -> list[WorkTime]:
    times = []
    for day in range(count):
        start = EVENING + dt.timedelta(days=day)
        times.append(WorkTime(start, start + dt.timedelta(hours=hours), "nightly"))
        if by_day:
            times.append(
                WorkTime(start + dt.timedelta(hours=8), start + dt.timedelta(hours=18), "ahead", reads_only=True)
            )
    return times


def steady(pages: float | None = None, tokens: float | None = None) -> Rates:
    both = [None if rate is None else Rate(rate * 0.5, rate, rate * 2) for rate in (pages, tokens)]
    return Rates(pages=both[0], tokens=both[1])


def test_a_backlog_is_done_in_the_night_and_at_the_hour_that_arithmetic_says() -> None:
    # 6 h are 21,600 s: 30,000 s of embedding at the likely rate are one night and 8,400 s of the next.
    forecast = plan_nights(Backlog(tokens=3_000_000), steady(tokens=100), nights(9))
    assert forecast.known
    assert (forecast.likely.nights, forecast.likely.at) == (2, EVENING + dt.timedelta(days=1, seconds=8_400))
    assert (forecast.soonest.nights, forecast.latest.nights) == (1, 3)
    assert [round(night.tokens) for night in forecast.nights] == [2_160_000, 840_000]


def test_reading_by_day_shortens_the_nights() -> None:
    backlog = Backlog(documents=100, pages=60_000, new_tokens=600_000)
    alone = plan_nights(backlog, steady(pages=1, tokens=100), nights(9))
    ahead = plan_nights(backlog, steady(pages=1, tokens=100), nights(9, by_day=True))
    assert (alone.likely.nights, ahead.likely.nights) == (3, 2)
    assert [night.time.job for night in ahead.nights] == ["nightly", "ahead", "nightly"]
    assert ahead.nights[1].tokens == 0


def test_what_never_ends_is_said_to_have_no_end() -> None:
    forecast = plan_nights(Backlog(tokens=1e12), steady(tokens=1), nights(5))
    assert (forecast.known, forecast.likely.nights, forecast.likely.at) == (True, None, None)
    assert plan_nights(Backlog(), steady(tokens=1), nights(5)).likely.nights == 0
    assert plan_nights(Backlog(tokens=5), steady(tokens=1), []).likely.nights is None


@given(backlogs, rates, st.integers(1, 12), st.booleans())
def test_the_range_holds_what_is_likely(backlog: Backlog, known: Rates, count: int, by_day: bool) -> None:
    forecast = plan_nights(backlog, known, nights(count, by_day=by_day))
    ends = [forecast.soonest.nights, forecast.likely.nights, forecast.latest.nights]
    numbers = [count + 1 if end is None else end for end in ends]
    assert numbers == sorted(numbers)
    for night in forecast.nights:
        if night.done_at is not None:
            assert night.time.start <= night.done_at <= night.time.end + dt.timedelta(seconds=60)


def sample(pages: int, read: float, tokens: int = 0, embed: float = 0.0, request: float = 0.0) -> Sample:
    return Sample(pages, read, tokens, embed, request)


def test_rates_lean_towards_the_last_run_and_range_over_all() -> None:
    found = measure_rates([sample(1000, 10), sample(500, 10), sample(500, 10)])
    assert found.pages is not None
    assert 750 / 10 < found.pages.likely < 1000 / 10
    assert (found.pages.low, found.pages.high) == (50, 100)
    assert found.tokens is None
    assert found.runs == 3


def test_a_moment_counts_only_where_there_is_nothing_longer() -> None:
    blink, night = sample(10, 0.01), sample(1000, 100)
    found = measure_rates([blink, night])
    assert found.pages is not None
    assert found.pages.likely == pytest.approx(10)
    only = measure_rates([blink])
    assert only.pages is not None
    assert only.pages.likely == pytest.approx(1000)
    assert only.pages.low <= 1000 * (1 - LEAST_SPREAD)


def test_a_request_that_was_slow_long_ago_is_forgotten() -> None:
    old = [sample(0, 0, 100, 10, 1.0)] * 3 + [sample(0, 0, 100, 10, 300.0)]
    assert measure_rates(old).request_seconds == 1.0
    assert measure_rates(old[2:]).request_seconds == 300.0


@given(st.lists(st.builds(sample, st.integers(0, 10**6), st.floats(0, 1e6), st.integers(0, 10**9), st.floats(0, 1e6))))
def test_every_rate_lies_within_its_range(samples: list[Sample]) -> None:
    found = measure_rates(samples)
    for rate in (found.pages, found.tokens):
        assert rate is None or 0 < rate.low <= rate.likely <= rate.high


def test_a_format_without_pages_has_those_that_its_text_would_fill() -> None:
    assert (pages_of(7, 10), pages_of(0, 1), pages_of(0, 3001), pages_of(0, 0)) == (7, 1, 2, 0)
