"""The embed stage: chunks to vectors, in requests whose size follows the speed of the model server.

Within a look-ahead the documents that need the least go first, so that documents are done as the run goes. They are
taken in groups of about ten seconds' work, and within a group chunks of like length go together, which is what a
model server computes fastest.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from pipeline.core.documents import DocumentState
from pipeline.ingest.embedding import CarefulEmbedder, Embedder
from pipeline.ingest.pace import SECONDS_TOGETHER, Speed, plan_request
from pipeline.ingest.stages.stretches import StretchEmbedder, chunk_tokens, read_stretches, requests_of
from pipeline.ingest.work import Work, utc_now
from pipeline.ingest.writer import GroupWriter
from pipeline.store import queue
from pipeline.store.answers import Answer
from pipeline.store.queue import PendingChunk, StoredBatch
from pipeline.store.stretches import PendingStretch

log = structlog.get_logger(__name__)

CLAIM = 16
"""Contents claimed at once."""

TICK_SECONDS = 1.0
"""Between two looks at how much the server has computed, for whoever watches the progress."""


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
        watching = stage.create_task(sender.watch(), name="embed-watch")
        try:
            await sender.send_all(writer)
        finally:
            # Whatever ended the sending: what was computed is stored.
            watching.cancel()
            writer.close()
            await asyncio.wait([storing])


class _Sender:
    """Sends requests, a few at a time, hands their answers to the writer, and counts what was stored."""

    def __init__(self, work: Work, server: Embedder) -> None:
        self._work = work
        self._server = server
        self._embedder = CarefulEmbedder(
            server,
            texts=self._texts,
            dimension=work.dimension,
            patience=work.limits.patience,
            first_pause=work.limits.first_pause,
            on_wait=self._waits,
        )
        self._stretches = StretchEmbedder(work, self._embedder, server.longest)
        self._speed = Speed()
        self._under_way: dict[asyncio.Task[None], Request] = {}
        self._answered = asyncio.Event()
        self._busy_before = 0.0
        self._answered_tokens = 0.0

    async def send_all(self, writer: GroupWriter) -> None:
        """Until nothing is left, a stop is asked for, or the time is too short. Raises as `CarefulEmbedder.embed`."""
        self._answered_tokens = self._server.computed
        async with asyncio.TaskGroup() as requests:
            giving_up = requests.create_task(self._give_up_late(), name="embed-give-up")
            waiting = _Waiting(self._work)
            try:
                while (size := await self._room()) is not None:
                    request = await waiting.take(size, self._together)
                    if request is None or not await self._fits(request.tokens):
                        break
                    task = requests.create_task(self._one(request, writer), name="embed-batch")
                    self._under_way[task] = request
                    task.add_done_callback(self._ended)
            finally:
                await waiting.close()
                with contextlib.suppress(asyncio.CancelledError):
                    if self._under_way:
                        await asyncio.wait(self._under_way)
                giving_up.cancel()

    async def watch(self) -> None:
        """Tell the progress, again and again, what the server has computed of the requests under way."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            tokens = self._tokens_under_way
            chunks = sum(len(request.chunks) for request in self._under_way.values())
            computed = min(tokens, max(0.0, self._server.computed - self._answered_tokens))
            self._work.progress.tick(time.monotonic(), chunks * computed / tokens if tokens else 0.0)

    async def _room(self) -> int | None:
        """Wait until another request may be sent; its tokens. None after a stop."""
        limits = self._work.limits
        while not self._work.stop.is_set():
            size = plan_request(
                self._speed.tokens_per_second,
                requests=len(self._under_way),
                tokens=self._tokens_under_way,
                contexts=self._server.contexts,
                most_requests=limits.requests_in_flight,
                most_tokens=limits.request_tokens,
            )
            if size is not None:
                return size
            await self._next_answer()
        return None

    @property
    def _together(self) -> float:
        """Tokens of the documents that are embedded side by side."""
        return (self._speed.tokens_per_second or 0.0) * SECONDS_TOGETHER

    async def _fits(self, tokens: int) -> bool:
        """Whether a request can be answered in time: at the latest when nothing else is under way."""
        work = self._work
        while True:
            if work.stop.is_set():
                return False
            if work.pace.may_send(self._tokens_under_way + tokens, work.progress.meter):
                return True
            if not self._under_way:
                # The rest of the time is too short for another answer.
                log.info("the run ends in time", seconds_left=work.pace.seconds_left)
                work.pace.pass_over()
                work.stop.set()
                return False
            await self._next_answer()

    async def _next_answer(self) -> None:
        """Until a request ends, or a stop is asked for, which is noticed with the next answer or given up on."""
        self._answered.clear()
        await self._answered.wait()

    async def _give_up_late(self) -> None:
        """Some seconds after a stop, give up what is not answered: it is still queued."""
        await self._work.stop.wait()
        self._answered.set()
        await asyncio.sleep(self._work.limits.stop_seconds)
        for task, request in self._under_way.items():
            log.info("a request is given up for the stop; its chunks stay queued", tokens=request.tokens)
            task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._answered_tokens += self._under_way.pop(task).tokens
        # Others may ask the same server: what it computed for them is not of the requests that are left.
        self._answered_tokens = max(self._answered_tokens, self._server.computed - self._tokens_under_way)
        self._answered.set()

    @property
    def _tokens_under_way(self) -> int:
        return sum(request.tokens for request in self._under_way.values())

    async def _one(self, request: Request, writer: GroupWriter) -> None:
        meter = self._work.progress.meter
        began = time.monotonic()
        with meter.embedding:
            answer = await self._answer(request)
            busy, self._busy_before = meter.embedding.seconds - self._busy_before, meter.embedding.seconds
            self._speed.answered(request.tokens, busy)
        await writer.add(answer)
        meter.request_done(request.chunk_tokens, time.monotonic() - began)

    async def _answer(self, request: Request) -> Answer:
        if request.stretches:
            return await self._stretches.embed(request.stretches)
        found = await self._embedder.embed(request.chunks)
        postponed = [(chunk.content_id, reason) for chunk, reason in found.postponed]
        return Answer(found.vectors, found.failures, postponed=postponed)

    async def _texts(self, chunks: Sequence[PendingChunk]) -> Sequence[str]:
        return await self._work.store.read(queue.texts_of, [chunk.chunk_id for chunk in chunks])

    def _waits(self, why: str) -> None:
        self._work.progress.waiting = why

    def stored(self, stored: StoredBatch) -> None:
        """Count what a commit stored."""
        work, progress = self._work, self._work.progress
        progress.chunks_embedded(stored.vectors, time.monotonic())
        for ended in stored.ended:
            if ended.content_id in work.postponed:
                work.postponed.remove(ended.content_id)
                progress.document_retried(ended.path)
                progress.documents_read += 1
            if ended.state is DocumentState.EMBEDDED:
                progress.document_done()
            else:
                progress.document_failed(ended.path, ended.state, ended.reason or "", was_read=True)
        for left in stored.postponed:
            if left.content_id not in work.postponed:
                work.postponed.add(left.content_id)
                progress.document_failed(
                    left.path, left.state, f"{left.reason}; a later run tries it again", was_read=True
                )
        work.embedded.ring()


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
        return _tokens(self.chunks) + sum(len(one.tokens) for one in self.stretches)

    @property
    def chunk_tokens(self) -> int:
        """Of the chunks that it gives vectors."""
        return _tokens(self.chunks) + chunk_tokens(self.stretches)


class Documents:
    """The chunks of a look-ahead, taken apart into requests: the document with the fewest tokens first. Pure.

    Documents are taken in groups, and within a group the longest chunks go first.
    """

    def __init__(self, chunks: Sequence[PendingChunk] = (), unfinished: int | None = None) -> None:
        """unfinished: the content of which more chunks wait than these. It goes last, as its need is not known."""
        documents: dict[int, list[PendingChunk]] = {}
        for chunk in chunks:
            documents.setdefault(chunk.content_id, []).append(chunk)
        by_need = sorted(documents.values(), key=lambda some: (some[0].content_id == unfinished, _tokens(some)))
        self._documents = deque(by_need)
        self._group: deque[PendingChunk] = deque()

    def __bool__(self) -> bool:
        return bool(self._group or self._documents)

    def take(self, most: int, tokens: int, together: float) -> list[PendingChunk]:
        """The chunks of the next request: up to `most`, of up to `tokens` tokens, and at least one.

        together: tokens of the documents that make a group; one document always does.
        """
        taken: list[PendingChunk] = []
        held = 0
        while len(taken) < most and self:
            if not self._group:
                self._group.extend(sorted(self._gather(together), key=lambda chunk: len(chunk.tokens), reverse=True))
            size = len(self._group[0].tokens)
            if taken and held + size > tokens:
                break
            taken.append(self._group.popleft())
            held += size
        return taken

    def _gather(self, together: float) -> list[PendingChunk]:
        chunks = list(self._documents.popleft())
        held = _tokens(chunks)
        while self._documents and held + (more := _tokens(self._documents[0])) <= together:
            chunks += self._documents.popleft()
            held += more
        return chunks


def _tokens(chunks: Sequence[PendingChunk]) -> int:
    return sum(len(chunk.tokens) for chunk in chunks)


class _Waiting:
    """What waits to be sent: a look-ahead that is taken apart into requests, while the next one is read."""

    def __init__(self, work: Work) -> None:
        self._limits = work.limits
        self._reader = _Reader(work)
        self._stretches: deque[list[PendingStretch]] = deque()
        self._documents = Documents()
        self._following = self._read_on()

    async def take(self, tokens: int, together: float) -> Request | None:
        """The next request, of about so many tokens, but at least a chunk. None: nothing is left.

        together: tokens of the documents that are taken apart together.
        """
        if not (self._stretches or self._documents):
            ahead = await self._following
            self._stretches.extend(requests_of(ahead.stretches))
            self._documents = Documents(ahead.chunks, self._reader.unfinished)
            if not (self._stretches or self._documents):
                return None
            self._following = self._read_on()
        if self._stretches:
            return Request(stretches=self._stretches.popleft())
        return Request(self._documents.take(self._limits.request_chunks, tokens, together))

    async def close(self) -> None:
        """Read no further. What failed in reading ahead is of no use any more."""
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)

    def _read_on(self) -> asyncio.Task[Request]:
        return asyncio.create_task(self._reader.look_ahead(), name="embed-look-ahead")


class _Reader:
    """Reads what is queued, content after content: the stretches of each, then its chunks."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._contents: deque[int] = deque()
        self._after = 0
        self._stretches_read = False

    @property
    def unfinished(self) -> int | None:
        """The content of which a part was read; None where all was read of each."""
        return self._contents[0] if self._contents and (self._after or self._stretches_read) else None

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
