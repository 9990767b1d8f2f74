"""What the embed stage does with stretches: whole documents, and the parts of them that late chunking computes.

A stretch whose computation fails costs no document: its chunks are embedded by themselves, and a document's
own vector is then the mean of its chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import structlog

from pipeline.core.vectors import to_blob
from pipeline.ingest.embedding import CarefulEmbedder
from pipeline.ingest.work import Work
from pipeline.store import stretches
from pipeline.store.answers import Answer
from pipeline.store.queue import DOCUMENT, PendingChunk
from pipeline.store.stretches import Own, PendingStretch

log = structlog.get_logger(__name__)

READ = 32
"""Stretches read at once; of the longest that is 4 MB."""

REQUEST_TOKENS = 8192
"""In one request for stretches, where one alone is not longer."""


def requests_of(found: Sequence[PendingStretch]) -> Iterator[list[PendingStretch]]:
    """Stretches as they are asked for: those with spans apart from whole documents, the longest first."""
    for with_spans in (True, False):
        batch: list[PendingStretch] = []
        tokens = 0
        some = [stretch for stretch in found if bool(len(stretch.spans)) is with_spans]
        for stretch in sorted(some, key=lambda stretch: len(stretch.tokens), reverse=True):
            if batch and tokens + len(stretch.tokens) > REQUEST_TOKENS:
                yield batch
                batch, tokens = [], 0
            batch.append(stretch)
            tokens += len(stretch.tokens)
        if batch:
            yield batch


def chunk_tokens(batch: Sequence[PendingStretch]) -> int:
    """Tokens of the chunks that these stretches give vectors, without what is there for context."""
    return sum(int((s.spans[:, 2] - s.spans[:, 1])[s.spans[:, 0] != DOCUMENT].sum()) for s in batch)


class StretchEmbedder:
    """Embeds stretches. longest: tokens that the server computes whole, where it says so."""

    def __init__(self, work: Work, embedder: CarefulEmbedder, longest: int | None) -> None:
        self._work = work
        self._embedder = embedder
        self._longest = math.inf if longest is None else longest

    async def embed(self, batch: Sequence[PendingStretch]) -> Answer:
        """Embed one request's stretches. Raises as `CarefulEmbedder.embed`."""
        vectors: list[tuple[PendingChunk, bytes]] = []
        failures: list[tuple[PendingChunk, str]] = []
        own: list[Own] = []
        postponed: list[tuple[int, str]] = []
        later: set[int] = set()
        tried = [stretch for stretch in batch if len(stretch.spans) or len(stretch.tokens) <= self._longest]
        if tried:
            found = await self._embedder.embed_stretches(tried)
            for stretch, matrix in found.vectors:
                if not len(stretch.spans):
                    own.append(Own(stretch.content_id, to_blob(matrix[0])))
                    continue
                for (chunk_id, start, end), vector in zip(stretch.spans.tolist(), matrix, strict=True):
                    if chunk_id == DOCUMENT:
                        own.append(Own(stretch.content_id, to_blob(vector)))
                    else:
                        tokens = stretch.tokens[start:end].tolist()
                        vectors.append((PendingChunk(chunk_id, stretch.content_id, tokens), to_blob(vector)))
            for stretch, reason in found.failures:
                await self._by_itself(stretch, reason, vectors, failures)
            postponed = [(stretch.content_id, reason) for stretch, reason in found.postponed]
            later = {stretch.id for stretch, _ in found.postponed}
        return Answer(vectors, failures, [one for one in batch if one.id not in later], own, postponed)

    async def _by_itself(
        self,
        stretch: PendingStretch,
        reason: str,
        vectors: list[tuple[PendingChunk, bytes]],
        failures: list[tuple[PendingChunk, str]],
    ) -> None:
        """Each chunk of a stretch that failed by itself; a whole document is left to the mean of its chunks."""
        size = len(stretch.tokens)
        if not len(stretch.spans):
            log.warning("a document's own vector is the mean of its chunks", tokens=size, reason=reason)
            return
        log.warning("the chunks of a stretch are embedded without their context", tokens=size, reason=reason)
        chunks = await self._work.store.read(stretches.chunks_of, stretch)
        step = self._work.limits.request_chunks
        for start in range(0, len(chunks), step):
            found = await self._embedder.embed(chunks[start : start + step])
            vectors += found.vectors
            failures += found.failures


async def read_stretches(work: Work, content_id: int, after: int) -> list[PendingStretch]:
    """The next stretches of a content, a few at once."""
    return await work.store.read(stretches.pending_stretches, content_id, after, READ)
