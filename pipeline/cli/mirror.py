"""`mirror`: Qdrant beside the database: what it is owed, and how to bring it in line now."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

import typer

from pipeline.cli.console import (
    EXIT_FAILED,
    complain,
    confirmed,
    err,
    errors_explained,
    open_store,
    print_json,
)
from pipeline.cli.view import printable
from pipeline.cli.words import as_called, moment
from pipeline.core.errors import MirrorError, UsageError
from pipeline.runner.delivering import Delivered
from pipeline.runner.mirroring import Mirroring, place_of
from pipeline.store.database import Database
from pipeline.store.mirror import outbox
from pipeline.store.mirror.outbox import Mirror
from pipeline.store.qdrant.client import Place, Qdrant

NONE = "No Qdrant is set: set qdrant.url or qdrant.path (NIGHTSHIFT_QDRANT_URL, NIGHTSHIFT_QDRANT_PATH)."


def show_command(database: str | None, *, as_json: bool) -> None:
    """Say what is owed and what is there. JSON: as `_standing`, with `collections` or `problem`."""
    with errors_explained(as_json=as_json), open_store(database) as (loaded, store):
        place = place_of(loaded.settings)
        standing = _standing(store, place)
        collections, problem = _collections(place)
    if as_json:
        print_json({**standing, "collections": collections, "problem": problem})
        return
    for line in _in_words(standing, collections, problem):
        typer.echo(printable(as_called(line)))


def sync_command(database: str | None, *, as_json: bool, quiet: bool) -> None:
    """Deliver all that is owed now. JSON: as `show_command`, with `delivered`; exit code 1 where something is left."""
    with errors_explained(as_json=as_json), open_store(database) as (loaded, store):
        place = place_of(loaded.settings)
        if place is None:
            raise UsageError(NONE)
        done = asyncio.run(_sync(store, place, quiet=quiet or as_json))
        standing = _standing(store, place)
    left = standing["owed"]
    if as_json:
        print_json({**standing, "delivered": dataclasses.asdict(done)})
    else:
        typer.echo(
            f"documents brought in line: {done.contents:,}, points sent: {done.points:,}, documents left: {left:,}"
        )
    if done.busy:
        complain("another process delivers to Qdrant just now")
    if done.error:
        complain(done.error)
    if left:
        raise typer.Exit(EXIT_FAILED)


def forget_command(database: str | None, *, drop: bool, yes: bool, as_json: bool) -> None:
    """Owe Qdrant nothing any more. JSON: `registered` (whether it was), `dropped` (the collections)."""
    with errors_explained(as_json=as_json), open_store(database) as (loaded, store):
        place = place_of(loaded.settings)
        if drop and place is None:
            raise UsageError(NONE)
        if drop and not yes and not confirmed("Delete Nightshift's collections in Qdrant?"):
            raise typer.Abort
        dropped = _drop(place, store) if drop and place is not None else []
        with store.begin() as session:
            registered = outbox.forget(session)
    if as_json:
        print_json({"registered": registered, "dropped": dropped})
        return
    typer.echo("Qdrant is owed nothing any more." if registered else "Qdrant was not registered.")
    if dropped:
        typer.echo(f"Deleted there: {', '.join(dropped)}.")
    if registered and place is not None:
        typer.echo("It is registered anew by the next run, unless qdrant.url and qdrant.path are unset.")


async def _sync(store: Database, place: Place, *, quiet: bool) -> Delivered:
    console = err()
    mirroring = Mirroring(store, place)
    try:
        with console.status("Delivering to Qdrant") as status:

            def told(done: Delivered) -> None:
                status.update(f"Delivered to Qdrant: {done.contents:,} documents, {done.points:,} points")

            if quiet or not console.is_terminal:
                status.stop()
            return await mirroring.deliver(at_once=True, told=told)
    finally:
        await mirroring.close()


def _drop(place: Place, store: Database) -> list[str]:
    with store.snapshot() as session:
        known = outbox.fingerprints(session)
    with Qdrant.open(place) as qdrant:
        mine = {qdrant.name_of(fingerprint) for fingerprint in known} & qdrant.counts().keys()
        for name in sorted(mine):
            qdrant.drop(name)
    return sorted(mine)


def _standing(store: Database, place: Place | None) -> dict[str, Any]:
    with store.snapshot() as session:
        mirror = outbox.find_mirror(session)
        owed = outbox.count_owed(session)
        refused = outbox.errors(session)
    return {
        "configured": None if place is None else place.location,
        "registered": None if mirror is None else mirror.location,
        "owed": owed,
        "in_line_at": _of(mirror, "in_line_at"),
        "error": _of(mirror, "error"),
        "attempts": _of(mirror, "attempts"),
        "due_at": _of(mirror, "due_at"),
        "refused": [
            {"sha256": key.sha256, "kind": key.kind, "attempts": attempts, "error": error}
            for key, attempts, error in refused
        ],
    }


def _of(mirror: Mirror | None, name: str) -> object:
    return None if mirror is None else getattr(mirror, name)


def _collections(place: Place | None) -> tuple[Mapping[str, int] | None, str | None]:
    if place is None:
        return None, None
    if place.path is not None and not place.path.exists():
        return {}, None
    try:
        with Qdrant.open(place) as qdrant:
            return qdrant.counts(), None
    except MirrorError as error:
        return None, str(error)


def _in_words(standing: Mapping[str, Any], collections: Mapping[str, int] | None, problem: str | None) -> list[str]:
    if standing["configured"] is None and standing["registered"] is None:
        return [NONE]
    lines = [f"qdrant     {standing['configured'] or standing['registered']}"]
    if standing["registered"] is None:
        lines.append("owed       everything: it is registered by the next run, or by `python -m pipeline mirror sync`")
    elif standing["configured"] is None:
        lines.append("settings   name no Qdrant any more: set it again, or `python -m pipeline mirror forget`")
    elif standing["configured"] != standing["registered"]:
        lines.append(f"owed       everything: until now it was {standing['registered']}")
    if standing["registered"] is not None:
        in_line = standing["in_line_at"]
        when = f"in line since {moment(in_line)}" if in_line and not standing["owed"] else "in line"
        lines.append(
            f"owed       documents: {standing['owed']:,}" if standing["owed"] else f"owed       nothing: {when}"
        )
    if standing["error"]:
        again = f", again at {moment(standing['due_at'])}" if standing["due_at"] else ""
        lines.append(f"error      {standing['error']} (tried {standing['attempts']} times{again})")
    lines += [f"refused    {one['sha256'][:12]} ({one['kind']}): {one['error']}" for one in standing["refused"]]
    for name, count in (collections or {}).items():
        lines.append(f"points     {count:,} in {name}")
    if problem:
        lines.append(f"points     not known: {problem}")
    return lines
