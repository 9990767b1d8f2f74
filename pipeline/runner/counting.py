"""What the engine counted while a run used it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.backends.embedder import ServerEmbedder
from pipeline.core.engine_stats import EngineStats
from pipeline.core.errors import BackendError


@dataclass(slots=True)
class Counted:
    """stats: since the block began; None where the engine computed nothing, or counts nothing."""

    stats: EngineStats | None = None

    def as_json(self) -> dict[str, Any] | None:
        """For the report of a run: how full the batches were, and how much of its time the engine had no input.

        whole: long texts and stretches, which are computed beside the contexts.
        """
        if self.stats is None:
            return None
        total = self.stats.total
        rate = total.tokens / total.computing * len(self.stats.contexts) if total.computing else None
        return {
            "contexts": len(self.stats.contexts),
            "batches": total.batches,
            "tokens": total.tokens,
            "tokens_per_second": rate and round(rate, 1),
            "fill": total.fill and round(total.fill, 4),
            "waiting_share": None if total.waiting_share is None else round(total.waiting_share, 4),
            "whole": {
                "texts": self.stats.whole.sequences,
                "tokens": self.stats.whole.tokens,
                "seconds": round(self.stats.whole.computing, 3),
            },
        }


@asynccontextmanager
async def engine_counted(embedder: object) -> AsyncIterator[Counted]:
    """Look at the engine's counters before and after the block; a server that does not answer is no error here."""
    counted = Counted()
    before = await _look(embedder)
    try:
        yield counted
    finally:
        after = await _look(embedder)
        if after is not None:
            done = after if before is None else after.since(before)
            counted.stats = done if done.tokens else None


async def _look(embedder: object) -> EngineStats | None:
    if isinstance(embedder, ServerEmbedder):
        with contextlib.suppress(BackendError):
            return await embedder.stats()
    return None
