"""`models`: list them, move search to one, delete what the others made."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shlex
from collections.abc import Sequence
from typing import Any

import typer
from sqlalchemy.engine import make_url

from pipeline.cli.console import confirmed, errors_explained, not_there_yet, open_store, out, print_json
from pipeline.cli.report import named
from pipeline.cli.status import died
from pipeline.cli.view import printable
from pipeline.cli.words import as_called, counted, moment, size
from pipeline.core.errors import RunInProgress, UsageError
from pipeline.core.naming import matching, names_of
from pipeline.runner.target import unaliased
from pipeline.settings import Settings
from pipeline.store import pruning, runs
from pipeline.store.database import Database
from pipeline.store.hnsw import Tending
from pipeline.store.inventory import ModelInventory, find_model, list_inventory, short_fingerprint, use_model
from pipeline.store.pruning import Pruned


def list_command(database: str | None, *, as_json: bool) -> None:
    """Print the models. JSON: `models`, each as `ModelInventory` and `complete`."""
    with errors_explained(as_json=as_json), open_store(database) as (loaded, store):
        missing = not_there_yet(loaded)
        models = _inventory(store)
    if as_json:
        print_json({"models": [_as_json(model) for model in models]})
        return
    if not models:
        _say(missing or "No model has made anything yet: `python -m pipeline run-now`")
    for model in models:
        for line in _lines(model):
            _say(line)


def use_command(name: str, database: str | None, *, anyway: bool, as_json: bool) -> None:
    """Move search to a model. JSON: `model`, `moved` (false: it was there), `missing`: documents that it lacks."""
    with errors_explained(as_json=as_json), open_store(database) as (loaded, store), store.begin() as session:
        used = use_model(session, unaliased(loaded.settings, name), anyway=anyway)
        before, model = used.before, used.model
        settings = loaded.settings
    if as_json:
        print_json({"model": _as_json(model), "moved": used.moved, "missing": used.missing})
        return
    if not used.moved:
        _say(f"Search uses {named(model)} already.")
    else:
        _say(f"Search uses {named(model)} from now on.")
    if used.missing:
        _say(f"Not found by it until they have been through it: {counted(used.missing, 'document')}.")
    if used.moved and before is not None and _is_set(settings, before):
        _say(
            f"Runs go on embedding with {named(before)}, which the settings name; what they add is not found until "
            f"search moves back. To stay with this one, set {_as_settings(settings, model)}"
        )


def prune_command(name: str | None, database: str | None, *, yes: bool, as_json: bool) -> None:
    """Delete what models made that search does not use. JSON: `pruned`, and `reclaimable` bytes (SQLite)."""
    with errors_explained(as_json=as_json), open_store(database) as (loaded, store):
        unwanted = _unwanted(store, unaliased(loaded.settings, name))
        if unwanted and not yes and not confirmed(_question(unwanted)):
            raise typer.Abort
        pruned = [(model, _prune(store, model)) for model in unwanted]
        Tending(store.engine, drops_only=True).run()
        with store.snapshot() as session:
            free = pruning.reclaimable(session)
        address = store.engine.url.render_as_string(hide_password=False)
    if as_json:
        deleted = [_as_json(model) | {"deleted": dataclasses.asdict(done)} for model, done in pruned]
        print_json({"pruned": deleted, "reclaimable": free})
        return
    if not pruned:
        _say("Nothing to prune: no model has made anything but the one that search uses, or one that is being built.")
    for model, done in pruned:
        what = f"{counted(done.contents, 'document')} with {counted(done.chunks, 'chunk')}"
        _say(f"Deleted what {named(model)} made: {what}, about {size(model.size)}.")
    if pruned and free is not None:
        _say(
            f"The file has {size(free)} of room for what comes next. To make it smaller, while nothing uses it: "
            f"sqlite3 {make_url(address).database} VACUUM"
        )


def _inventory(store: Database) -> list[ModelInventory]:
    with store.snapshot() as session:
        return list_inventory(session)


def _unwanted(store: Database, name: str | None) -> list[ModelInventory]:
    """What may go: all that search does not use and that is not being built, or the one named."""
    models = _inventory(store)
    if name is None:
        return [model for model in models if not model.active and not model.building]
    model = find_model(models, name)
    if model.active:
        message = f"search uses {model.name}: move it to another one first, `python -m pipeline models use MODEL`"
        raise UsageError(message)
    if model.building:
        _nobody_builds(store)
    return [model]


def _nobody_builds(store: Database) -> None:
    """Raises RunInProgress where a run is at work, on any host, which may be making what is to be deleted."""
    with store.snapshot() as session:
        at_work, silent = runs.living_runs(session), runs.silent_runs(session, dt.datetime.now(dt.UTC))
    for run in at_work:
        if not died(run, store.host, silent):
            raise RunInProgress(f"run {run.id} (pid {run.process.pid} on {run.process.host})")


def _question(models: Sequence[ModelInventory]) -> str:
    what = "; ".join(f"{counted(model.contents, 'document')} by {named(model)}" for model in models)
    building = next((f" {named(model)} is being built." for model in models if model.building), "")
    return f"Delete the chunks and vectors of {what} (about {size(sum(m.size for m in models))})?{building}"


def _prune(store: Database, model: ModelInventory) -> Pruned:
    with store.begin() as session:
        pruning.release(session, model.id)
    total = Pruned()
    while True:
        with store.begin() as session:
            some = pruning.prune_some(session, model.id)
        if some is None:
            return total
        total += some


def _lines(model: ModelInventory) -> list[str]:
    every = model.documents + model.missing + model.unreadable
    parts = [f"{model.embedded:,} of {counted(every, 'document')} embedded"]
    if without := model.documents - model.embedded + model.unreadable:
        parts.append(f"{without:,} empty, encrypted or failed")
    if model.missing:
        parts.append(f"{model.missing:,} not yet through it")
    parts += [counted(model.chunks, "chunk"), f"{model.dimension} dimensions", f"about {size(model.size)}"]
    if model.last_embedded_at is not None:
        parts.append(f"last embedded {moment(model.last_embedded_at)}")
    return [f"{named(model)}: {_standing(model)}", f"    {', '.join(parts)}"]


def _standing(model: ModelInventory) -> str:
    """Where it stands, and what can be done with it."""
    if model.active:
        return "search uses it"
    use = f"`python -m pipeline models use {short_fingerprint(model)}`"
    if model.set_aside:
        return f"set aside; {use} moves search back"
    if model.building:
        return "being built; search moves over once all documents have been through it"
    if model.complete:
        return f"complete; {use} moves search over at once"
    return f"not complete: without {counted(model.missing, 'document')}"


def _is_set(settings: Settings, model: ModelInventory) -> bool:
    """Whether the settings name this model, as far as names tell."""
    named = settings.embedding.model
    same_file = named.rpartition("/")[2] == model.path.rpartition("/")[2] or matching(
        named, [model], lambda one: names_of(one.path, one.name)
    )
    return bool(same_file) and settings.embedding.pooling == _pooling(model)


def _as_settings(settings: Settings, model: ModelInventory) -> str:
    """What to set for runs to embed with a model."""
    wanted = f"NIGHTSHIFT_EMBEDDING_MODEL={shlex.quote(model.path)}"
    if settings.embedding.pooling == _pooling(model):
        return wanted
    return f"{wanted} and NIGHTSHIFT_EMBEDDING_POOLING={_pooling(model) or shlex.quote('')}"


def _pooling(model: ModelInventory) -> str:
    """The pooling that was asked for; empty is the model's own."""
    return model.fingerprint.rpartition(":")[0]


def _as_json(model: ModelInventory) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(model).items() if key != "id"} | {
        "complete": model.complete
    }


def _say(text: str) -> None:
    console = out()
    console.print(printable(as_called(text), console.encoding), soft_wrap=True, markup=False)
