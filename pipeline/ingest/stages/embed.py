"""The embed stage: chunks to vectors, in batches sorted by length over a look-ahead."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from pipeline.core.documents import DocumentState
from pipeline.ingest.embedding import CarefulEmbedder
from pipeline.ingest.work import Work, utc_now
from pipeline.store import queue
from pipeline.store.queue import PendingChunk

CLAIM = 16
"""Contents claimed at once."""


async def embed(work: Work) -> None:
    """Embed what is queued until extraction is over and nothing is left, or a stop is asked for.

    The server is started at the first sign of work, so that a run without work starts none.
    """
    await work.to_embed.wait()
    if work.stop.is_set() or not await _any_work(work):
        return
    if not await _ready_unless_stopped(work):
        return
    embedder = CarefulEmbedder(work.embedder)
    slots = asyncio.Semaphore(work.limits.requests_in_flight)

    async def one(batch: list[PendingChunk]) -> None:
        try:
            result = await embedder.embed(batch)
            stored = await work.store.write(
                queue.store_vectors, work.run_id, result.vectors, result.failures, utc_now()
            )
        finally:
            slots.release()
        work.progress.chunks_embedded(stored.vectors, time.monotonic())
        for ended in stored.ended:
            if ended.state is DocumentState.EMBEDDED:
                work.progress.document_done()
            else:
                work.progress.document_failed(ended.path, ended.state, ended.reason or "", was_read=True)
        work.embedded.ring()

    async with asyncio.TaskGroup() as requests, aclosing(_batches(work)) as batches:
        async for batch in batches:
            await slots.acquire()
            if work.stop.is_set():
                slots.release()
                return
            requests.create_task(one(batch), name="embed-batch")


async def _any_work(work: Work) -> bool:
    while True:
        last_chance = work.to_embed.closed
        if (await work.store.read(queue.backlog, work.scopes, work.target, utc_now())).contents:
            return True
        if last_chance:
            return False
        await work.to_embed.wait()


async def _ready_unless_stopped(work: Work) -> bool:
    """Start the server, which may take minutes with a big model; give up when a stop is asked for."""
    starting = asyncio.create_task(work.embedder.ensure_ready(), name="embedder-start")
    stopping = asyncio.create_task(work.stop.wait(), name="embedder-start-stop")
    try:
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            return True
        return False
    finally:
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)


async def _batches(work: Work) -> AsyncGenerator[list[PendingChunk], None]:
    """Batches, longest chunks first within each look-ahead, so that what is packed together fits together."""
    chunks = _Chunks(work)
    window = await chunks.window()
    while window:
        # The next look-ahead is read while this one is computed.
        following = asyncio.create_task(chunks.window(), name="embed-look-ahead")
        try:
            window.sort(key=lambda chunk: len(chunk.tokens), reverse=True)
            for start in range(0, len(window), work.limits.request_chunks):
                yield window[start : start + work.limits.request_chunks]
            window = await following
        finally:
            following.cancel()


class _Chunks:
    """Reads queued chunks, content after content."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._contents: deque[int] = deque()
        self._after = 0

    async def window(self) -> list[PendingChunk]:
        """Up to a look-ahead of chunks: what there is, waiting only while there is none. Empty: all is done."""
        work, found = self._work, list[PendingChunk]()
        while len(found) < work.limits.look_ahead and not work.stop.is_set():
            if not self._contents:
                last_chance = work.to_embed.closed
                self._contents.extend(
                    await work.store.write(
                        queue.claim_to_embed, work.run_id, work.scopes, work.target, utc_now(), CLAIM
                    )
                )
            if not self._contents:
                if found or last_chance:
                    break
                await work.to_embed.wait()
                continue
            room = work.limits.look_ahead - len(found)
            part = await work.store.read(queue.pending_chunks, self._contents[0], self._after, room)
            found += part
            if len(part) < room:
                self._contents.popleft()
                self._after = 0
            else:
                self._after = part[-1].chunk_id
        return found
