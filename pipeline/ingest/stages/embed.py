"""The embed stage: chunks to vectors, in batches sorted by length over a look-ahead."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from pipeline.core.documents import DocumentState
from pipeline.ingest.embedding import CarefulEmbedder, Embedder
from pipeline.ingest.stages.stretches import StretchEmbedder, chunk_tokens, read_stretches, requests_of
from pipeline.ingest.work import Limits, Work, utc_now
from pipeline.ingest.writer import GroupWriter
from pipeline.store import queue
from pipeline.store.answers import Answer
from pipeline.store.queue import PendingChunk, StoredBatch
from pipeline.store.stretches import PendingStretch

log = structlog.get_logger(__name__)

CLAIM = 16
"""Contents claimed at once."""


async def embed(work: Work, server: Embedder) -> None:
    """Embed what is queued until extraction is over and nothing is left, or a stop is asked for.

    The server is started once something waits for a vector, so that a run starts none in which nothing new turns up:
    no documents, or only such as have no text, or whose chunks all have their vectors from before.
    """
    await work.to_embed.wait()
    if work.stop.is_set() or not await _anything_waits(work):
        return
    if not await _ready_unless_stopped(work, server):
        return
    sender = _Sender(work, server)
    writer = GroupWriter(work.store, work.run_id, work.limits.requests_in_flight, sender.stored)
    async with asyncio.TaskGroup() as stage:
        storing = stage.create_task(writer.run(), name="embed-store")
        try:
            await sender.send_all(writer)
        finally:
            # Whatever ended the sending: what was computed is stored.
            writer.close()
            await asyncio.wait([storing])


class _Sender:
    """Sends requests, a few at a time, hands their answers to the writer, and counts what was stored."""

    def __init__(self, work: Work, server: Embedder) -> None:
        self._work = work
        self._embedder = CarefulEmbedder(server)
        self._stretches = StretchEmbedder(work, self._embedder, server.longest)
        self._under_way = 0
        self._slots = asyncio.Semaphore(work.limits.requests_in_flight)
        self._answered = asyncio.Event()

    async def send_all(self, writer: GroupWriter) -> None:
        """Until nothing is left, a stop is asked for, or the time is too short. Raises as `CarefulEmbedder.embed`."""
        work = self._work
        async with asyncio.TaskGroup() as requests, aclosing(_batches(work)) as batches:
            async for batch in batches:
                await self._slots.acquire()
                if work.stop.is_set():
                    return
                tokens = batch.tokens
                if not await self._fits(tokens):
                    # The rest of the time is too short for another answer.
                    log.info("the run ends in time", seconds_left=work.pace.seconds_left)
                    work.pace.passed_over = True
                    work.stop.set()
                    return
                self._under_way += tokens
                requests.create_task(self._one(batch, tokens, writer), name="embed-batch")

    async def _fits(self, tokens: int) -> bool:
        """Whether a request can be answered in time: at the latest when nothing else is under way."""
        while not self._work.pace.may_send(self._under_way + tokens, self._work.progress.meter):
            if not self._under_way or self._work.stop.is_set():
                return False
            self._answered.clear()
            await self._answered.wait()
        return True

    async def _one(self, batch: Request, tokens: int, writer: GroupWriter) -> None:
        began = time.monotonic()
        try:
            with self._work.progress.meter.embedding:
                answer = await self._answer(batch)
            await writer.add(answer)
            self._work.progress.meter.request_done(batch.chunk_tokens, time.monotonic() - began)
        finally:
            self._under_way -= tokens
            self._answered.set()
            self._slots.release()

    async def _answer(self, batch: Request) -> Answer:
        if batch.stretches:
            return await self._stretches.embed(batch.stretches)
        found = await self._embedder.embed(batch.chunks)
        return Answer(found.vectors, found.failures)

    def stored(self, stored: StoredBatch) -> None:
        """Count what a commit stored."""
        progress = self._work.progress
        progress.chunks_embedded(stored.vectors, time.monotonic())
        for ended in stored.ended:
            if ended.state is DocumentState.EMBEDDED:
                progress.document_done()
            else:
                progress.document_failed(ended.path, ended.state, ended.reason or "", was_read=True)
        self._work.embedded.ring()


async def _anything_waits(work: Work) -> bool:
    while True:
        last_chance = work.to_embed.closed
        if await work.store.read(queue.any_extracted, work.scopes, work.target, utc_now()):
            return True
        if last_chance:
            return False
        await work.to_embed.wait()


async def _ready_unless_stopped(work: Work, server: Embedder) -> bool:
    """Start the server, which may take minutes with a big model; give up when a stop is asked for."""
    starting = asyncio.create_task(server.ensure_ready(), name="embedder-start")
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


@dataclass(slots=True)
class Request:
    """What is asked for at once: chunks, or stretches."""

    chunks: list[PendingChunk] = field(default_factory=list)
    stretches: list[PendingStretch] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """That the model computes for it."""
        return sum(len(chunk.tokens) for chunk in self.chunks) + sum(len(one.tokens) for one in self.stretches)

    @property
    def chunk_tokens(self) -> int:
        """Of the chunks that it gives vectors."""
        return sum(len(chunk.tokens) for chunk in self.chunks) + chunk_tokens(self.stretches)


async def _batches(work: Work) -> AsyncGenerator[Request, None]:
    """Requests, longest chunks first within each look-ahead, so that what is packed together fits together."""
    reader = _Reader(work)
    ahead = await reader.look_ahead()
    while ahead.chunks or ahead.stretches:
        # The next look-ahead is read while this one is computed.
        following = asyncio.create_task(reader.look_ahead(), name="embed-look-ahead")
        try:
            for stretches in requests_of(ahead.stretches):
                yield Request(stretches=stretches)
            ahead.chunks.sort(key=lambda chunk: len(chunk.tokens), reverse=True)
            for chunks in _together(ahead.chunks, work.limits):
                yield Request(chunks)
            ahead = await following
        finally:
            following.cancel()


def _together(chunks: Sequence[PendingChunk], limits: Limits) -> Iterator[list[PendingChunk]]:
    """Chunks in their order, as many as one request takes; one that is longer than that goes by itself."""
    batch: list[PendingChunk] = []
    tokens = 0
    for chunk in chunks:
        if batch and (len(batch) >= limits.request_chunks or tokens + len(chunk.tokens) > limits.request_tokens):
            yield batch
            batch, tokens = [], 0
        batch.append(chunk)
        tokens += len(chunk.tokens)
    if batch:
        yield batch


class _Reader:
    """Reads what is queued, content after content: the stretches of each, then its chunks."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._contents: deque[int] = deque()
        self._after = 0
        self._stretches_read = False

    async def look_ahead(self) -> Request:
        """What there is, up to a look-ahead, waiting only while there is none. Empty: all is done."""
        work, found = self._work, Request()
        while not self._is_full(found) and not work.stop.is_set():
            if not self._contents:
                last_chance = work.to_embed.closed
                self._contents.extend(
                    await work.store.write(
                        queue.claim_to_embed, work.run_id, work.scopes, work.target, utc_now(), CLAIM, work.order
                    )
                )
            if not self._contents:
                if found.chunks or found.stretches or last_chance:
                    break
                await work.to_embed.wait()
                continue
            if self._stretches_read:
                await self._read_chunks(found)
            else:
                await self._read_stretches(found)
        return found

    def _is_full(self, found: Request) -> bool:
        limits = self._work.limits
        return len(found.chunks) >= limits.look_ahead or found.tokens >= limits.look_ahead_tokens

    async def _read_stretches(self, found: Request) -> None:
        part = await read_stretches(self._work, self._contents[0], self._after)
        found.stretches += part
        self._stretches_read = not part
        self._after = part[-1].id if part else 0

    async def _read_chunks(self, found: Request) -> None:
        # A request's at once, so that long ones do not exceed the look-ahead by more than that.
        limits = self._work.limits
        room = min(limits.look_ahead - len(found.chunks), limits.request_chunks)
        part = await self._work.store.read(queue.pending_chunks, self._contents[0], self._after, room)
        found.chunks += part
        if len(part) < room:
            self._contents.popleft()
            self._after, self._stretches_read = 0, False
        else:
            self._after = part[-1].chunk_id
