"""`eval`: how good search is, by questions whose answers are known; and whether another model or index is better."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from pipeline.cli.asking import gpu_is_ours
from pipeline.cli.console import errors_explained, open_store, out, print_json
from pipeline.cli.view import printable
from pipeline.cli.words import counted
from pipeline.core.errors import UsageError
from pipeline.core.fusion import By
from pipeline.core.judged import Question, parse_questions
from pipeline.core.redaction import redacted
from pipeline.runner.evaluation import Answered, Evaluation, Scores, Side, evaluate
from pipeline.runner.mirroring import beside
from pipeline.runner.question import embed_questions
from pipeline.runner.target import unaliased
from pipeline.store.inventory import short_fingerprint

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.core.evaluation import Difference, Mean

ORDER = (By.VECTOR, By.TEXT, By.FUSED)
MOVED = 10
"""Questions that are shown of those that are answered better or worse; --misses shows all."""


def eval_command(
    queries: Path,
    *,
    k: int,
    by: Sequence[str],
    database: str | None,
    model: str | None,
    against: str | None,
    against_database: str | None,
    misses: bool,
    as_json: bool,
) -> None:
    """Judge one index and model, or two side by side, and print the figures."""
    with errors_explained(as_json=as_json), ExitStack() as opened:
        rankings = _rankings(by)
        questions = _read(queries)
        loaded, store = opened.enter_context(open_store(database))
        sides = [Side(store, unaliased(loaded.settings, model))]
        if against is not None or against_database is not None:
            other = opened.enter_context(open_store(against_database))[1] if against_database else store
            sides.append(Side(other, unaliased(loaded.settings, against)))

        async def embed(of: Any, texts: Sequence[str]) -> Any:
            return await embed_questions(loaded.settings, of, texts, on_gpu=gpu_is_ours(loaded.settings))

        async def judged() -> list[Evaluation]:
            async with beside(loaded.settings, store):
                return await evaluate(sides, questions, rankings, k, embed)

        found = asyncio.run(judged())
        urls = [redacted(url) for url in (loaded.settings.database_url, against_database) if url is not None]
    databases = [urls[0], urls[-1]]
    if as_json:
        print_json(_as_json(found, databases, questions))
    else:
        _print(found, databases, questions, out(), misses=misses)


def _rankings(by: Sequence[str]) -> list[By]:
    for name in by:
        if name not in list(By):
            raise UsageError(f'--by: should be {" or ".join(By)}, not "{name}"')
    return [ranking for ranking in ORDER if not by or ranking in by]


def _read(queries: Path) -> list[Question]:
    try:
        lines = queries.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"{queries} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{queries} is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    try:
        return parse_questions(lines)
    except UsageError as error:
        raise UsageError(f"{queries}: {error}") from error


def _print(
    found: Sequence[Evaluation],
    databases: Sequence[str],
    questions: Sequence[Question],
    console: Console,
    *,
    misses: bool,
) -> None:
    def line(text: str = "", style: str = "") -> None:
        console.print(Text(printable(text, console.encoding), style), soft_wrap=True)

    for number, evaluation in enumerate(found):
        if number:
            line()
        side = f"{'AB'[number]}: " if len(found) > 1 else ""
        database = f", {databases[number]}" if databases[0] != databases[1] else ""
        line(f"{side}{_heading(evaluation)}{database}", "bold")
        console.print(_figures(evaluation.scores))
        tagged = _by_tag(evaluation.scores)
        if tagged is not None:
            line()
            console.print(tagged)
        if misses:
            for text in _misses(evaluation.scores):
                line(text)
    line()
    line("In parentheses: where the mean is with 95 % confidence, as far as these questions can tell.")
    if len(found) > 1:
        line()
        line("A against B, question by question", "bold")
        differences = _differences(*found)
        console.print(_compared(differences))
        line("p: how often chance alone would differ so much.")
        for text in _moved(*found, most=None if misses else MOVED):
            line(text)
    for text in _left_out(found, questions):
        line(text)


def _heading(evaluation: Evaluation) -> str:
    asked = len(next(iter(evaluation.scores.values())).answered)
    searched = "" if evaluation.model.active else ", which search does not use"
    model = f"{evaluation.model.name} ({short_fingerprint(evaluation.model)})"
    return f"{counted(asked, 'question')}, {counted(evaluation.files, 'file')}, model {model}{searched}"


def _figures(scores: Mapping[By, Scores]) -> Table:
    measures = list(next(iter(scores.values())).means)
    table = Table("ranking", *measures, box=None, pad_edge=False, header_style="bold")
    for by, of in scores.items():
        table.add_row(by.value, *(_mean(value) for value in of.means.values()))
    return table


def _by_tag(scores: Mapping[By, Scores]) -> Table | None:
    """The last measure of each kind of question; None where the questions have no tags."""
    answered = next(iter(scores.values())).answered
    tags = list(dict.fromkeys(one.question.tag for one in answered))
    if len(tags) < 2:
        return None
    measure = list(next(iter(scores.values())).means)[-1]
    table = Table(f"{measure} by tag", "questions", *scores, box=None, pad_edge=False, header_style="bold")
    for tag in tags:
        of_tag = {by: of.tagged(tag) for by, of in scores.items()}
        count = len(next(iter(of_tag.values())).answered)
        values = (f"{of.means[measure].value:.2f}" for of in of_tag.values())
        table.add_row(printable(tag) or "(none)", str(count), *values)
    return table


def _misses(scores: Mapping[By, Scores]) -> Iterator[str]:
    for by, of in scores.items():
        missed = [one for one in of.answered if one.rank is None]
        yield ""
        yield f"{by.value}: {counted(len(missed), 'question')} without an answer among the first {of.k}"
        for one in missed:
            yield f"  line {one.question.line}: {one.question.text}"
            yield f"    wanted {_wanted(one.question)}; first was {_first(one)}"


def _wanted(question: Question) -> str:
    return ", ".join(
        place.file + (f" page {place.page}" if place.page else "") + (f' "{place.heading}"' if place.heading else "")
        for place in question.places
    )


def _first(one: Answered) -> str:
    hit = one.first
    if hit is None:
        return "nothing"
    return f"{Path(hit.file).name}{f' page {hit.page_first}' if hit.page_first else ''}"


def _differences(one: Evaluation, other: Evaluation) -> dict[By, Mapping[str, Difference]]:
    return {by: scores.against(other.scores[by]) for by, scores in one.scores.items()}


def _compared(differences: Mapping[By, Mapping[str, Difference]]) -> Table:
    header = ("ranking", "measure", "A - B", "better", "worse", "equal", "p")
    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for by, measures in differences.items():
        for measure, of in measures.items():
            counts = (str(of.better), str(of.worse), str(of.equal))
            table.add_row(by.value, measure, _mean(of.mean, sign="+"), *counts, f"{of.p:.3f}")
    return table


def _moved(one: Evaluation, other: Evaluation, *, most: int | None) -> Iterator[str]:
    """The questions that one side answers better, those that differ most first."""
    by = list(one.scores)[-1]
    pairs = zip(one.scores[by].answered, other.scores[by].answered, strict=True)
    moved = sorted(
        (pair for pair in pairs if pair[0].rank != pair[1].rank),
        key=lambda pair: -abs(_reciprocal(pair[0]) - _reciprocal(pair[1])),
    )
    if moved:
        yield ""
        yield f"{by.value}: rank of the first answer, A and B"
    for mine, theirs in moved[:most]:
        yield f"  {mine.rank or '-':>3} {theirs.rank or '-':>3}  line {mine.question.line}: {mine.question.text}"
    if most is not None and len(moved) > most:
        yield f"  and {len(moved) - most} more: --misses shows them all"


def _left_out(found: Sequence[Evaluation], questions: Sequence[Question]) -> Iterator[str]:
    """The questions that were not counted, each once."""
    apart = {one.question.line: one for evaluation in found for one in evaluation.apart}
    if apart:
        yield ""
        yield f"Not counted: {len(apart)} of {counted(len(questions), 'question')}"
        for number, one in sorted(apart.items()):
            yield f"  line {number}: {one.question.text} ({one.why})"


def _reciprocal(one: Answered) -> float:
    return 1 / one.rank if one.rank else 0.0


def _mean(value: Mean, sign: str = "") -> str:
    return f"{value.value:{sign}.2f} ({value.low:{sign}.2f} to {value.high:{sign}.2f})"


def _as_json(found: Sequence[Evaluation], databases: Sequence[str], questions: Sequence[Question]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "questions": len(questions),
        "sides": [
            {"database": database} | _side_as_json(evaluation)
            for evaluation, database in zip(found, databases, strict=False)
        ],
        "differences": None,
    }
    if len(found) > 1:
        said["differences"] = {
            by.value: {measure: asdict(of) for measure, of in measures.items()}
            for by, measures in _differences(*found).items()
        }
    return said


def _side_as_json(evaluation: Evaluation) -> dict[str, Any]:
    model, scores = evaluation.model, evaluation.scores
    first = next(iter(scores.values()))
    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "files": evaluation.files,
        "counted": len(first.answered),
        "not_counted": [
            {"line": one.question.line, "question": one.question.text, "why": one.why} for one in evaluation.apart
        ],
        "scores": {
            by.value: {measure: asdict(value) for measure, value in of.means.items()} for by, of in scores.items()
        },
        "results": [
            {
                "line": one.question.line,
                "question": one.question.text,
                "tag": one.question.tag or None,
                "rankings": {
                    by.value: {
                        "rank": of.answered[number].rank,
                        **{measure: values[number] for measure, values in of.measured.items()},
                    }
                    for by, of in scores.items()
                },
            }
            for number, one in enumerate(first.answered)
        ],
    }
