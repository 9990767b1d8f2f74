"""Bars of any values."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.chart import Bar, svg, text_bar

RATES = st.floats(0, 1e12, allow_nan=False)


@given(st.lists(st.builds(Bar, st.text(), st.none() | RATES, st.lists(RATES, max_size=3), st.text(), st.booleans())))
def test_any_bars_are_a_picture(bars: list[Bar]) -> None:
    root = ET.fromstring(svg("a < b & c", "tokens/s", bars, "\x00<"))
    rectangles = [each for each in root if each.tag.endswith("rect")]
    assert len(rectangles) == 1 + sum(bar.value is not None for bar in bars)
    for each in rectangles[1:]:
        assert 0 <= float(each.attrib["width"]) <= 490.0001


@given(RATES, RATES, st.integers(1, 80))
def test_a_bar_is_as_long_as_its_share(value: float, most: float, width: int) -> None:
    bar = text_bar(value, most, width)
    assert len(bar) <= width
    if 0 < value == most:
        assert bar == "█" * width
    assert set(text_bar(value, most, width, "ascii")) <= {"#"}
