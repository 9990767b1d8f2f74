"""`status`: what is done, failing and waiting."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from pipeline.backends.gpus import unused_gpu
from pipeline.cli.console import errors_explained, not_there_yet, open_store, out, print_json
from pipeline.cli.remote import running_daemon
from pipeline.cli.report import WHY, named
from pipeline.cli.tunings import tuning_as_json, tuning_in_words
from pipeline.cli.view import printable
from pipeline.cli.words import as_called, counted, moment, never_looked
from pipeline.core.errors import NightshiftError
from pipeline.core.modes import Slot
from pipeline.runner.inbox import never_looked_at
from pipeline.scheduler.jobs import load_jobs
from pipeline.settings import Settings
from pipeline.store import overview, reports, runs, tunings
from pipeline.store.absent import WaitingDeletion, waiting_deletions
from pipeline.store.mirror import outbox
from pipeline.store.models import count_unsearched
from pipeline.store.overview import ModelLine, SourceLine
from pipeline.store.runs import StoredRun

SOURCES_SHOWN = 5
DAEMON_SECONDS = 2.0
"""How long the daemon has to say how it is."""

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
            later = count_unsearched(session)
            sources = overview.list_sources(session)
            deletions = waiting_deletions(session)
            tuned = [one for model in models for one in tunings.tunings_of(session, model.fingerprint)]
            last = next(iter(runs.latest_runs(session)), None)
            mirror = outbox.standing(session)
            here_last = next(iter(runs.measured_runs(session, store.host, 1)), None)
            device = device_of(None if here_last is None else reports.find_report(session, here_last.id))
            unseen = never_looked_at(session, loaded.settings, load_jobs(loaded.settings.jobs_dir).jobs)
            at_work = [run for run in runs.living_runs(session) if last is None or run.id != last.id]
            silent = runs.silent_runs(session, dt.datetime.now(dt.UTC))
        here = store.host
        address = str(loaded.settings.flatten()["database_url"])
        daemon = _daemon(loaded.settings)
        device["unused_gpu"] = unused_gpu() if loaded.settings.embedding.n_gpu_layers != 0 else None
    if as_json:
        print_json(
            {
                "documents": documents,
                "chunks": chunks,
                "model": next((_model_as_json(model) for model in models if model.active), None),
                "found_after_move": later,
                "next_models": [_model_as_json(model) for model in models if not model.active],
                "tunings": [tuning_as_json(one) for one in tuned],
                "sources": [dataclasses.asdict(source) for source in sources],
                "never_looked_at": unseen,
                "deletions": [_deletion_as_json(one) for one in deletions],
                "mirror": mirror,
                "device": device,
                "daemon": daemon,
                "last_run": None if last is None else _run_as_json(last, here, silent),
                "other_runs": [_run_as_json(run, here, silent) for run in at_work],
            }
        )
        return
    by_state = ", ".join(f"{number:,} {state}" for state, number in documents.items() if number and state != "total")
    rows = [("database", address), *_models(models, documents["total"], later)]
    if device["name"]:
        rows.append(("device", f"{device['name']}, {device['build']}"))
    if device["unused_gpu"]:
        rows.append(("gpu", device["unused_gpu"]))
    rows += [("tuned", tuning_in_words(one)) for one in tuned]
    rows.append(("documents", f"{documents['total']:,}" + (f": {by_state}" if by_state else "")))
    rows.append(("chunks", f"{chunks['embedded']:,} of {chunks['total']:,} embedded"))
    if mirror is not None and mirror["owed"]:
        why = f" ({mirror['error']})" if mirror["error"] else ""
        rows.append(("qdrant", f"documents owed to it: {mirror['owed']:,}{why}; see `python -m pipeline mirror`"))
    rows += [("gone", _deletion_in_words(one)) for one in deletions]
    rows += _sources(sources)
    rows += [("unseen", line) for line in never_looked(unseen)]
    if daemon is not None:
        rows.append(("daemon", _daemon_in_words(daemon)))
    rows.append(("last run", _run_in_words(last, here, silent) if last else "none yet: `python -m pipeline run-now`"))
    rows += [("other run", _run_in_words(run, here, silent)) for run in at_work]
    if any(documents[state.value] for state in overview.FAILING):
        rows.append(("why", f"`{WHY}`"))
    console = out()
    if missing:
        console.print(printable(missing, console.encoding), soft_wrap=True, markup=False)
    for name, value in rows:
        console.print(f"{name:<10} {printable(as_called(value), console.encoding)}", soft_wrap=True, markup=False)


def device_of(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a run embedded on, by its report: the `name` of the device, and the `build` of the model server."""
    report = report or {}
    return {"name": report.get("device_name"), "build": report.get("build")}


def _daemon(settings: Settings) -> dict[str, Any] | None:
    """This data folder's daemon, as JSON has it: `mode` is null, and `problem` says why, where it does not answer."""
    daemon = running_daemon(settings)
    if daemon is None:
        return None
    said: dict[str, Any] = {"url": daemon.url, "mode": None, "models": None, "problem": None}
    try:
        host = daemon.get("/api/status", patience=DAEMON_SECONDS)["host"]
    except NightshiftError as error:
        return said | {"problem": str(error)}
    finally:
        daemon.close()
    return said | {"mode": host["mode"], "models": {slot["slot"]: slot["model"] for slot in host["slots"]}}


def _daemon_in_words(daemon: dict[str, Any]) -> str:
    if daemon["problem"]:
        return f"{daemon['url']}: {daemon['problem']}"
    without = "" if daemon["models"].get(Slot.GENERATION) else ", without a language model"
    return f"{daemon['url']}: mode {daemon['mode']}{without}"


def _models(models: list[ModelLine], total: int, later: int) -> list[tuple[str, str]]:
    if not models:
        return [("model", "none yet")]
    rows = []
    for model in models:
        what = f"{named(model)}, {model.dimension} dimensions"
        if model.active:
            rows.append(("model", what))
            continue
        if model.set_aside:
            rows.append(("set aside", f"{what}: search moves to it by `python -m pipeline models use` only"))
            continue
        more = f", and then finds {later:,} more" if later else ""
        done = f"{max(0, total - model.waiting):,} of {counted(total, 'document')} embedded"
        rows.append(("next model", f"{what}: {done}; search moves over to it once all are{more}"))
    return rows


def _sources(sources: list[SourceLine]) -> list[tuple[str, str]]:
    if not sources:
        return []
    rows = [("sources", f"{counted(len(sources), 'folder')}; `python -m pipeline run-now FOLDER` looks at one again")]
    rows += [("", f"{source.root}: {counted(source.documents, 'document')}") for source in sources[:SOURCES_SHOWN]]
    if len(sources) > SOURCES_SHOWN:
        rows.append(("", f"and {len(sources) - SOURCES_SHOWN} more: `python -m pipeline status --json`"))
    return rows


def _deletion_in_words(waiting: WaitingDeletion) -> str:
    files = "the file of 1 document" if waiting.documents == 1 else f"the files of {waiting.documents:,} documents"
    confirm = f"`python -m pipeline run-now {shlex.quote(waiting.root)} --confirm-deletions`"
    return f"{files} in {waiting.root}, since {moment(waiting.since)}; still searched, and deleted by {confirm}"


def _deletion_as_json(waiting: WaitingDeletion) -> dict[str, Any]:
    return dataclasses.asdict(waiting) | {"since": waiting.since.isoformat()}


def _model_as_json(model: ModelLine) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(model).items() if key != "active"}


def _run_as_json(run: StoredRun, here: str, silent: Collection[str]) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "outcome": DIED if died(run, here, silent) else run.state,
        "started_at": run.started_at.isoformat(),
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
        "host": run.process.host,
        "pid": run.process.pid,
        "chunks_embedded": run.chunks_embedded,
        "error": run.error,
    }


def _run_in_words(run: StoredRun, here: str, silent: Collection[str]) -> str:
    state = run.state
    if died(run, here, silent):
        state = "died; the next run takes up what it left"
    who = f"pid {run.process.pid} on {run.process.host}"
    reason = f" ({run.error})" if run.error else ""
    chunks = f"{counted(run.chunks_embedded, 'chunk')} embedded"
    return f"{run.id}: {state}{reason}, started {moment(run.started_at)}, {who}, {chunks}"


def died(run: StoredRun, here: str, silent: Collection[str]) -> bool:
    """Whether a run that nobody ended has no process any more.

    here: what this host is called. silent: as `runs.silent_runs` gives them, for runs of other hosts.
    """
    if run.state != "running":
        return False
    if run.process.host != here:
        return run.id in silent
    from pipeline.runner.untold import is_alive  # brings the whole flow with it

    return not is_alive(run.process)
