"""Bars: as characters for a terminal, and as SVG for a page. Knows names and numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_EIGHTHS = " ▏▎▍▌▋▊▉"
_LEFT, _RIGHT, _TOP, _ROW, _WIDTH = 360, 110, 64, 24, 960


@dataclass(frozen=True, slots=True)
class Bar:
    """A name, a value (None: it failed, and `note` says how), single measurements, and whether it stands out."""

    name: str
    value: float | None
    points: Sequence[float] = ()
    note: str = ""
    best: bool = False


def text_bar(value: float, most: float, width: int, encoding: str = "utf-8") -> str:
    """A bar of up to `width` characters; of eighths where the encoding has them, else of `#`."""
    share = min(1.0, value / most) if most > 0 else 0.0
    try:
        ("█" + _EIGHTHS).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def svg(title: str, unit: str, bars: Sequence[Bar], subtitle: str = "") -> str:
    """A horizontal bar chart with every single measurement as a point; no script, no font of its own."""
    most = max([1e-6, *(max(bar.value or 0.0, *bar.points, 0.0) for bar in bars)])
    step = _step(most)
    end = step * math.ceil(most / step)
    height = _TOP + _ROW * len(bars) + 44
    bottom = _TOP + _ROW * len(bars)

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / end

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="17" font-weight="bold">{_safe(title)}</text>',
        f'<text x="16" y="46" fill="#555555">{_safe(subtitle)}</text>',
    ]
    for number in range(round(end / step) + 1):
        at = x(step * number)
        parts.append(f'<line x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{bottom}" stroke="#dddddd"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{step * number:,.10g}</text>')
    parts.append(f'<text x="{x(end / 2):.1f}" y="{bottom + 34}" text-anchor="middle">{_safe(unit)}</text>')
    for row, bar in enumerate(bars):
        parts += _svg_bar(bar, _TOP + _ROW * row, x)
    return "\n".join([*parts, "</svg>", ""])


def _svg_bar(bar: Bar, top: float, x: object) -> list[str]:
    assert callable(x)
    middle = top + _ROW / 2
    weight = ' font-weight="bold"' if bar.best else ""
    parts = [f'<text x="{_LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end"{weight}>{_safe(bar.name)}</text>']
    if bar.value is None:
        return [*parts, f'<text x="{_LEFT + 6}" y="{middle + 4:.1f}" fill="#b00020">{_safe(bar.note)}</text>']
    colour = "#1b6e3c" if bar.best else "#7a9cc6"
    parts.append(
        f'<rect x="{_LEFT}" y="{top + 4:.1f}" width="{x(bar.value) - _LEFT:.1f}" height="{_ROW - 8}" fill="{colour}"/>'
    )
    parts += [f'<circle cx="{x(point):.1f}" cy="{middle:.1f}" r="2.5" fill="#222222"/>' for point in bar.points]
    end = max((bar.value, *bar.points))
    return [
        *parts,
        f'<text x="{x(end) + 6:.1f}" y="{middle + 4:.1f}"{weight}>{bar.value:,.0f} {_safe(bar.note)}</text>',
    ]


def _step(most: float) -> float:
    """A round distance of grid lines that gives four to ten of them."""
    rough = most / 8
    power = math.pow(10, math.floor(math.log10(rough)))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= rough), 10 * power)


def _safe(text: str) -> str:
    """Text as XML may hold it."""
    return escape(
        "".join(c if c >= " " and not 0xD800 <= ord(c) <= 0xDFFF and c not in "\ufffe\uffff" else " " for c in text)
    )
