"""What the embed stage has computed, and the one transaction that stores it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from pipeline.store.queue import PendingChunk, StoredBatch, store_vectors
from pipeline.store.stretches import Own, PendingStretch, store_stretches


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request: vectors of chunks, what failed, the stretches that it was for, and documents' own."""

    vectors: Sequence[tuple[PendingChunk, bytes]]
    failures: Sequence[tuple[PendingChunk, str]]
    stretches: Sequence[PendingStretch] = ()
    own: Sequence[Own] = ()


def store_answers(session: Session, run_id: str, group: Sequence[Answer], now: dt.datetime) -> StoredBatch:
    """Store what came of several requests."""
    vectors = [each for answer in group for each in answer.vectors]
    failures = [each for answer in group for each in answer.failures]
    computed = [each for answer in group for each in answer.stretches]
    if not computed:
        return store_vectors(session, run_id, vectors, failures, now)
    own = [each for answer in group for each in answer.own]
    return store_stretches(session, run_id, computed, vectors, failures, own, now)
