"""A run's report, in words."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from pipeline.cli.view import duration
from pipeline.cli.words import counted
from pipeline.store.inventory import ModelInventory
from pipeline.store.overview import FAILING, DocumentLine, ModelLine

if TYPE_CHECKING:
    from pipeline.runner.report import RunReport

FAILING_SHOWN = 20
UNSETTLED_SHOWN = 5
ELSEWHERE_SHOWN = 3
_WELL = ("total", "embedded")
WHY = "python -m pipeline documents --state failed --state empty --state encrypted"


def lines(report: RunReport, *, model: str | None = None, database: str | None = None) -> Iterator[str]:
    """The report, line by line. model, database: what these options were given, so that what is to be typed repeats it.

    A password in `database` is printed as it is: leave it out.
    """
    here = "" if database is None else f" --database {shlex.quote(database)}"
    again = ("" if model is None else f" --model {shlex.quote(model)}") + here
    yield from _outcome(report)
    yield from _found(asdict(report.changes))
    if report.chunks_embedded:
        pace = f"{report.chunks_per_second:.1f} chunks/s"
        yield f"This run embedded {counted(report.chunks_embedded, 'chunk')} in {duration(report.seconds)} ({pace})."
        if report.engine:
            yield _engine(report.engine)
        if report.device_name:
            yield f"Computed on {report.device_name}, by {report.build}."
    elif report.reads_only:
        read = f"{counted(report.documents_read, 'document')} with {counted(report.pages_read, 'page')}"
        embeds = f"`python -m pipeline run-now{again}` embeds what was read"
        yield f"This run read {read} in {duration(report.seconds)}; {embeds}."
    elif report.outcome == "complete":
        yield "Nothing new to embed."
    if report.chunks_reused:
        yield f"{counted(report.chunks_reused, 'chunk')} had a vector from before."
    if report.unused_gpu:
        yield f"Note: {report.unused_gpu}"
    yield from _failing(report, here)
    yield from _next(report, again, here)


def _found(changes: Mapping[str, int]) -> Iterator[str]:
    """What the folders held, compared with what was known."""
    said = ", ".join(f"{number:,} {what}" for what, number in changes.items() if number and what != "remade")
    if said:
        yield f"Found: {said}."
    if remade := changes.get("remade"):
        yield f"Made anew: {counted(remade, 'document')}; the model or the settings for reading or chunking changed."


def _unsettled(files: Sequence[str]) -> Iterator[str]:
    """The files that were left because somebody writes to them."""
    if files:
        some = ", ".join(files[:UNSETTLED_SHOWN]) + (", ..." if files[UNSETTLED_SHOWN:] else "")
        yield f"Still being written to, and left for the next run: {counted(len(files), 'file')} ({some})."


def _not_looked_at(folders: Sequence[str]) -> Iterator[str]:
    """The folders that are known, and that the run was not to look at."""
    if folders:
        some = ", ".join(folders[:ELSEWHERE_SHOWN]) + (", ..." if folders[ELSEWHERE_SHOWN:] else "")
        yield f"Not looked at: {some}. Name what is to be looked at, to `run-now` or among the `sources` of a job."


def _engine(stats: Mapping[str, Any]) -> str:
    fill, waiting, whole = stats["fill"] or 0.0, stats["waiting_share"] or 0.0, stats["whole"]
    if not whole["texts"]:
        return f"The engine's batches were {fill:.0%} full, and {waiting:.0%} of its time it had no input."
    # The contexts have no input while all cores compute a long text, so their waiting says nothing then.
    batches = f"The engine's batches were {fill:.0%} full; besides, it" if stats["batches"] else "The engine"
    return f"{batches} computed {counted(whole['texts'], 'long text')} ({counted(whole['tokens'], 'token')}) in one go."


def failure(line: DocumentLine) -> str:
    """Why a document is not embedded, and whether search still finds an older version."""
    words = f"{line.state.value}: {line.reason or 'no reason is known'}"
    return words + ("; its earlier text is still searched" if line.older else "")


def named(model: ModelLine | ModelInventory) -> str:
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


def _failing(report: RunReport, here: str) -> Iterator[str]:
    total = sum(report.documents[state.value] for state in FAILING)
    if not report.failing:
        return
    new = min(report.failed_now, total)
    old = "" if new >= total else f", {new:,} of them new" if new else ", none of them new"
    yield f"Not embedded: {counted(total, 'document')}{old}"
    for line in report.failing[:FAILING_SHOWN]:
        yield f"  {line.file}: {failure(line)}"
    if total > FAILING_SHOWN:
        yield f"  and {total - FAILING_SHOWN:,} more: `{WHY}{here}`"


def _owed(mirror: Mapping[str, Any], here: str) -> str:
    """What Qdrant does not hold yet, and how it comes to."""
    why = f" ({mirror['error']})" if mirror["error"] else ""
    later = f"`python -m pipeline mirror sync{here}` delivers it now, the next run or the daemon later"
    return f"Qdrant is still owed {counted(mirror['owed'], 'document')}{why}: {later}."


def _next(report: RunReport, again: str, here: str) -> Iterator[str]:
    """What is to be done. again, here: the options that `run-now`, and that any other command, is to be given anew."""
    yield from _unsettled(report.unsettled)
    yield from _not_looked_at(report.not_looked_at)
    for host, documents in report.others.items():
        yield f"Still at work: {host}, on {counted(documents, 'document')} of these."
    if report.mirror and report.mirror["owed"]:
        yield _owed(report.mirror, here)
    if report.waiting_elsewhere:
        others = counted(report.waiting_elsewhere, "other document")
        yield f"Left: {others}; `python -m pipeline run-now{again}` without a path goes on with all."
    model, searched = report.model, report.searched_with
    if model and searched and model.set_aside:
        yield (
            f"Search stays with {named(searched)}, as it was told to: what {named(model)} makes is not found until "
            f"`python -m pipeline models use{here}` moves it back."
        )
    elif model and searched and not model.active:
        moves = "when a run of all completes"
        if model.waiting:
            moves = (
                f"once all documents are embedded by {named(model)}: {model.waiting:,} wait, and "
                f"`python -m pipeline run-now{again}` without a path takes them up"
            )
        yield f"Search still uses {named(searched)}, and moves over {moves}."
    elif report.outcome == "complete" and report.documents["embedded"] and not report.reads_only:
        yield f'Try: python -m pipeline search{here} "what you want to know"'
    if report.outcome == "complete" and not report.documents["total"]:
        yield f"No documents are there yet: put PDF or DOCX files into {' or '.join(report.sources)}, and run it again."
    if report.cut_off:
        yield f"Nothing is lost: {report.cut_off}."
    elif report.outcome == "stopped":
        yield "Nothing is lost: run the same command again to go on."
