"""The bars of the benchmarks' pictures."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from benchmarks.plot import Bar, bars_svg

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    picture = ET.fromstring(
        bars_svg("a < b & c", "chunks/s", [Bar("one", 10.0, 9.0, 20.0), Bar("<two>", 5.0, 5.0, 5.0)])
    )
    title, *_ = (element.text for element in picture.iter(f"{SVG}title"))
    assert title == "a < b & c"
    _, first, second = picture.iter(f"{SVG}rect")
    assert float(first.attrib["width"]) == 2 * float(second.attrib["width"])
    words = [element.text for element in picture.iter(f"{SVG}text")]
    assert "<two>" in words
    assert "5.0 chunks/s" in words


def test_nothing_measured_is_a_picture_all_the_same() -> None:
    assert ET.fromstring(bars_svg("nothing", "chunks/s", [])).tag == f"{SVG}svg"
