"""The words that commands share: numbers with their noun, times, and how the program is called here."""

from __future__ import annotations

import datetime as dt
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

IN_MESSAGES = "python -m pipeline"
"""How the messages of the layers below name the program."""

_NAMED = re.compile(rf"(?<![\w/]){re.escape(IN_MESSAGES)}")


def counted(number: int, noun: str) -> str:
    """A number and its noun: `1 document`, `1,200 documents`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(count: int) -> str:
    """A number of bytes for a person: `512 bytes`, `1.5 MB`, `2.0 GB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return counted(count, "byte")


def moment(instant: dt.datetime) -> str:
    """An instant for a person: local time, to the second, with its zone."""
    return f"{instant.astimezone():%Y-%m-%d %H:%M:%S %Z}"


def never_looked(folders: Iterable[str]) -> Iterator[str]:
    """A line for each folder that no run has looked at yet."""
    for folder in folders:
        yield f"{folder}: never looked at; `{IN_MESSAGES} run-now {shlex.quote(folder)}` looks"


def as_called(message: str) -> str:
    """A message with the program named such that what it says to type can be typed; the same again for that."""
    return _NAMED.sub(lambda _: program(), message)


def program() -> str:
    """What to type to call the program as it was called: a command on the PATH, or else a path to it."""
    called = sys.argv[0]
    if Path(called).name == "__main__.py" or not called:
        return f"{_typed(sys.executable, 'python')} -m pipeline"
    return _typed(called, "nightshift")


def _typed(path: str, command: str) -> str:
    full = os.path.abspath(path)  # noqa: PTH100 - resolving links would lead out of a virtual environment
    on_path = shutil.which(command)
    if on_path is not None and os.path.abspath(on_path) == full:  # noqa: PTH100
        return command
    here = Path.cwd()
    return shlex.quote(os.path.relpath(full, here) if Path(full).is_relative_to(here) else full)
