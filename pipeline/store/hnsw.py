"""The indexes over vectors on PostgreSQL: pgvector's HNSW graphs, one for each model that has many vectors.

An index is built once a model's bulk load is over, because a graph that is made in one go costs a fraction of one that
grows with each vector; from then on the database keeps it. It is over half precision (`halfvec`): it only finds
candidates, and their scores are computed from the vectors themselves.

Source: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
Small World graphs", 2018; pgvector's README on expression indexes, iterative scans and index build time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.core.errors import StoreError
from pipeline.store.locks import session_lock
from pipeline.store.tables import ContentRow, ModelRow

FEWEST = 10_000
"""Vectors from which a model gets an index: below, looking at all of them takes some milliseconds."""

MOST_WAITING = 0.1
"""Of a model's documents: with more that wait, its bulk load is not over."""

LARGEST_DIMENSION = 4000
"""That an index over `halfvec` takes."""

NEIGHBOURS, BUILD_CANDIDATES = 16, 64
"""pgvector's `m` and `ef_construction`, at their defaults."""

BYTES_OF_GRAPH = 500
"""That a vector takes in the graph while it is built, beside its own two bytes a number."""

MOST_MEMORY = 2 << 30
"""Bytes for a build, where the server's own `maintenance_work_mem` is not above that. A graph that outgrows its memory
is finished on disk, several times slower."""

CANCEL_SECONDS = 5.0

LOCK = "hnsw"

_NO_SHARED_MEMORY = "53100"
"""SQLSTATE disk_full: of the memory that workers share, which is small in many containers."""

State = Literal["none", "broken", "ready"]


@dataclass(frozen=True, slots=True)
class Standing:
    """A model's vectors and its index. waiting, documents: of its contents, those that are not done, and all."""

    model_id: int
    model: str
    dimension: int
    vectors: int
    waiting: int
    documents: int
    index: State

    @property
    def name(self) -> str:
        """Of the index, whether it is there or not."""
        return index_name(self.model_id, self.dimension)


Plan = Literal["build", "rebuild", "drop", "keep", "none"]


def plan_index(standing: Standing, *, at_once: bool = False) -> Plan:
    """What is to be done about a model's index. at_once: a person wants it now, whatever waits and however small.

    A broken one is one whose build did not end.
    """
    if standing.vectors == 0:
        return "none" if standing.index == "none" else "drop"
    if standing.index == "ready":
        return "keep"
    again: Plan = "none" if standing.index == "none" else "drop"
    if standing.dimension > LARGEST_DIMENSION:
        return again
    loading = standing.waiting > MOST_WAITING * standing.documents
    if not at_once and (standing.vectors < FEWEST or loading):
        return again
    return "build" if standing.index == "none" else "rebuild"


def index_name(model_id: int, dimension: int) -> str:
    """Of the index over a model's vectors."""
    return f"ix_embeddings_hnsw_{model_id}_{dimension}"


def half(vector: sa.SQLColumnExpression[bytes], dimension: int) -> sa.ColumnElement[Any]:
    """A vector in half precision: an expression as the index has it."""
    return vector.op("::", precedence=15)(sa.literal_column(f"halfvec({dimension:d})"))


def fitting(dimension: int) -> str:
    """A condition on `embeddings`, in SQL: the vector can be compared. Others are in no index and stop no build."""
    return f"vector_dims(embeddings.vector) = {dimension:d} AND vector_norm(embeddings.vector) BETWEEN 0.9 AND 1.1"


def is_ready(session: Session, model_id: int, dimension: int) -> bool:
    """Whether a model's vectors are to be looked for by an index."""
    return _state(session.connection(), index_name(model_id, dimension)) == "ready"


def standings(session: Session) -> list[Standing]:
    """Each model that has vectors, or an index that was left over; none where the database has no such indexes."""
    connection = session.connection()
    if connection.dialect.name != "postgresql":
        return []
    waits = ContentRow.state.in_([DocumentState.DISCOVERED, DocumentState.EXTRACTED])
    counted = sa.select(
        ModelRow.id,
        ModelRow.name,
        ModelRow.dimension,
        sa.func.coalesce(sa.func.sum(ContentRow.embedded_count), 0),
        sa.func.coalesce(sa.func.sum(sa.case((waits, 1), else_=0)), 0),
        sa.func.count(ContentRow.id),
    )
    rows = session.execute(
        counted.outerjoin(ContentRow, ContentRow.model_id == ModelRow.id).group_by(ModelRow.id).order_by(ModelRow.id)
    ).all()
    found = [
        Standing(
            number,
            name,
            dimension,
            int(vectors),
            int(waiting),
            documents,
            _state(connection, index_name(number, dimension)),
        )
        for number, name, dimension, vectors, waiting, documents in rows
    ]
    return [standing for standing in found if standing.vectors or standing.index != "none"]


@dataclass(frozen=True, slots=True)
class Tended:
    """What was done: the models whose index was built, and those whose index was dropped, by their names.

    busy: another process is at it. stopped: a build was given up because a stop was wanted.
    """

    built: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    busy: bool = False
    stopped: bool = False


class Tending:
    """Brings the indexes of a database to where they should be, and can be told to stop from another thread.

    Blocking: a build takes minutes for a million vectors. Searches and writers go on meanwhile.
    at_once: as in `plan_index`. drops_only: nothing is built.
    """

    def __init__(self, engine: Engine, *, at_once: bool = False, drops_only: bool = False) -> None:
        self._engine = engine
        self._at_once = at_once
        self._drops_only = drops_only
        self._stopped = threading.Event()
        self._driver: Any = None

    def stop(self) -> None:
        """Give up the build that is under way: what it leaves is replaced by the next one.

        To be called until `run` has returned: between two statements there is nothing to give up.
        """
        self._stopped.set()
        driver = self._driver
        if driver is None:
            return
        import psycopg  # there only where this database is

        with suppress(psycopg.Error):  # the connection may have ended on its own
            driver.cancel_safe(timeout=CANCEL_SECONDS)

    def run(self) -> Tended:
        """Do it.

        Raises:
            StoreError: the database could not; search goes on without the index.
        """
        if self._engine.dialect.name != "postgresql":
            return Tended()
        try:
            with Session(self._engine) as session:
                if not self._planned(session):
                    return Tended()
            with self._connection() as connection:
                return self._tend(connection)
        except SQLAlchemyError as error:
            if self._stopped.is_set():
                return Tended(stopped=True)
            cause = " ".join(str(getattr(error, "orig", None) or error).split())
            raise StoreError(
                f"the index over vectors could not be built, so search looks at all of them: {cause}"
            ) from error

    def _tend(self, connection: Connection) -> Tended:
        if not session_lock(connection, LOCK):
            return Tended(busy=True)
        built, dropped = [], []
        with Session(connection) as session:  # again: another process may have done it in the meantime
            planned = self._planned(session)
        for standing, plan in planned:
            if plan in ("drop", "rebuild"):
                connection.execute(sa.text(f"DROP INDEX CONCURRENTLY IF EXISTS {standing.name}"))
                if plan == "drop":
                    dropped.append(standing.model)
            if plan in ("build", "rebuild") and not self._stopped.is_set():
                _build(connection, standing)
                built.append(standing.model)
        return Tended(tuple(built), tuple(dropped), stopped=self._stopped.is_set())

    def _planned(self, session: Session) -> list[tuple[Standing, Plan]]:
        """What there is to do."""
        wanted = ("drop",) if self._drops_only else ("build", "rebuild", "drop")
        plans = [(standing, plan_index(standing, at_once=self._at_once)) for standing in standings(session)]
        return [(standing, plan) for standing, plan in plans if plan in wanted]

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """One outside any transaction, which ends with all that was set and locked in it."""
        with self._engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            self._driver = connection.connection.driver_connection
            connection.detach()
            try:
                yield connection
            finally:
                self._driver = None


def _build(connection: Connection, standing: Standing) -> None:
    memory = standing.vectors * (BYTES_OF_GRAPH + 2 * standing.dimension)
    settings = {
        "maintenance_work_mem": f"{max(_maintenance_memory(connection), min(memory, MOST_MEMORY)) >> 10}kB",
        # A build whose client died ends by itself.
        "client_connection_check_interval": "2s",
    }
    for name, value in settings.items():
        connection.execute(sa.select(sa.func.set_config(name, value, False)))
    create = sa.text(
        f"CREATE INDEX CONCURRENTLY {standing.name} ON embeddings "
        f"USING hnsw ((vector::halfvec({standing.dimension:d})) halfvec_ip_ops) "
        f"WITH (m = {NEIGHBOURS}, ef_construction = {BUILD_CANDIDATES}) "
        f"WHERE model_id = {standing.model_id:d} AND {fitting(standing.dimension)}"
    )
    try:
        connection.execute(create)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _NO_SHARED_MEMORY:
            raise
        connection.execute(sa.text(f"DROP INDEX CONCURRENTLY IF EXISTS {standing.name}"))
        connection.execute(sa.text("SET max_parallel_maintenance_workers = 0"))
        connection.execute(create)


def _maintenance_memory(connection: Connection) -> int:
    """Bytes that the server gives to a build by itself."""
    setting = sa.text("SELECT setting::bigint * 1024 FROM pg_settings WHERE name = 'maintenance_work_mem'")
    return int(connection.scalar(setting) or 0)


def _state(connection: Connection, name: str) -> State:
    valid = connection.scalar(
        sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"), {"name": name}
    )
    return "none" if valid is None else "ready" if valid else "broken"
