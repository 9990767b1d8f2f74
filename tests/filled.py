"""Databases that a run filled, once for all tests of a module, and what search sees in them."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from pipeline.ingest.progress import Progress
from pipeline.runner.run import run_now
from pipeline.runner.verifying import Findings, Repaired, Wanted, repair, verify
from pipeline.settings import Settings, load
from pipeline.store.database import Database, make_engine, upgrade
from pipeline.store.models import active_model
from pipeline.store.nearest import nearest_chunks, nearest_documents
from pipeline.store.tables import ChunkRow, ContentEmbeddingRow, ContentRow, DocumentRow, EmbeddingRow
from pipeline.store.view import view_of
from tests.conftest import DEFAULT_MODEL
from tests.in_process import kept_servers

INBOX = Path(__file__).parents[1] / "data" / "inbox"
DOCUMENTS = (
    "harbour-committee-minutes.docx", "heron-operations-handbook.pdf", "seed-store-incident.pdf",
    "delivery-note-scan.pdf",
)  # fmt: skip
ALL = Wanted(sample=100_000)
ROWS_ONLY = Wanted(embed=False, sample=100_000)

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class World:
    """A database that a run filled, and the documents that it read."""

    settings: Settings
    store: Database
    folder: Path

    @property
    def on_sqlite(self) -> bool:
        return self.store.engine.dialect.name == "sqlite"

    def verify(self, wanted: Wanted = ALL) -> Findings:
        with kept_servers():
            return asyncio.run(verify(self.settings, self.store, wanted, lambda *_: None))

    def repair(self, wanted: Wanted = ALL, *, run: bool = True) -> Repaired:
        with kept_servers():
            return asyncio.run(repair(self.settings, self.store, wanted, lambda *_: None, asyncio.Event(), run=run))

    def sql(self, statement: str, **parameters: object) -> None:
        with self.store.begin() as session:
            session.execute(sa.text(statement), parameters)

    def one(self, query: sa.Select[Any]) -> Any:
        with self.store.snapshot() as session:
            return session.scalars(query.limit(1)).one()


def settings_for(data_dir: Path, database_url: str, **more: str) -> Settings:
    environ = more | {
        "NIGHTSHIFT_DATA_DIR": str(data_dir),
        "NIGHTSHIFT_DATABASE_URL": database_url,
        "NIGHTSHIFT_EMBEDDING_MODEL": str(DEFAULT_MODEL),
        "NIGHTSHIFT_CHUNK_TOKENS": "64",
        "NIGHTSHIFT_CHUNK_OVERLAP": "8",
        "NIGHTSHIFT_SOURCES_SETTLE": "0",
    }
    return load(environ=environ, cwd=data_dir).settings


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The documents, and the same once more to put them back from."""
    folder, kept = tmp_path_factory.mktemp("documents"), tmp_path_factory.mktemp("kept")
    for name in DOCUMENTS:
        shutil.copyfile(INBOX / name, folder / name)
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nand then nothing")
    shutil.copyfile(INBOX / DOCUMENTS[0], folder / "a copy.docx")
    for path in folder.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
        shutil.copy2(path, kept / path.name)
    return folder, kept


def fill(data_dir: Path, url: str, folder: Path) -> None:
    engine = make_engine(url)
    upgrade(engine)
    engine.dispose()
    settings = settings_for(data_dir, url)
    with kept_servers():
        report = asyncio.run(run_now(settings, [folder], Progress(started_monotonic=time.monotonic()), asyncio.Event()))
    assert report.outcome == "complete"


@pytest.fixture(scope="module")
def filled_sqlite(originals: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("filled")
    fill(data_dir, f"sqlite:///{data_dir / 'nightshift.db'}", originals[0])
    return data_dir / "nightshift.db"


@pytest.fixture(scope="module")
def filled_postgres(
    postgres_server: str, originals: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> str:
    name = f"filled{next(_numbers)}"
    admin(postgres_server, f"CREATE DATABASE {name}")
    url = sa.make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    fill(tmp_path_factory.mktemp("filled_postgres"), url, originals[0])
    return name


def admin(server: str, statement: str) -> None:
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(statement))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, originals: tuple[Path, Path], tmp_path: Path) -> Iterator[World]:
    """A copy of what a run left, on each kind of database."""
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("filled_sqlite"), tmp_path / "nightshift.db")
        url = f"sqlite:///{tmp_path / 'nightshift.db'}"
    else:
        server, template = request.getfixturevalue("postgres_server"), request.getfixturevalue("filled_postgres")
        name = f"copy{next(_numbers)}"
        admin(server, f"CREATE DATABASE {name} TEMPLATE {template}")
        url = sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    folder, kept = originals
    with Database.open(url) as store:
        yield World(settings_for(tmp_path, url), store, folder)
    for path in folder.iterdir():
        path.unlink()
    for path in kept.iterdir():
        shutil.copy2(path, folder / path.name)


# What search sees


@dataclass(frozen=True, slots=True)
class Seen:
    """What documents show, apart from ids, and what questions find."""

    documents: list[tuple[Any, ...]]
    chunks: list[tuple[Any, ...]]
    vectors: np.ndarray[Any, Any]
    own: np.ndarray[Any, Any]
    found: list[list[tuple[str, int]]]


def seen(store: Database) -> Seen:
    with store.snapshot() as session:
        documents = session.execute(
            sa.select(DocumentRow.path, DocumentRow.sha256, ContentRow.state, ContentRow.title, ContentRow.chunk_count)
            .join(ContentRow, ContentRow.id == sa.func.coalesce(DocumentRow.pending_id, DocumentRow.current_id))
            .order_by(DocumentRow.path)
        ).all()
        chunks = session.execute(
            sa.select(DocumentRow.path, ChunkRow, EmbeddingRow.vector)
            .join(ChunkRow, ChunkRow.content_id == DocumentRow.current_id)
            .join(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id)
            .order_by(DocumentRow.path, ChunkRow.ordinal)
        ).all()
        own = session.execute(
            sa.select(ContentEmbeddingRow.vector, ContentEmbeddingRow.method)
            .join(DocumentRow, DocumentRow.current_id == ContentEmbeddingRow.content_id)
            .order_by(DocumentRow.path)
        ).all()
        model = active_model(session)
        assert model is not None
        view = view_of(session, model.id)
        question = np.random.default_rng(1).standard_normal((5, model.dimension)).astype(np.float32)
        question /= np.linalg.norm(question, axis=1, keepdims=True)
        places = {chunk.id: (path, chunk.ordinal) for path, chunk, _ in reversed(chunks)}
        found = [[places[one] for one, _ in nearest_chunks(session, row, view, 10)] for row in question]
        assert len(nearest_documents(session, question[0], view, 100)) == len(
            {chunk.content_id for _, chunk, _ in chunks}
        )
        texts = [(path, c.ordinal, c.text, c.prefix, c.page_first, c.headings, c.token_count) for path, c, _ in chunks]
    return Seen(
        [tuple(row) for row in documents],
        texts,
        np.stack([np.frombuffer(vector, "<f4") for *_, vector in chunks]),
        np.stack([np.frombuffer(vector, "<f4") for vector, _ in own]),
        found,
    )


def assert_same(one: Seen, other: Seen) -> None:
    assert one.documents == other.documents
    assert one.chunks == other.chunks
    assert float((one.vectors * other.vectors).sum(axis=1).min()) > 0.9999
    assert one.own.shape == other.own.shape
    assert float((one.own * other.own).sum(axis=1).min()) > 0.9999
    assert one.found == other.found
