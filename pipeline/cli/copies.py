"""`db index` for SQLite: the quantized copies of vectors."""

from __future__ import annotations

import typer

from pipeline.cli.console import print_json
from pipeline.core.quantized import Wanted
from pipeline.store.database import Database
from pipeline.store.nearest.copying import Copying, held_copies


def make_copies(store: Database, database: str, quantized: Wanted, *, as_json: bool) -> None:
    """Make or renew the copies, unless the settings want none, and say what there is. JSON: as `db.index_command`."""
    copied = Copying(store, "off" if quantized == "off" else "on").run()
    with store.snapshot() as session:
        held = held_copies(session)
    built = {model for model, _ in copied.built}
    if as_json:
        indexes = [
            {"model": one.model, "vectors": one.vectors, "index": "ready" if one.copied else "none"}
            | {"built": one.model in built}
            for one in held
        ]
        print_json({"database": database, "busy": copied.busy, "indexes": indexes})
        return
    if copied.busy:
        typer.echo(f"{database}: another process makes copies at this moment")
    elif not held:
        typer.echo(f"{database}: there are no vectors yet")
    for one in held:
        typer.echo(
            f"{one.model}: {one.vectors:,} vectors, {_in_words(one.copied, quantized, built=one.model in built)}"
        )


def _in_words(copied: int, quantized: Wanted, *, built: bool) -> str:
    if copied:
        return f"a quantized copy of {copied:,} of them {'was made' if built else 'is there'}"
    if quantized == "off":
        return "no quantized copy, because search.quantized is off"
    return "no quantized copy, so search looks at all of them"
