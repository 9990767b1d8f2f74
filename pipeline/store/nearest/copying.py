"""Makes quantized copies of the vectors in a SQLite database, and renews and deletes them."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from pipeline.core.errors import StoreError
from pipeline.core.quantized import Standing, Wanted, plan_copy, rounded, signs
from pipeline.core.vectors import COMPARED, unit_vectors
from pipeline.store.bulk import last_chunk_number
from pipeline.store.database import Database
from pipeline.store.nearest.comparing import tell_broken
from pipeline.store.nearest.copies import UNFINISHED, Heading, Writer, folder_of, path_of, replacing
from pipeline.store.nearest.quantized import database_file, usable_copy
from pipeline.store.nearest.shelves import raw
from pipeline.store.tables import ContentRow, EmbeddingRow, ModelRow, PendingChunkRow

SAMPLE = 10_000
"""Vectors whose mean is the middle between the signs, about."""

LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Copied:
    """What was done: the copies that were made, by model, with their vectors; and models whose copy was deleted.

    busy: another process is at it. stopped: a copy was given up because a stop was wanted.
    """

    built: tuple[tuple[str, int], ...] = ()
    dropped: tuple[str, ...] = ()
    busy: bool = False
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A model that has vectors, and how many of them its copy holds."""

    model: str
    vectors: int
    copied: int


class Copying:
    """Brings the copies of a database to where they should be, and can be told to stop from another thread.

    Blocking: some seconds for a million vectors. Searches and writers go on meanwhile. A process that is killed leaves
    what nobody reads, and what the next one deletes.

    told: hears of the progress: a model's name, how many of its vectors are done, and of how many.
    """

    def __init__(self, store: Database, wanted: Wanted, told: Callable[[str, int, int], None] | None = None) -> None:
        self._store = store
        self._wanted = wanted
        self._told = told or (lambda model, done, rows: None)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Give up the copy that is being made."""
        self._stopped.set()

    def run(self) -> Copied:
        """Do it, for every model.

        Raises:
            StoreError: a copy cannot be written; search goes on without it.
        """
        if self._store.engine.dialect.name != "sqlite":
            return Copied()
        with self._store.snapshot() as session:
            folder = folder_of(database_file(session.connection()))
            vectors = session.scalar(sa.select(sa.func.sum(ContentRow.embedded_count))) or 0
        if not folder.exists() and plan_copy(Standing(vectors, addable=vectors), self._wanted) != "build":
            return Copied()
        try:
            folder.mkdir(exist_ok=True)
            with _alone(folder) as mine:
                return self._renew(folder) if mine else Copied(busy=True)
        except OSError as error:
            raise StoreError(f"no quantized copy can be written to {folder}: {error.strerror or error}") from error

    def _renew(self, folder: Path) -> Copied:
        built: list[tuple[str, int]] = []
        dropped: list[str] = []
        # One state of the database for all of it: what a copy covers is counted before it is written.
        with self._store.snapshot() as session:
            connection = session.connection()
            models = session.execute(
                sa.select(ModelRow.id, ModelRow.name, ModelRow.fingerprint, ModelRow.dimension).order_by(ModelRow.id)
            ).all()
            _delete_others(folder, {path_of(folder, fingerprint).name for _, _, fingerprint, _ in models})
            for model_id, name, fingerprint, dimension in models:
                upto = coverable(connection, model_id)
                plan = plan_copy(_standing(connection, model_id, fingerprint, dimension, upto), self._wanted)
                path = path_of(folder, fingerprint)
                if plan == "build":
                    rows = self._build(connection, path, model_id, Heading(fingerprint, dimension, 0, upto, 0), name)
                    if self._stopped.is_set():
                        return Copied(tuple(built), tuple(dropped), stopped=True)
                    built += [(name, rows)] if rows else []
                elif plan in ("drop", "none") and path.exists():
                    path.unlink()
                    dropped.append(name)
        return Copied(tuple(built), tuple(dropped))

    def _build(self, connection: Connection, path: Path, model_id: int, of: Heading, name: str) -> int:
        """Write a copy of the vectors that it can hold; returns how many these are, 0 where it was given up."""
        mine = (EmbeddingRow.model_id == model_id, EmbeddingRow.chunk_id <= of.upto)
        rows = connection.scalar(sa.select(sa.func.count()).select_from(EmbeddingRow).where(*mine)) or 0
        if not rows:
            path.unlink(missing_ok=True)
            return 0
        heading = Heading(of.model, of.dimension, rows, of.upto, last_chunk_number(connection))
        middle = _middle(connection, mine, rows, of.dimension)
        statement = sa.select(EmbeddingRow.chunk_id, EmbeddingRow.content_id, EmbeddingRow.vector).where(*mine)
        rows_read = raw(connection, statement.order_by(EmbeddingRow.chunk_id))
        with _given_up(), closing(rows_read) as read, replacing(path) as file:
            writer = Writer(file, heading, middle)
            for some in read:
                if self._stopped.is_set():
                    raise _GivenUp
                ids, contents = (np.asarray([row[at] for row in some], np.int64) for at in (0, 1))
                # Rows of zeros where a vector is none: a search compares the vectors themselves, and leaves them out.
                vectors, good = unit_vectors([row[2] for row in some], of.dimension, COMPARED)
                if not good.all():
                    tell_broken(connection, int((~good).sum()), int(ids[~good][0]))
                writer.add(ids, contents, rounded(vectors), signs(vectors, middle))
                self._told(name, writer.written, rows)
            writer.finish()
            return rows
        return 0


def coverable(connection: Connection, model_id: int) -> int:
    """The largest number of a chunk up to which no chunk of a model waits for its vector any more."""
    waiting = (
        sa.select(PendingChunkRow.chunk_id)
        .join(ContentRow, ContentRow.id == PendingChunkRow.content_id)
        .where(ContentRow.model_id == model_id)
        .order_by(PendingChunkRow.chunk_id)
        .limit(1)
    )
    first = connection.scalar(waiting)
    return last_chunk_number(connection) if first is None else first - 1


def held_copies(session: Session) -> list[Held]:
    """What there is, for every model that has vectors."""
    connection = session.connection()
    models = session.execute(sa.select(ModelRow).order_by(ModelRow.id)).scalars().all()
    found = []
    for model in models:
        standing = _standing(connection, model.id, model.fingerprint, model.dimension, 0)
        found += [Held(model.name, standing.vectors, standing.rows)] if standing.vectors else []
    return found


def delete_copies(connection: Connection) -> None:
    """Delete the copies of a database, because vectors in it were changed, which no copy can know."""
    if connection.dialect.name == "sqlite":
        for path in folder_of(database_file(connection)).glob("*.vectors"):
            path.unlink(missing_ok=True)


def _standing(connection: Connection, model_id: int, fingerprint: str, dimension: int, upto: int) -> Standing:
    embedded = sa.select(sa.func.sum(ContentRow.embedded_count)).where(ContentRow.model_id == model_id)
    vectors = connection.scalar(embedded) or 0
    copy = usable_copy(connection, model_id, fingerprint, dimension)
    if copy is None:
        return Standing(vectors, addable=vectors)
    newer = sa.select(sa.func.count()).select_from(EmbeddingRow).where(EmbeddingRow.model_id == model_id)
    newer = newer.where(EmbeddingRow.chunk_id > copy.heading.upto)
    beside, addable = (connection.scalar(rows) or 0 for rows in (newer, newer.where(EmbeddingRow.chunk_id <= upto)))
    return Standing(vectors, copy.heading.rows, addable, max(0, copy.heading.rows - (vectors - beside)))


def _middle(
    connection: Connection, mine: tuple[sa.ColumnElement[bool], ...], rows: int, dimension: int
) -> NDArray[np.float32]:
    some = sa.select(EmbeddingRow.vector).where(*mine, EmbeddingRow.chunk_id % max(1, rows // SAMPLE) == 0)
    total, count = np.zeros(dimension, np.float64), 0
    with closing(raw(connection, some)) as read:
        for found in read:
            total += unit_vectors([row[0] for row in found], dimension, COMPARED)[0].sum(axis=0, dtype=np.float64)
            count += len(found)
    return (total / max(1, count)).astype(np.float32)


def _delete_others(folder: Path, known: set[str]) -> None:
    """Delete what was left over: copies of models that are gone, and those whose making was cut short."""
    for path in folder.iterdir():
        if path.name.endswith(UNFINISHED) or (path.suffix == ".vectors" and path.name not in known):
            path.unlink(missing_ok=True)


class _GivenUp(Exception):
    """A stop was wanted while a copy was being made."""


@contextmanager
def _given_up() -> Iterator[None]:
    try:
        yield
    except _GivenUp:
        return


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether nobody else makes copies there; if so, nobody else does for the block's length."""
    with (folder / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
