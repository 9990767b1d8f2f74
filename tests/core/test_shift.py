"""What to do in a situation: in particular, that generation serves again when it was promised."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.cron import parse_cron
from pipeline.core.modes import Mode, Slot, serves
from pipeline.core.schedule import Hold, Job
from pipeline.core.shift import LOOK_AGAIN, Margins, Past, Shift, Situation, plan_shift

UTC = ZoneInfo("UTC")
LOAD = 40.0
MARGINS = Margins(drain=5.0, reserve=15.0, prepare=120.0)
MONDAY = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)


def job(name: str, cron: str, until: str, mode: Mode, **more: object) -> Job:
    hours, minutes = map(int, until.split(":"))
    return Job(name, parse_cron(cron), dt.time(hours, minutes), UTC, mode, **more)  # type: ignore[arg-type]


NIGHT = job("night", "0 2 * * *", "08:00", Mode.EMBEDDING, task="ingest", on_finish="stay", retries=1)
DAY = job("day", "0 8 * * *", "18:00", Mode.GENERATION)
EVENING = job("evening", "0 18 * * *", "02:00", Mode.MIXED)
JOBS = (NIGHT, DAY, EVENING)


def at(text: str) -> dt.datetime:
    hours, minutes, *seconds = map(int, text.split(":"))
    return MONDAY + dt.timedelta(hours=hours, minutes=minutes, seconds=seconds[0] if seconds else 0)


def shift(text: str, **more: object) -> Shift:
    situation = {"jobs": JOBS, "mode": Mode.IDLE, "load_seconds": lambda mode: LOAD, "margins": MARGINS} | more
    return plan_shift(Situation(now=at(text), **situation))  # type: ignore[arg-type]


def test_the_schedule_is_followed() -> None:
    assert shift("01:59:30").mode is Mode.MIXED
    night = shift("03:00")
    assert (night.mode, night.reason, night.detail) == (Mode.EMBEDDING, "schedule", "job night")
    assert night.task is not None
    assert night.task.job is NIGHT
    assert shift("12:00").task is None


AHEAD = Job("ahead", parse_cron("0 9-17 * * *"), dt.timedelta(hours=1), UTC, None, task="extract", retries=1)


def test_reading_ahead_goes_on_beside_any_mode_and_changes_none() -> None:
    jobs = (*JOBS, AHEAD)
    for text in ("03:00", "08:30", "09:30", "17:59", "18:30"):
        plain, beside = shift(text), shift(text, jobs=jobs)
        assert (plain.mode, plain.task, plain.stop_at) == (beside.mode, beside.task, beside.stop_at)
        assert (beside.reading is not None) == (text in ("09:30", "17:59"))
    reading = shift("09:30", jobs=jobs, hold=Hold(Mode.IDLE)).reading
    assert reading is not None
    assert (reading.job, reading.stop_at) == (AHEAD, at("10:00"))
    assert shift("09:59:50", jobs=jobs).look_again <= at("10:00")
    assert shift("03:00", jobs=(AHEAD,)).mode is Mode.IDLE


def test_reading_ahead_is_done_for_its_window_and_given_up_like_any_task() -> None:
    jobs = (*JOBS, AHEAD)
    done = {"ahead": Past(started=at("09:00"), finished=at("09:20"))}
    assert shift("09:30", jobs=jobs, past=done).reading is None
    assert shift("10:30", jobs=jobs, past=done).reading is not None
    assert shift("09:30", jobs=jobs, past={"ahead": Past(started=at("09:10"), failures=2)}).reading is None
    assert shift("09:30", jobs=jobs, past={"ahead": Past(started=at("09:10"), failures=1)}).reading is not None


def test_of_two_jobs_that_read_the_one_of_higher_priority_does() -> None:
    urgent = Job("urgent", parse_cron("0 9 * * *"), dt.time(12), UTC, None, task="extract", priority=5)
    reading = shift("09:30", jobs=(*JOBS, AHEAD, urgent)).reading
    assert reading is not None
    assert reading.job is urgent


def test_until_is_kept_by_stopping_early() -> None:
    # 40 s to load and 5 s to drain before 08:00, and 15 s more for the last batch to be stored.
    assert shift("07:00").stop_at == at("07:59:00")
    assert shift("07:00").task.stop_at == at("07:59:00")  # type: ignore[union-attr]
    working = shift("07:59:14")
    assert (working.mode, working.task) == (Mode.EMBEDDING, None)
    early = shift("07:59:15")
    assert early.mode is Mode.GENERATION
    assert early.stop_at == at("07:59:15")
    assert early.detail == "job day at 08:00 UTC"


def test_the_night_begins_when_it_was_promised_and_not_before() -> None:
    assert shift("01:59:59").mode is Mode.MIXED
    assert shift("02:00").mode is Mode.EMBEDDING


def test_the_next_backend_is_made_ready_ahead() -> None:
    assert shift("07:50").prepare is None
    assert shift("07:57:16").prepare is Mode.GENERATION
    assert shift("07:57:16", margins=Margins(prepare=0)).prepare is None


def test_a_window_too_short_for_anything_does_not_work() -> None:
    assert shift("07:59:10").task is None


def test_a_task_that_is_done_or_failed_too_often_is_let_be() -> None:
    done = {"night": Past(finished=at("02:30"))}
    assert shift("03:00", past=done).task is None
    assert shift("03:00", past=done).mode is Mode.EMBEDDING  # on_finish is stay
    assert shift("03:00", past={"night": Past(finished=at("01:00"))}).task is not None
    assert shift("03:00", past={"night": Past(started=at("02:00"), failures=1)}).task is not None
    assert shift("03:00", past={"night": Past(started=at("02:00"), failures=2)}).task is None


def test_the_failures_of_one_night_are_forgiven_by_the_next() -> None:
    yesterday = at("02:00") - dt.timedelta(days=1)
    assert shift("03:00", past={"night": Past(started=yesterday, failures=9)}).task is not None


def test_a_hold_goes_first_and_ends_by_itself() -> None:
    hold = Hold(Mode.IDLE, at("03:30"))
    held = shift("03:00", hold=hold)
    assert (held.mode, held.reason, held.task) == (Mode.IDLE, "operator", None)
    assert held.look_again <= at("03:30")
    assert shift("03:30", hold=hold).mode is Mode.EMBEDDING


def test_a_persons_run_leaves_the_language_model_alone() -> None:
    asked = shift("12:00", requested=True)
    assert (asked.mode, asked.reason) == (Mode.MIXED, "request")
    assert shift("19:00", requested=True).mode is Mode.MIXED
    assert shift("19:00", requested=True).reason == "schedule"
    assert shift("03:00", requested=True).mode is Mode.EMBEDDING
    assert shift("12:00", jobs=(), requested=True).mode is Mode.EMBEDDING


def test_a_missed_night_is_made_up_for_if_its_policy_says_so() -> None:
    night = job("night", "0 2 * * *", "08:00", Mode.EMBEDDING, task="ingest", catch_up=True)
    jobs = (night, DAY, EVENING)
    past = {
        "night": Past(known_since=at("00:00") - dt.timedelta(days=3), finished=at("00:00") - dt.timedelta(hours=20))
    }
    missed = shift("09:00", jobs=jobs, past=past)
    assert (missed.mode, missed.reason) == (Mode.EMBEDDING, "job")
    assert missed.task is not None
    assert missed.task.job is night
    assert shift("09:00", jobs=(NIGHT, DAY, EVENING), past=past).task is None
    made_up = {"night": Past(known_since=past["night"].known_since, finished=at("08:50"))}
    assert shift("09:00", jobs=jobs, past=made_up).mode is Mode.GENERATION


def test_what_is_made_up_for_has_an_end_and_leaves_the_next_promise_its_time() -> None:
    night = job("night", "0 2 * * *", "08:00", Mode.EMBEDDING, task="ingest", catch_up=True)
    known = at("00:00") - dt.timedelta(days=3)
    past = {"night": Past(known_since=known, started=at("09:00"), finished=at("00:00") - dt.timedelta(hours=20))}
    working = shift("10:00", jobs=(night, DAY, EVENING), past=past)
    assert working.task is not None
    assert working.task.stop_at == at("15:00")  # six hours, as long as the night, from when it was taken up
    assert shift("15:00", jobs=(night, DAY, EVENING), past=past).task is None
    evening = shift(
        "17:59:16",
        jobs=(night, DAY, EVENING),
        past=past | {"night": Past(known, at("16:00"), at("00:00") - dt.timedelta(hours=20))},
    )
    assert evening.mode is Mode.MIXED  # it loads the language model in time for 18:00
    assert evening.drain == MARGINS.drain


@given(
    st.integers(0, 7 * 24 * 3600),
    st.timedeltas(min_value=dt.timedelta(microseconds=1), max_value=dt.timedelta(days=90)),
    st.integers(0, 9),
)
def test_what_a_clock_noted_that_was_ahead_changes_nothing(second: int, ahead: dt.timedelta, failures: int) -> None:
    now = MONDAY + dt.timedelta(seconds=second)
    jobs = (replace(NIGHT, on_finish="return", catch_up=True), DAY, EVENING, AHEAD)
    past = Past(now + ahead, now + ahead, now + ahead, failures)
    situation = Situation(now, jobs, Mode.IDLE, lambda mode: LOAD, margins=MARGINS)
    with_it = replace(situation, past={each.name: past for each in jobs})
    assert plan_shift(with_it) == plan_shift(situation)


def test_a_clock_that_leaps_past_the_end_of_the_night_and_back_costs_nothing_of_it() -> None:
    noted = {"night": Past(started=at("02:00"), finished=at("09:00") + dt.timedelta(days=30))}
    night = shift("03:00", past=noted)
    assert (night.mode, night.task) == (Mode.EMBEDDING, shift("03:00").task)
    assert night.task is not None
    # By then the true end of another night was noted in its place.
    assert shift("03:00", past={"night": Past(started=at("02:00"), finished=at("02:30"))}).task is None


@given(
    st.integers(0, 7 * 24 * 3600),
    st.floats(0, 600),
    st.booleans(),
    st.sampled_from([None, *Mode]),
    st.integers(0, 3),
)
def test_generation_always_has_the_time_to_load(
    second: int, load: float, requested: bool, held: Mode | None, failures: int
) -> None:
    now = MONDAY + dt.timedelta(seconds=second)
    hold = None if held is None else Hold(held, now + dt.timedelta(hours=1))
    plan = plan_shift(
        Situation(
            now=now,
            jobs=JOBS,
            mode=Mode.IDLE,
            load_seconds=lambda mode: load,
            hold=hold,
            past={"night": Past(started=MONDAY, failures=failures)},
            requested=requested,
            margins=MARGINS,
        )
    )
    assert now < plan.look_again <= now + LOOK_AGAIN
    if plan.task is not None:
        assert serves(plan.mode, Slot.EMBEDDING)
        assert now < plan.task.stop_at
    if hold is None and not serves(plan.mode, Slot.GENERATION):
        # Whatever is done now, what must be up by 08:00 has its time.
        promised = now.replace(hour=8, minute=0, second=0, microsecond=0)
        if now < promised:
            assert (promised - now).total_seconds() >= load + MARGINS.drain or requested
        if plan.task is not None:
            left = (promised - plan.task.stop_at).total_seconds()
            assert left >= load + MARGINS.drain + MARGINS.reserve - 1e-6
