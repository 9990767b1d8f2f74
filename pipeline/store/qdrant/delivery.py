"""Brings contents in line: what a mirror is to hold goes there, and what it may hold besides is taken back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pipeline.store.mirror.contents import Facts, MirroredChunk, Wanted
from pipeline.store.mirror.outbox import ContentKey
from pipeline.store.qdrant.client import Qdrant
from pipeline.store.qdrant.points import payload_of, point_id


def send(qdrant: Qdrant, wanted: Sequence[Wanted]) -> int:
    """Put the chunks that these contents came with, and take back what is not theirs; returns the points put.

    Their collections are there. To do it again, or half of it and then all, comes to the same.
    """
    put = 0
    for fingerprint, group in itertools.groupby(wanted, lambda one: one.owed.key.fingerprint):
        these = list(group)
        put += put_chunks(
            qdrant,
            fingerprint,
            [(one.owed.key, one.facts, chunk) for one in these if one.facts for chunk in one.chunks],
        )
        extra = [point_id(one.owed.key, ordinal) for one in these for ordinal in _extra(one)]
        if extra:
            qdrant.delete(fingerprint, extra)
    return put


def put_chunks(qdrant: Qdrant, fingerprint: str, chunks: Sequence[tuple[ContentKey, Facts, MirroredChunk]]) -> int:
    """Put chunks of contents of one model; returns how many."""
    ids = [point_id(key, chunk.ordinal) for key, _, chunk in chunks]
    payloads = [payload_of(key, facts, chunk) for key, facts, chunk in chunks]
    qdrant.upsert(fingerprint, ids, [chunk.vector for *_, chunk in chunks], payloads)
    return len(ids)


def _extra(wanted: Wanted) -> list[int]:
    kept = set(wanted.facts.ordinals) if wanted.facts is not None else set()
    return [ordinal for ordinal in range(wanted.owed.points) if ordinal not in kept]
