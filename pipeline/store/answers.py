"""What the embed stage has computed, and the one transaction that stores it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from pipeline.store.queue import PendingChunk, StoredBatch, postpone_vectors, store_vectors
from pipeline.store.stretches import Own, PendingStretch, store_stretches


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request."""

    vectors: Sequence[tuple[PendingChunk, bytes]]
    """Chunks with their vectors, as little-endian float32."""

    failures: Sequence[tuple[PendingChunk, str]]
    """Chunks that have no vector, with why."""

    stretches: Sequence[PendingStretch] = ()
    """The stretches that were computed."""

    own: Sequence[Own] = ()
    """Documents' own vectors."""

    postponed: Sequence[tuple[int, str]] = ()
    """Contents of which something could not be answered for the moment, with why: it stays queued."""


def store_answers(session: Session, run_id: str, group: Sequence[Answer], now: dt.datetime) -> StoredBatch:
    """Store what came of several requests."""
    vectors = [each for answer in group for each in answer.vectors]
    failures = [each for answer in group for each in answer.failures]
    computed = [each for answer in group for each in answer.stretches]
    own = [each for answer in group for each in answer.own]
    if computed:
        stored = store_stretches(session, run_id, computed, vectors, failures, own, now)
    else:
        stored = store_vectors(session, run_id, vectors, failures, now)
    postponed = {content_id: reason for answer in group for content_id, reason in answer.postponed}
    return replace(stored, postponed=postpone_vectors(session, postponed, now)) if postponed else stored
