"""A morning report as Markdown, for people. Knows the report's JSON, and nothing of how it came about."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping
from typing import Any

CAUSES_SHOWN = 20
_MARKS = r"[\\`*_\[\]<>#|]"
_PACES = (("tokens_per_second", "tokens/s"), ("chunks_per_second", "chunks/s"))


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page that reads well as plain text too."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    name = f"job {report['job']}" if report["job"] else "by hand"
    what = "read ahead" if report["task"] == "extract" else "run"
    yield f"# {_plain(report['outcome']).capitalize()}: {what} {_plain(name)}, {local(report['started_at'])}"
    yield ""
    yield f"Run {report['run_id']}, {_duration(report['seconds'])}, ended {local(report['finished_at'])}."
    if report.get("cut_off"):
        yield f"It was stopped: {report['cut_off']}."
    for earlier in report["interrupted"]:
        yield (
            f"Run {_plain(earlier['run_id'])} before it was interrupted: its process was last seen "
            f"{local(earlier['last_seen'])}. What it left was taken up."
        )
    yield ""
    yield from _done(report)
    yield from _section("Errors", (f"- {_plain(error)}" for error in report["errors"]))
    yield from _section("Failed in this run", _causes(report["failed"]))
    yield from _section("Waits for a person", _person(report))
    yield from _section("The index", _index(report))
    yield from _section("Next", _next(report["next"]))


def _done(report: Mapping[str, Any]) -> Iterator[str]:
    done, found = report["done"], report["found"]
    changes = ", ".join(f"{number:,} {what}" for what, number in found.items() if number and what != "remade")
    if changes:
        yield f"- Found: {changes}."
    if remade := found.get("remade"):
        why = "the model or the settings for reading or chunking changed"
        yield f"- Made anew: {count(remade, 'document')}; {why}."
    if done["documents_read"]:
        pace = f" ({done['pages_per_second']:,g} pages/s)" if done["pages_per_second"] else ""
        yield f"- Read: {count(done['documents_read'], 'document')}, {count(done['pages'], 'page')}{pace}."
    if done["chunks"]:
        paces = [f"{done[name]:,g} {unit}" for name, unit in _PACES if done[name]]
        yield (
            f"- Embedded: {count(done['chunks'], 'chunk')}, {count(done['tokens'], 'token')} in "
            f"{_duration(done['embedding_seconds'])}{' (' + ', '.join(paces) + ')' if paces else ''}; "
            f"{count(done['documents_embedded'], 'document')} complete."
        )
    if report.get("device_name"):
        yield f"- Computed on {_plain(report['device_name'])}, by {_plain(report['build'])}."
    if done["chunks_reused"]:
        yield f"- Reused: {count(done['chunks_reused'], 'chunk')} had their vector from before."
    if not (changes or remade or done["documents_read"] or done["chunks"]):
        yield "- Nothing to do." if report["outcome"] == "complete" else "- Nothing was done."


def _causes(causes: list[dict[str, Any]]) -> Iterator[str]:
    for cause in causes[:CAUSES_SHOWN]:
        # A single one is told in full; of many, what they share.
        reason = cause["reason"] if cause["count"] == 1 else cause["cause"]
        examples = ", ".join(_plain(path) for path in cause["examples"])
        more = ", ..." if cause["count"] > len(cause["examples"]) else ""
        yield f"- {count(cause['count'], 'document')} {_plain(cause['state'])}: {_plain(reason)} ({examples}{more})"
    if len(causes) > CAUSES_SHOWN:
        yield f"- and {len(causes) - CAUSES_SHOWN} more causes"


def _person(report: Mapping[str, Any]) -> Iterator[str]:
    waits, scans = report["waits_for_a_person"], report["needs_ocr"]
    if report.get("unused_gpu"):
        # As it is: it names a command that is to be copied.
        yield f"- {report['unused_gpu'][0].upper()}{report['unused_gpu'][1:]}"
    for deletion in waits["deletions"]:
        yield f"- {_plain(deletion)}"
    if waits["encrypted"]:
        needs = "it needs its password" if waits["encrypted"] == 1 else "they need their passwords"
        yield (
            f"- {count(waits['encrypted'], 'encrypted document')}: {needs}; the setting `extract.passwords` or "
            "`extract.password_file` gives those of PDFs."
        )
    if scans["documents"]:
        pages = f" ({count(scans['pages'], 'page')})" if scans["pages"] else ""
        yield f"- {count(scans['documents'], 'document')} without any text{pages}: OCR may help (`extract.ocr`)."
    if scans["partly"]:
        yield f"- {count(scans['partly_pages'], 'page')} without text in {count(scans['partly'], 'other document')}."


def _index(report: Mapping[str, Any]) -> Iterator[str]:
    documents, chunks = report["index"]["documents"], report["index"]["chunks"]
    states = ", ".join(f"{number:,} {state}" for state, number in documents.items() if number and state != "total")
    yield f"- {count(documents['total'], 'document')}{': ' + states if states else ''}."
    yield f"- {chunks['embedded']:,} of {count(chunks['total'], 'chunk')} can be searched."
    yield from _causes(report["index"]["failing"])


def _next(plan: Mapping[str, Any] | None) -> Iterator[str]:
    if plan is None:
        return
    waiting = plan["pending"]
    if not (waiting["documents_to_read"] or waiting["chunks"]):
        yield "- Nothing waits."
        return
    parts = []
    if waiting["documents_to_read"]:
        pages = count(waiting["pages_to_read"], "page")
        parts.append(f"{count(waiting['documents_to_read'], 'document')} to read (about {pages})")
    if waiting["chunks"]:
        parts.append(f"{count(waiting['chunks'], 'chunk')} to embed")
    yield f"- Waiting: {', '.join(parts)}."
    window = plan["next_window"]
    if window is None:
        yield "- No window in which anything is embedded is in sight."
        return
    ends = dt.datetime.fromisoformat(window["stop_at"]).astimezone()
    yield f"- Next window: {_plain(window['job'])}, {local(window['start'])} to {ends:%H:%M}."
    likely, latest = plan["nights"]["likely"], plan["nights"]["latest"]
    if not plan["known"]:
        yield f"- When it is done is not known yet: {'; '.join(map(_plain, plan['assumed']))}."
    elif likely["nights"] is not None:
        until = f", at the latest in {latest['nights']}" if latest["nights"] not in (None, likely["nights"]) else ""
        yield f"- Done in {count(likely['nights'], 'night')}{until}: {local(likely['at'])}."
    else:
        yield "- It is not done in any window that is in sight."


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    found = list(lines)
    if found:
        yield from ["", f"## {title}", "", *found]


def as_shown(line: str) -> str:
    """A line of the page as a terminal shows it: without the backslashes that are for Markdown."""
    return re.sub(rf"\\({_MARKS})", r"\1", line)


def _plain(text: str) -> str:
    """Text from files and errors, as one line that Markdown and terminals leave alone."""
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return re.sub(rf"({_MARKS})", r"\\\1", line)


def count(number: int, noun: str) -> str:
    """A number and its noun."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def local(instant: str) -> str:
    """An instant on the clock of this host, to the minute."""
    return f"{dt.datetime.fromisoformat(instant).astimezone():%a %Y-%m-%d %H:%M}"
