"""Many rows at once, in the caller's transaction, by each database's own way."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.errors import StoreError
from pipeline.store import library
from pipeline.store.bulk import delete_returning, insert_rows, new_ids
from pipeline.store.database import Database
from pipeline.store.tables import ChunkRow, PendingChunkRow
from tests.store import rows
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
