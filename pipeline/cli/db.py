"""`db`: the database's tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from sqlalchemy.engine import Engine

from pipeline.cli.console import errors_explained, existing_or_empty, load_settings, print_json
from pipeline.cli.copies import make_copies
from pipeline.cli.words import as_called, counted, size
from pipeline.core.errors import UsageError
from pipeline.core.redaction import redacted
from pipeline.runner.ownership import own_host
from pipeline.store.backup import BackedUp, back_up, restore
from pipeline.store.database import Database, make_engine, schema_revisions, shown, upgrade
from pipeline.store.hnsw import LARGEST_DIMENSION, Standing, Tending, standings


def upgrade_command(database: str | None, *, as_json: bool) -> None:
    """Upgrade, and say from where to where. JSON: `database`, `before` (null: no tables), `revision`."""
    with errors_explained(as_json=as_json), _engine(_address(database)) as engine:
        before, head = schema_revisions(engine)
        if before != head:
            upgrade(engine)
        where = shown(engine.url)
    if as_json:
        print_json({"database": where, "before": before, "revision": head})
    elif before == head:
        typer.echo(f"{where}: at revision {head}, nothing to do")
    else:
        typer.echo(f"{where}: upgraded from {before or 'no tables'} to revision {head}")


def revision_command(database: str | None, *, as_json: bool) -> None:
    """Print both revisions. JSON: `database`, `revision` (null: no tables), `needed`."""
    with errors_explained(as_json=as_json):
        address = _address(database)
        # To look at a SQLite file that is not there would make one.
        with existing_or_empty(address) as url, _engine(url) as engine:
            current, head = schema_revisions(engine)
        where = redacted(address)
    if as_json:
        print_json({"database": where, "revision": current, "needed": head})
    else:
        typer.echo(f"{where}: {current or 'no tables yet'}; this version needs {head}")


def index_command(database: str | None, *, as_json: bool) -> None:
    """Build what is missing, and say what there is.

    JSON: `database`, `busy`, and `indexes`, each with `model`, `vectors`, `index` (`ready`, `broken`, `none`), `built`.
    """
    with errors_explained(as_json=as_json), Database.open(_address(database)) as store:
        where = shown(store.engine.url)
        if store.engine.dialect.name == "sqlite":
            make_copies(store, where, load_settings({}).settings.search.quantized, as_json=as_json)
            return
        tended = Tending(store.engine, at_once=True).run()
        with store.snapshot() as session:
            found = standings(session)
    if as_json:
        indexes = [
            {"model": one.model, "vectors": one.vectors, "index": one.index, "built": one.model in tended.built}
            for one in found
        ]
        print_json({"database": where, "busy": tended.busy, "indexes": indexes})
        return
    if tended.busy:
        typer.echo(f"{where}: another process builds an index at this moment")
    elif not found:
        typer.echo(f"{where}: there are no vectors yet")
    for one in found:
        typer.echo(f"{one.model}: {one.vectors:,} vectors, {_index_in_words(one, built=one.model in tended.built)}")


def _index_in_words(standing: Standing, *, built: bool) -> str:
    if standing.index == "ready":
        return "its index was built" if built else "its index is there"
    if standing.dimension > LARGEST_DIMENSION:
        return f"of {standing.dimension} numbers each: too many for an index, so search looks at all of them"
    return "no index, so search looks at all of them"


def backup_command(target: str, database: str | None, *, as_json: bool) -> None:
    """Write a backup, also while runs go on. JSON: `database`, `file`, `revision`, `documents`, `chunks`, `bytes`."""
    with errors_explained(as_json=as_json), _engine(_address(database)) as engine:
        made = back_up(_file_of(engine), Path(target))
        where = shown(engine.url)
    _tell_of_backup(where, target, made, f"{where}: backed up to {target}", as_json=as_json)


def restore_command(source: str, database: str | None, *, force: bool, as_json: bool) -> None:
    """Put a backup in the database's place. JSON: as `backup_command`."""
    with errors_explained(as_json=as_json):
        settings = load_settings({"database_url": database}).settings
        with own_host(settings.data_dir, "restore"), _engine(settings.database_url) as engine:
            where = shown(engine.url)
            made = restore(Path(source), _file_of(engine), force=force)
            _, head = schema_revisions(engine)
    done = f"{where}: restored from {source}; the next run does what changed since"
    if made.revision != head:
        done += ". Its tables are of an older version: `python -m pipeline db upgrade`"
    _tell_of_backup(where, source, made, done, as_json=as_json)


def _file_of(engine: Engine) -> Path:
    """The database's file. Raises UsageError for PostgreSQL, whose own programs back it up."""
    if engine.dialect.name != "sqlite":
        raise UsageError(
            f"{shown(engine.url)} is backed up by pg_dump and put back by pg_restore, which come with PostgreSQL: "
            "docs/operations.md has the commands under Backup and restore"
        )
    return Path(str(engine.url.database))


def _tell_of_backup(where: str, file: str, made: BackedUp, sentence: str, *, as_json: bool) -> None:
    if as_json:
        said = {"database": where, "file": file, "revision": made.revision, "documents": made.documents}
        print_json({**said, "chunks": made.chunks, "bytes": made.size})
        return
    holds = f"{counted(made.documents, 'document')}, {counted(made.chunks, 'chunk')}"
    typer.echo(as_called(f"{sentence} ({holds}, {size(made.size)})"))


def _address(database: str | None) -> str:
    return load_settings({"database_url": database}).settings.database_url


@contextmanager
def _engine(address: str) -> Iterator[Engine]:
    engine = make_engine(address)
    try:
        yield engine
    finally:
        engine.dispose()
