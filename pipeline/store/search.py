"""Search: rankings by meaning and by words, made one, with all that a person wants to know of what was found."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.fusion import By, fuse, weight_of
from pipeline.core.words import excerpt, indexed, spans, terms, wanted
from pipeline.store.nearest import nearest_chunks, nearest_documents
from pipeline.store.tables import ChunkRow, ContentEmbeddingRow, ContentRow
from pipeline.store.view import ShownFile, View, as_json, files_of, listed_ids, searched_contents
from pipeline.store.words import matching_chunks

EXCERPT = 400
"""Characters of an excerpt."""

LEAST_DEPTH = 100
"""Of each ranking so many count at least, so that the first few results are the same however many are wanted."""

DEEPEST = 10_000
"""Of a ranking no more are looked at, however much of it a question excludes or one document fills."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for.

    vector: of the text, float32[d], unit length; None where it is not ranked by that. k: how many.
    per_document: passages of one document at most; None: as many as there are.
    """

    text: str
    vector: NDArray[np.float32] | None = None
    by: By = By.FUSED
    k: int = 5
    per_document: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a passage stands in one ranking.

    rank: from 1. score: the cosine, or BM25. words: what each word of the question adds to the latter.
    weight: how much the rank counts beside another ranking's.
    """

    rank: int
    score: float
    words: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found. kind: what its file holds. also: other files that hold the same document.

    score: by fused ranks their sum, else that of its one place. places: by ranking, `vector` and `text`.
    modified: when `file` was last changed, as far as is known. prefix: the header of the table that its text begins
    inside of. highlights: ranges of characters in `text` that are words of the question. excerpt: the range that says
    most.
    """

    file: str
    also: Sequence[str]
    title: str | None
    page_first: int | None
    page_last: int | None
    headings: Sequence[str]
    score: float
    text: str
    kind: str
    prefix: str
    modified: dt.datetime | None
    places: Mapping[str, Place]
    highlights: Sequence[tuple[int, int]]
    excerpt: tuple[int, int]


@dataclass(slots=True)
class Account:
    """How a search went. how: what each ranking was made with. candidates: how many each gave. seconds: by part."""

    how: dict[str, str] = field(default_factory=dict)
    candidates: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Note what the block takes."""
        began = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began


def find(session: Session, query: Query, view: View, account: Account | None = None) -> list[Hit]:
    """The passages in view that answer best, best first; among equals the one that was stored first.

    Raises:
        ValueError: a ranking by meaning is wanted, and the question has no vector.
    """
    account = account or Account()
    if query.by is not By.TEXT and query.vector is None:
        raise ValueError(f"a question without a vector cannot be ranked by {query.by.value}")
    depth = max(LEAST_DEPTH, 2 * query.k) if query.by is By.FUSED or query.per_document else query.k
    while True:
        places = _rankings(session, query, view, depth, account)
        best = _best(session, query, places)
        if len(best) == query.k or depth >= DEEPEST or all(found < depth for found in account.candidates.values()):
            break
        depth = min(4 * depth, DEEPEST)  # a few documents fill the first ranks, or what is not wanted does
    with account.timed("results"):
        return _hits(session, query, view, best, places)


def _rankings(session: Session, query: Query, view: View, depth: int, account: Account) -> dict[str, dict[int, Place]]:
    """By ranking the places of its chunks, best first."""
    places: dict[str, dict[int, Place]] = {}
    if query.by is not By.TEXT and query.vector is not None:
        told: list[str] = []
        with account.timed("vector"):
            nearest = nearest_chunks(session, query.vector, view, depth, told=told)
        account.how["vector"], account.candidates["vector"] = "; ".join(told), len(nearest)
        nearest = _without_excluded(session, query.text, nearest)
        places["vector"] = {chunk: Place(rank, score) for rank, (chunk, score) in enumerate(nearest, start=1)}
    if query.by is not By.VECTOR:
        with account.timed("text"):
            matches = matching_chunks(session, query.text, view, depth)
        account.how["text"], account.candidates["text"] = "BM25", len(matches)
        places["text"] = {
            match.chunk_id: Place(rank, match.score, match.terms, weight_of(match.coverage))
            for rank, match in enumerate(matches, start=1)
        }
    return places


def _without_excluded(session: Session, question: str, found: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """What is found by meaning, without what holds words that the question excludes."""
    excluded = [f" {' '.join(phrase)} " for phrase in wanted(question).excluded]
    if not excluded:
        return list(found)
    query = sa.select(ChunkRow.id, ChunkRow.headings, ChunkRow.prefix, ChunkRow.text).where(
        ChunkRow.id.in_(listed_ids(as_json(chunk for chunk, _ in found)))
    )
    words = {
        chunk: f" {indexed([*headings, prefix, text])} " for chunk, headings, prefix, text in session.execute(query)
    }
    return [(chunk, score) for chunk, score in found if not any(phrase in words[chunk] for phrase in excluded)]


def _best(session: Session, query: Query, places: Mapping[str, Mapping[int, Place]]) -> list[tuple[int, float]]:
    """The ids of the chunks that are shown, with their scores."""
    if query.by is By.FUSED:
        ranked = fuse({name: [(chunk, at.weight) for chunk, at in ranking.items()] for name, ranking in places.items()})
    else:
        ranked = [(chunk, place.score) for ranking in places.values() for chunk, place in ranking.items()]
    if query.per_document is None:
        return ranked[: query.k]
    chunks = sa.select(ChunkRow.id, ChunkRow.content_id).where(
        ChunkRow.id.in_(listed_ids(as_json(chunk for chunk, _ in ranked)))
    )
    contents: dict[int, int] = dict(session.execute(chunks).all())
    kept: list[tuple[int, float]] = []
    seen: dict[int, int] = {}
    for chunk, score in ranked:
        content = contents[chunk]
        seen[content] = seen.get(content, 0) + 1
        if seen[content] <= query.per_document:
            kept.append((chunk, score))
    return kept[: query.k]


def _hits(
    session: Session,
    query: Query,
    view: View,
    best: Sequence[tuple[int, float]],
    places: Mapping[str, Mapping[int, Place]],
) -> list[Hit]:
    rows = {
        row.id: row
        for row in session.execute(
            sa.select(
                ChunkRow.id,
                ChunkRow.content_id,
                ChunkRow.page_first,
                ChunkRow.page_last,
                ChunkRow.headings,
                ChunkRow.text,
                ChunkRow.prefix,
                ContentRow.title,
                ContentRow.kind,
            )
            .join(ContentRow, ContentRow.id == ChunkRow.content_id)
            .where(ChunkRow.id.in_(listed_ids(as_json(chunk for chunk, _ in best))))
        )
    }
    files = files_of(session, view, {row.content_id for row in rows.values()})
    telling = _telling(query.text, places)
    found = []
    for chunk, score in best:
        row = rows[chunk]
        first, *others = files[row.content_id]
        found.append(
            Hit(
                file=first.path,
                also=[file.path for file in others],
                title=row.title,
                page_first=row.page_first,
                page_last=row.page_last,
                headings=row.headings,
                score=score,
                text=row.text,
                kind=row.kind,
                prefix=row.prefix,
                modified=_modified(first),
                places={name: ranking[chunk] for name, ranking in places.items() if chunk in ranking},
                highlights=spans(row.text, telling),
                excerpt=excerpt(row.text, telling, EXCERPT),
            )
        )
    return found


TELLING = 0.1
"""The part of the rarest word's share that a word must have to be shown: the others are in every text."""


def _telling(question: str, places: Mapping[str, Mapping[int, Place]]) -> list[str]:
    """The words of a question that tell passages apart; all of them where nothing says which these are."""
    shares: dict[str, float] = {}
    for place in places.get("text", {}).values():
        for word, part in place.words.items():
            shares[word] = max(shares.get(word, 0.0), part)
    most = max(shares.values(), default=0.0)
    return [word for word, part in shares.items() if part >= TELLING * most] if shares else terms(question)


@dataclass(frozen=True, slots=True)
class DocumentHit:
    """A document that was found by its own vector. method: how that was made, `model` or `mean`."""

    file: str
    also: Sequence[str]
    kind: str
    title: str | None
    page_count: int
    method: str
    score: float
    modified: dt.datetime | None


def find_documents(
    session: Session, vector: NDArray[np.float32], view: View, k: int, account: Account | None = None
) -> list[DocumentHit]:
    """The `k` documents in view whose own vectors are nearest to `vector` (float32[d], unit length), best first."""
    account, told = account or Account(), list[str]()
    with account.timed("vector"):
        best = nearest_documents(session, vector, view, k, told=told)
    account.how["vector"], account.candidates["vector"] = "; ".join(told), len(best)
    with account.timed("results"):
        ids = as_json(content for content, _ in best)
        query = (
            sa.select(ContentRow.id, ContentRow.kind, ContentRow.title, ContentRow.page_count)
            .join(ContentEmbeddingRow, ContentEmbeddingRow.content_id == ContentRow.id)
            .add_columns(ContentEmbeddingRow.method)
            .where(ContentRow.id.in_(listed_ids(ids)))
        )
        rows = {row.id: row for row in session.execute(query)}
        files = files_of(session, view, rows)
    return [
        DocumentHit(
            file=files[content][0].path,
            also=[file.path for file in files[content][1:]],
            kind=rows[content].kind,
            title=rows[content].title,
            page_count=rows[content].page_count,
            method=rows[content].method,
            score=score,
            modified=_modified(files[content][0]),
        )
        for content, score in best
    ]


def count_searched(session: Session, view: View) -> int:
    """How many contents are in view."""
    return session.scalar(sa.select(sa.func.count(searched_contents(view).subquery().c.id.distinct()))) or 0


def _modified(file: ShownFile) -> dt.datetime | None:
    known = 0 < file.modified_ns < 253_402_300_800 * 10**9
    return dt.datetime.fromtimestamp(file.modified_ns // 10**9, dt.UTC) if known else None
