"""Where Qdrant and the database disagree, point by point.

What is owed is no disagreement: it will be brought in line. To be called while nobody else delivers (see
`mirror.alone`) and with a snapshot that was begun after that: then Qdrant holds still.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.store.mirror.contents import CHUNKS, BrokenVector, Facts, MirroredChunk, read_chunks, read_facts
from pipeline.store.mirror.outbox import ContentKey, fingerprints, is_owed, note_held
from pipeline.store.qdrant.client import HeldPoint, Qdrant
from pipeline.store.qdrant.points import payload_of, point_id
from pipeline.store.tables import ChunkRow, ContentRow, DocumentRow, EmbeddingRow, ModelRow

Code = Literal["qdrant-missing", "qdrant-extra", "qdrant-vector", "qdrant-payload", "qdrant-foreign"]

CLOSE = 1e-6
"""By how much a number of a vector may differ: a server may keep vectors in other ways than it was sent them."""

PAGE = 500


@dataclass(frozen=True, slots=True)
class PointDisagreement:
    """A point that is not as it should be. content: which, and of which document; none for one that is not ours.

    file: that holds the content, where search sees one. ordinal: of the chunk. detail: what is the matter.
    """

    code: Code
    fingerprint: str
    content: ContentKey | None
    ordinal: int
    point: str | int
    file: str | None
    detail: str


def compare(session: Session, qdrant: Qdrant) -> Iterator[PointDisagreement]:
    """Every disagreement, in bounded memory.

    Raises:
        MirrorError: Qdrant cannot be asked.
    """
    for fingerprint in fingerprints(session):
        there = qdrant.exists(fingerprint)
        for keys in _seen(session, fingerprint):
            for key in keys:
                yield from _compare_content(session, qdrant, key, there=there)
        if there:
            yield from _unwanted(session, qdrant, fingerprint)


def _seen(session: Session, fingerprint: str) -> Iterator[list[ContentKey]]:
    """The contents of a model that search sees, in pages."""
    last = 0
    while True:
        rows = session.execute(
            sa.select(ContentRow.id, ModelRow.fingerprint, ContentRow.sha256, ContentRow.kind, ContentRow.recipe)
            .join(ModelRow, ModelRow.id == ContentRow.model_id)
            .where(
                ContentRow.id > last,
                ModelRow.fingerprint == fingerprint,
                sa.exists().where(DocumentRow.current_id == ContentRow.id),
            )
            .order_by(ContentRow.id)
            .limit(PAGE)
        ).all()
        if not rows:
            return
        last = rows[-1][0]
        yield [ContentKey(*key) for _, *key in rows]


def _compare_content(session: Session, qdrant: Qdrant, key: ContentKey, *, there: bool) -> Iterator[PointDisagreement]:
    facts = read_facts(session, key)
    if facts is None or is_owed(session, key):
        return
    file = "{}/{}".format(facts.files[0][0].rstrip("/"), facts.files[0][1])
    first = 0
    while first <= facts.ordinals[-1]:
        try:
            chunks = read_chunks(session, key, first, CHUNKS)
        except BrokenVector:
            return  # the database's own trouble, and told as that
        ids = [point_id(key, chunk.ordinal) for chunk in chunks]
        held = qdrant.retrieve(key.fingerprint, ids) if there else {}
        for chunk, number in zip(chunks, ids, strict=True):
            found = _difference(key, facts, chunk, held.get(number))
            if found is not None:
                code, detail = found
                yield PointDisagreement(code, key.fingerprint, key, chunk.ordinal, number, file, detail)
        first = chunks[-1].ordinal + 1


def _difference(
    key: ContentKey, facts: Facts, chunk: MirroredChunk, point: HeldPoint | None
) -> tuple[Code, str] | None:
    if point is None:
        return "qdrant-missing", "there is no point of this chunk"
    vector = point.vector
    if vector is None or vector.shape != chunk.vector.shape or not np.abs(vector - chunk.vector).max() <= CLOSE:
        return "qdrant-vector", "its vector is another one"
    wanted = payload_of(key, facts, chunk)
    stale = sorted(name for name in wanted.keys() | point.payload if wanted.get(name) != point.payload.get(name))
    return ("qdrant-payload", f"its payload differs: {', '.join(stale)}") if stale else None


def _unwanted(session: Session, qdrant: Qdrant, fingerprint: str) -> Iterator[PointDisagreement]:
    """Points of chunks that search does not see, and points that are of no chunk at all."""
    for page in qdrant.held(fingerprint):
        seen = _seen_chunks(session, fingerprint, [(one.content, one.ordinal) for one in page if one.content])
        for point in page:
            key = point.content
            if key is None or str(point.id) != point_id(key, point.ordinal):
                detail = "its payload does not say what it is of"
                yield PointDisagreement("qdrant-foreign", fingerprint, None, 0, point.id, None, detail)
            elif (key, point.ordinal) not in seen and not is_owed(session, key):
                detail = "search sees no such chunk"
                yield PointDisagreement("qdrant-extra", fingerprint, key, point.ordinal, point.id, None, detail)


def _seen_chunks(
    session: Session, fingerprint: str, chunks: Sequence[tuple[ContentKey, int]]
) -> set[tuple[ContentKey, int]]:
    """Those of some chunks (up to a page of them) that search sees, and that have vectors."""
    rows = session.execute(
        sa.select(ContentRow.id, ContentRow.sha256, ContentRow.kind, ContentRow.recipe)
        .join(ModelRow, ModelRow.id == ContentRow.model_id)
        .where(
            ModelRow.fingerprint == fingerprint,
            ContentRow.sha256.in_(sorted({key.sha256 for key, _ in chunks})),
            sa.exists().where(DocumentRow.current_id == ContentRow.id),
        )
    ).all()
    keys = {number: ContentKey(fingerprint, *key) for number, *key in rows}
    numbers = {key: number for number, key in keys.items()}
    pairs = sorted({(numbers[key], ordinal) for key, ordinal in chunks if key in numbers})
    if not pairs:
        return set()
    # Joined: SQLite looks at all chunks there are for one of these pairs in a list of them.
    columns = sa.column("content_id", sa.BigInteger), sa.column("ordinal", sa.Integer)
    wanted = sa.values(*columns).data(pairs).cte("wanted")
    same = sa.and_(ChunkRow.content_id == wanted.c.content_id, ChunkRow.ordinal == wanted.c.ordinal)
    query = sa.select(ChunkRow.content_id, ChunkRow.ordinal).select_from(wanted).join(ChunkRow, same)
    found = session.execute(query.join(EmbeddingRow, EmbeddingRow.chunk_id == ChunkRow.id))
    return {(keys[number], ordinal) for number, ordinal in found}


def repair(session: Session, found: Sequence[PointDisagreement]) -> list[tuple[str, str | int]]:
    """Owe what disagrees to Qdrant; returns points that are not ours, with their models, to be deleted by hand.

    The next delivery does the rest. A transaction that writes.
    """
    points: dict[ContentKey, int] = {}
    for one in found:
        if one.content is not None:
            points[one.content] = max(points.get(one.content, 0), one.ordinal + 1)
    note_held(session, list(points.items()))
    return [(one.fingerprint, one.point) for one in found if one.content is None]
