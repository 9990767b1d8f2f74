"""A moment as a person types it."""

from __future__ import annotations

import datetime as dt
import re

_AGO = re.compile(r"(\d{1,5})([hdw])", re.ASCII)
_UNITS = {"h": dt.timedelta(hours=1), "d": dt.timedelta(days=1), "w": dt.timedelta(weeks=1)}
_DAYS = {"yesterday": -1, "today": 0, "tomorrow": 1}
_MONTH = re.compile(r"\d{4}(-\d\d)?", re.ASCII)


def parse_moment(text: str, now: dt.datetime) -> dt.datetime:
    """Read `2026-01-31`, `2026-01-31 14:30`, one with a zone, `2026-01`, `2026`, `now`, `today`, or `7d` (12h, 2w) ago.

    `yesterday` and `tomorrow` are days, too. A day, month or year is its first instant; without a zone it is
    local time. now: with a zone.
    Raises ValueError, half a sentence for a person.
    """
    typed = text.strip()
    try:
        if ago := _AGO.fullmatch(typed.lower()):
            return now - int(ago[1]) * _UNITS[ago[2]]
        if typed.lower() == "now":
            return now
        if typed.lower() in _DAYS:
            day = now.astimezone().date() + dt.timedelta(days=_DAYS[typed.lower()])
            return dt.datetime.combine(day, dt.time()).astimezone()
        if _MONTH.fullmatch(typed):
            typed = f"{typed}-01-01"[:10]
        read = dt.datetime.fromisoformat(typed)
        return read if read.tzinfo else read.astimezone()
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f'"{text[:40]}" is no date: use one such as 2026-01-31, "2026-01-31 14:30", or 7d for seven days ago'
        ) from error
