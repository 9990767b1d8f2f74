"""Which sources this host can read, where several share a database: those that are there, and are what others know."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress

from pipeline.ingest.names import real_path
from pipeline.ingest.watched import Pulse, Silent, watched
from pipeline.ingest.work import Place
from pipeline.store import hosts
from pipeline.store.database import Database
from pipeline.store.hosts import KnownFile

FEW = 3
"""Of so few known files all may have been written anew since: that one is there is enough then."""


async def readable_sources(
    store: Database, places: Sequence[Place], silence: float, *, trusted: bool = False
) -> frozenset[int] | None:
    """The ids of the sources whose files this host can read now; None where all are this host's.

    A folder that other hosts looked at, and that has nothing here of what they found, is another one at the same path:
    it is left out, also where it is one of `places`. trusted: a person said that the places are the same folders.
    """
    known = await store.read(hosts.sources_to_read)
    if known is None:
        return None
    named = {place.source_id: place.root for place in places}
    there = set()
    for source_id, folder in {**known, **named}.items():
        if source_id not in named and not await _is_there(folder, silence):
            continue
        sample = [] if trusted and source_id in named else await store.read(hosts.files_known_to_others, source_id)
        if await _is_same(folder, sample, silence):
            there.add(source_id)
    return frozenset(there)


async def _is_there(folder: str, silence: float) -> bool:
    with suppress(Silent):
        return await watched(lambda _: real_path(folder, "").is_dir(), silence)
    return False


async def _is_same(folder: str, sample: Collection[KnownFile], silence: float) -> bool:
    """Whether a folder has a file of the sample. One that is not there, or silent, is: what looks at it says so."""

    def has_one(beat: Pulse) -> bool:
        if not sample or not real_path(folder, "").is_dir():
            return True
        for file in sample:
            beat()
            with suppress(OSError):
                if real_path(folder, file.path).stat().st_size == file.size or len(sample) <= FEW:
                    return True
        return False

    with suppress(Silent):
        return await watched(has_one, silence)
    return True
