"""Which mode is wanted, against a clock watched minute by minute."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.core.cron import parse_cron
from pipeline.core.modes import Mode, Slot
from pipeline.core.schedule import (
    Hold,
    Job,
    Reason,
    desired_mode,
    forecast,
    latest_end,
    missed_window,
    next_change,
    retry_after,
    window_at,
)
from tests.core.clock import DAY, ZONES, changes_of, day_shifts, job, wanted, watch

HOUR = timedelta(hours=1)
BERLIN = ZoneInfo("Europe/Berlin")
SHIFTS = day_shifts("Europe/Berlin")


def berlin(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 6, day, hour, minute, tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("now", "mode", "until"),
    [
        (berlin(2, 1, 59), Mode.MIXED, berlin(2, 2)),
        (berlin(2, 2), Mode.EMBEDDING, berlin(2, 8)),
        (berlin(2, 3), Mode.EMBEDDING, berlin(2, 8)),
        (berlin(2, 9), Mode.GENERATION, berlin(2, 18)),
        (berlin(2, 23), Mode.MIXED, berlin(3, 2)),
    ],
)
def test_whenever_the_daemon_starts_it_knows_its_mode(now: datetime, mode: Mode, until: datetime) -> None:
    desired = desired_mode(SHIFTS, now)
    assert (desired.mode, desired.until, desired.reason) == (mode, until, Reason.SCHEDULE)
    assert desired.job is not None
    assert desired.window is not None
    assert now in desired.window
    assert next_change(SHIFTS, now) == until


def test_where_no_window_is_open_it_is_the_default_until_the_next_one() -> None:
    nightly = SHIFTS[:1]
    desired = desired_mode(nightly, berlin(2, 12))
    assert (desired.mode, desired.job, desired.window, desired.until) == (Mode.IDLE, None, None, berlin(3, 2))
    assert desired_mode(nightly, berlin(2, 12), default=Mode.GENERATION).mode is Mode.GENERATION
    assert desired_mode([], berlin(2, 12)).until is None
    assert next_change([], berlin(2, 12)) is None


def test_a_job_that_is_not_enabled_does_not_count() -> None:
    off = [replace(SHIFTS[0], enabled=False), *SHIFTS[1:]]
    desired = desired_mode(off, berlin(2, 3))
    assert (desired.mode, desired.until) == (Mode.IDLE, berlin(2, 8))


def test_of_windows_that_are_open_together_the_later_one_counts() -> None:
    whole = job("whole", "0 0 * * *", "24:00", "Europe/Berlin", Mode.GENERATION)
    night = job("night", "0 2 * * *", "08:00", "Europe/Berlin", Mode.EMBEDDING)
    for jobs in ([whole, night], [night, whole]):
        assert desired_mode(jobs, berlin(2, 1)).until == berlin(2, 2)
        assert desired_mode(jobs, berlin(2, 3)).mode is Mode.EMBEDDING
        assert desired_mode(jobs, berlin(2, 8)).mode is Mode.GENERATION
        assert next_change(jobs, berlin(2, 8)) == berlin(3, 2)


def test_a_higher_priority_counts_more_than_a_later_start() -> None:
    whole = job("whole", "0 0 * * *", "24:00", "Europe/Berlin", Mode.GENERATION, priority=1)
    night = job("night", "0 2 * * *", "08:00", "Europe/Berlin", Mode.EMBEDDING)
    desired = desired_mode([whole, night], berlin(2, 3))
    assert (desired.mode, desired.until) == (Mode.GENERATION, berlin(3, 0))
    assert next_change([whole, night], berlin(2, 3)) is None


def test_a_skipped_hour_leaves_the_later_of_two_windows() -> None:
    early = job("zz", "10 2 * * *", "02:40", "Europe/Berlin", Mode.EMBEDDING)
    late = job("aa", "40 2 * * *", "08:00", "Europe/Berlin", Mode.GENERATION)
    desired = desired_mode([early, late], datetime(2026, 3, 29, 3, 5, tzinfo=BERLIN))
    assert desired.job == late


def test_a_hold_goes_first_and_ends_by_itself() -> None:
    hold = Hold(Mode.EMBEDDING, berlin(2, 14))
    held = desired_mode(SHIFTS, berlin(2, 12), hold)
    assert (held.mode, held.reason, held.job, held.until) == (Mode.EMBEDDING, Reason.OPERATOR, None, berlin(2, 14))
    assert desired_mode(SHIFTS, berlin(2, 14), hold).mode is Mode.GENERATION
    assert next_change(SHIFTS, berlin(2, 12), hold) == berlin(2, 14)
    assert next_change(SHIFTS, berlin(2, 12), Hold(Mode.GENERATION, berlin(2, 14))) == berlin(2, 18)
    for_good = Hold(Mode.IDLE)
    assert desired_mode(SHIFTS, berlin(2, 12), for_good).until is None
    assert next_change(SHIFTS, berlin(2, 12), for_good) is None


def test_a_finished_task_gives_its_window_up_unless_it_stays() -> None:
    base = job("base", "0 0 * * *", "24:00", "Europe/Berlin", Mode.GENERATION)
    night = replace(job("night", "0 2 * * *", "08:00", "Europe/Berlin", priority=1), task="ingest")
    now = berlin(2, 4)

    def mode(one: Job, finished: datetime) -> Mode:
        return desired_mode([base, one], now, finished={"night": finished}).mode

    assert mode(night, berlin(2, 3)) is Mode.GENERATION
    assert mode(night, berlin(1, 7)) is Mode.EMBEDDING
    assert mode(replace(night, on_finish="stay"), berlin(2, 3)) is Mode.EMBEDDING
    assert mode(replace(night, task=None), berlin(2, 3)) is Mode.EMBEDDING
    assert next_change([base, night], now, finished={"night": berlin(2, 3)}) == berlin(3, 2)


@pytest.mark.parametrize(
    ("now", "slot", "hours"),
    [
        (berlin(2, 4), Slot.GENERATION, 4),
        (berlin(2, 4), Slot.EMBEDDING, 0),
        (berlin(2, 12), Slot.EMBEDDING, 6),
        (berlin(2, 20), Slot.GENERATION, 0),
        (berlin(2, 20), Slot.EMBEDDING, 0),
    ],
)
def test_a_refused_request_is_told_when_to_come_back(now: datetime, slot: Slot, hours: int) -> None:
    assert retry_after(SHIFTS, now, slot) == hours * 3600


def test_a_request_that_nothing_will_serve_is_told_nothing() -> None:
    assert retry_after(SHIFTS[:1], berlin(2, 4), Slot.GENERATION) is None
    assert retry_after(SHIFTS, berlin(2, 4), Slot.GENERATION, Hold(Mode.IDLE)) is None
    assert retry_after(SHIFTS, berlin(2, 4), Slot.GENERATION, Hold(Mode.IDLE, berlin(2, 10))) == 6 * 3600


def test_a_change_far_ahead_is_found_and_a_schedule_without_one_is_given_up() -> None:
    leap = job("leap", "0 0 29 2 *", "06:00", "UTC")
    assert next_change([leap], datetime(2097, 1, 1, tzinfo=UTC)) == datetime(2104, 2, 29, tzinfo=UTC)
    hourly = job("all", "0 * * * *", "1h", "UTC", Mode.GENERATION)
    assert next_change([hourly], datetime(2026, 1, 1, tzinfo=UTC)) is None
    steps = list(forecast([job("all", "0 0 * * *", "24:00")], datetime(2026, 1, 1, tzinfo=UTC)))
    assert len(steps) == 401


def test_the_work_ends_early_enough_for_the_next_model_to_serve() -> None:
    window = window_at(SHIFTS[0], berlin(2, 3))
    assert window is not None
    assert latest_end(window.end, 40, 10, 10) == berlin(2, 7, 59)


@pytest.mark.parametrize(
    ("last_finished", "known_since", "missed"),
    [
        (berlin(1, 5), None, True),
        (berlin(2, 5), None, False),
        (None, berlin(1, 12), True),
        (None, berlin(2, 9), False),
        (berlin(1, 5), berlin(2, 9), False),
        (None, None, False),
    ],
)
def test_a_window_without_a_completed_run_was_missed(
    last_finished: datetime | None, known_since: datetime | None, missed: bool
) -> None:
    night = replace(SHIFTS[0], task="ingest", catch_up=True)
    window = missed_window(night, berlin(2, 9), last_finished, known_since)
    assert (window is not None) == missed
    if window is not None:
        assert (window.start, window.end) == (berlin(2, 2), berlin(2, 8))


def test_a_window_that_is_open_or_need_not_be_made_up_for_was_not_missed() -> None:
    night = replace(SHIFTS[0], task="ingest", catch_up=True)
    assert missed_window(night, berlin(2, 3), berlin(1, 5)) is None
    for other in (replace(night, catch_up=False), replace(night, enabled=False), replace(night, task=None)):
        assert missed_window(other, berlin(2, 9), berlin(1, 5)) is None


@given(st.integers(0, 7 * 24 * 60), st.timedeltas(min_value=timedelta(microseconds=1), max_value=timedelta(days=90)))
def test_a_task_that_was_completed_in_the_future_was_not_completed(minute: int, ahead: timedelta) -> None:
    """A clock that was ahead noted it. Neither this window nor one that opens by then is given up because of it."""
    jobs = [replace(each, task="ingest", on_finish="return", catch_up=True) for each in SHIFTS]
    now = berlin(2, 0) + timedelta(minutes=minute)
    finished = {each.name: now + ahead for each in jobs}
    assert desired_mode(jobs, now, finished=finished) == desired_mode(jobs, now)
    steps = list(islice(forecast(jobs, now, finished=finished), 12))
    assert steps == list(islice(forecast(jobs, now), 12))
    for each in jobs:
        known = now - timedelta(days=9)
        assert missed_window(each, now, now + ahead, known) == missed_window(each, now, None, known)
        assert missed_window(each, now, known, now + ahead) == missed_window(each, now, known, None)


CRONS = st.sampled_from(
    [
        "0 2 * * *",
        "30 2 * * *",
        "15 0 * * *",
        "0 0,12 * * *",
        "*/25 1-3 * * *",
        "45 22 * * mon-fri",
        "0 8 1-31/2 * *",
        "10 * * * *",
    ]
)
UNTILS = st.sampled_from(["08:00", "02:00", "02:45", "00:00", "03:00", "6h", "30m", "24h", "26h", "1m"])
SOME_ZONES = st.sampled_from(sorted(ZONES))


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[Job], datetime]:
    """Some jobs, mostly of one zone, and a day close to a change of its clock."""
    zone = draw(SOME_ZONES)
    jobs = [
        job(
            f"job{number}",
            draw(CRONS),
            draw(UNTILS),
            draw(SOME_ZONES) if draw(st.integers(0, 3)) == 0 else zone,
            draw(st.sampled_from(list(Mode))),
            draw(st.integers(0, 1)),
        )
        for number in range(draw(st.integers(1, 4)))
    ]
    year = draw(st.sampled_from(ZONES[zone]))
    days = [*changes_of(zone, year), datetime(year, 6, 1, tzinfo=UTC)]
    return draw(st.permutations(jobs)), draw(st.sampled_from(days))


@settings(max_examples=60, deadline=None)
@given(plans(), st.randoms(use_true_random=False))
def test_the_wanted_mode_is_what_watching_the_clock_gives(
    plan: tuple[list[Job], datetime], choose: random.Random
) -> None:
    jobs, day = plan
    seen = list(watch(jobs, day - 3 * DAY, 5 * 24 * 60))[3 * 24 * 60 - 12 * 60 :]
    modes: list[tuple[datetime, Mode, str | None]] = []
    for now, open_now in seen:
        best = wanted(jobs, open_now)
        modes.append((now, Mode.IDLE, None) if best is None else (now, best.mode or Mode.IDLE, best.name))
    changed = [index for index in range(1, len(modes)) if modes[index][1:] != modes[index - 1][1:]]
    sampled = {index + shift for index in changed for shift in (-1, 0)} | set(choose.sample(range(len(modes)), 40))
    for index in sorted(sampled, key=lambda _: choose.random()):
        now, mode, name = modes[index]
        desired = desired_mode(jobs, now)
        assert (desired.mode, desired.job and desired.job.name) == (mode, name), now
        assert (desired.window.start if desired.window else None) == (
            seen[index][1][name].start if name is not None else None
        )
        assert desired == desired_mode(jobs[::-1], now.astimezone(jobs[0].timezone))
        assert desired.until is None or desired.until > now
    _check_changes(jobs, modes)


def _check_changes(jobs: list[Job], modes: list[tuple[datetime, Mode, str | None]]) -> None:
    """From the first instant on, the next changes are those that were seen, and slots are served from then on."""
    seen = [now for (_, before, _), (now, after, _) in pairwise(modes) if before is not after]
    at, found = modes[0][0], []
    while (change := next_change(jobs, at)) is not None and change <= modes[-1][0]:
        found.append(change)
        at = change
    assert found == seen
    serving = next((now for now, mode, _ in modes if mode in (Mode.GENERATION, Mode.MIXED)), None)
    if serving is not None:
        assert retry_after(jobs, modes[0][0], Slot.GENERATION) == (serving - modes[0][0]).total_seconds()


def test_of_starts_that_a_jump_brings_together_the_last_one_counts() -> None:
    """Samoa left out the 30th of December 2011: at midnight its clock showed the 31st."""
    apia, morning = ZoneInfo("Pacific/Apia"), time(8)
    skipped = Job("skipped", parse_cron("0 2 * * *"), morning, apia, Mode.EMBEDDING)
    shown = Job("shown", parse_cron("0 0,12 * * *"), morning, apia, Mode.GENERATION)
    for minutes in (0, 119):
        now = datetime(2011, 12, 30, 10, tzinfo=UTC) + timedelta(minutes=minutes)
        assert desired_mode([skipped, shown], now).job is shown
    assert desired_mode([skipped, shown], datetime(2011, 12, 30, 12, tzinfo=UTC)).job is skipped


@settings(max_examples=12, deadline=None)
@given(SOME_ZONES.flatmap(lambda zone: st.tuples(st.just(zone), st.sampled_from(ZONES[zone]))))
@example(("Pacific/Apia", 2011))
@example(("Pacific/Kwajalein", 1993))
def test_in_every_year_the_shifts_follow_the_local_clock(zone_year: tuple[str, int]) -> None:
    """Days that were left out included: every few hours the mode is the one for what the clock has shown."""
    zone, year = zone_year
    shifts, there = day_shifts(zone), ZoneInfo(zone)
    begin = now = datetime(year, 1, 1, tzinfo=UTC)
    furthest = (now - DAY).astimezone(there).replace(tzinfo=None)
    while now.year == year:
        furthest = max(furthest, now.astimezone(there).replace(tzinfo=None))
        hour = furthest.hour
        expected = Mode.EMBEDDING if 2 <= hour < 8 else Mode.GENERATION if 8 <= hour < 18 else Mode.MIXED
        desired = desired_mode(shifts, now)
        assert desired.mode is expected
        assert desired.window is not None
        assert desired.until == desired.window.end
        now += 5 * HOUR
    asked = list(islice(forecast(shifts, begin), 1000))
    assert all(earlier.until == at and later.job is not None for (_, earlier), (at, later) in pairwise(asked))
