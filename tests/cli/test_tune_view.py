"""The bars of `tune`, of any values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.tune_view import text_bar

RATES = st.floats(0, 1e12, allow_nan=False)


@given(RATES, RATES, st.integers(1, 80))
def test_a_bar_is_as_long_as_its_share(value: float, most: float, width: int) -> None:
    bar = text_bar(value, most, width)
    assert len(bar) <= width
    if 0 < value == most:
        assert bar == "█" * width
    assert set(text_bar(value, most, width, "ascii")) <= {"#"}
