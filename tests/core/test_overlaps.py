"""Windows in each other's way."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import combinations

import pytest

from pipeline.core.overlaps import overlap_of, own_overlap
from tests.core.clock import ZONES, day_shifts, job

SINCE = datetime(2026, 6, 1, 12, tzinfo=UTC)  # a Monday


def found(one: tuple[str, str], other: tuple[str, str], *zones: str) -> str | None:
    first, second = zones or ("Europe/Berlin", "Europe/Berlin")
    jobs = (job("a", *one, first), job("b", *other, second))
    overlap, mirrored = overlap_of(*jobs, SINCE), overlap_of(*jobs[::-1], SINCE)
    assert overlap == mirrored
    return None if overlap is None else f"{overlap.start:%a %Y-%m-%d %H:%M} {overlap.end:%H:%M}"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (("0 2 * * *", "08:00"), ("0 8 * * *", "18:00"), None),
        (("0 2 * * *", "08:00"), ("0 7 * * *", "18:00"), "Tue 2026-06-02 05:00 06:00"),
        (("0 2 * * *", "6h"), ("0 8 * * *", "18:00"), None),
        (("0 22 * * *", "06:00"), ("0 2 * * sun", "03:00"), "Sun 2026-06-07 00:00 01:00"),
        (("0 2 * * mon-fri", "08:00"), ("0 2 * * sat,sun", "08:00"), None),
        (("0 22 * * fri", "06:00"), ("0 2 * * sat,sun", "08:00"), "Sat 2026-06-06 00:00 04:00"),
        (("0 2 29 2 *", "08:00"), ("0 3 * * *", "04:00"), "Tue 2028-02-29 02:00 03:00"),
        (("0 2 1-7 * *", "08:00"), ("0 2 8-31 * *", "08:00"), None),
        (("*/5 * * * *", "5m"), ("2 2 * * *", "1m"), "Tue 2026-06-02 00:02 00:03"),
    ],
)
def test_jobs_of_one_zone(one: tuple[str, str], other: tuple[str, str], expected: str | None) -> None:
    assert found(one, other) == expected


def test_jobs_of_two_zones_are_compared_as_instants() -> None:
    assert found(("0 2 * * *", "08:00"), ("0 1 * * *", "02:00"), "Europe/Berlin", "Asia/Seoul") is None
    assert found(("0 2 * * *", "08:00"), ("0 9 * * *", "10:00"), "Europe/Berlin", "Asia/Seoul") == (
        "Tue 2026-06-02 00:00 01:00"
    )
    # Only in winter does Berlin's 02:00 meet Seoul's 10:00.
    assert found(("0 2 * * *", "03:00"), ("0 10 * * *", "11:00"), "Europe/Berlin", "Asia/Seoul") == (
        "Sun 2026-10-25 01:00 02:00"
    )


@pytest.mark.parametrize("zone", sorted(ZONES))
def test_the_shifts_that_ship_do_not_overlap(zone: str) -> None:
    for one, other in combinations(day_shifts(zone), 2):
        assert overlap_of(one, other, SINCE) is None


@pytest.mark.parametrize(
    ("cron", "until", "clash"),
    [
        ("0 2 * * *", "08:00", None),
        ("0 2 * * *", "02:00", None),
        ("0 2 * * *", "24h", None),
        ("0 2 * * *", "25h", "Tue 02:00 Wed 02:00"),
        ("0 2,14 * * *", "08:00", "Tue 14:00 Wed 02:00"),
        ("*/30 * * * *", "30m", None),
        ("*/30 * * * *", "08:00", "Mon 14:30 Mon 15:00"),
        ("0 0 28 2 *", "31d", None),
        ("0 0 28,29 2 *", "2d", "Mon 00:00 Tue 00:00"),
        ("0 0 1 * fri", "2d", "Fri 00:00 Sat 00:00"),
    ],
)
def test_a_job_in_its_own_way(cron: str, until: str, clash: str | None) -> None:
    overlap = own_overlap(job("a", cron, until, "Europe/Berlin"), SINCE)
    assert (overlap and " ".join(f"{wall:%a %H:%M}" for wall in overlap)) == clash
