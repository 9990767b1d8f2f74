"""The extract stage: files to chunks, in worker processes, a few at once."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import random
from collections import deque
from pathlib import Path

import structlog

from pipeline.core.documents import DocumentState, Recognition
from pipeline.core.errors import BackendStartFailed, ExtractionError, NoText, Unstable
from pipeline.core.retrying import AWAY_FIRST, FIRST, retry_delay
from pipeline.ingest.names import real_path
from pipeline.ingest.pace import PASSED_OVER
from pipeline.ingest.pool import ExtractedChunks
from pipeline.ingest.watched import Silent, watched
from pipeline.ingest.work import Work, utc_now
from pipeline.store import queue, retry
from pipeline.store.queue import ExtractedContent, ToExtract

log = structlog.get_logger(__name__)

ATTEMPTS = 5
"""Tries at a file that may become readable, over as many runs, before it is called failed."""

CLAIM = 16
"""Contents claimed at once."""

START_ATTEMPTS = 3
"""Tries at starting a worker, with pauses between them that grow: the host may be short of memory or processes."""

START_PAUSE = dt.timedelta(seconds=1)

WORTH_WAITING = dt.timedelta(seconds=30)
"""A run that has nothing else to do waits so long for a document that is due again, and no longer."""

RETRY_LOOK_SECONDS = 1.0

ROOM_SECONDS = 5.0
"""How often the queue is looked at while reading pauses, whatever else happens."""


async def extract(work: Work) -> None:
    """Extract what is queued until discovery is over and nothing is left."""
    claimed: deque[ToExtract] = deque()
    turn = asyncio.Lock()
    too_long = 0

    async def reader() -> None:
        nonlocal too_long
        while too_long < PASSED_OVER:
            async with turn:
                if not claimed:
                    claimed.extend(await _claim(work))
                if not claimed:
                    return
                content = claimed.popleft()
            if not work.pace.may_read(content.kind, content.size, work.progress.meter):
                # It stays claimed by this run, and is free again at its end; a shorter one may still fit.
                work.pace.pass_over()
                too_long += 1
                continue
            too_long = 0
            with work.progress.meter.reading:
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
        # Before the claim: whoever sends a document back in between is not missed.
        wanted = (work.scopes, work.target)
        due = await work.store.read(retry.next_retry, *wanted, within=work.within) if last_chance else None
        found = await work.store.write(
            queue.claim_to_extract, work.run_id, *wanted, utc_now(), CLAIM, work.order, within=work.within
        )
        if found:
            return found
        if not last_chance:
            await work.to_extract.wait()
        elif due is None or due - utc_now() > WORTH_WAITING:
            return []
        else:  # in steps, so that `documents retry` is heard
            await asyncio.sleep(min(max(0.0, (due - utc_now()).total_seconds()), RETRY_LOOK_SECONDS))


async def _room(work: Work) -> None:
    """Wait while enough chunks wait that this very run can embed; those of others never hold it up.

    Nor do they where what is to be read goes before them: what came in last is not behind all that was read ahead.
    """
    wanted = (work.scopes, work.target)
    while (
        work.embedder
        and await work.store.read(queue.chunks_waiting, *wanted) > work.limits.queued_chunks
        and not await work.store.read(queue.unread_goes_first, *wanted, utc_now(), work.order, within=work.within)
    ):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ROOM_SECONDS):
                await work.embedded.wait()


async def _extract_one(work: Work, content: ToExtract) -> None:
    name = content.files[0][1] if content.files else content.sha256
    if content.content_id in work.postponed:
        work.postponed.remove(content.content_id)
        work.progress.document_retried(name)
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
            **_of_ocr(extracted.ocr),
        },
        page_count=extracted.page_count or 0,
        characters=extracted.characters,
        chunks=extracted.chunks,
        stretches=extracted.stretches,
    )
    stored = await work.store.write(queue.store_extracted, content.content_id, found, utc_now(), run_id=work.run_id)
    work.progress.document_read(stored.chunks - stored.reused, reused=stored.reused)
    if stored.ended:
        work.progress.document_done()
    work.to_embed.ring()


def _of_ocr(ocr: Recognition | None) -> dict[str, object]:
    """What a document's details say of OCR; nothing where there was no need of it."""
    if ocr is None:
        return {}
    return {
        "pages_ocr": list(ocr.pages),
        "ocr": {
            "engine": ocr.engine,
            "languages": ocr.languages,
            "confidence": ocr.confidence,
            "failed": {str(page): reason for page, reason in ocr.failed.items()},
        },
    }


async def _read(work: Work, content: ToExtract) -> ExtractedChunks:
    """Read one of the files that hold the content: copies are as good as each other."""
    problem: ExtractionError = Unstable("its file is gone")
    for root, stored in content.files:
        try:
            extracted = await _in_a_worker(work, await _path_of(work, root, stored), content)
        except Unstable as error:
            problem = error
            continue
        except NoText as error:
            work.progress.meter.document_read(error.pages, 0)
            raise
        work.progress.meter.document_read(extracted.page_count or 0, extracted.characters)
        if not extracted.chunks:
            reason = "it holds no text: if its pages are pictures, it needs OCR"
            raise NoText(reason, extracted.page_count or 0)
        return extracted
    raise problem


async def _path_of(work: Work, root: str, stored: str) -> Path:
    """The file that a stored path means, which its disk has to be asked for. Raises Unstable where that is silent."""
    if root in work.silent:
        raise Unstable(f"{root} gives no answer")
    try:
        return await watched(lambda _: real_path(root, stored), work.looking.silence)
    except Silent as silent:
        work.silent.add(root)
        raise Unstable(f"{root} gave {silent}") from silent


async def _in_a_worker(work: Work, path: Path, content: ToExtract) -> ExtractedChunks:
    """Raises an ExtractionError, and BackendStartFailed where no worker starts, tried with growing pauses."""
    for attempt in itertools.count(1):
        try:
            return await work.pool.extract(path, content.kind, content.sha256, content.size)
        except BackendStartFailed as error:
            if attempt == START_ATTEMPTS:
                raise
            pause = retry_delay(attempt - 1, random.random(), START_PAUSE)  # noqa: S311 - spreads load, hides nothing
            log.warning("no worker could be started; it is tried again", error=str(error), pause=str(pause))
            await asyncio.sleep(pause.total_seconds())
    raise AssertionError


async def _end(work: Work, content: ToExtract, name: str, error: ExtractionError) -> None:
    # A file that is not there says nothing against itself: its disk may be away for weeks.
    away = error.transient and not await _any_there(work, content)
    if away or (error.transient and content.attempts + 1 < ATTEMPTS):
        luck = random.random()  # noqa: S311 - as above
        retry_at = utc_now() + retry_delay(content.attempts, luck, AWAY_FIRST if away else FIRST)
        log.warning("a document is left for a later run", document=name, reason=error.reason, retry_at=str(retry_at))
        await work.store.write(
            queue.postpone, content.content_id, error.reason, retry_at, tried=not away, run_id=work.run_id
        )
        work.postponed.add(content.content_id)
        work.progress.document_failed(name, DocumentState.DISCOVERED, f"{error.reason}; a later run tries it again")
        return
    state = DocumentState(error.state)
    log.info("a document gives no text", document=name, state=state.value, reason=error.reason)
    if state is DocumentState.ENCRYPTED:
        await work.store.write(
            retry.end_encrypted, content.content_id, error.reason, work.passwords_tried, run_id=work.run_id
        )
    else:
        pages = error.pages if isinstance(error, NoText) else 0
        await work.store.write(
            queue.end_extraction, content.content_id, state, error.reason, pages=pages, run_id=work.run_id
        )
    work.progress.document_failed(name, state, error.reason)


async def _any_there(work: Work, content: ToExtract) -> bool:
    asked = [(root, stored) for root, stored in content.files if root not in work.silent]
    try:
        return await watched(
            lambda _: any(real_path(root, stored).exists() for root, stored in asked), work.looking.silence
        )
    except (Silent, OSError):
        return False
