"""The extract stage: files to chunks, in worker processes, a few at once."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections import deque

import structlog

from pipeline.core.documents import DocumentState
from pipeline.core.errors import ExtractionError, NoText, Unstable
from pipeline.ingest.names import real_path
from pipeline.ingest.pool import ExtractedChunks
from pipeline.ingest.work import Work, utc_now
from pipeline.store import queue
from pipeline.store.queue import ExtractedContent, ToExtract

log = structlog.get_logger(__name__)

ATTEMPTS = 5
"""Tries at a file that may become readable, over as many runs, before it is called failed."""

CLAIM = 16
"""Contents claimed at once."""

ROOM_SECONDS = 5.0
"""How often the queue is looked at while reading pauses, whatever else happens."""


async def extract(work: Work) -> None:
    """Extract what is queued until discovery is over and nothing is left."""
    claimed: deque[ToExtract] = deque()
    turn = asyncio.Lock()

    async def reader() -> None:
        while True:
            async with turn:
                if not claimed:
                    claimed.extend(await _claim(work))
                if not claimed:
                    return
                content = claimed.popleft()
            await _extract_one(work, content)

    try:
        async with asyncio.TaskGroup() as readers:
            for number in range(work.pool.workers):
                readers.create_task(reader(), name=f"extract-{number}")
    finally:
        work.progress.current = ""
    work.to_embed.close()


async def _claim(work: Work) -> list[ToExtract]:
    """The next contents to extract; none when there will be none any more."""
    while True:
        await _room(work)
        last_chance = work.to_extract.closed
        found = await work.store.write(queue.claim_to_extract, work.run_id, work.scopes, work.target, utc_now(), CLAIM)
        if found or last_chance:
            return found
        await work.to_extract.wait()


async def _room(work: Work) -> None:
    """Wait while enough chunks wait that this very run can embed; those of others never hold it up."""
    while (await work.store.read(queue.backlog, work.scopes, work.target)).chunks > work.limits.queued_chunks:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ROOM_SECONDS):
                await work.embedded.wait()


async def _extract_one(work: Work, content: ToExtract) -> None:
    name = content.files[0][1] if content.files else content.sha256
    work.progress.current = name
    try:
        extracted = await _read(work, content)
    except ExtractionError as error:
        await _end(work, content, name, error)
        return
    found = ExtractedContent(
        title=extracted.title,
        details={
            "engine": extracted.engine,
            "metadata": dict(extracted.metadata),
            "pages_without_text": list(extracted.empty_pages),
        },
        page_count=extracted.page_count or 0,
        characters=extracted.characters,
        chunks=extracted.chunks,
    )
    await work.store.write(queue.store_extracted, content.content_id, found, utc_now())
    work.progress.document_read(len(found.chunks))
    work.to_embed.ring()


async def _read(work: Work, content: ToExtract) -> ExtractedChunks:
    """Read one of the files that hold the content: copies are as good as each other."""
    problem: ExtractionError = Unstable("its file is gone")
    for root, stored in content.files:
        try:
            extracted = await work.pool.extract(real_path(root, stored), content.kind, content.sha256)
        except Unstable as error:
            problem = error
            continue
        if not extracted.chunks:
            raise NoText("it holds no text: if its pages are pictures, it needs OCR")
        return extracted
    raise problem


async def _end(work: Work, content: ToExtract, name: str, error: ExtractionError) -> None:
    # A file that is not there says nothing against itself: its disk may be away for weeks.
    away = error.transient and not await asyncio.to_thread(_any_there, content)
    if away or (error.transient and content.attempts + 1 < ATTEMPTS):
        retry_at = utc_now() + dt.timedelta(minutes=4**content.attempts)
        log.warning("a document is left for a later run", document=name, reason=error.reason, retry_at=str(retry_at))
        await work.store.write(queue.postpone, content.content_id, error.reason, retry_at, tried=not away)
        work.progress.document_failed(name, DocumentState.DISCOVERED, f"{error.reason}; a later run tries it again")
        return
    state = DocumentState(error.state)
    log.info("a document gives no text", document=name, state=state.value, reason=error.reason)
    await work.store.write(queue.end_extraction, content.content_id, state, error.reason)
    work.progress.document_failed(name, state, error.reason)


def _any_there(content: ToExtract) -> bool:
    return any(real_path(root, stored).exists() for root, stored in content.files)
