"""`db`: the database's tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from sqlalchemy.engine import Engine

from pipeline.cli.console import errors_explained, existing_or_empty, load_settings, print_json
from pipeline.settings.description import mask_password
from pipeline.store.database import make_engine, schema_revisions, shown, upgrade


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
        where = mask_password(address)
    if as_json:
        print_json({"database": where, "revision": current, "needed": head})
    else:
        typer.echo(f"{where}: {current or 'no tables yet'}; this version needs {head}")


def _address(database: str | None) -> str:
    return load_settings({"database_url": database}).settings.database_url


@contextmanager
def _engine(address: str) -> Iterator[Engine]:
    engine = make_engine(address)
    try:
        yield engine
    finally:
        engine.dispose()
