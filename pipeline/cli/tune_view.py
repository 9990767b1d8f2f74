"""What a person sees of `tune`: a table that grows, and at the end the table, its bars, and what was kept."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.cli.view import duration, printable
from pipeline.cli.words import as_called, counted

if TYPE_CHECKING:
    from types import TracebackType

    from pipeline.core.tuning import Combination
    from pipeline.runner.tuning import Engine, Tuning

BAR_WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉"
ROWS_LIVE = 12
_HEADS = {
    "n_batch": "batch",
    "contexts": "contexts",
    "threads": "threads",
    "flash_attn": "flash",
    "use_extra_bufts": "repack",
}


class TuneView(Protocol):
    """Shows a tuning from `with` to the end of its block."""

    def update(self, tuning: Tuning, seconds: float) -> None:
        """Show how far it has come."""
        ...

    def note(self, message: str) -> None:
        """Say something that stays."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_tune_view(console: Console, *, quiet: bool, as_json: bool) -> TuneView:
    """The view for a console; with `as_json` it goes to standard error."""
    if quiet:
        return _Lines(None)
    if as_json:
        console = Console(stderr=True, highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return _Table(console)
    return _Lines(console)


class _Lines:
    """A line for each measurement; nothing without a console."""

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._shown: dict[int, int] = {}

    def update(self, tuning: Tuning, seconds: float) -> None:
        for number, engine in enumerate(tuning.engines):
            done = self._shown.get(number, 0)
            for trial in engine.trials[done:]:
                what = _words(engine.options(trial.combination)) or "its own choice"
                result = f"{trial.rate:,.0f} tokens/s" if trial.rate else f"failed: {_first_line(trial.problem)}"
                self.note(f"{duration(seconds)}: {engine.kind}, {what}: {result}")
            self._shown[number] = len(engine.trials)

    def note(self, message: str) -> None:
        if self._console is not None:
            self._console.print(printable(message, self._console.encoding), soft_wrap=True, markup=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class _Table:
    """The table, drawn anew with each update."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def update(self, tuning: Tuning, seconds: float) -> None:
        if not tuning.engines:
            return
        if not self._live.is_started:
            self._live.start()
        engine = next((one for one in reversed(tuning.engines) if one.began), tuning.engines[0])
        left = max(0.0, tuning.budget - seconds)
        state = f"{tuning.model}, {engine.kind}: {counted(len(engine.trials), 'measurement')}, {duration(left)} left"
        if tuning.sample is None:
            state = f"{tuning.model}: looking for chunks to measure with"
        now = _words(engine.options(engine.at_work)) if engine.at_work is not None else ""
        lines = [_line(state, self._console), *([_line(f"now: {now}", self._console)] if now else [])]
        self._live.update(Group(*lines, table_of(engine, self._console, ROWS_LIVE)), refresh=True)

    def note(self, message: str) -> None:
        self._console.print(printable(message, self._console.encoding), markup=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def print_result(tuning: Tuning, console: Console, overriding: Sequence[str]) -> None:
    """The table of each engine with its bars, what failed, and what follows from it."""
    for engine in tuning.engines:
        if not engine.trials:
            continue
        console.print(_line(f"{engine.kind} on {engine.device}", console))
        console.print(table_of(engine, console))
        for combination, problem in engine.problems().items():
            what = _words(engine.options(combination))
            console.print(printable(f"Failed: {what}: {problem}", console.encoding), soft_wrap=True, markup=False)
    for line in [*conclusion(tuning), *(f"Set by you, and above what was kept: {key}." for key in overriding)]:
        console.print(printable(as_called(line), console.encoding), soft_wrap=True, markup=False)


def table_of(engine: Engine, console: Console, most: int | None = None) -> Table:
    """Every combination, the fastest first, with its bar; `most`: at most so many rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    rates, problems = engine.rates(), engine.problems()
    names = [name for name in _HEADS if any(name in engine.options(one) for one in (*rates, *problems))]
    table.add_column("tokens/s", justify="right", no_wrap=True, overflow="crop")
    table.add_column("", no_wrap=True, overflow="crop", max_width=BAR_WIDTH)
    for name in names:
        table.add_column(_HEADS[name], justify="right", no_wrap=True, overflow="crop")
    table.add_column("", no_wrap=True, overflow="crop")
    fastest = max((statistics.median(found) for found in rates.values()), default=0.0)
    rows = [*rates, *problems][:most]
    for combination in rows:
        options = engine.options(combination)
        cells = [_value(options.get(name)) for name in names]
        bar, rate = Text("failed", style="red"), ""
        if combination in rates:
            value = statistics.median(rates[combination])
            bar, rate = Text(text_bar(value, fastest, BAR_WIDTH, console.encoding)), f"{value:,.0f}"
        is_best = engine.verdict is not None and combination == engine.verdict.best
        table.add_row(rate, bar, *cells, _remark(engine, combination), style="bold green" if is_best else "")
    return table


def text_bar(value: float, most: float, width: int, encoding: str = "utf-8") -> str:
    """A bar of up to `width` characters; of eighths where the encoding has them, else of `#`."""
    share = min(1.0, value / most) if most > 0 else 0.0
    try:
        ("█" + _EIGHTHS).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def conclusion(tuning: Tuning) -> list[str]:
    """What was found, in sentences."""
    lines: list[str] = []
    for engine in tuning.engines:
        lines += _conclusion_of(engine)
    if tuning.sample is not None:
        made_up = " of random words: there are no documents yet" if tuning.sample.source == "made up" else ""
        lines.append(
            f"Measured with {counted(len(tuning.sample.chunks), 'chunk')}"
            + (made_up or f" of the {tuning.sample.source}")
            + f", {tuning.sample.tokens / max(1, len(tuning.sample.chunks)):.0f} tokens each."
        )
    fastest, others = tuning.fastest, [engine for engine in tuning.engines if engine.verdict]
    if fastest is not None and len(others) > 1:
        lines += _comparison(fastest, [one for one in others if one is not fastest])
    return lines


def _conclusion_of(engine: Engine) -> Iterator[str]:
    verdict, name = engine.verdict, engine.kind
    if verdict is None:
        return
    if len({trial.combination for trial in engine.trials}) == 1:
        yield f"{name}: {verdict.rate:,.0f} tokens/s; there was time for its own choice only: give it more (--budget)."
    elif not verdict.proved:
        yield (
            f"{name}: its own choice stays, {verdict.rate:,.0f} tokens/s; nothing was faster by more than chance makes"
            f" ({max(verdict.noise, 0.02):.0%})."
        )
    elif verdict.start_rate is None:
        yield f"{name}: its own choice fails; {_words(engine.best_options())} works: {verdict.rate:,.0f} tokens/s."
    else:
        yield (
            f"{name}: {_words(engine.best_options())} is {verdict.gain:.0%} faster than its own choice:"
            f" {verdict.rate:,.0f} tokens/s (chance makes {verdict.noise:.0%})."
        )
    if engine.kept and verdict.proved and name != "llama-server":
        build = f"{name} {engine.build.partition(' ')[0]}"
        yield f"Kept for this model, {engine.device}, and {build}: the next start uses it."


def _comparison(fastest: Engine, others: Sequence[Engine]) -> Iterator[str]:
    assert fastest.verdict is not None
    for other in others:
        assert other.verdict is not None
        yield f"{fastest.kind} is {fastest.verdict.rate / other.verdict.rate:.2f} times as fast as {other.kind}."
    yield (
        f"To use it: NIGHTSHIFT_EMBEDDING_BACKEND={fastest.kind} NIGHTSHIFT_EMBEDDING_MODEL={fastest.file.path}; or in"
        f' nightshift.toml, [embedding]: backend = "{fastest.kind}", model = "{fastest.file.path}"'
    )


def _remark(engine: Engine, combination: Combination) -> str:
    remarks = ["best"] if engine.verdict is not None and combination == engine.verdict.best else []
    if combination == engine.space.start:
        remarks.append("its own choice")
    return ", ".join(remarks)


def _words(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{_HEADS.get(name, name)} {_value(value)}" for name, value in options.items())


def _value(value: object) -> str:
    return {True: "yes", False: "no", None: ""}[value] if isinstance(value, bool | None) else str(value)


def _first_line(problem: str) -> str:
    return problem.partition("\n")[0]


def _line(text: str, console: Console) -> Text:
    return Text(printable(text, console.encoding), no_wrap=True, overflow="crop")
