"""Search on PostgreSQL: exact as numpy is, and by the index where there is one, whatever is filtered."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.vectors import to_blob
from pipeline.store.database import Database
from pipeline.store.hnsw import Tending, is_ready
from pipeline.store.nearest import nearest_chunks, nearest_documents
from pipeline.store.nearest.postgres import FEW, FEW_CONTENTS, by_index, is_small
from pipeline.store.tables import DocumentRow, EmbeddingRow
from pipeline.store.vector_type import Sent, to_sent
from pipeline.store.view import Filter, view_of
from tests.conftest import make_database
from tests.store import portable
from tests.store.filled import add_documents, add_model, clustered

DIMENSION = 24
COUNT = 3000
K = 10

Found = list[tuple[int, float]]


@pytest.fixture(scope="module")
def filled(postgres_server: str, postgres_template: str) -> Iterator[Database]:
    """Two models in one table, and documents in two folders of which one is small."""
    with Database.open(make_database(postgres_server, postgres_template)) as store:
        with store.begin() as session:
            first = add_model(session, "first", DIMENSION)
            add_documents(session, first, clustered(COUNT, DIMENSION))
            add_documents(session, first, clustered(50, DIMENSION, 8), folder="few")
            add_documents(session, add_model(session, "other", 5), clustered(200, 5), root="/other")
        yield store


@pytest.fixture(scope="module")
def indexed(filled: Database) -> Database:
    assert Tending(filled.engine, at_once=True).run().built == ("first", "other")
    with filled.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(sa.text("ANALYZE"))
    return filled


def questions(count: int = 20) -> NDArray[np.float32]:
    return clustered(count, DIMENSION, 99)


def assert_same(found: Found, wanted: Found) -> None:
    """The same scores in the same order; ids of scores that differ by rounding only may have changed places."""
    np.testing.assert_allclose([score for _, score in found], [score for _, score in wanted], atol=2e-6)
    clear = [n for n in range(len(wanted) - 1) if wanted[n][1] - wanted[n + 1][1] > 1e-5]
    for before, after in zip([-1, *clear], clear, strict=False):
        assert {i for i, _ in found[before + 1 : after + 1]} == {i for i, _ in wanted[before + 1 : after + 1]}


@pytest.mark.parametrize("k", [1, K, 500, 5000])
def test_exact_search_finds_what_numpy_finds(filled: Database, k: int) -> None:
    with filled.snapshot() as session:
        assert not session.scalar(sa.text("SELECT count(*) FROM pg_index WHERE NOT indisvalid"))
        for wanted in (None, Filter(sources=["/docs/few"])):
            view = view_of(session, 1, wanted)
            for question in questions(3):
                told: list[str] = []
                assert_same(
                    nearest_chunks(session, question, view, k, told=told),
                    portable.nearest_chunks(session, question, view, k),
                )
                assert_same(
                    nearest_documents(session, question, view, k),
                    portable.nearest_documents(session, question, view, k),
                )


def test_of_equals_the_first_come_first_however_many_there_are(store: Database) -> None:
    same = np.tile(clustered(1, DIMENSION), (700, 1))
    with store.begin() as session:
        ids = add_documents(session, add_model(session, "m", DIMENSION), same)
        found = nearest_chunks(session, same[0], view_of(session, 1), K)
        assert [chunk_id for chunk_id, _ in found] == ids[:K]


def test_vectors_of_other_contents_and_models_are_not_found(filled: Database) -> None:
    with filled.begin() as session:
        gone = session.scalars(sa.select(DocumentRow).order_by(DocumentRow.id)).first()
        assert gone is not None
        content_id, gone.current_id = gone.current_id, None
        session.flush()
        mine = session.scalars(
            sa.select(EmbeddingRow.chunk_id).where(EmbeddingRow.model_id == 1, EmbeddingRow.content_id != content_id)
        ).all()
        found = nearest_chunks(session, questions(1)[0], view_of(session, 1), 10_000)
        assert sorted(chunk_id for chunk_id, _ in found) == sorted(mine)
        session.rollback()


def plan(session: Session, query: sa.Select[int, bytes]) -> str:
    """As PostgreSQL would do it."""
    compiled = query.compile(session.get_bind(), compile_kwargs={"render_postcompile": True})
    values = {
        name: Sent(to_sent(value)) if isinstance(value, bytes) else value for name, value in compiled.params.items()
    }
    rows = session.connection().exec_driver_sql(f"EXPLAIN {compiled}", values)
    return "\n".join(row[0] for row in rows)


def test_the_index_is_used_and_finds_nearly_all(indexed: Database) -> None:
    with indexed.snapshot() as session:
        view = view_of(session, 1)
        assert is_ready(session, 1, DIMENSION)
        shown = plan(session, by_index(questions(1)[0], view, 74))
        assert "Index Scan using ix_embeddings_hnsw_1_24" in shown
        hits = 0
        for question in questions():
            told: list[str] = []
            found = nearest_chunks(session, question, view, K, told=told)
            assert told == ["by the HNSW index of pgvector, scores from the vectors"]
            wanted = dict(portable.nearest_chunks(session, question, view, K))
            hits += len(wanted.keys() & dict(found).keys())
            exact = dict(portable.nearest_chunks(session, question, view, COUNT))
            np.testing.assert_allclose([score for _, score in found], [exact[i] for i, _ in found], atol=2e-6)
            assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
        assert hits >= 0.95 * K * len(questions())


@pytest.mark.parametrize("by_index", [False, True])
def test_broken_vectors_cost_only_themselves(postgres_url: str, by_index: bool) -> None:
    vectors = clustered(400, DIMENSION)
    broken = [to_blob(np.ones(3)), bytes(4 * DIMENSION), to_blob(np.full(DIMENSION, 1e30))]
    with Database.open(postgres_url) as store:
        with store.begin() as session:
            ids = add_documents(session, add_model(session, "m", DIMENSION), vectors)
            bad = dict(zip(ids[:200], (broken * 67)[:200], strict=True))
            for number, vector in bad.items():
                session.execute(sa.update(EmbeddingRow).where(EmbeddingRow.chunk_id == number).values(vector=vector))
        if by_index:
            assert Tending(store.engine, at_once=True).run().built == ("m",)
        with store.snapshot() as session:
            view = view_of(session, 1)
            question = -vectors[0]  # so that many of the sound ones are farther away than zeros
            told: list[str] = []
            found = nearest_chunks(session, question, view, 150, told=told)
            wanted = portable.nearest_chunks(session, question, view, 150)
            assert len(found) == 150
            assert not {number for number, _ in found} & bad.keys()
            assert ("HNSW" in told[0]) is by_index
            if not by_index:
                assert_same(found, wanted)
            assert len(nearest_chunks(session, question, view, 1000)) == 200


def test_what_a_transaction_sets_for_the_index_ends_with_it(indexed: Database) -> None:
    setting = sa.text("SELECT current_setting('hnsw.iterative_scan', true)")
    with indexed.engine.connect() as connection:
        with Session(connection) as session, session.begin():
            nearest_chunks(session, questions(1)[0], view_of(session, 1), K)
            assert session.scalar(setting) == "relaxed_order"
        assert connection.scalar(setting) in ("off", "")


def test_a_filter_that_leaves_few_is_answered_exactly(indexed: Database) -> None:
    with indexed.snapshot() as session:
        view = view_of(session, 1, Filter(sources=["/docs/few"]))
        told: list[str] = []
        question = questions(1)[0]
        found = nearest_chunks(session, question, view, K, told=told)
        assert told == ["exact, by pgvector"]
        assert_same(found, portable.nearest_chunks(session, question, view, K))


def test_the_index_goes_on_looking_until_the_filter_has_left_enough(indexed: Database) -> None:
    """Fifty of three thousand are wanted, and they are not the nearest: an index that stops at its first finds none."""
    with indexed.snapshot() as session:
        view = view_of(session, 1, Filter(sources=["/docs/few"]))
        for option, value in (("hnsw.ef_search", "40"), ("hnsw.iterative_scan", "relaxed_order")):
            session.execute(sa.select(sa.func.set_config(option, value, True)))
        session.execute(sa.text("SET LOCAL enable_sort = off"))
        query = by_index(questions(1)[0], view, K)
        assert "ix_embeddings_hnsw_1_24" in plan(session, query)
        assert len(session.execute(query).all()) == K


def test_more_than_there_are_is_all_of_them(indexed: Database) -> None:
    with indexed.snapshot() as session:
        told: list[str] = []
        found = nearest_chunks(session, questions(1)[0], view_of(session, 1), 10_000, told=told)
        assert (len(found), told) == (COUNT + 50, ["exact, by pgvector"])


@pytest.mark.parametrize(
    ("contents", "vectors", "small"),
    [(None, 0, False), (0, 0, True), (10, FEW, True), (10, FEW + 1, False), (FEW_CONTENTS, 5, False)],
)
def test_what_is_looked_at_as_a_whole(contents: int | None, vectors: int, small: bool) -> None:
    assert is_small(contents, vectors) is small
