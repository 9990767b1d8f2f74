"""`status`: the host, what it works on, what waits and what failed, on one screen.

What the daemon says is asked of it, the rest is read from the database, and either may be missing. Everything becomes
one document first, which `--json` prints; `status_text` has the words.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from pipeline.backends.gpus import unused_gpu
from pipeline.cli.console import (
    complain,
    errors_explained,
    existing_or_empty,
    exit_code,
    is_missing,
    load_settings,
    not_there_yet,
    out,
    print_json,
)
from pipeline.cli.remote import running_daemon
from pipeline.cli.report import failure
from pipeline.cli.status_text import rows_of
from pipeline.cli.tunings import tuning_as_json
from pipeline.cli.view import printable
from pipeline.cli.words import as_called
from pipeline.core.errors import NightshiftError, StoreError
from pipeline.core.modes import Mode, Slot
from pipeline.core.redaction import redacted
from pipeline.core.schedule import Hold, desired_mode, next_change, so_far
from pipeline.ingest.work import utc_now
from pipeline.runner.inbox import never_looked_at
from pipeline.runner.ownership import owner_of
from pipeline.scheduler.jobs import load_jobs
from pipeline.settings import LoadedSettings, Settings
from pipeline.store import holds, jobs, overview, reports, runs, switches, tunings
from pipeline.store.absent import waiting_deletions
from pipeline.store.database import Database
from pipeline.store.mirror import outbox
from pipeline.store.models import count_unsearched
from pipeline.store.overview import DocumentLine, ModelLine
from pipeline.store.runs import StoredRun
from pipeline.store.switches import StoredSwitch, SwitchOutcome

DAEMON_SECONDS = 2.0
"""How long the daemon has to say how it is."""

LOOKED_BACK = 20
"""Runs and switches among which the last one that failed is looked for."""

FAILURES = 3
"""Documents that failed last, of those that are named."""

DIED = "interrupted"
"""What the next run will write of one whose process is gone."""

_FAILED_SWITCHES = (SwitchOutcome.FAILED, SwitchOutcome.ROLLED_BACK, SwitchOutcome.INTERRUPTED)


def show_status(database: str | None, *, as_json: bool) -> None:
    """Print it. Of a database that is not there yet everything is zero, and none is made.

    Of one that cannot be used the host's part is printed all the same, and the reason is an error.
    """
    with errors_explained(as_json=as_json):
        loaded = load_settings({"database_url": database})
    settings, now = loaded.settings, utc_now()
    said, progress = _host(loaded)
    problem: NightshiftError | None = None
    try:
        with existing_or_empty(settings.database_url) as url, Database.open(url, settings.node) as store:
            stored = _stored(store, settings, said["host"], progress, now)
            said |= stored | {"device": said["device"] | stored["device"]}
    except NightshiftError as error:
        problem = error
        said["error"] = redacted(as_called(str(error)))
    size = said.pop("database_bytes", None)
    said["disk"]["database_bytes"] = None if is_missing(settings.database_url) else size
    if as_json:
        print_json(said)
    else:
        # A daemon made its own before it answered: where that is gone, the daemon says so.
        _print(said, None if said["daemon"] and database is None else not_there_yet(loaded), now)
    if problem is not None:
        complain(str(problem))
        raise typer.Exit(exit_code(problem))


def _print(said: Mapping[str, Any], missing: str | None, now: dt.datetime) -> None:
    """Two columns on a terminal, the second broken between its words; in a pipe each value is one line."""
    console = out()
    if missing:
        console.print(printable(missing, console.encoding), soft_wrap=True, markup=False)
    rows = [(name, printable(as_called(value), console.encoding)) for name, value in rows_of(said, now)]
    if not console.is_terminal:
        for name, value in rows:
            console.print(f"{name:<10} {value}", soft_wrap=True, markup=False)
        return
    table = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, min_width=10, style=None if console.no_color else "bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    console.print(table)


# The host


def _host(loaded: LoadedSettings) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """What is known without the database, and how far the daemon says that its run is."""
    settings = loaded.settings
    daemon, answer = _daemon(settings)
    host = None if answer is None else answer["host"]
    unseen = daemon is not None and daemon["url"] is None
    owner = None if unseen else owner_of(settings.data_dir)
    said = {
        "daemon": daemon,
        "data_dir": str(settings.data_dir),
        "database": loaded.settings.flatten()["database_url"],
        "owner": None if owner is None else {"kind": owner.kind, "pid": owner.pid, "since": owner.since},
        "host": host,
        "slots": _slots(settings) if host is None else host["slots"],
        "device": {"name": None, "build": None, "unused_gpu": _unused_gpu(settings)},
        "disk": _disk(settings.data_dir),
        "texts_queued": None if answer is None else answer["texts"].get("queued"),
    }
    return said, None if answer is None else answer["run"]


def _disk(data_dir: Path) -> dict[str, Any]:
    """The room where the data folder is, or will be; nulls where the disk does not say."""
    said: dict[str, Any] = {"free_bytes": None, "total_bytes": None, "database_bytes": None}
    for folder in (data_dir, *data_dir.parents):
        try:
            usage = shutil.disk_usage(folder)
        except FileNotFoundError:
            continue
        except OSError:
            break
        return said | {"free_bytes": usage.free, "total_bytes": usage.total}
    return said


def _daemon(settings: Settings) -> tuple[dict[str, Any] | None, Mapping[str, Any] | None]:
    """This data folder's daemon, and its `/api/status`. `problem` says why where it does not answer."""
    said: dict[str, Any] = {"url": None, "mode": None, "models": None, "problem": None, "started_at": None}
    try:
        daemon = running_daemon(settings)
    except StoreError as error:
        return said | {"problem": str(error)}, None
    if daemon is None:
        return None, None
    said["url"] = daemon.url
    try:
        answer = daemon.get("/api/status", patience=DAEMON_SECONDS)
        host = answer["host"]
        models = {slot["slot"]: slot["model"] for slot in host["slots"]}
        return said | {"mode": host["mode"], "models": models, "started_at": answer["started_at"]}, answer
    except NightshiftError as error:
        return said | {"problem": redacted(str(error))}, None
    except (ValueError, LookupError, TypeError):
        return said | {"problem": "its answer cannot be understood; it may be of another version"}, None
    finally:
        daemon.close()


def _slots(settings: Settings) -> list[dict[str, Any]]:
    """The models that a daemon would serve, by the settings."""
    named = {Slot.GENERATION: settings.generation.model, Slot.EMBEDDING: settings.embedding.model}
    return [
        {"slot": slot.value, "model": None if name is None else Path(name).stem, "state": "stopped"}
        for slot, name in named.items()
    ]


def _unused_gpu(settings: Settings) -> str | None:
    return unused_gpu() if settings.embedding.n_gpu_layers != 0 else None


# The database


def _stored(
    store: Database,
    settings: Settings,
    host: Mapping[str, Any] | None,
    progress: Mapping[str, Any] | None,
    now: dt.datetime,
) -> dict[str, Any]:
    """What the database knows, all of it at one moment. host, progress: what the daemon said, if one did."""
    here = store.host
    with store.snapshot() as session:
        documents, chunks = overview.count_documents(session), overview.count_chunks(session)
        models = overview.list_models(session)
        tuned = [one for model in models for one in tunings.tunings_of(session, model.fingerprint)]
        latest, living = runs.latest_runs(session, LOOKED_BACK), runs.living_runs(session)
        silent = runs.silent_runs(session, now)
        switched = switches.latest_switches(session, LOOKED_BACK)
        held = holds.current_hold(session, now)
        states, ahead = jobs.job_states(session), jobs.noted_ahead(session, now)
        finished = so_far({name: one.last_finished for name, one in states.items() if one.last_finished}, now)
        later, sources = count_unsearched(session), overview.list_sources(session)
        deletions, mirror = waiting_deletions(session), outbox.standing(session)
        failed = overview.last_failures(session, FAILURES)
        size = overview.database_bytes(session)
        measured = next(iter(runs.measured_runs(session, here, 1)), None)
        device = device_of(None if measured is None else reports.find_report(session, measured.id))
        unseen = never_looked_at(session, settings, load_jobs(settings.jobs_dir).jobs)
    last = next(iter(latest), None)
    dead = {run.id for run in [*latest, *living] if died(run, here, silent)}
    mine = _under_way([run for run in living if run.id not in dead], progress, here)
    ended = next((run for run in latest if mine is None or run.id != mine.id), None)
    waiting = {
        "documents_to_read": documents["discovered"],
        "documents_to_embed": documents["extracted"],
        "chunks": chunks["total"] - chunks["embedded"],
    }
    return {
        "documents": documents,
        "chunks": chunks,
        "model": next((_model_as_json(model) for model in models if model.active), None),
        "found_after_move": later,
        "next_models": [_model_as_json(model) for model in models if not model.active],
        "tunings": [tuning_as_json(one) for one in tuned],
        "sources": [dataclasses.asdict(source) for source in sources],
        "never_looked_at": unseen,
        "clock": ahead,
        "device": device,
        "deletions": [dataclasses.asdict(one) | {"since": one.since.isoformat()} for one in deletions],
        "mirror": mirror,
        "last_run": None if last is None else _run_as_json(last, dead),
        "other_runs": [_run_as_json(run, dead) for run in living if last is None or run.id != last.id],
        "hold": None
        if held is None
        else dataclasses.asdict(held.hold) | {"set_at": held.set_at, "set_by": held.set_by},
        "wanted": _wanted(settings, host, None if held is None else held.hold, finished, now),
        "run": None if mine is None else _progress_of(mine, progress, documents, waiting, now),
        "last_ended": None if ended is None else _run_as_json(ended, dead),
        "waiting": waiting,
        "failures": [*_failures(latest, switched, dead), *map(_failed_document, failed)],
        "database_bytes": size,
    }


def device_of(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a run embedded on, by its report: the `name` of the device, and the `build` of the model server."""
    report = report or {}
    return {"name": report.get("device_name"), "build": report.get("build")}


def _under_way(alive: Sequence[StoredRun], progress: Mapping[str, Any] | None, here: str) -> StoredRun | None:
    """The run that is shown as under way: the daemon's, else one of this host."""
    of_daemon = [run for run in alive if progress is not None and run.id == progress["run_id"]]
    return next(iter([*of_daemon, *(run for run in alive if run.process.host == here)]), None)


def _wanted(
    settings: Settings,
    host: Mapping[str, Any] | None,
    hold: Hold | None,
    finished: Mapping[str, dt.datetime],
    now: dt.datetime,
) -> dict[str, Any]:
    """The mode that hold and jobs want now, and the next change of it: the daemon's word, or else worked out here."""
    if host is not None:
        change, following = host["next_change"], host["next_mode"]
        return {"mode": host["wanted"], "why": host["wanted_because"], "next_change": change, "next_mode": following}
    loaded, default = load_jobs(settings.jobs_dir).jobs, Mode(settings.default_mode)
    desired = desired_mode(loaded, now, hold, default, finished=finished)
    change = next_change(loaded, now, hold, default, finished=finished)
    why = f"{desired.reason} job {desired.job.name}" if desired.job else str(desired.reason)
    following = None if change is None else desired_mode(loaded, change, hold, default, finished=finished).mode
    return {"mode": desired.mode, "why": why, "next_change": change, "next_mode": following}


def _progress_of(
    run: StoredRun,
    progress: Mapping[str, Any] | None,
    documents: Mapping[str, int],
    waiting: Mapping[str, int],
    now: dt.datetime,
) -> dict[str, Any]:
    """How far a run is, by the daemon's own figures or by the database. There all that waits counts as the run's."""
    about = {
        "run_id": run.id,
        "job": run.job,
        "task": run.task,
        "host": run.process.host,
        "pid": run.process.pid,
        "started_at": run.started_at,
        "stop_at": run.stop_at,
    }
    if progress is not None and progress["run_id"] == run.id:
        return about | dict(progress)
    done, measured = run.chunks_embedded, run.measured
    seconds = measured.embed_seconds or (now - run.started_at).total_seconds()
    rate = done / seconds if seconds > 0 else 0.0
    left = waiting["documents_to_read"] + waiting["documents_to_embed"]
    return about | {
        "phase": "working",
        "documents_total": measured.documents_done + left,
        "documents_done": measured.documents_done,
        "documents_failed": 0,
        "chunks_total": done + waiting["chunks"],
        "chunks_done": done,
        "chunks_per_second": rate,
        "seconds_left": waiting["chunks"] / rate if rate and not waiting["documents_to_read"] else None,
        "current": "",
    }


def _failures(
    latest: Sequence[StoredRun], switched: Sequence[StoredSwitch], dead: Collection[str]
) -> list[dict[str, Any]]:
    """The last run and the last switch that failed, of the last few."""
    run = next((one for one in latest if one.state == "failed" or one.id in dead), None)
    switch = next((one for one in switched if one.outcome in _FAILED_SWITCHES), None)
    found: list[dict[str, Any]] = []
    if run is not None:
        error = run.error or "its process died"
        found.append(
            {"what": "run", "name": run.id, "at": run.finished_at or run.heartbeat_at, "error": redacted(error)}
        )
    if switch is not None:
        name = f"{switch.from_mode} to {switch.to_mode}"
        error = switch.error or switch.outcome.value
        found.append(
            {"what": "switch", "name": name, "at": switch.finished_at or switch.started_at, "error": redacted(error)}
        )
    return found


def _failed_document(line: DocumentLine) -> dict[str, Any]:
    return {"what": "document", "name": line.file, "at": None, "error": redacted(failure(line))}


def _model_as_json(model: ModelLine) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(model).items() if key != "active"}


def _run_as_json(run: StoredRun, dead: Collection[str]) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "outcome": DIED if run.id in dead else run.state,
        "started_at": run.started_at.isoformat(),
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
        "host": run.process.host,
        "pid": run.process.pid,
        "chunks_embedded": run.chunks_embedded,
        "error": None if run.error is None else redacted(run.error),
        "job": run.job,
    }


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
