"""The embedding engine's counters over all its servers, for the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from pipeline.backends.served import Served
from pipeline.core.engine_stats import EngineStats, RunningTotal
from pipeline.core.errors import BackendError

PATIENCE = 2.0
"""Seconds: a server that is slow to say what it counted is asked another time."""


@dataclass(slots=True)
class EngineCounters:
    """total: up to the last look. tokens_per_second: between the last two looks; 0 where nobody computes."""

    total: RunningTotal = field(default_factory=RunningTotal)
    tokens_per_second: float = 0.0
    _looked_at: float | None = None
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def look(self, server: Served | None) -> EngineStats:
        """Ask the server that runs, if one does; everything that was counted since the daemon began."""
        async with self._looking:
            stats = None
            if server is not None:
                with contextlib.suppress(BackendError, TimeoutError):
                    async with asyncio.timeout(PATIENCE):
                        stats = await server.embedder.stats()
            now, before = time.monotonic(), self.total.total.tokens
            if stats is None:
                self.tokens_per_second, self._looked_at = 0.0, None
                return self.total.idle().total
            assert server is not None
            self.total = self.total.seen((server.pid, id(server)), stats)
            done = self.total.total.tokens - before
            if self._looked_at is not None and now > self._looked_at:
                self.tokens_per_second = done / (now - self._looked_at)
            self._looked_at = now
            return self.total.total
