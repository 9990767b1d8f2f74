"""`verify`: whether files, rows and vectors agree, and what mends them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import typer

from pipeline.cli.console import (
    EXIT_FAILED,
    EXIT_STOPPED,
    err,
    errors_explained,
    not_there_yet,
    open_store,
    out,
    print_json,
)
from pipeline.cli.view import printable
from pipeline.cli.words import as_called, counted
from pipeline.core.errors import StoreError, UsageError
from pipeline.core.verifying import KINDS, Disagreement
from pipeline.runner.mending import Tell
from pipeline.runner.ownership import own_host, owner_of
from pipeline.runner.verifying import Findings, Repaired, Wanted, repair, verify
from pipeline.settings import Settings
from pipeline.store.database import Database

SHOWN = 10
"""Disagreements of one kind on a terminal; --json has more."""


def verify_command(
    paths: Sequence[str] | None,
    database: str | None,
    *,
    mend: bool,
    hash_all: bool,
    sample: int,
    embed: bool,
    run: bool,
    as_json: bool,
) -> None:
    """Verify, and print what disagrees. Exit code 1 where anything is left, or could not be looked at.

    JSON: `agree`, `counts` by code, `disagreements`, `errors`, `notes`, `files`, `hashed`, `embedded`; with --repair
    also `found` (counts before), `mended`, `left` and `run`.
    """
    with errors_explained(as_json=as_json), open_store(database) as (loaded, store):
        if any(not path.strip() for path in paths or []):
            raise UsageError("an empty PATH: name a file or a folder, or leave it out for all of them")
        wanted = Wanted([Path(path) for path in paths] if paths else None, hash_all, sample, embed)
        if missing := not_there_yet(loaded):
            raise StoreError(missing)
        with progress(quiet=as_json) as tell:
            if mend:
                done = _repair(loaded.settings, store, wanted, tell, run=run)
            else:
                # What holds the host may have the GPU too.
                free = owner_of(loaded.settings.data_dir) is None
                found = asyncio.run(verify(loaded.settings, store, wanted, tell, on_gpu=free))
                done = Repaired(found, found)
    if as_json:
        print_json(_as_json(done, mend=mend))
    else:
        _say(done, mend=mend)
    raise typer.Exit(EXIT_STOPPED if done.stopped else 0 if done.after.agree else EXIT_FAILED)


def _repair(settings: Settings, store: Database, wanted: Wanted, tell: Tell, *, run: bool) -> Repaired:
    with ExitStack() as held:
        try:
            held.enter_context(own_host(settings.data_dir, "verify"))
        except OSError as error:
            raise StoreError(f"the data folder {settings.data_dir} cannot be used: {error.strerror}") from error
        return asyncio.run(_until_stopped(settings, store, wanted, tell, run=run))


async def _until_stopped(settings: Settings, store: Database, wanted: Wanted, tell: Tell, *, run: bool) -> Repaired:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return await repair(settings, store, wanted, tell, stop, run=run)


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """What is under way, on standard error where that is a terminal."""
    console = err()
    if quiet or not console.is_terminal:
        yield lambda what, done, total: None
        return
    with console.status("") as status:

        def tell(what: str, done: int, total: int) -> None:
            share = f" {done:,} of {total:,}" if total else ""
            status.update(printable(f"{what}{share}", console.encoding))

        yield tell


def _say(done: Repaired, *, mend: bool) -> None:
    if mend and done.before.tally.total:
        mended = ", ".join(f"{number:,} {code}" for code, number in sorted(done.mended.items()))
        _line(f"Found {_disagreements(done.before.tally.total)}. Mended: {mended or 'nothing'}.")
        if done.run is not None:
            embedded = counted(done.run.chunks_embedded, "chunk")
            _line(f"A run read what is on disk: {done.run.outcome}, {embedded} embedded.")
        for why in done.left:
            _line(f"Left: {why}")
    if done.stopped:
        _line("Stopped. What was mended stays so; do it again for the rest.")
        return
    _say_found(done.after, mend=mend)


def _say_found(found: Findings, *, mend: bool) -> None:
    for code, kind in KINDS.items():
        if not (number := found.tally.counts[code]):
            continue
        _line(f"{code}: {kind.means} ({number:,})", "bold")
        listed = found.tally.kept[code]
        for one in listed[:SHOWN]:
            _line(f"    {one.where}: {one.found}; it should be: {one.expected}")
        if number > SHOWN:
            _line(f"    and {number - min(SHOWN, len(listed)):,} more: --json lists up to {found.tally.most:,}")
        if not mend:
            _line(f"    --repair: {kind.repair}")
    for problem in found.errors:
        _line(f"Could not be looked at: {problem}")
    for note in found.notes:
        _line(f"Note: {note}.")
    files, again = counted(found.files, "file"), counted(found.embedded, "vector")
    looked = f"{files} ({found.hashed:,} byte for byte), {again} computed again"
    if found.agree:
        _line(f"All agree: the database, {looked}.")
    else:
        _line(f"{_disagreements(found.tally.total)}{' left' if mend else ''}; looked at the database, {looked}.")


def _disagreements(number: int) -> str:
    return counted(number, "disagreement")


def _as_json(done: Repaired, *, mend: bool) -> dict[str, Any]:
    found = done.after
    answer: dict[str, Any] = {
        "agree": found.agree,
        "counts": dict(sorted(found.tally.counts.items())),
        "disagreements": [_one_as_json(one) for one in found.tally.listed],
        "errors": found.errors,
        "notes": found.notes,
        "files": found.files,
        "hashed": found.hashed,
        "embedded": found.embedded,
    }
    if mend:
        answer |= {
            "found": dict(sorted(done.before.tally.counts.items())),
            "mended": dict(sorted(done.mended.items())),
            "left": done.left,
            "stopped": done.stopped,
            "run": None if done.run is None else {"run_id": done.run.run_id, "outcome": done.run.outcome},
        }
    return answer


def _one_as_json(one: Disagreement) -> dict[str, Any]:
    return {
        "code": one.code,
        "where": one.where,
        "found": one.found,
        "expected": one.expected,
        "ids": dict(one.ids),
        "repair": one.kind.repair,
    }


def _line(text: str, style: str = "") -> None:
    console = out()
    console.print(printable(as_called(text), console.encoding), soft_wrap=True, markup=False, style=style)
