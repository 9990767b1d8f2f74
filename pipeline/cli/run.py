"""`run-now`: a run with somebody watching."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import typer

from pipeline.cli import report as words
from pipeline.cli.console import EXIT_FAILED, EXIT_STOPPED, complain, exit_code, load_settings, out, print_json
from pipeline.cli.handover import hand_over
from pipeline.cli.remote import running_daemon
from pipeline.cli.view import View, make_view, printable
from pipeline.cli.words import as_called
from pipeline.core.errors import ModelError, NightshiftError, SettingsError, UsageError
from pipeline.core.redaction import redacted
from pipeline.ingest.progress import Progress
from pipeline.ingest.work import utc_now
from pipeline.runner.ownership import own_host
from pipeline.runner.report import RunReport
from pipeline.runner.run import run_now
from pipeline.runner.untold import this_process
from pipeline.scheduler.jobs import load_jobs
from pipeline.settings import LoadedSettings, Settings
from pipeline.store import runs
from pipeline.store.database import Database

UPDATES_PER_SECOND = 4
LAST_WORD_SECONDS = 0.5
"""How long a run that stops at once tries to say so in the database."""

EXIT_CODES = {"complete": 0, "failed": EXIT_FAILED, "stopped": EXIT_STOPPED}
_STOPPING = "Stopping after the batch in flight; Ctrl-C again stops at once."


def run_command(
    paths: Sequence[str] | None,
    *,
    database: str | None,
    model: str | None,
    as_json: bool,
    quiet: bool,
    confirm_deletions: bool = False,
    extract_only: bool = False,
) -> None:
    """Run, show how it goes, say how it went, and end with its exit code."""
    try:
        if any(not path.strip() for path in paths or []):
            raise UsageError("an empty PATH: name a file or a folder, or leave it out for the inbox")
        named = [Path(path) for path in paths] if paths else None
        loaded = load_settings({"database_url": database, "embedding.model": model})
        daemon = running_daemon(loaded.settings)
        if daemon is not None:
            if database or model:
                raise UsageError(
                    f"the daemon at {daemon.url} does the run, by its own database and model: leave --database and "
                    "--model out, or stop the daemon first"
                )
            hand_over(
                daemon,
                loaded,
                named,
                as_json=as_json,
                quiet=quiet,
                confirm_deletions=confirm_deletions,
                extract_only=extract_only,
            )
            return
        wanted = _Wanted(named, confirm_deletions, extract_only)
        report = _run(loaded, wanted, as_json=as_json, quiet=quiet)
    except NightshiftError as error:
        complain(str(error))
        if as_json:
            problem = as_called(str(error))
            print_json({"run_id": None, "outcome": "failed", "error": problem, "errors": [problem]})
        raise typer.Exit(exit_code(error)) from None
    if as_json:
        print_json(report.as_json() | ({"error": report.errors[0]} if report.errors else {}))
    elif not quiet:
        console = out()
        for line in words.lines(report, model=model, database=redacted(database) if database else None):
            for part in as_called(line).splitlines():
                console.print(printable(part, console.encoding), soft_wrap=True, markup=False)
    if quiet or as_json:
        for problem in report.errors:
            complain(problem)
    raise typer.Exit(EXIT_CODES[report.outcome])


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What was asked for on the command line."""

    paths: Sequence[Path] | None
    confirm_deletions: bool
    reads_only: bool


def _run(loaded: LoadedSettings, wanted: _Wanted, *, as_json: bool, quiet: bool) -> RunReport:
    settings = loaded.settings
    _check_model(loaded)
    progress = Progress(started_monotonic=time.monotonic())
    view = make_view(out(), quiet=quiet, as_json=as_json)
    with ExitStack() as held:
        held.enter_context(own_host(settings.data_dir, "run-now"))
        held.enter_context(view)
        try:
            return asyncio.run(_watch(settings, wanted, progress, view, quiet))
        except ModelError as error:
            raise ModelError(f"{error} (set in {loaded.place('embedding.model')})") from error
        except SettingsError as error:
            raise SettingsError(error.key, error.problem, loaded.place(error.key)) from error


def _check_model(loaded: LoadedSettings) -> None:
    model = loaded.settings.embedding.model
    if Path(model).is_absolute() and not Path(model).exists():
        raise SettingsError("embedding.model", f"there is no model at {model}", loaded.place("embedding.model"))


async def _watch(settings: Settings, wanted: _Wanted, progress: Progress, view: View, quiet: bool) -> RunReport:
    stop = asyncio.Event()
    _stop_on_signals(settings, stop, view, complain if quiet else view.note)
    shown = asyncio.create_task(_show(progress, view), name="view")
    try:
        return await run_now(
            settings,
            wanted.paths,
            progress,
            stop,
            confirm_deletions=wanted.confirm_deletions,
            reads_only=wanted.reads_only,
            jobs=load_jobs(settings.jobs_dir).jobs,
        )
    finally:
        shown.cancel()
        await asyncio.gather(shown, return_exceptions=True)
        view.update(progress)


async def _show(progress: Progress, view: View) -> None:
    while True:
        view.update(progress)
        await asyncio.sleep(1 / UPDATES_PER_SECOND)


def _stop_on_signals(settings: Settings, stop: asyncio.Event, view: View, say: Callable[[str], None]) -> None:
    def asked() -> None:
        if stop.is_set():
            # At once: every commit is whole, and the children end when their pipes to this process close.
            _last_word(settings)
            view.__exit__(None, None, None)
            sys.stderr.write("nightshift: stopped at once; the next run goes on from the last stored batch\n")
            sys.stderr.flush()
            os._exit(EXIT_STOPPED)
        stop.set()
        say(_STOPPING)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked)


def _last_word(settings: Settings) -> None:
    """Note that this run was stopped, so that nobody takes it for dead; where that is not quick, leave it."""

    def write() -> None:
        with (
            suppress(NightshiftError),
            Database.open(settings.database_url, settings.node) as store,
            store.begin() as session,
        ):
            runs.stop_at_once(session, this_process(store.host), utc_now())

    writing = threading.Thread(target=write, name="last-word", daemon=True)
    writing.start()
    writing.join(LAST_WORD_SECONDS)
