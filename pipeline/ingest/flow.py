"""Documents in, vectors out: three stages that overlap, with the database as the queue between them.

    discover  folders -> documents whose contents wait to be extracted
    extract   their files, in worker processes -> chunks that wait for vectors
    embed     their chunks, in batches over a look-ahead -> vectors, and documents that are done

Each stage takes what the database holds, rings the next one's bell when it stored something, and ends
when the stage before it has ended and nothing is left. So a run that follows a kill finds its work where
it was, and nothing is in memory that is not in the database, but for two look-aheads of chunks.
"""

from __future__ import annotations

import asyncio

from pipeline.ingest.stages.discover import discover
from pipeline.ingest.stages.embed import embed
from pipeline.ingest.stages.extract import extract
from pipeline.ingest.work import Work


async def ingest(work: Work) -> None:
    """Do the work until it is done or `work.stop` is set. Without an embedder it is done when all is read.

    A stop lets the batches in flight be stored; documents that are being read are put back.

    Raises:
        ExceptionGroup: of what ended a stage, the other stages having been cancelled.
    """
    async with asyncio.TaskGroup() as stages:
        reading = [
            stages.create_task(discover(work), name="discover"),
            stages.create_task(extract(work), name="extract"),
        ]
        embedding = None if work.embedder is None else stages.create_task(embed(work, work.embedder), name="embed")
        stopping = stages.create_task(_stop_reading(work, reading), name="stop")
        await asyncio.wait(reading if embedding is None else [embedding])
        stopping.cancel()
    work.progress.phase, work.progress.chunks_under_way = "finishing", 0.0


async def _stop_reading(work: Work, reading: list[asyncio.Task[None]]) -> None:
    await work.stop.wait()
    for task in reading:
        task.cancel()
    work.to_embed.close()
