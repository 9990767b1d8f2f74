"""Beside the runs of other hosts: one of them looks at a source, and nobody ends while work may come from the others.

On a database of one host there are no others, and nothing here takes any time.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence

import structlog

from pipeline.core.errors import SourceStrange
from pipeline.ingest.stages.look import distrust
from pipeline.ingest.work import Place, Work, utc_now
from pipeline.store import hosts, queue
from pipeline.store.hosts import AtWork

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0


def is_known_folder(work: Work, place: Place) -> bool:
    """Whether a place is the folder that other hosts have at its path; where not, that is among the run's errors."""
    if work.within is None or place.source_id in work.within:
        return True
    distrust(work, SourceStrange(place.root))
    return False


async def may_look(work: Work, place: Place) -> bool:
    """Whether this run may look at a place: one run at a time does, and what it finds is there for all."""
    holder = await work.store.write(hosts.begin_look, place.source_id, work.run_id, utc_now())
    if holder is not None:
        log.info("another host looks at this source; what it finds is shared", source=place.root, host=holder)
    return holder is None


async def stay_while_others_work(work: Work, passed_over: Sequence[Place]) -> None:
    """Go on for as long as others may leave something for this run to do.

    That is while another run looks at a place that this one passed over, or reads what this one can embed. Then each
    other run has to show that it lives, once: what a dead one held is free when its lease is over, and is done here.
    """
    looked_at = [place.source_id for place in passed_over]
    seen: dict[str, dt.datetime] | None = None
    others: Sequence[AtWork] = ()
    while not work.pace.passed_over:
        before = others
        others = await work.store.read(hosts.others_at_work, work.run_id, work.scopes, work.target, looked_at)
        if not others:
            break
        if not before:
            log.info("other hosts are at work on the same documents", hosts=sorted({other.host for other in others}))
        if await _anything_left(work):
            seen = None
            work.wake_readers()
        elif any(other.looks or (other.reads and work.embedder is not None) for other in others):
            seen = None
        elif seen is None:
            seen = {other.run_id: other.heartbeat_at for other in others}
        elif all(seen.get(other.run_id) != other.heartbeat_at for other in others):
            break
        await asyncio.sleep(LOOK_SECONDS)
    if others or looked_at:
        waiting = await work.store.read(queue.backlog, work.scopes, work.target)
        progress = work.progress
        progress.documents_total = progress.documents_done + progress.documents_failed + waiting.contents


async def _anything_left(work: Work) -> bool:
    return await work.store.read(
        hosts.anything_left,
        work.run_id,
        work.scopes,
        work.target,
        utc_now(),
        work.within,
        embeds=work.embedder is not None,
    )
