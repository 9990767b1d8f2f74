"""Stores answers in groups: those that come while a commit is under way are stored by the next one, together.

Whoever embeds never waits for a commit, as long as few enough answers wait for theirs. Only that many can be
lost with the process, and they are computed again: what is not stored is still queued.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pipeline.ingest.work import Bell, utc_now
from pipeline.store.answers import Answer, store_answers
from pipeline.store.database import Database
from pipeline.store.queue import StoredBatch


class GroupWriter:
    """Stores answers in their order, as many in one transaction as there are.

    most: answers that may wait, those that are being stored among them.
    stored: called after each commit, with what it came to.
    """

    def __init__(self, store: Database, run_id: str, most: int, stored: Callable[[StoredBatch], None]) -> None:
        self._store = store
        self._run_id = run_id
        self._room = asyncio.Semaphore(most)
        self._stored = stored
        self._waiting: list[Answer] = []
        self._bell = Bell()

    async def add(self, answer: Answer) -> None:
        """Hand in an answer; waits while too many wait already."""
        await self._room.acquire()
        self._waiting.append(answer)
        self._bell.ring()

    def close(self) -> None:
        """Nothing more is handed in: `run` ends when all is stored."""
        self._bell.close()

    async def run(self) -> None:
        """Store what is handed in. Raises a StoreError where the database cannot be used."""
        while True:
            await self._bell.wait()
            group, self._waiting = self._waiting, []
            if group:
                self._stored(await self._store.write(store_answers, self._run_id, group, utc_now()))
                for _ in group:
                    self._room.release()
            elif self._bell.closed:
                return
