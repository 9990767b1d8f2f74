"""Keeps Qdrant in line with the database: delivers what the outbox names, until nothing is owed.

Nothing of this holds a run up or fails it: where Qdrant is away, what it is owed waits in the database. It may be
killed anywhere: what was not noted as delivered is delivered again, to the same effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from pipeline.core.errors import MirrorAway, MirrorError, StoreError
from pipeline.core.retrying import retry_delay
from pipeline.ingest.work import utc_now
from pipeline.runner.delivering import Delivered, Delivery
from pipeline.settings import Settings
from pipeline.store import models
from pipeline.store.database import Database
from pipeline.store.mirror import outbox
from pipeline.store.mirror.alone import alone
from pipeline.store.mirror.outbox import ContentKey
from pipeline.store.nearest.qdrant import HOME
from pipeline.store.qdrant.client import Place, Qdrant
from pipeline.store.qdrant.compare import PointDisagreement, compare, repair

log = structlog.get_logger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

LOOK = 2.0
"""Seconds between two looks whether anything is owed, while a run is at work or a daemon is there."""

LAST_SECONDS = 15.0
"""At the end of a run by hand, while somebody waits."""

LONGEST_WAIT = dt.timedelta(minutes=10)
"""Between two tries, where Qdrant is away."""

LEFT_ALONE = 30.0
"""Seconds without a search in Qdrant, once one failed: the next one need not wait for that again."""

MOST_LISTED = 10_000


def place_of(settings: Settings) -> Place | None:
    """Where Qdrant is, by the settings; None where there is none."""
    wanted = settings.qdrant
    if wanted.url is None and wanted.path is None:
        return None
    key = wanted.api_key.get_secret_value() if wanted.api_key is not None else None
    return Place(wanted.url, wanted.path, wanted.collection, key)


@asynccontextmanager
async def mirrored(settings: Settings, store: Database, last: float = LAST_SECONDS) -> AsyncIterator[None]:
    """Keep Qdrant in line beside what the block does, and after it for `last` seconds at most.

    Where the settings name none, nothing happens. What it is still owed then, it is owed by the next run, or a daemon.
    """
    async with beside(settings, store) as mirroring:
        if mirroring is None:
            yield
            return
        task = asyncio.create_task(keep_in_line(mirroring), name="mirror")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(last):
                    await mirroring.deliver()


@asynccontextmanager
async def beside(settings: Settings, store: Database) -> AsyncIterator[Mirroring | None]:
    """Qdrant as the settings name it, or None; searches ask it for the length of the block, where they are to."""
    place = place_of(settings)
    if place is None:
        yield None
        return
    mirroring = Mirroring(store, place)
    if settings.search.vectors == "qdrant":
        store.carried[HOME] = mirroring
    try:
        yield mirroring
    finally:
        store.carried.pop(HOME, None)
        await mirroring.close()


async def keep_in_line(mirroring: Mirroring, look: float = LOOK) -> None:
    """Deliver what is owed, every `look` seconds. Until cancelled."""
    while True:
        try:
            await mirroring.deliver()
        except StoreError as error:
            log.warning("what Qdrant is owed could not be looked up", error=str(error))
        await asyncio.sleep(look)


class Mirroring:
    """Qdrant beside a database. It is connected to when it is first needed; to be closed."""

    def __init__(self, store: Database, place: Place) -> None:
        self.store = store
        self.place = place
        self._qdrant: Qdrant | None = None
        self._left_alone_until = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="qdrant")

    async def close(self) -> None:
        """Let go of Qdrant."""
        if self._qdrant is not None:
            await self.call(self._qdrant.close)
            self._qdrant = None
        await asyncio.to_thread(self._thread.shutdown)

    async def connect(self) -> Qdrant:
        """The connection, made when it is first asked for. Raises MirrorAway."""
        if self._qdrant is not None:
            return self._qdrant
        return await self.call(self._open)

    @property
    def location(self) -> str:
        """As `VectorHome.location`."""
        return self.place.location

    def nearest(
        self,
        fingerprint: str,
        question: NDArray[np.float32],
        limit: int,
        contents: Sequence[ContentKey] | None = None,
    ) -> list[tuple[ContentKey, int]]:
        """As `VectorHome.nearest`, on the caller's thread. Where it failed, it is left alone for a while."""
        if time.monotonic() < self._left_alone_until:
            raise MirrorAway("Qdrant was away a moment ago")
        try:
            qdrant = self._qdrant or self._thread.submit(self._open).result()
            return qdrant.nearest(fingerprint, question, limit, contents)
        except MirrorError:
            self._left_alone_until = time.monotonic() + LEFT_ALONE
            raise

    def _open(self) -> Qdrant:
        qdrant = self._qdrant or Qdrant.open(self.place)
        self._qdrant = qdrant
        return qdrant

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what talks to Qdrant on the thread that does so. Nothing of it goes on when this is over."""
        bound = functools.partial(function, *args, **kwargs)
        future = asyncio.get_running_loop().run_in_executor(self._thread, bound)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # Else it could write over what another process delivers after a change.
            if self._qdrant is not None:
                self._qdrant.given_up = True
            await asyncio.wait([future])
            raise

    async def deliver(self, *, at_once: bool = False, told: Callable[[Delivered], None] = lambda _: None) -> Delivered:
        """Deliver until nothing is owed that is due, or Qdrant is away; another process that is at it is left to it.

        at_once: also what is to be tried later only. told: called after each part, with what it came to so far.

        Raises:
            StoreError: the database cannot be used.
        """
        done = Delivered()
        mirror = await self._registered()
        if at_once:
            await self.store.write(outbox.due_now)
        # A time that is further away than any wait was noted by a clock that was ahead.
        elif (mirror.due_at and dt.timedelta() < mirror.due_at - utc_now() <= LONGEST_WAIT) or not await self._anything(
            mirror
        ):
            return done
        async with self._alone() as mine:
            done.busy = not mine
            try:
                if mine:
                    await self._delivery(await self.connect(), done, told).deliver()
            except MirrorError as error:
                done.error = str(error)
                # By chance a little less, so that hosts that share a server do not come back together.
                delay = min(retry_delay(mirror.attempts, random.random()), LONGEST_WAIT)  # noqa: S311
                await self.store.write(outbox.note_away, done.error, utc_now() + delay)
                log.warning("Qdrant cannot be used, and what it is owed waits", error=done.error)
        return done

    async def disagreements(self, most: int = MOST_LISTED) -> list[PointDisagreement]:
        """Where Qdrant and the database disagree, except for what is owed; `most` of them at most.

        Raises:
            MirrorError: Qdrant cannot be asked, or another process delivers.
            StoreError: the database cannot be used.
        """
        qdrant = await self.connect()

        def look() -> list[PointDisagreement]:
            with self.store.snapshot() as session:
                return list(itertools.islice(compare(session, qdrant), most))

        async with self._alone() as mine:
            if not mine:
                raise MirrorAway("another process delivers to Qdrant just now")
            await self._delivery(qdrant).note_held()
            return await self.call(look)

    async def repair(self, found: Sequence[PointDisagreement]) -> Delivered:
        """Bring in line what was found to disagree.

        Raises:
            MirrorError, StoreError: as `disagreements`.
        """
        qdrant = await self.connect()
        foreign = await self.store.write(repair, found)
        for fingerprint, points in itertools.groupby(foreign, lambda one: one[0]):
            await self.call(qdrant.delete, fingerprint, [point for _, point in points])
        return await self.deliver(at_once=True)

    def _delivery(
        self, qdrant: Qdrant, done: Delivered | None = None, told: Callable[[Delivered], None] = lambda _: None
    ) -> Delivery:
        qdrant.given_up = False
        return Delivery(self.store, qdrant, self.call, done or Delivered(), told)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[bool]:
        manager = alone(self.store)
        entering = asyncio.ensure_future(asyncio.to_thread(manager.__enter__))
        try:
            yield await asyncio.shield(entering)
        finally:
            # Whoever was cancelled holds nothing on: the last delivery of a run comes right after that.
            await asyncio.wait([entering])
            if entering.exception() is None:
                await asyncio.to_thread(manager.__exit__, None, None, None)

    async def _registered(self) -> outbox.Mirror:
        mirror = await self.store.read(outbox.find_mirror)
        while mirror is None or mirror.location != self.place.location:
            await self.store.write(outbox.register, self.place.location, utc_now())
            mirror = await self.store.read(outbox.find_mirror)
            log.info("Qdrant is to hold what search sees", location=self.place.location)
        return mirror

    async def _anything(self, mirror: outbox.Mirror) -> bool:
        """Whether there is something to do: also what nobody owes, such as to move the alias."""
        if mirror.looked_at is None or mirror.error is not None:
            return True
        active = await self.store.read(models.active_model)
        return (active is not None and active.fingerprint != mirror.shown) or await self.store.read(
            outbox.owes, utc_now()
        )
