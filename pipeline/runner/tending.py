"""The end of a run: the indexes over vectors that a server database is to have by now."""

from __future__ import annotations

import asyncio

import structlog

from pipeline.core.errors import StoreError
from pipeline.store.database import Database
from pipeline.store.hnsw import Tending

log = structlog.get_logger(__name__)

ASK_AGAIN_SECONDS = 1.0
"""How long after a stop a build is told again, where it was just about to begin."""


async def tend_indexes(store: Database, stop: asyncio.Event) -> None:
    """Build the indexes that are missing. A stop gives up the build, and a later run does it again.

    Nothing depends on them but how long a search takes, so that a failure is a warning.
    """
    if stop.is_set():
        return
    tending = Tending(store.engine)
    running = asyncio.create_task(asyncio.to_thread(tending.run), name="tend indexes")
    stopping = asyncio.create_task(stop.wait(), name="stop of an index")
    try:
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        while not running.done():
            await asyncio.to_thread(tending.stop)
            await asyncio.wait([running], timeout=ASK_AGAIN_SECONDS)
    try:
        tended = running.result()
    except StoreError as error:
        log.warning("an index for search could not be built", error=str(error))
        return
    for model in tended.built:
        log.info("an index for search was built", model=model)
    if tended.busy:
        log.info("another process builds an index for search")
    if tended.stopped:
        log.info("the build of an index for search was given up: a later run does it")
