"""Bars as SVG, without a library: what was measured, the best first, ours in another colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_ROW = 22
_LABEL = 330
_WIDTH = 900
_COLOURS = {False: "#9aa5b1", True: "#2f6fde"}


@dataclass(frozen=True, slots=True)
class Bar:
    """One thing measured: its median, the least and the most."""

    label: str
    value: float
    low: float
    high: float
    ours: bool = False


def bars_svg(title: str, unit: str, bars: Sequence[Bar]) -> str:
    """An SVG picture of `bars`, from the top down, with whiskers from the least to the most."""
    most = max((bar.high for bar in bars), default=1.0) or 1.0
    scale = (_WIDTH - _LABEL - 90) / most
    height = 50 + _ROW * len(bars)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="10" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for number, bar in enumerate(bars):
        top = 38 + _ROW * number
        middle = top + 8
        end = _LABEL + bar.value * scale
        parts += [
            f'<text x="{_LABEL - 8}" y="{top + 13}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect x="{_LABEL}" y="{top}" width="{bar.value * scale:.1f}" height="16" fill="{_COLOURS[bar.ours]}"/>',
            f'<line x1="{_LABEL + bar.low * scale:.1f}" x2="{_LABEL + bar.high * scale:.1f}" '
            f'y1="{middle}" y2="{middle}" stroke="#1b2733"/>',
            f'<text x="{max(end, _LABEL + bar.high * scale) + 6:.1f}" y="{top + 13}">'
            f"{bar.value:.1f} {escape(unit)}</text>",
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
