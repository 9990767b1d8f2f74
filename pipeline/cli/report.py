"""A run's report, in words."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import PurePath
from typing import TYPE_CHECKING

from pipeline.cli.view import duration
from pipeline.cli.words import counted
from pipeline.store.overview import FAILING, DocumentLine, ModelLine

if TYPE_CHECKING:
    from pipeline.runner import RunReport

FAILING_SHOWN = 20
_WELL = ("total", "embedded")
WHY = "python -m pipeline documents --state failed --state empty --state encrypted"


def lines(report: RunReport, model_option: str | None) -> Iterator[str]:
    """The report, line by line. model_option: what `--model` was given, so that what is to be typed repeats it."""
    yield from _outcome(report)
    changes = ", ".join(f"{number:,} {what}" for what, number in asdict(report.changes).items() if number)
    if changes:
        yield f"Found: {changes}."
    if report.chunks_embedded:
        pace = f"{report.chunks_per_second:.1f} chunks/s"
        yield f"This run embedded {counted(report.chunks_embedded, 'chunk')} in {duration(report.seconds)} ({pace})."
    elif report.outcome == "complete":
        yield "Nothing new to embed."
    yield from _failing(report)
    yield from _next(report, "" if model_option is None else f" --model {shlex.quote(model_option)}")


def failure(line: DocumentLine) -> str:
    """Why a document is not embedded, and whether search still finds an older version."""
    words = f"{line.state.value}: {line.reason or 'no reason is known'}"
    return words + ("; its last good version is still searched" if line.older else "")


def named(model: ModelLine) -> str:
    """A model such that it cannot be mistaken for another of the same name: with its file and its fingerprint."""
    head, colon, rest = model.fingerprint.partition(":")
    pooling, digest = (f"{head} pooling, ", rest) if colon else ("", head)
    return f"{model.name} ({PurePath(model.path).name}, {pooling}{digest[:8]})"


def _outcome(report: RunReport) -> Iterator[str]:
    documents, chunks = report.documents, report.chunks
    others = [f"{documents[state]:,} {state}" for state in documents if documents[state] and state not in _WELL]
    count = (
        f"{documents['embedded']:,} of {counted(documents['total'], 'document')} embedded"
        + (f" ({', '.join(others)})" if others else "")
        + f", {chunks['embedded']:,} of {counted(chunks['total'], 'chunk')}."
    )
    if report.outcome == "failed":
        for problem in report.errors:
            yield f"Failed: {problem}"
        yield f"What is there: {count}"
    else:
        yield f"{'Complete' if report.outcome == 'complete' else 'Stopped before the end'}: {count}"


def _failing(report: RunReport) -> Iterator[str]:
    total = sum(report.documents[state.value] for state in FAILING)
    if not report.failing:
        return
    new = min(report.failed_now, total)
    old = "" if new >= total else f", {new:,} of them new" if new else ", none of them new"
    yield f"Not embedded: {counted(total, 'document')}{old}"
    for line in report.failing[:FAILING_SHOWN]:
        yield f"  {line.file}: {failure(line)}"
    if total > FAILING_SHOWN:
        yield f"  and {total - FAILING_SHOWN:,} more: `{WHY}`"


def _next(report: RunReport, model_option: str) -> Iterator[str]:
    if report.waiting_elsewhere:
        others = counted(report.waiting_elsewhere, "other document")
        yield f"Left: {others}; `python -m pipeline run-now{model_option}` without a path goes on with all."
    model, searched = report.model, report.searched_with
    if model and searched and not model.active:
        moves = "when a run of all completes"
        if model.waiting:
            moves = (
                f"once all documents are embedded by {named(model)}: {model.waiting:,} wait, and "
                f"`python -m pipeline run-now{model_option}` without a path takes them up"
            )
        yield f"Search still uses {named(searched)}, and moves over {moves}."
    elif report.outcome == "complete" and report.documents["embedded"]:
        yield 'Try: python -m pipeline search "what you want to know"'
    if report.outcome == "stopped":
        yield "Nothing is lost: run the same command again to go on."
