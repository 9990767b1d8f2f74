"""What a person sees of a run while it goes: a live view on a terminal, plain lines in a pipe.

Everything shown passes `printable`, because file names come from whoever wrote the files.
Knows nothing of how the run works; it is handed a `Progress` a few times a second.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Protocol, Self

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from pipeline.ingest.progress import Failure, Progress

Clock = Callable[[], float]

PLAIN_INTERVAL = 5.0
PATIENCE = 1.0
"""Seconds that a run is looked for work before the live view is drawn: an error at once comes without one."""
_FAILURES_SHOWN = 3
_BAR_WIDTH = 40
_NARROWEST_BAR = 8
_CUT = "..."
# A terminal echoes ^C where its cursor is: behind the last line of the live view, which must not break for it.
_ROOM_FOR_ECHO = 2
# File names that are not UTF-8: one character for each byte, as the file system gives them and as they are stored.
_LONE_BYTES = ((0xDC80, 0xDCFF), (0xF780, 0xF7FF))
# Joiners are part of correct spelling in Persian, Indic scripts and emoji; other format characters hide or reorder.
_JOINERS = "\u200c\u200d"


class View(Protocol):
    """Shows a run from `with` to the end of its block."""

    def update(self, progress: Progress) -> None:
        """Show how far the run has come."""
        ...

    def note(self, message: str) -> None:
        """Say something that stays."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_view(console: Console, *, quiet: bool = False, as_json: bool = False, clock: Clock = time.monotonic) -> View:
    """The view for a console; with `as_json`, standard output is left to the result and the view goes to the other.

    clock: seconds, the one that the run's progress is measured with.
    """
    if quiet:
        return QuietView()
    if as_json and not console.stderr:
        console = Console(stderr=True)
    return (
        LiveView(console, clock) if console.is_terminal and not console.is_dumb_terminal else PlainView(console, clock)
    )


class QuietView:
    """Shows nothing."""

    def update(self, progress: Progress) -> None:
        """Show nothing."""

    def note(self, message: str) -> None:
        """Say nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class PlainView:
    """A line every few seconds, one for each document that failed, and one at the end."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._next_line = clock()
        self._failed = 0
        self._last: Progress | None = None
        self._said = ""

    def update(self, progress: Progress) -> None:
        """Print the failures that are new, and a line where the last is some seconds old."""
        self._last = progress
        self._print_failures(progress)
        now = self._clock()
        if now >= self._next_line and _worth_showing(progress):
            self._next_line = now + PLAIN_INTERVAL
            self._print_line(progress, now)

    def note(self, message: str) -> None:
        """Print a line."""
        _print(self._console, message)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None and _worth_showing(self._last):
            self._print_failures(self._last)
            self._print_line(self._last, self._clock())

    def _print_line(self, progress: Progress, now: float) -> None:
        line = summary_line(progress, now)
        if line != self._said:
            self._said = line
            _print(self._console, line)

    def _print_failures(self, progress: Progress) -> None:
        new = progress.documents_failed - self._failed
        self._failed = progress.documents_failed
        kept = list(progress.failures)[-new:] if new > 0 else []
        if new > len(kept):
            _print(self._console, f"{new - len(kept)} more documents could not be read")
        for failure in kept:
            _print(self._console, failure_line(failure))


class LiveView:
    """A few lines at the bottom of the terminal, drawn anew with each update."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._live = Live(console=console, auto_refresh=False)
        self._began = clock()

    def update(self, progress: Progress) -> None:
        """Draw the view anew, once there is something to show."""
        now = self._clock()
        if not self._live.is_started:
            if not _worth_showing(progress) and now - self._began < PATIENCE:
                return
            self._live.start()
        self._live.update(render(progress, now, self._console), refresh=True)

    def note(self, message: str) -> None:
        """Print a message above the view, broken between words where it is wider than the terminal."""
        _print(self._console, message, soft_wrap=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def render(progress: Progress, now: float, console: Console) -> Group:
    """The live view: two bars, the pace, the current file, and the last failures; no line wider than the console."""
    width = max(1, console.width - _ROOM_FOR_ECHO)
    lines = [_cut(_pace(progress, now), width)]
    if progress.waiting:
        lines.append(_cut(printable(progress.waiting, console.encoding), width))
    if progress.current and progress.phase != "finishing":
        lines.append(shorten(f"now: {printable(progress.current, console.encoding)}", width))
    if progress.documents_failed:
        lines.append(_cut(f"could not be read: {progress.documents_failed:,}, the last:", width))
    failures = [
        _failure_within(failure, width, console.encoding)
        for failure in islice(reversed(progress.failures), _FAILURES_SHOWN)
    ]
    return Group(
        _bars(progress, width),
        *(Text(line, no_wrap=True) for line in lines),
        *(Text(line, style="yellow", no_wrap=True) for line in failures),
    )


def summary_line(progress: Progress, now: float) -> str:
    """How far the run has come, on one line."""
    parts = [f"documents {_documents(progress)}"]
    if progress.documents_failed:
        parts[0] += f" ({progress.documents_failed:,} could not be read)"
    parts += [f"chunks {int(progress.chunks_computed):,} of {progress.chunks_total:,}", _pace(progress, now)]
    if progress.waiting:
        parts.append(printable(progress.waiting))
    if progress.current and progress.phase == "working":
        parts.append(f"now {printable(progress.current)}")
    return ", ".join(parts)


def failure_line(failure: Failure) -> str:
    """A document that could not be read, and why, on one line."""
    return printable(f"{failure.path}: {failure.state}: {failure.reason}")


def printable(text: str, encoding: str = "utf-8") -> str:
    """The text without anything that a terminal obeys, hides or cannot show: such characters are written as escapes."""
    shown = "".join(c if c.isprintable() or c in _JOINERS else _escaped(c) for c in text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def unescaped(shown: str) -> str:
    """What `printable` may have made `shown` of: for a name that was copied from the screen."""
    named = {"n": "\n", "r": "\r", "t": "\t"}

    def character(found: re.Match[str]) -> str:
        letter, digits = found[1][0], found[1][1:]
        if not digits:
            return named[letter]
        code = int(digits, 16)
        return chr(code + 0xF700 if letter == "x" and code >= 0x80 else code)

    return re.sub(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|[nrt])", character, shown)


def _escaped(character: str) -> str:
    code = ord(character)
    if any(first <= code <= last for first, last in _LONE_BYTES):
        return f"\\x{code & 0xFF:02x}"
    return character.encode("unicode_escape").decode()


def shorten(text: str, width: int) -> str:
    """The text in at most `width` terminal cells; a longer one loses its middle, and keeps more of its end."""
    if cell_len(text) <= width:
        return text
    if width <= len(_CUT):
        return _CUT[:width]
    head = (width - len(_CUT)) // 3
    return _leading(text, head) + _CUT + _leading(text[::-1], width - len(_CUT) - head)[::-1]


def duration(seconds: float) -> str:
    """Seconds in words, to two units: `45 s`, `3 min 5 s`, `1 h 20 min`, `2 d 3 h`."""
    left = round(seconds)
    units = [(left // 86400, "d"), (left // 3600 % 24, "h"), (left // 60 % 60, "min"), (left % 60, "s")]
    first = next((place for place, (amount, _) in enumerate(units) if amount), len(units) - 1)
    return " ".join(f"{amount} {unit}" for amount, unit in units[first : first + 2] if amount) or "0 s"


def _worth_showing(progress: Progress) -> bool:
    return bool(progress.documents_total or progress.failures)


def _documents(progress: Progress) -> str:
    """How many are finished. A run that goes on after another counts what was left to it."""
    left = " in this run" if progress.resumed else ""
    return f"{_finished(progress):,} of {progress.documents_total:,}{left}"


def _bars(progress: Progress, width: int) -> Table:
    rows = [
        ("documents", _finished(progress), progress.documents_total),
        ("chunks", progress.chunks_computed, progress.chunks_total),
    ]
    counts = [_documents(progress), f"{int(progress.chunks_computed):,} of {progress.chunks_total:,}"]
    bar = min(_BAR_WIDTH, width - len("documents") - max(map(len, counts)) - 2)
    table = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    for _ in range(2 if bar >= _NARROWEST_BAR else 1):
        table.add_column(no_wrap=True, overflow="crop")
    table.add_column(no_wrap=True, overflow="crop", justify="left" if progress.resumed else "right")
    for (name, done, total), count in zip(rows, counts, strict=True):
        if bar >= _NARROWEST_BAR:
            table.add_row(name, ProgressBar(total=max(1, total), completed=done, width=bar), count)
        else:
            table.add_row(name, count)
    return table


def _pace(progress: Progress, now: float) -> str:
    """What is being done, how fast, and how long it takes."""
    so_far = f"{duration(now - progress.started_monotonic)} so far"
    if progress.phase == "scanning":
        return f"looking for documents, {so_far}"
    if progress.phase == "finishing":
        return f"finishing, {so_far}"
    left = progress.seconds_left(now)
    rate = progress.rate(now)
    parts = [f"{rate:.1f} chunks/s" if rate >= 0.95 or rate == 0 else f"{rate:.2g} chunks/s", so_far]
    if left is not None:
        parts.insert(1, f"about {duration(left)} left")
    return ", ".join(parts)


def _finished(progress: Progress) -> int:
    return progress.documents_done + progress.documents_failed


def _failure_within(failure: Failure, width: int, encoding: str) -> str:
    """A failure on one line of the view: a long path gives way to the reason."""
    why = f": {failure.state}: {printable(failure.reason, encoding)}"
    room = max(width // 2, width - cell_len(why) - 2)
    return _cut(f"  {shorten(printable(failure.path, encoding), room)}{why}", width)


def _cut(text: str, width: int) -> str:
    """The text in at most `width` cells; a longer one loses its end, and shows that it did."""
    if cell_len(text) <= width:
        return text
    return _leading(text, width - len(_CUT)) + _CUT if width > len(_CUT) else _leading(text, width)


def _leading(text: str, width: int) -> str:
    """As many of the first characters as fit in `width` cells."""
    used = 0
    for place, character in enumerate(text):
        used += cell_len(character)
        if used > width:
            return text[:place]
    return text


def _print(console: Console, message: str, *, soft_wrap: bool = True) -> None:
    for line in message.splitlines():
        console.print(Text(printable(line, console.encoding)), soft_wrap=soft_wrap)
