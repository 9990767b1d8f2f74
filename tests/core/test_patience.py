from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.patience import BYTES_PER_STEP, Patience, advanced, begun

SIXTY = Patience(timeout=60.0, per_mib=1.0, per_step=0.5)

patiences = st.builds(Patience, st.floats(0.1, 1e4), st.floats(0, 100), st.floats(0.001, 100))
reports = st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 2**31 - 1)), max_size=30)


def test_without_steps_a_document_has_its_timeout_and_more_for_its_size() -> None:
    assert begun(SIXTY, 0, 100.0).deadline == 160.0
    assert begun(SIXTY, 10 * 2**20, 100.0).deadline == 170.0


def test_steps_within_their_time_cost_nothing() -> None:
    standing = begun(SIXTY, 10_000 * BYTES_PER_STEP, 0.0)
    allowance = standing.allowance
    for step in range(1, 10_001):
        standing = advanced(SIXTY, standing, 1, step * 0.5)
    assert standing.deadline == 5000.0 + allowance


def test_what_steps_take_beyond_their_time_is_taken_off() -> None:
    standing = advanced(SIXTY, begun(SIXTY, 0, 0.0), 1, 20.5)
    assert (standing.allowance, standing.deadline) == (40.0, 60.5)


def test_ocr_may_take_its_time_for_each_page() -> None:
    """A page of ten kilobytes, a minute of OCR, told of twice a second."""
    patience = Patience(timeout=60.0, per_mib=1.0, per_step=0.5, recognition=60.0)
    standing = begun(patience, 100 * 10_000, 0.0)
    allowance = standing.allowance
    for step in range(1, 100 * 60 * 2 + 1):
        standing = advanced(patience, standing, 1, step * 0.5)
    assert standing.deadline == 100 * 60.0 + allowance


def test_ocr_buys_no_time_without_end() -> None:
    patience = Patience(timeout=60.0, per_mib=1.0, per_step=0.5, recognition=60.0)
    assert begun(patience, 10 * BYTES_PER_STEP, 0.0).steps == 11 * 121


def test_a_report_of_several_steps_is_worth_as_much_as_several_reports() -> None:
    begin = begun(SIXTY, 2**20, 0.0)
    assert advanced(SIXTY, begin, 4, 2.0) == advanced(SIXTY, advanced(SIXTY, begin, 2, 1.0), 2, 2.0)


@given(patiences, st.integers(0, 2**40), reports)
def test_nothing_is_saved_up(patience: Patience, size: int, told: list[tuple[float, int]]) -> None:
    """Whenever it hangs, it has no more left than it had at the beginning, and never gains any."""
    standing = begun(patience, size, 0.0)
    now = 0.0
    for seconds, steps in told:
        now += seconds
        later = advanced(patience, standing, steps, now)
        assert later.allowance <= standing.allowance
        assert later.deadline - now <= begun(patience, size, 0.0).allowance + 1e-6 * now
        assert later.deadline >= standing.deadline * (1 - 1e-9)
        standing = later


@given(patiences, st.integers(0, 10**7), reports)
def test_no_document_lasts_longer_than_its_file_is_worth(
    patience: Patience, size: int, told: list[tuple[float, int]]
) -> None:
    most = begun(patience, size, 0.0).allowance + (1 + size // BYTES_PER_STEP) * patience.per_step
    standing = begun(patience, size, 0.0)
    for seconds, steps in told:
        now = standing.since + seconds
        if now > standing.deadline:
            break
        standing = advanced(patience, standing, steps, now)
    assert standing.deadline <= most * (1 + 1e-9)
