"""Search by Qdrant finds what search by the database finds, to the last score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.errors import MirrorAway
from pipeline.core.vectors import normalise
from pipeline.runner.mirroring import Mirroring
from pipeline.store import library, queue
from pipeline.store.database import Database
from pipeline.store.mirror.outbox import ContentKey
from pipeline.store.models import Target
from pipeline.store.nearest import nearest_chunks, qdrant
from pipeline.store.qdrant.client import Place
from pipeline.store.tables import EmbeddingRow
from pipeline.store.view import Filter, view_of
from tests.store import portable
from tests.store.rows import DIMENSION, add_target, begin, extracted, register, utc_now

FEW, DOCUMENTS, CHUNKS = 10, 60, 12


def add_documents(session: Session, target: Target, names: Sequence[str], seed: int) -> None:
    """Documents by name, with vectors of which every fourth is one of a few that many chunks share."""
    dice = np.random.default_rng(seed)
    shared = normalise(dice.normal(size=(3, DIMENSION)))
    register(session, 1, target, **{name: f"{name} {seed}" for name in names})
    for content in queue.claim_to_extract(session, "run", None, target, utc_now(), 1000):
        texts = [f"{content.content_id}, {number}" for number in range(CHUNKS)]
        queue.store_extracted(session, content.content_id, extracted(*texts), utc_now())
    for content_id in queue.claim_to_embed(session, "run", None, target, utc_now(), 1000):
        chunks = queue.pending_chunks(session, content_id, 0, 1000)
        vectors = normalise(dice.normal(size=(len(chunks), DIMENSION)))
        vectors[::4] = shared[dice.integers(3, size=len(vectors[::4]))]
        made = [(chunk, vector.tobytes()) for chunk, vector in zip(chunks, vectors, strict=True)]
        queue.store_vectors(session, "run", made, [], utc_now())


def names(numbers: range) -> list[str]:
    return [f"{'a' if number % 5 else 'b'}{number}" for number in numbers]


@pytest.fixture
def target(store: Database) -> Target:
    """With a few documents."""
    with store.begin() as session:
        library.ensure_source(session, "/docs", utc_now())
        begin(session)
        target = add_target(session)
        add_documents(session, target, names(range(FEW)), 1)
        return target


QUESTIONS = normalise(np.random.default_rng(5).normal(size=(4, DIMENSION)))

FILTERS = [
    Filter(),
    Filter(paths=["b*.pdf"]),
    Filter(paths=["a*.pdf"]),
    Filter(paths=["nothing"]),
    Filter(sources=["/docs/b5.pdf"]),
    Filter(kinds=["docx"]),
]


async def test_it_finds_the_same_with_the_same_scores(store: Database, target: Target, tmp_path: Path) -> None:
    with store.begin() as session:
        add_documents(session, target, names(range(FEW, DOCUMENTS)), 3)
    mirroring = Mirroring(store, Place(None, tmp_path / "qdrant", "nightshift"))
    await mirroring.deliver()
    # Some that Qdrant does not hold yet, and some that are not seen any more.
    with store.begin() as session:
        add_documents(session, target, ["a1", "new1", "b2"], 2)
    store.carried[qdrant.HOME] = mirroring
    with store.snapshot() as session:
        for wanted in FILTERS:
            view = view_of(session, target.model_id, wanted)
            for question in QUESTIONS:
                for k in (1, 10, 200, 2000):
                    told: list[str] = []
                    found = nearest_chunks(session, question, view, k, told=told)
                    assert found == portable.nearest_chunks(session, question, view, k)
                    assert told == ["by Qdrant, scores from the vectors"]
    await mirroring.close()


@pytest.mark.parametrize("broken", [b"\0" * 4 * DIMENSION, b"\0\0\x80\x3f"])
async def test_a_broken_vector_costs_only_itself(
    store: Database, target: Target, tmp_path: Path, broken: bytes
) -> None:
    mirroring = Mirroring(store, Place(None, tmp_path / "qdrant", "nightshift"))
    await mirroring.deliver()
    with store.snapshot() as session:
        view = view_of(session, target.model_id)
        before = portable.nearest_chunks(session, QUESTIONS[0], view, 30)
    with store.begin() as session:
        best = before[0][0]
        session.execute(sa.update(EmbeddingRow).where(EmbeddingRow.chunk_id == best).values(vector=broken))
    store.carried[qdrant.HOME] = mirroring
    with store.snapshot() as session:
        told: list[str] = []
        assert nearest_chunks(session, QUESTIONS[0], view, 29, told=told) == before[1:]
        assert told == ["by Qdrant, scores from the vectors"]
    await mirroring.close()


class Away:
    """A home that is registered, and away."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.asked = 0

    def nearest(
        self,
        fingerprint: str,
        question: NDArray[np.float32],
        limit: int,
        contents: Sequence[ContentKey] | None = None,
    ) -> list[tuple[ContentKey, int]]:
        self.asked += 1
        raise MirrorAway("Qdrant is not there")


async def test_where_it_is_away_the_database_is_asked(store: Database, target: Target, tmp_path: Path) -> None:
    place = Place(None, tmp_path / "qdrant", "nightshift")
    mirroring = Mirroring(store, place)
    await mirroring.deliver()
    await mirroring.close()
    away, elsewhere = Away(place.location), Away("somewhere else")
    with store.snapshot() as session:
        view = view_of(session, target.model_id)
        expected = portable.nearest_chunks(session, QUESTIONS[0], view, 10)
    for home in (away, elsewhere):
        store.carried[qdrant.HOME] = home
        with store.snapshot() as session:
            told: list[str] = []
            assert nearest_chunks(session, QUESTIONS[0], view, 10, told=told) == expected
            assert not any("Qdrant" in line for line in told)
    assert (away.asked, elsewhere.asked) == (1, 0)
