"""`export` and `import`: a database as a folder of Parquet files."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pipeline
from pipeline.cli.console import errors_explained, load_settings, not_there_yet, open_store, out, print_json
from pipeline.cli.verify import progress
from pipeline.cli.view import printable
from pipeline.cli.words import as_called, counted
from pipeline.core.errors import StoreError, UsageError
from pipeline.ingest.names import stored_name
from pipeline.ingest.work import utc_now
from pipeline.runner.alone import hold_alone
from pipeline.runner.mending import Tell
from pipeline.runner.ownership import own_host
from pipeline.runner.target import unaliased
from pipeline.store.database import Database
from pipeline.store.exchange.export import export
from pipeline.store.exchange.importing import Imported, import_export
from pipeline.store.exchange.reading import Checked, check_export
from pipeline.store.inventory import find_model, list_inventory


def export_command(folder: str, model: str | None, database: str | None, *, as_json: bool) -> None:
    """Export, and say what is in it. JSON: `folder`, `rows` by table."""
    with errors_explained(as_json=as_json), open_store(database) as (loaded, store):
        if missing := not_there_yet(loaded):
            raise StoreError(missing)
        fingerprint = None
        if model is not None:
            with store.snapshot() as session:
                fingerprint = find_model(list_inventory(session), unaliased(loaded.settings, model)).fingerprint
        with progress(quiet=as_json) as tell:
            done = export(
                store,
                _path(folder),
                program=pipeline.__version__,
                now=utc_now(),
                fingerprint=fingerprint,
                tell=tell,
            )
    if as_json:
        print_json({"folder": str(done.folder), "rows": done.rows})
        return
    rows = done.rows
    documents, chunks = counted(rows["documents"], "document"), counted(rows["chunks"], "chunk")
    _say(f"Exported {documents} and {chunks} by {counted(rows['models'], 'model')} to {done.folder}")


def import_command(folder: str, roots: Sequence[str], database: str | None, *, as_json: bool) -> None:
    """Import, and say what came over. JSON: the fields of `Imported`."""
    with errors_explained(as_json=as_json):
        moved = _roots(roots)
        loaded = load_settings({"database_url": database})
        settings = loaded.settings
        with ExitStack() as held, progress(quiet=as_json) as tell:
            checked = check_export(_path(folder), tell)
            try:
                held.enter_context(own_host(settings.data_dir, "import"))
            except OSError as error:
                raise StoreError(f"the data folder {settings.data_dir} cannot be used: {error.strerror}") from error
            store = held.enter_context(Database.open(settings.database_url, settings.node))
            done = asyncio.run(_import(store, checked, moved, tell))
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    there = f"; {counted(done.there, 'content')} were there already" if done.there else ""
    _say(f"Imported {counted(done.documents, 'document')} and {counted(done.chunks, 'chunk')}{there}.")
    if done.kept:
        _say(f"{counted(done.kept, 'document')} stayed as they are here: the export has other bytes of them.")
    _say("Their folders are looked at by `python -m pipeline run-now FOLDER`; what is unchanged is not embedded again.")


async def _import(store: Database, checked: Checked, roots: Mapping[str, str], tell: Tell) -> Imported:
    async with hold_alone(store) as alone:
        return await asyncio.to_thread(import_export, store, checked, roots, utc_now(), alone.check, tell)


def _path(folder: str) -> Path:
    if not folder.strip():
        raise UsageError("an empty FOLDER")
    return Path(os.path.abspath(folder))  # noqa: PTH100 - links are followed by whoever opens it


def _roots(given: Sequence[str]) -> dict[str, str]:
    """`--root OLD=NEW`, as it is stored. Raises UsageError."""
    roots: dict[str, str] = {}
    for one in given:
        old, separator, new = one.partition("=")
        if not separator or not old.startswith("/") or not new.strip():
            raise UsageError(f"--root {one}: write OLD=NEW, OLD being a folder in the export, such as /srv/a=/srv/b")
        roots[stored_name(old.rstrip("/") or "/")] = stored_name(os.path.realpath(new))
    return roots


def _say(text: str) -> None:
    console = out()
    console.print(printable(as_called(text), console.encoding), soft_wrap=True, markup=False)
