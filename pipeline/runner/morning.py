"""The morning report: what a run did, what failed and why, what needs a person, and what the next night will do."""

from __future__ import annotations

import datetime as dt
import json
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from pipeline.core.causes import Cause, Causes
from pipeline.ingest.progress import Progress
from pipeline.runner.morning_text import as_markdown, count, local
from pipeline.store import attention, overview
from pipeline.store.absent import waiting_deletions

CAUSES = 50
"""Causes that a report lists: those of most documents."""

SUFFIXES = (".json", ".md")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a run at its end that is not in the database.

    interrupted: earlier runs that died, each as its id and when it was last seen.
    plan: the next night's forecast, None where it could not be made.
    device: `gpu` or `cpu`. device_name, build: what the device is called, and what the model server was built with.
    unused_gpu: a GPU that it was built without, in words.
    until: the end of its job's window, where the run was stopped because its time was over.
    """

    run_id: str
    job: str | None
    task: str
    outcome: str
    started_at: dt.datetime
    finished_at: dt.datetime
    seconds: float
    progress: Progress
    errors: Sequence[str] = ()
    interrupted: Sequence[tuple[str, dt.datetime]] = ()
    plan: Mapping[str, Any] | None = None
    model: str | None = None
    device: str | None = None
    device_name: str | None = None
    build: str | None = None
    unused_gpu: str | None = None
    sources: Sequence[str] = field(default_factory=list)
    until: dt.datetime | None = None

    @property
    def empty(self) -> bool:
        """Whether there was nothing to do, and nothing to say."""
        changes = asdict(self.progress.changes)
        changed = any(number for what, number in changes.items() if what != "unchanged")
        progress = self.progress
        worked = progress.documents_read or progress.documents_done or progress.documents_failed or progress.chunks_done
        return self.outcome == "complete" and not (changed or worked or self.errors or self.interrupted)


def make_report(session: Session, facts: Facts) -> dict[str, Any]:
    """The report as JSON has it. Changes nothing."""
    progress, meter = facts.progress, facts.progress.meter
    scans = attention.without_text(session)
    failing = Causes()
    encrypted = 0
    for each in attention.failing_reasons(session):
        failing.add(each.example, each.state, each.reason, each.documents)
        encrypted += each.documents if each.state == "encrypted" else 0
    reading, embedding = meter.reading.seconds, meter.embedding.seconds
    return {
        "run_id": facts.run_id,
        "job": facts.job,
        "task": facts.task,
        "outcome": facts.outcome,
        "started_at": facts.started_at.isoformat(timespec="seconds"),
        "finished_at": facts.finished_at.isoformat(timespec="seconds"),
        "seconds": round(facts.seconds, 1),
        "sources": list(facts.sources),
        "model": facts.model,
        "device": facts.device,
        "device_name": facts.device_name,
        "build": facts.build,
        "unused_gpu": facts.unused_gpu,
        "interrupted": [
            {"run_id": run_id, "last_seen": seen.isoformat(timespec="seconds")} for run_id, seen in facts.interrupted
        ],
        "found": asdict(progress.changes),
        "done": {
            "documents_read": meter.documents,
            "documents_embedded": progress.documents_done,
            "documents_failed": progress.documents_failed,
            "pages": meter.pages,
            "characters": meter.characters,
            "chunks": progress.chunks_done,
            "chunks_reused": progress.chunks_reused,
            "tokens": meter.tokens,
            "reading_seconds": round(reading, 2),
            "embedding_seconds": round(embedding, 2),
            "pages_per_second": round(meter.pages / reading, 2) if reading else None,
            "chunks_per_second": round(progress.chunks_done / embedding, 2) if embedding else None,
            "tokens_per_second": round(meter.tokens / embedding, 1) if embedding else None,
        },
        "failed": _causes(progress.causes.most_first()),
        "errors": list(facts.errors),
        "cut_off": None if facts.until is None else cut_off(facts.job, facts.until, facts.plan),
        "needs_ocr": asdict(scans),
        "waits_for_a_person": {"deletions": _deletions(session), "encrypted": encrypted},
        "index": {
            "documents": overview.count_documents(session),
            "chunks": overview.count_chunks(session),
            "failing": _causes(failing.most_first()),
        },
        "next": None if facts.plan is None else dict(facts.plan),
    }


def cut_off(job: str | None, until: dt.datetime, plan: Mapping[str, Any] | None) -> str:
    """That a run's time was over, what waits, and when that goes on. plan: as `Plan.as_json` has it."""
    waits, window = "what is left waits", None
    if plan is not None:
        pending, window = plan["pending"], plan["next_window"]
        documents = pending["documents_to_read"] + pending["documents_read"]
        waits = f"{count(documents, 'document')} with {count(pending['chunks'], 'chunk')} cut so far wait"
    by_itself = "no later window is in sight"
    if window is not None:
        by_itself = f"it goes on in the next window of {window['job']}, {local(window['start'])}"
    return (
        f"its time was over at {local(until.isoformat())} (`until` of the job {job}): {waits}; {by_itself}, "
        "or now by `python -m pipeline run-now`"
    )


def _deletions(session: Session) -> list[str]:
    """What a person has to confirm, of all sources: a later run over another one is no answer."""
    return [
        f"Documents of {one.root} whose files are gone since {one.since:%Y-%m-%d}: {one.documents:,}. They stay until "
        f"it is confirmed: `python -m pipeline run-now {shlex.quote(one.root)} --confirm-deletions`"
        for one in waiting_deletions(session)
    ]


def write_report(folder: Path, report: Mapping[str, Any], *, keep: int, keep_days: int, now: dt.datetime) -> None:
    """Write a report as `<run id>.json` and `.md`, each whole or not at all, and remove those that are too old.

    Raises OSError.
    """
    if keep == 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{report['run_id']}.json", json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    _write(folder / f"{report['run_id']}.md", as_markdown(report))
    _prune(folder, keep, keep_days, now)


def _write(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _prune(folder: Path, keep: int, keep_days: int, now: dt.datetime) -> None:
    """The names sort by time, because the ids of runs do."""
    names = sorted({path.stem for path in folder.iterdir() if path.suffix in SUFFIXES}, reverse=True)
    oldest = f"{now - dt.timedelta(days=keep_days):%Y%m%dT%H%M%S}" if keep_days else ""
    for name in [name for place, name in enumerate(names) if place >= keep or name < oldest]:
        for suffix in SUFFIXES:
            (folder / f"{name}{suffix}").unlink(missing_ok=True)


def _causes(causes: Sequence[Cause]) -> list[dict[str, Any]]:
    return [asdict(cause) for cause in causes[:CAUSES]]
