"""`tune`: measures which options are the fastest here, shows it while it goes, and keeps the best."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli.console import EXIT_FAILED, EXIT_STOPPED, complain, errors_explained, load_settings, out, print_json
from pipeline.cli.pause import daemon_paused
from pipeline.cli.remote import DaemonClient, running_daemon
from pipeline.cli.tune_view import TuneView, conclusion, make_tune_view, print_result
from pipeline.core.errors import HostBusy, StoreError, UsageError
from pipeline.core.windows import parse_duration
from pipeline.daemon.servers import find_programs
from pipeline.runner import tuning as runner
from pipeline.runner.ownership import HOST, PAUSED, own_host
from pipeline.runner.tuning import Engine, Tuning
from pipeline.store.database import Database

if TYPE_CHECKING:
    from pipeline.settings import LoadedSettings

LEAST_BUDGET = 5.0
UPDATE_SECONDS = 0.5


def tune_command(
    budget: str,
    *,
    database: str | None,
    model: str | None,
    other_model: str | None,
    all_engines: bool,
    on_cpu: bool,
    pause: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure, show it, keep the best, and end with an exit code."""
    with errors_explained(as_json=as_json):
        seconds = _seconds(budget)
        loaded = load_settings({"database_url": database, "embedding.model": model})
        tuning = Tuning(seconds, on_cpu=on_cpu)
        view = make_tune_view(out(), quiet=quiet, as_json=as_json)
        with ExitStack() as held:
            daemon = _daemon(loaded, pause=pause)
            held.enter_context(_host(loaded, HOST if daemon is None else PAUSED))
            held.enter_context(view)
            asyncio.run(_watched(loaded, tuning, view, daemon, all_engines=all_engines, other_model=other_model))
    if as_json:
        print_json(as_object(tuning, runner.overriding(loaded.settings)))
    elif not quiet:
        print_result(tuning, out(), [f"{key} ({loaded.origins[key]})" for key in runner.overriding(loaded.settings)])
    if tuning.stopped:
        raise typer.Exit(EXIT_STOPPED)
    if tuning.fastest is None:
        complain("nothing that was tried works")
        raise typer.Exit(EXIT_FAILED)


def as_object(tuning: Tuning, overriding: list[str]) -> dict[str, Any]:
    """What `--json` prints."""
    fastest = tuning.fastest
    return {
        "model": tuning.model,
        "stopped": tuning.stopped,
        "chunks": None
        if tuning.sample is None
        else {
            "number": len(tuning.sample.chunks),
            "tokens": tuning.sample.tokens,
            "source": tuning.sample.source,
        },
        "engines": [_engine(engine) for engine in tuning.engines],
        "fastest": None if fastest is None else fastest.kind,
        "overridden_by": overriding,
        "conclusion": conclusion(tuning),
    }


def _engine(engine: Engine) -> dict[str, Any]:
    verdict = engine.verdict
    return {
        "engine": engine.kind,
        "model": str(engine.file.path),
        "device": engine.device,
        "build": engine.build,
        "tokens_per_second": verdict and round(verdict.rate, 1),
        "own_choice_tokens_per_second": verdict and verdict.start_rate and round(verdict.start_rate, 1),
        "noise": verdict and round(verdict.noise, 4),
        "options": engine.best_options(),
        "kept": engine.kept,
        "trials": runner.table(engine),
    }


def _seconds(budget: str) -> float:
    try:
        seconds = parse_duration(budget).total_seconds()
    except ValueError as error:
        raise UsageError(f"--budget {budget}: {error}") from error
    if seconds < LEAST_BUDGET:
        raise UsageError(f"--budget {budget}: nothing can be measured in less than {LEAST_BUDGET:g} s")
    return seconds


def _daemon(loaded: LoadedSettings, *, pause: bool) -> DaemonClient | None:
    """This host's daemon, where one runs and may be paused."""
    daemon = running_daemon(loaded.settings)
    if daemon is not None and not pause:
        raise UsageError(
            f"a daemon runs on this host ({daemon.url}), and would be measured too: with --pause it serves nothing"
            " meanwhile, and goes on afterwards with what was kept"
        )
    return daemon


def _host(loaded: LoadedSettings, name: str) -> AbstractContextManager[Any]:
    """The host's lock. Another process at work would be measured as well, and two models may not fit the GPU."""
    settings = loaded.settings
    try:
        lock = own_host(settings.data_dir, "tune", name)
        lock.__enter__()
    except HostBusy as error:
        raise HostBusy(f"{error}, and would be measured too: wait until it has ended") from error
    except OSError as error:
        raise StoreError(f"the data folder {settings.data_dir} cannot be used: {error.strerror}") from error
    closing = ExitStack()
    closing.push(lock.__exit__)
    return closing


async def _watched(
    loaded: LoadedSettings,
    tuning: Tuning,
    view: TuneView,
    daemon: DaemonClient | None,
    *,
    all_engines: bool,
    other_model: str | None,
) -> None:
    began = time.monotonic()
    _stop_on_signals(tuning, view.note)

    def show() -> None:
        view.update(tuning, time.monotonic() - began)

    tuning.changed = show
    shown = asyncio.create_task(_show(show), name="view")
    try:
        async with AsyncExitStack() as held:
            store = await asyncio.to_thread(Database.open, loaded.settings.database_url)
            held.push_async_callback(asyncio.to_thread, store.close)
            if daemon is not None:
                view.note("The daemon is to be idle meanwhile.")
                await held.enter_async_context(daemon_paused(daemon))
            await runner.tune(
                loaded.settings, store, tuning, find_programs(), all_engines=all_engines, other_model=other_model
            )
    finally:
        shown.cancel()
        await asyncio.gather(shown, return_exceptions=True)


async def _show(show: Callable[[], None]) -> None:
    while True:
        show()
        await asyncio.sleep(UPDATE_SECONDS)


def _stop_on_signals(tuning: Tuning, say: Callable[[str], None]) -> None:
    def asked() -> None:
        if tuning.stop.is_set():
            # At once: the server ends with its pipe to this process, and nothing is stored.
            sys.stderr.write("\nnightshift: stopped at once, nothing was kept\n")
            sys.stderr.flush()
            os._exit(EXIT_STOPPED)
        tuning.stop.set()
        say("Stopping; what was measured is kept. Ctrl-C again stops at once.")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked)
