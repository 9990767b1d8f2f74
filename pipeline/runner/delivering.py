"""One delivery to Qdrant: what the outbox names is read, sent, and taken off it.

It may be killed anywhere: what was not noted as delivered is delivered again, to the same effect.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, Protocol, TypeVar

import structlog

from pipeline.core.errors import MirrorRefused
from pipeline.core.retrying import retry_delay
from pipeline.ingest.work import utc_now
from pipeline.store import models
from pipeline.store.database import Database
from pipeline.store.mirror import contents, outbox
from pipeline.store.mirror.contents import BrokenVector, Wanted
from pipeline.store.mirror.outbox import ContentKey
from pipeline.store.qdrant.client import Qdrant
from pipeline.store.qdrant.delivery import put_chunks, send

log = structlog.get_logger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

REFUSED_FIRST = dt.timedelta(minutes=5)

CONTENTS = 64
"""Read at once, at most."""


@dataclass(slots=True)
class Delivered:
    """What a delivery came to, in contents and points. refused: contents that Qdrant did not take.

    error: why it ended early. busy: another process is at it.
    """

    contents: int = 0
    points: int = 0
    refused: int = 0
    error: str | None = None
    busy: bool = False


class Call(Protocol):
    """Runs what talks to Qdrant, off the event loop."""

    def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """What `function` returns."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """What delivers, while nobody else does. told: called after each part, with what it came to so far, `done`."""

    store: Database
    qdrant: Qdrant
    call: Call
    done: Delivered
    told: Callable[[Delivered], None]
    lost: set[str] = field(default_factory=set)
    """Models whose collections were gone at its start."""

    async def deliver(self) -> None:
        """Deliver until nothing is owed that is due.

        Raises:
            MirrorError: Qdrant cannot be used. What was not delivered is owed on.
            StoreError: the database cannot be used.
        """
        await self.note_held()
        await self._owe_lost()
        while wanted := await self.store.read(contents.gather, utc_now(), CONTENTS):
            active = await self.store.read(models.active_model)
            if active is not None and wanted[0].owed.key.fingerprint != active.fingerprint:
                # What is due of the active model comes first. Only now do points of another one go.
                await self._show(active.fingerprint)
            await self._bring_in_line(wanted)
            self.told(self.done)
        await self._tidy()
        await self.store.write(outbox.note_there, utc_now())

    async def _bring_in_line(self, wanted: Sequence[Wanted]) -> None:
        sound = [one for one in wanted if one.problem is None]
        for one in wanted:
            if one.problem is not None:
                await self._put_off(one, one.problem)
        try:
            there = await self._ensure(sound)
            # Before any of it is sent: what may be there is known, should this be the end.
            await self.store.write(outbox.intend, [(one.owed.key, one.points) for one in sound if one.points])
            self.done.points += await self._send([one for one in sound if one.owed.key.fingerprint in there])
        except MirrorRefused as error:
            if len(sound) == 1:
                await self._put_off(sound[0], str(error))
            else:
                for one in sound:
                    await self._bring_in_line([one])
            return
        await self.store.write(outbox.settle, [(one.owed, one.points) for one in sound])
        self.done.contents += len(sound)

    async def _ensure(self, wanted: Sequence[Wanted]) -> set[str]:
        """The models of these contents whose collections are there; made where points are to go into them."""
        there: set[str] = set()
        for fingerprint in dict.fromkeys(one.owed.key.fingerprint for one in wanted):
            facts = next((one.facts for one in wanted if one.facts and one.owed.key.fingerprint == fingerprint), None)
            if not await self.call(self.qdrant.exists, fingerprint):
                if facts is None:
                    continue
                if fingerprint not in self.lost:
                    # Whoever took it away just now took all that it held.
                    await self._owe_held(fingerprint)
                self.lost.discard(fingerprint)
            if facts is not None:
                await self.call(self.qdrant.ensure, fingerprint, facts.dimension)
            there.add(fingerprint)
        return there

    async def _send(self, wanted: Sequence[Wanted]) -> int:
        points = await self.call(send, self.qdrant, wanted)
        last = wanted[-1] if wanted else None
        if last is None or last.facts is None:
            return points
        # Only the last one may have come with less than all of its chunks.
        key, chunks = last.owed.key, last.chunks
        while chunks and chunks[-1].ordinal < last.facts.ordinals[-1]:
            try:
                chunks = await self.store.read(contents.read_chunks, key, chunks[-1].ordinal + 1, contents.CHUNKS)
            except BrokenVector as error:
                raise MirrorRefused(str(error)) from error
            # Fewer, or none, where it changed meanwhile: then it is owed again.
            points += await self.call(
                put_chunks, self.qdrant, key.fingerprint, [(key, last.facts, chunk) for chunk in chunks]
            )
        return points

    async def _put_off(self, one: Wanted, problem: str) -> None:
        self.done.refused += 1
        wait = retry_delay(one.owed.attempts, random.random(), REFUSED_FIRST)  # noqa: S311
        await self.store.write(outbox.put_off, one.owed, problem, utc_now() + wait)
        log.warning("Qdrant does not hold a document", content=one.owed.key.sha256, error=problem)

    async def note_held(self) -> None:
        """At a place that is new, note what is there from before: it is owed, and so brought in line or taken away."""
        mirror = await self.store.read(outbox.find_mirror)
        if mirror is None or mirror.looked_at is not None:
            return
        for fingerprint in await self.store.read(outbox.fingerprints):
            if not await self.call(self.qdrant.exists, fingerprint):
                continue
            pages = self.qdrant.held(fingerprint)
            while (page := await self.call(next, pages, None)) is not None:
                held: dict[ContentKey, int] = {}
                for point in page:
                    if point.content is not None:
                        held[point.content] = max(held.get(point.content, 0), point.ordinal + 1)
                await self.store.write(outbox.note_held, list(held.items()))
        await self.store.write(outbox.note_looked, utc_now())

    async def _show(self, fingerprint: str) -> None:
        mirror = await self.store.read(outbox.find_mirror)
        if mirror is None or mirror.shown == fingerprint:
            return
        if await self.call(self.qdrant.exists, fingerprint):
            try:
                await self.call(self.qdrant.show, fingerprint)
            except MirrorRefused as error:
                # The collections are there under their own names all the same.
                log.warning("Qdrant's alias could not be moved", alias=self.qdrant.place.collection, error=str(error))
        await self.store.write(outbox.note_shown, fingerprint)

    async def _tidy(self) -> None:
        """Nothing is owed: the alias is the active model's, and collections that hold nothing go."""
        active = await self.store.read(models.active_model)
        if active is None:
            return
        await self._show(active.fingerprint)
        for fingerprint in await self.store.read(outbox.fingerprints):
            unused = fingerprint != active.fingerprint and not await self.store.read(outbox.holds, fingerprint)
            if unused and await self.call(self.qdrant.exists, fingerprint):
                await self.call(self.qdrant.drop, self.qdrant.name_of(fingerprint))

    async def _owe_lost(self) -> None:
        """What was in collections that somebody deleted, or in a folder that is gone, is owed again."""
        for fingerprint in await self.store.read(outbox.fingerprints):
            held = await self.store.read(outbox.holds, fingerprint)
            if held and not await self.call(self.qdrant.exists, fingerprint):
                await self._owe_held(fingerprint)
                self.lost.add(fingerprint)

    async def _owe_held(self, fingerprint: str) -> None:
        await self.store.write(outbox.owe_held, fingerprint)
        await self.store.write(outbox.note_shown, None)
