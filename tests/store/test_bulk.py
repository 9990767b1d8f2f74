"""Many rows at once, in the caller's transaction, by each database's own way."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.errors import StoreError
from pipeline.store import library
from pipeline.store.bulk import delete_returning, insert_rows, new_ids
from pipeline.store.database import Database
from pipeline.store.tables import ChunkRow, EmbeddingRow, PendingChunkRow
from pipeline.store.vector_type import from_sent, to_sent
from tests.store import rows
from tests.store.filled import add_documents, add_model, clustered
from tests.store.rows import utc_now

MANY = 1200
"""More than one statement names on SQLite."""

NASTY = 'ä"\\\t\n|€ \N{PILE OF POO} \\N'


def chunk_rows(session: Session, count: int, text: str = NASTY) -> list[dict[str, object]]:
    rows.begin(session)
    target = rows.add_target(session)
    rows.register(session, library.ensure_source(session, "/docs", utc_now()), target, a="a")
    (content_id,) = rows.extract_all(session, target, ["first"])
    return [
        {
            "id": chunk_id, "content_id": content_id, "ordinal": number, "start_char": 2**40, "end_char": 2**41,
            "page_first": None, "page_last": number, "headings": [text, "2"], "token_count": 4, "text": text,
            "prefix": "", "digest": bytes([number % 256, 0, 255]) if number % 2 else None,
        }
        for number, chunk_id in enumerate(new_ids(session, ChunkRow.id, count), start=1)
    ]  # fmt: skip


def test_every_kind_of_value_arrives_as_it_was(store: Database) -> None:
    with store.begin() as session:
        wanted = chunk_rows(session, MANY)
        insert_rows(session, ChunkRow, wanted)
    with store.snapshot() as session:
        query = sa.select(ChunkRow).where(ChunkRow.ordinal > 0).order_by(ChunkRow.id)
        stored = [{name: getattr(row, name) for name in wanted[0]} for row in session.scalars(query)]
    assert stored == wanted


def test_numbers_are_new_and_the_database_goes_on_after_them(store: Database) -> None:
    with store.begin() as session:
        first = chunk_rows(session, 3)
        insert_rows(session, ChunkRow, first)
        taken = [int(str(row["id"])) for row in first]
        assert taken == sorted(set(taken))
        own = ChunkRow(**{**first[0], "id": None, "ordinal": 99})
        session.add(own)
        session.flush()
        assert own.id > taken[-1]


def test_the_number_of_a_chunk_that_was_deleted_is_no_later_ones(store: Database) -> None:
    with store.begin() as session:
        chunks = chunk_rows(session, 3)
        insert_rows(session, ChunkRow, chunks)
        last = max(int(str(row["id"])) for row in chunks)
        session.execute(sa.delete(ChunkRow))
    with store.begin() as session:
        later = new_ids(session, ChunkRow.id, 2)
        assert min(later) > last
        session.rollback()  # what was not committed was nobody's
    with store.begin() as session:
        assert min(new_ids(session, ChunkRow.id, 1)) > last


@given(hnp.arrays("<f4", st.integers(1, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_a_vector_in_the_form_of_the_server_is_the_same_vector(vector: NDArray[np.float32]) -> None:
    sent = to_sent(vector.tobytes())
    assert (len(sent), int.from_bytes(sent[:2])) == (4 + 4 * len(vector), len(vector))
    assert from_sent(sent) == vector.tobytes()
    assert from_sent(f"[{','.join(map(str, vector.tolist()))}]") == vector.tobytes()


def test_vectors_arrive_as_they_were_however_they_are_read(store: Database) -> None:
    vectors = clustered(25, 7)
    with store.begin() as session:
        ids = add_documents(session, add_model(session, "m", 7), vectors)
    wanted = [(chunk_id, vector.tobytes()) for chunk_id, vector in zip(ids, vectors, strict=True)]
    query = sa.select(EmbeddingRow.chunk_id, EmbeddingRow.vector).order_by(EmbeddingRow.chunk_id)
    with store.snapshot() as session:
        assert [tuple(row) for row in session.execute(query)] == wanted
        streamed = session.execute(query.execution_options(yield_per=10))
        assert [tuple(row) for row in streamed] == wanted
        assert [(row.chunk_id, row.vector) for row in session.scalars(sa.select(EmbeddingRow))] == wanted
        joined = query.join(ChunkRow, ChunkRow.id == EmbeddingRow.chunk_id).with_only_columns(EmbeddingRow.vector)
        assert session.scalars(joined).all() == [vector for _, vector in wanted]
    with store.begin() as session:
        first = session.get_one(EmbeddingRow, ids[0])
        first.vector = wanted[1][1]
    with store.snapshot() as session:
        assert session.get_one(EmbeddingRow, ids[0]).vector == wanted[1][1]


def test_what_was_deleted_is_told_and_nothing_else_is(store: Database) -> None:
    with store.begin() as session:
        wanted = chunk_rows(session, MANY)
        insert_rows(session, ChunkRow, wanted)
        content_id = wanted[0]["content_id"]
        queued = [
            {"chunk_id": row["id"], "content_id": content_id, "tokens": b"\x07\0\0\0", "in_stretch": False}
            for row in wanted[::2]
        ]
        insert_rows(session, PendingChunkRow, queued)
    ids = [int(str(row["id"])) for row in wanted]
    with store.begin() as session:
        assert delete_returning(session, PendingChunkRow.chunk_id, ids[: MANY // 2]) == set(ids[: MANY // 2 : 2])
        left = session.scalars(sa.select(PendingChunkRow.chunk_id).where(PendingChunkRow.chunk_id.in_(ids[-10:])))
        assert set(left) == set(ids[-10::2])
        assert delete_returning(session, PendingChunkRow.chunk_id, []) == set()


def test_a_row_that_does_not_fit_takes_the_whole_transaction_back(store: Database) -> None:
    with store.begin() as session:
        wanted = chunk_rows(session, 2)
    with pytest.raises(StoreError), store.begin() as session:
        insert_rows(session, ChunkRow, [*wanted, {**wanted[1], "id": 10**6}])  # that ordinal is there already
    with store.snapshot() as session:
        assert session.scalar(sa.select(sa.func.count()).where(ChunkRow.ordinal > 0)) == 0
