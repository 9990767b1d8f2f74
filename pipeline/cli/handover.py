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
from pipeline.cli.view import View, duration, make_view, printable
from pipeline.cli.words import as_called, counted
from pipeline.ingest.progress import Failure, Progress

POLL = 0.25
EXIT_CODES = {"complete": 0, "stopped": EXIT_STOPPED, "interrupted": EXIT_STOPPED}


def hand_over(daemon: DaemonClient, paths: Sequence[Path] | None, *, as_json: bool, quiet: bool) -> None:
    """Have the daemon do a run, show how it goes, and end with its exit code. Ctrl-C stops the run."""
    named = None if not paths else [os.path.realpath(path) for path in paths]
    run_id = daemon.post("/api/runs", {"paths": named} if named else {})["run_id"]
    view = make_view(out(), quiet=quiet, as_json=as_json)
    with view:
        view.note(f"The daemon at {daemon.url} does the run.")
        try:
            run = _watch(daemon, run_id, view)
        except KeyboardInterrupt:
            (complain if quiet else view.note)("Stopping after the batch in flight.")
            daemon.post("/api/runs/current/stop")
            run = _watch(daemon, run_id, view)
    if as_json:
        status = daemon.get("/api/status")
        print_json(
            {
                "run_id": run_id,
                "outcome": run["outcome"],
                "documents": status["documents"],
                "chunks": status["chunks"],
                "chunks_embedded": run["chunks_embedded"],
                "seconds": run["seconds"],
                "chunks_per_second": round(run["chunks_embedded"] / run["seconds"], 2) if run["seconds"] else 0.0,
                "errors": [run["error"]] if run["error"] else [],
            }
            | ({"error": run["error"]} if run["error"] else {})
        )
    elif not quiet:
        error = f" ({run['error']})" if run["error"] else ""
        chunks = counted(run["chunks_embedded"], "chunk")
        text = f"{run['outcome']}{error}: {chunks} embedded in {duration(run['seconds'])}."
        out().print(printable(as_called(text[0].upper() + text[1:])), soft_wrap=True, markup=False)
    raise typer.Exit(EXIT_CODES.get(run["outcome"], EXIT_FAILED))


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
    new = current["chunks_done"] - progress.chunks_done
    if new > 0:
        progress.chunks_embedded(new, time.monotonic())
    progress.failures.clear()
    progress.failures.extend(Failure(f["path"], f["state"], f["reason"]) for f in current["failures"])
