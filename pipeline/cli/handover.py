"""`run-now` beside a daemon: the daemon does the work, and this shows it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from pipeline.cli.console import EXIT_FAILED, EXIT_STOPPED, complain, out, print_json
from pipeline.cli.remote import DaemonClient
from pipeline.cli.report import lines
from pipeline.cli.view import View, duration, make_view, printable
from pipeline.cli.words import as_called, counted
from pipeline.core.errors import UsageError
from pipeline.ingest.names import stored_name
from pipeline.ingest.progress import Failure, Progress
from pipeline.runner.report import RunReport
from pipeline.settings import LoadedSettings

POLL = 0.25
COUNTED = ("embedding.", "chunk.", "extract.")
"""The settings that a run goes by."""

EXIT_CODES = {"complete": 0, "stopped": EXIT_STOPPED, "interrupted": EXIT_STOPPED}


def hand_over(
    daemon: DaemonClient,
    loaded: LoadedSettings,
    paths: Sequence[Path] | None,
    *,
    as_json: bool,
    quiet: bool,
    confirm_deletions: bool = False,
    extract_only: bool = False,
) -> None:
    """Have the daemon do a run, show how it goes, and end with its exit code. Ctrl-C stops the run."""
    _warn_of_differing(daemon, loaded)
    named = None if not paths else [stored_name(os.path.realpath(path)) for path in paths]
    flags = {"confirm_deletions": confirm_deletions, "extract_only": extract_only}
    asked = ({"paths": named} if named else {}) | {name: True for name, wanted in flags.items() if wanted}
    run_id = daemon.post("/api/runs", asked)["run_id"]
    view = make_view(out(), quiet=quiet, as_json=as_json)
    with view:
        view.note(f"The daemon at {daemon.url} does the run.")
        try:
            run = _watch(daemon, run_id, view)
        except KeyboardInterrupt:
            (complain if quiet else view.note)("Stopping after the batch in flight.")
            daemon.post("/api/runs/current/stop")
            run = _watch(daemon, run_id, view)
    result = _result(daemon, run_id)
    if as_json:
        said = result or {
            "run_id": run_id,
            "outcome": run["outcome"],
            "chunks_embedded": run["chunks_embedded"],
            "seconds": run["seconds"],
            "errors": [run["error"]] if run["error"] else [],
        }
        print_json(said | ({"error": said["errors"][0]} if said["errors"] else {}))
    elif not quiet and result is not None:
        for line in lines(RunReport.from_json(result)):
            for part in as_called(line).splitlines():
                out().print(printable(part), soft_wrap=True, markup=False)
    elif not quiet:
        error = f" ({run['error']})" if run["error"] else ""
        chunks = counted(run["chunks_embedded"], "chunk")
        text = f"{run['outcome']}{error}: {chunks} embedded in {duration(run['seconds'])}."
        out().print(printable(as_called(text[0].upper() + text[1:])), soft_wrap=True, markup=False)
    raise typer.Exit(EXIT_CODES.get(run["outcome"], EXIT_FAILED))


def _result(daemon: DaemonClient, run_id: str) -> dict[str, Any] | None:
    """What `run-now` says of a run; None where it came to nothing, or the daemon has forgotten it."""
    while (current := daemon.get("/api/runs/current")["run"]) is not None and current["run_id"] == run_id:
        time.sleep(POLL)
    try:
        result: dict[str, Any] = daemon.get(f"/api/runs/{run_id}/result")
    except UsageError:
        return None
    return result


def _warn_of_differing(daemon: DaemonClient, loaded: LoadedSettings) -> None:
    """The daemon's run goes by the daemon's settings: say which of ours it passes by."""
    mine = loaded.settings.flatten()
    theirs = {each["key"]: each["value"] for each in daemon.get("/api/config")}
    differing = [
        key
        for key, value in mine.items()
        if key.startswith(COUNTED) and loaded.origins[key] != "default" and key in theirs and theirs[key] != value
    ]
    if differing:
        complain(
            f"the daemon does the run by its own settings; not used, and set otherwise here: {', '.join(differing)}"
        )


def _watch(daemon: DaemonClient, run_id: str, view: View) -> dict[str, Any]:
    began = time.monotonic()
    progress = Progress(started_monotonic=began)
    while True:
        current = daemon.get("/api/runs/current")["run"]
        if current is not None and current["run_id"] == run_id:
            _copy(current, progress)
            view.update(progress)
        run: dict[str, Any] | None = next((r for r in daemon.get("/api/runs?limit=20") if r["run_id"] == run_id), None)
        if run is not None and run["outcome"] != "running":
            return run | {"seconds": time.monotonic() - began}
        time.sleep(POLL)


def _copy(current: dict[str, Any], progress: Progress) -> None:
    progress.phase = current["phase"]
    for name in ("documents_total", "documents_read", "documents_done", "documents_failed", "chunks_total", "current"):
        setattr(progress, name, current[name])
    now = time.monotonic()
    new = current["chunks_done"] - progress.chunks_done
    if new > 0:
        progress.chunks_embedded(new, now)
    progress.waiting = current["waiting"]
    progress.tick(now, current["chunks_computed"] - current["chunks_done"])
    progress.failures.clear()
    progress.failures.extend(Failure(f["path"], f["state"], f["reason"]) for f in current["failures"])
