"""The end of a run: what search is quick by is brought to where it should be, on whatever database it is.

Nothing depends on it but how long a search takes, so that a failure is a warning.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from pipeline.core.errors import StoreError
from pipeline.core.quantized import Wanted
from pipeline.runner.tending import tend_indexes
from pipeline.store.database import Database
from pipeline.store.nearest.copying import Copying

log = structlog.get_logger(__name__)

SECONDS_BETWEEN = 10.0
"""Two lines on the progress of the same copy."""


async def renew_indexes(store: Database, quantized: Wanted, stop: asyncio.Event) -> None:
    """Build, renew or drop pgvector's indexes, or SQLite's quantized copies. A stop gives up what was begun."""
    if store.engine.dialect.name == "postgresql":
        await tend_indexes(store, stop)
    else:
        await _renew_copies(store, quantized, stop)


async def _renew_copies(store: Database, quantized: Wanted, stop: asyncio.Event) -> None:
    if stop.is_set():
        return
    copying = Copying(store, quantized, _Progress())
    running = asyncio.create_task(asyncio.to_thread(copying.run), name="quantized copies")
    stopping = asyncio.create_task(stop.wait(), name="stop of a quantized copy")
    try:
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not running.done():
            copying.stop()
            await asyncio.wait([running])
    try:
        copied = running.result()
    except StoreError as error:
        log.warning("a quantized copy could not be made, so search looks at every vector", error=str(error))
        return
    for model, vectors in copied.built:
        log.info("a quantized copy for search was made", model=model, vectors=vectors)
    for model in copied.dropped:
        log.info("a quantized copy was deleted", model=model)
    if copied.busy:
        log.info("another process makes quantized copies")
    if copied.stopped:
        log.info("a quantized copy was given up: a later run makes it")


class _Progress:
    """Logs how far a copy is, now and then."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, model: str, done: int, rows: int) -> None:
        if time.monotonic() - self._told >= SECONDS_BETWEEN:
            self._told = time.monotonic()
            log.info("a quantized copy is being made", model=model, vectors=done, of=rows)
