"""The counters of a run: the rate over a sliding window, and the time that is left."""

from __future__ import annotations

import itertools

import pytest

from pipeline.ingest.progress import FAILURES_KEPT, Progress


def test_nothing_is_said_before_there_is_anything_to_say() -> None:
    progress = Progress(started_monotonic=100.0)
    assert progress.rate(100.0) == 0.0
    assert progress.rate(110.0) == 0.0
    assert progress.seconds_left(110.0) is None


def test_the_rate_of_a_young_run_is_since_its_start() -> None:
    progress = Progress(started_monotonic=100.0)
    progress.chunks_embedded(30, now=102.0)
    progress.chunks_embedded(30, now=104.0)
    assert progress.rate(106.0) == pytest.approx(10.0)


def test_the_rate_forgets_what_is_older_than_the_window() -> None:
    progress = Progress(started_monotonic=0.0)
    progress.chunks_embedded(10_000, now=1.0)
    for second in range(2, 100):
        progress.chunks_embedded(5, now=float(second))
    assert progress.rate(99.0) == pytest.approx(5.0)
    assert progress.chunks_done == 10_000 + 98 * 5


def test_a_stall_shows() -> None:
    progress = Progress(started_monotonic=0.0)
    progress.document_read(100)
    progress.chunks_embedded(60, now=10.0)
    assert progress.rate(30.0) == pytest.approx(2.0)
    assert progress.rate(41.0) == 0.0
    assert progress.seconds_left(41.0) is None


def test_the_time_left_counts_documents_that_were_not_read_yet() -> None:
    progress = Progress(started_monotonic=0.0, documents_total=4)
    progress.document_read(100)
    progress.chunks_embedded(50, now=10.0)
    assert progress.seconds_left(10.0) == pytest.approx((400 - 50) / 5)
    progress.document_failed("a.pdf", "empty", "no text")
    assert progress.seconds_left(10.0) == pytest.approx((200 - 50) / 5)
    progress.document_read(20)
    progress.document_read(20)
    assert progress.seconds_left(10.0) == pytest.approx((140 - 50) / 5)
    progress.chunks_embedded(90, now=20.0)
    assert progress.seconds_left(20.0) == 0.0


def test_a_document_that_fails_after_it_was_read_is_read_once() -> None:
    progress = Progress(started_monotonic=0.0, documents_total=1)
    progress.document_read(3)
    progress.document_failed("a.pdf", "failed", "a chunk could not be embedded", was_read=True)
    assert (progress.documents_read, progress.documents_failed, progress.documents_done) == (1, 1, 0)


def test_a_document_that_failed_is_no_longer_the_current_one() -> None:
    progress = Progress(started_monotonic=0.0, current="a.pdf")
    progress.document_failed("b.pdf", "failed", "broken")
    assert progress.current == "a.pdf"
    progress.document_failed("a.pdf", "failed", "broken")
    assert progress.current == ""


def test_the_last_failures_are_kept_and_memory_does_not_grow() -> None:
    progress = Progress(started_monotonic=0.0)
    for number in range(100):
        progress.document_failed(f"{number}.pdf", "failed", "broken")
    assert progress.documents_failed == 100
    assert [failure.path for failure in progress.failures] == [f"{n}.pdf" for n in range(100 - FAILURES_KEPT, 100)]


def ticking(progress: Progress, until: int, chunks_a_second: float = 1.0, begin: int = 1) -> list[float | None]:
    """A tick each second, with answers of ten seconds' work each; the time left after each."""
    left: list[float | None] = []
    for second in range(begin, until):
        computed = chunks_a_second * second
        if second % 10 == 0:
            progress.chunks_embedded(round(10 * chunks_a_second), now=float(second))
        progress.tick(float(second), computed - progress.chunks_done)
        left.append(progress.seconds_left(float(second)))
    return left


def test_progress_moves_each_second_though_answers_come_each_ten() -> None:
    progress = Progress(started_monotonic=0.0, documents_total=1)
    progress.document_read(1000)
    shown = []
    for second in range(1, 35):
        ticking(progress, second + 1, begin=second)
        shown.append(progress.chunks_computed)
    assert all(one < two for one, two in itertools.pairwise(shown))
    assert progress.chunks_done == 30


def test_the_load_of_a_model_is_not_part_of_the_rate() -> None:
    progress = Progress(started_monotonic=0.0, documents_total=1)
    progress.document_read(1000)
    ticking(progress, 120, begin=100)
    assert progress.rate(119.0) == pytest.approx(1.0, rel=0.1)


def test_the_estimate_follows_and_does_not_jump() -> None:
    progress = Progress(started_monotonic=0.0, documents_total=2)
    progress.document_read(1000)
    left = ticking(progress, 100)
    assert left[:5] == [None] * 5
    assert left[-1] == pytest.approx(1900, rel=0.05)
    progress.document_read(10)  # half of what was expected is not there
    after = ticking(progress, 101, begin=100)[0]
    assert after is not None
    assert 1700 < after < 1900
    settled = ticking(progress, 220, begin=101)[-1]
    assert settled == pytest.approx(1010 - 219, rel=0.05)


def test_what_was_stored_is_not_counted_twice() -> None:
    progress = Progress(started_monotonic=0.0, documents_total=1)
    progress.document_read(10)
    progress.tick(1.0, 4.5)
    progress.chunks_embedded(4, now=1.5)
    assert progress.chunks_computed == pytest.approx(4.5)
    progress.tick(2.0, 0.0)  # stored and counted, and nothing new computed yet
    assert progress.chunks_computed == pytest.approx(4.5)
    progress.tick(3.0, 2.0)
    assert progress.chunks_computed == pytest.approx(6.0)
