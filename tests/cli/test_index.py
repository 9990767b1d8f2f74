"""`db index`: what a person and a program see of the indexes over vectors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline.store.database import Database
from tests.store.filled import add_documents, add_model, clustered


@pytest.fixture
def store(postgres_url: str) -> Iterator[Database]:
    """A PostgreSQL database with its tables."""
    with Database.open(postgres_url) as opened:
        yield opened


def db_index(store: Database, *options: str) -> str:
    address = store.engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "pipeline", "db", "index", "--database", address, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_model_on_postgresql_is_named_with_its_index(store: Database) -> None:
    with store.begin() as session:
        add_documents(session, add_model(session, "small", 4), clustered(40, 4))
        add_documents(session, add_model(session, "large", 4001), clustered(2, 4001), root="/large")
    large = "large: 2 vectors, of 4001 numbers each: too many for an index, so search looks at all of them"
    assert db_index(store).splitlines() == ["small: 40 vectors, its index was built", large]
    assert db_index(store).splitlines() == ["small: 40 vectors, its index is there", large]
    told = json.loads(db_index(store, "--json"))
    assert (told["busy"], told["indexes"]) == (
        False,
        [
            {"model": "small", "vectors": 40, "index": "ready", "built": False},
            {"model": "large", "vectors": 2, "index": "none", "built": False},
        ],
    )


def test_an_empty_database_has_nothing_to_index(store: Database) -> None:
    assert db_index(store).endswith("there are no vectors yet\n")
