"""What every command shares: settings, consoles, logs, and errors as one line on standard error."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import stamina.instrumentation
import structlog
import typer
from rich.console import Console
from rich.text import Text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from pipeline.cli import EXIT_STOPPED as EXIT_STOPPED
from pipeline.cli.view import printable
from pipeline.cli.words import as_called
from pipeline.core.errors import NightshiftError, SettingsError, UsageError
from pipeline.core.redaction import redacted, remember
from pipeline.settings import LoadedSettings, load
from pipeline.store.database import Database

EXIT_FAILED = 1
EXIT_USAGE = 2

DATABASE_HELP = "The database, instead of the one in the settings."
JSON_HELP = "Print one JSON object on standard output."


def out() -> Console:
    """Standard output. In a pipe lines are as long as they are."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=10_000)


def err() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False)


def fail(error: NightshiftError, *, as_json: bool = False) -> NoReturn:
    """Say what went wrong, and end. With `as_json` it is on standard output too, as `{"error": ...}`."""
    complain(str(error))
    if as_json:
        print_error(str(error))
    raise typer.Exit(exit_code(error))


def exit_code(error: NightshiftError) -> int:
    """What the program ends with for an error."""
    return EXIT_USAGE if isinstance(error, UsageError | SettingsError) else EXIT_FAILED


def complain(message: str) -> None:
    """Print what went wrong on standard error; what is long, such as the end of a log, has lines of its own."""
    console = err()
    for line in redacted(as_called(f"nightshift: {message}")).splitlines():
        console.print(Text(printable(line, console.encoding)), soft_wrap=True)


def print_error(message: str) -> None:
    """What programs get on standard output in place of an answer."""
    print_json({"error": redacted(as_called(message))})


@contextmanager
def errors_explained(*, as_json: bool = False) -> Iterator[None]:
    """Turn an error that explains itself into its message and an exit code."""
    try:
        yield
    except NightshiftError as error:
        fail(error, as_json=as_json)


def load_settings(options: Mapping[str, object] | None = None) -> LoadedSettings:
    """The settings, and logs to go with them."""
    loaded = load(options)
    remember(loaded.settings.secrets())
    shown_by_default = "warning" if loaded.origins["log_level"] == "default" else loaded.settings.log_level
    set_up_logs(shown_by_default)
    return loaded


def set_up_logs(level: str) -> None:
    """Logs go to standard error, a sentence and its fields to a line, without secrets. So do tracebacks."""
    stamina.instrumentation.set_on_retry_hooks(())  # our own lines say what is tried again
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                # A traceback with the values of variables would print keys and documents, at length.
                exception_formatter=structlog.dev.plain_traceback,
            ),
            lambda _, __, line: redacted(str(line)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        # Looked up at each line: a live view puts itself in place of sys.stderr to print above itself.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # What libraries log, and what nobody catches.
    assert logging.lastResort is not None
    logging.lastResort.setFormatter(_Redacting())
    sys.excepthook = _print_traceback


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def _print_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, where))))


@contextmanager
def open_store(database: str | None) -> Iterator[tuple[LoadedSettings, Database]]:
    """The settings and the database that they, or the option, name.

    For commands that look at what is there: an empty one stands in for a SQLite file that is not, and
    none is made.
    """
    loaded = load_settings({"database_url": database})
    with existing_or_empty(loaded.settings.database_url) as url, Database.open(url, loaded.settings.node) as store:
        yield loaded, store


@contextmanager
def existing_or_empty(url: str) -> Iterator[str]:
    """The address of the database, or of an empty one for as long as the block runs where there is no such file."""
    if not is_missing(url):
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="nightshift-") as folder:
        yield f"sqlite:///{folder}/empty.db"


def is_missing(url: str) -> bool:
    """Whether a database is a SQLite file that is not there yet."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return False  # whoever opens it says what is wrong with it
    file = parsed.database if parsed.get_backend_name() == "sqlite" else None
    return bool(file) and file != ":memory:" and not str(file).startswith("file:") and not Path(str(file)).exists()


def not_there_yet(loaded: LoadedSettings) -> str | None:
    """What to tell a person where there is no database yet, else None."""
    if not is_missing(loaded.settings.database_url):
        return None
    shown = loaded.settings.flatten()["database_url"]
    return as_called(f"There is no database at {shown} yet: `python -m pipeline run-now` makes it.")


def confirmed(question: str) -> bool:
    """Whether a person says yes."""
    # On standard error: standard output may be a program's.
    sys.stderr.write(f"{printable(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def print_json(document: Any) -> None:
    """One JSON object on standard output. Text is written as it is, and never breaks the encoding."""
    text = json.dumps(document, ensure_ascii=False, indent=2, default=_plain)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, dt.datetime) else str(value)
