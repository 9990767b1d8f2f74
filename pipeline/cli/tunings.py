"""What `tune` kept: shown, and dropped."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import typer

from pipeline.cli.console import errors_explained, load_settings, open_store, out, print_json
from pipeline.cli.view import printable
from pipeline.cli.words import as_called, counted
from pipeline.runner.target import take_aim
from pipeline.store import tunings
from pipeline.store.database import Database
from pipeline.store.tunings import StoredTuning


def list_command(database: str | None, *, as_json: bool) -> None:
    """All that is kept, of every model."""
    with errors_explained(as_json=as_json), open_store(database) as (_, store), store.snapshot() as session:
        kept = tunings.all_tunings(session)
    if as_json:
        print_json([{"model": name, "fingerprint": one.fingerprint} | tuning_as_json(one) for name, one in kept])
        return
    console = out()
    for name, one in kept:
        line = f"{name or one.fingerprint}: {tuning_in_words(one)}; {one.tokens_per_second:,.0f} tokens/s"
        console.print(printable(as_called(line), console.encoding), soft_wrap=True, markup=False)
    if not kept:
        typer.echo(as_called("Nothing is kept, so each engine goes by its own choice: `python -m pipeline tune`"))


def forget_command(database: str | None, model: str | None, *, as_json: bool) -> None:
    """Drop what is kept for the embedding model."""
    with errors_explained(as_json=as_json):
        loaded = load_settings({"database_url": database, "embedding.model": model})
        with Database.open(loaded.settings.database_url) as store:
            aim = asyncio.run(take_aim(loaded.settings, store))
            with store.begin() as session:
                number = tunings.forget_tunings(session, aim.model.fingerprint)
    if as_json:
        print_json({"forgotten": number})
    else:
        typer.echo(f"Forgotten: {counted(number, 'tuning')} of {aim.model.name}.")


def tuning_in_words(tuning: StoredTuning) -> str:
    """When, for which engine and device, and what."""
    chosen = ", ".join(f"{name} {value}" for name, value in tuning.options.items()) or "its own choice is the fastest"
    return f"on {tuning.measured_at.astimezone():%Y-%m-%d} for {tuning.engine} on {tuning.device}: {chosen}"


def tuning_as_json(tuning: StoredTuning) -> dict[str, Any]:
    """All of it but the single measurements."""
    return {name: value for name, value in dataclasses.asdict(tuning).items() if name not in ("trials", "fingerprint")}
