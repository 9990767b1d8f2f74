"""`status`: what is done, failing and waiting."""

from __future__ import annotations

import dataclasses
import datetime as dt
import socket
from typing import Any

from pipeline.cli.console import errors_explained, not_there_yet, open_store, out, print_json
from pipeline.cli.report import WHY, named
from pipeline.cli.view import printable
from pipeline.cli.words import as_called, counted, moment
from pipeline.store import overview, runs
from pipeline.store.overview import ModelLine, SourceLine
from pipeline.store.runs import StoredRun

SOURCES_SHOWN = 5
DIED = "interrupted"
"""What the next run will write of one whose process is gone."""


def show_status(database: str | None, *, as_json: bool) -> None:
    """Print it. Of a database that is not there yet everything is zero, and none is made."""
    with errors_explained(as_json=as_json), open_store(database) as (loaded, store):
        missing = not_there_yet(loaded)
        with store.snapshot() as session:
            documents = overview.count_documents(session)
            chunks = overview.count_chunks(session)
            models = overview.list_models(session)
            sources = overview.list_sources(session)
            last = next(iter(runs.latest_runs(session)), None)
        address = str(loaded.settings.flatten()["database_url"])
    if as_json:
        print_json(
            {
                "documents": documents,
                "chunks": chunks,
                "model": next((_model_as_json(model) for model in models if model.active), None),
                "next_models": [_model_as_json(model) for model in models if not model.active],
                "sources": [dataclasses.asdict(source) for source in sources],
                "last_run": None if last is None else _run_as_json(last),
            }
        )
        return
    by_state = ", ".join(f"{number:,} {state}" for state, number in documents.items() if number and state != "total")
    rows = [("database", address), *_models(models, documents["total"])]
    rows.append(("documents", f"{documents['total']:,}" + (f": {by_state}" if by_state else "")))
    rows.append(("chunks", f"{chunks['embedded']:,} of {chunks['total']:,} embedded"))
    rows += _sources(sources)
    rows.append(("last run", _run_in_words(last) if last else "none yet: `python -m pipeline run-now`"))
    if any(documents[state.value] for state in overview.FAILING):
        rows.append(("why", f"`{WHY}`"))
    console = out()
    if missing:
        console.print(printable(missing, console.encoding), soft_wrap=True, markup=False)
    for name, value in rows:
        console.print(f"{name:<10} {printable(as_called(value), console.encoding)}", soft_wrap=True, markup=False)


def _models(models: list[ModelLine], total: int) -> list[tuple[str, str]]:
    if not models:
        return [("model", "none yet")]
    rows = []
    for model in models:
        what = f"{named(model)}, {model.dimension} dimensions"
        if model.active:
            rows.append(("model", what))
            continue
        done = f"{max(0, total - model.waiting):,} of {counted(total, 'document')} embedded"
        rows.append(("next model", f"{what}: {done}; search moves over to it once all are"))
    return rows


def _sources(sources: list[SourceLine]) -> list[tuple[str, str]]:
    if not sources:
        return []
    rows = [("sources", f"{counted(len(sources), 'folder')}; `python -m pipeline run-now FOLDER` looks at one again")]
    rows += [("", f"{source.root}: {counted(source.documents, 'document')}") for source in sources[:SOURCES_SHOWN]]
    if len(sources) > SOURCES_SHOWN:
        rows.append(("", f"and {len(sources) - SOURCES_SHOWN} more: `python -m pipeline status --json`"))
    return rows


def _model_as_json(model: ModelLine) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(model).items() if key != "active"}


def _run_as_json(run: StoredRun) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "outcome": DIED if _died(run) else run.state,
        "started_at": run.started_at.isoformat(),
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
        "host": run.process.host,
        "pid": run.process.pid,
        "chunks_embedded": run.chunks_embedded,
        "error": run.error,
    }


def _run_in_words(run: StoredRun) -> str:
    state = run.state
    if _died(run):
        state = "died; the next run takes up what it left"
    who = f"pid {run.process.pid} on {run.process.host}"
    reason = f" ({run.error})" if run.error else ""
    chunks = f"{counted(run.chunks_embedded, 'chunk')} embedded"
    return f"{run.id}: {state}{reason}, started {moment(run.started_at)}, {who}, {chunks}"


def _died(run: StoredRun) -> bool:
    """Whether a run that nobody ended has no process any more."""
    if run.state != "running":
        return False
    if run.process.host != socket.gethostname():
        return dt.datetime.now(dt.UTC) - run.heartbeat_at >= runs.LEASE
    from pipeline.runner.run import is_alive  # brings the whole flow with it

    return not is_alive(run.process)
