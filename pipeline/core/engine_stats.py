"""What an embedding engine counts of its own work: plain values that add up, over contexts, servers and time.

A context is either computing a batch or waiting for one, so the two times together are those that it lived.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Self

FILL_BOUNDS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
"""Upper bounds of the histogram of how full batches are: 1 is the whole budget; a single long input may exceed it."""

_NO_FILLS = (0,) * (len(FILL_BOUNDS) + 1)


@dataclass(frozen=True, slots=True)
class ContextStats:
    """What one context did since its server started.

    fills: batches by their share of the token budget, one number for each of `FILL_BOUNDS` and one for
    what is above. fill_sum: of all these shares. computing, waiting: seconds.
    """

    batches: int = 0
    sequences: int = 0
    tokens: int = 0
    fills: tuple[int, ...] = _NO_FILLS
    fill_sum: float = 0.0
    computing: float = 0.0
    waiting: float = 0.0

    @property
    def fill(self) -> float | None:
        """How full a batch was on average, 1 for the whole budget; None without batches."""
        return self.fill_sum / self.batches if self.batches else None

    @property
    def waiting_share(self) -> float | None:
        """Of its time, how much went by without input (0 to 1); None where it has not lived yet."""
        lived = self.computing + self.waiting
        return self.waiting / lived if lived > 0 else None

    def with_batch(self, tokens: int, sequences: int, budget: int) -> ContextStats:
        """These, and one batch that was computed; its time is told apart from this."""
        share = tokens / budget
        place = bisect_left(FILL_BOUNDS, share)
        return ContextStats(
            self.batches + 1,
            self.sequences + sequences,
            self.tokens + tokens,
            tuple(count + (number == place) for number, count in enumerate(self.fills)),
            self.fill_sum + share,
            self.computing,
            self.waiting,
        )

    def plus(self, other: ContextStats, sign: int = 1) -> ContextStats:
        """The sum of both; with `sign` -1 the difference."""
        return ContextStats(
            self.batches + sign * other.batches,
            self.sequences + sign * other.sequences,
            self.tokens + sign * other.tokens,
            tuple(one + sign * two for one, two in zip(self.fills, other.fills, strict=True)),
            self.fill_sum + sign * other.fill_sum,
            self.computing + sign * other.computing,
            self.waiting + sign * other.waiting,
        )


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What all contexts of one engine did. budget: tokens of a full batch. queued_*: what waits for a context now.

    whole: long texts and stretches, each in a context of its own; several are computed side by side, so that its
    seconds are those of all of them, and none are spent waiting.
    """

    contexts: tuple[ContextStats, ...] = ()
    budget: int = 0
    queued_tokens: int = 0
    queued_requests: int = 0
    whole: ContextStats = ContextStats()
    partial: float = 0.0
    """Tokens of the batches under way that count as computed, by how far each batch has come."""

    @property
    def tokens(self) -> int:
        """Everything that was computed, packed into batches or by itself."""
        return self.total.tokens + self.whole.tokens

    @property
    def computed(self) -> float:
        """Tokens computed so far, with the part of the batches under way. It moves as long as the engine works."""
        return self.tokens + self.partial

    @property
    def total(self) -> ContextStats:
        """Of all contexts together, without what was computed by itself."""
        whole = ContextStats()
        for context in self.contexts:
            whole = whole.plus(context)
        return whole

    def plus(self, other: EngineStats) -> EngineStats:
        """The counters of both, context by context; budget and queue are those of `other`."""
        pairs = zip_longest(self.contexts, other.contexts, fillvalue=ContextStats())
        return replace(other, contexts=tuple(one.plus(two) for one, two in pairs), whole=self.whole.plus(other.whole))

    def follows(self, before: EngineStats) -> bool:
        """Whether these can be later counters of the same engine: of as many contexts, and none went down."""
        return len(before.contexts) == len(self.contexts) and all(
            now.batches >= then.batches and now.tokens >= then.tokens
            for now, then in zip((*self.contexts, self.whole), (*before.contexts, before.whole), strict=True)
        )

    def since(self, before: EngineStats) -> EngineStats:
        """What was done since `before`; everything where that was another engine."""
        if not self.follows(before):
            return self
        pairs = zip(self.contexts, before.contexts, strict=True)
        contexts = tuple(now.plus(then, -1) for now, then in pairs)
        return replace(self, contexts=contexts, whole=self.whole.plus(before.whole, -1))

    def as_json(self) -> dict[str, Any]:
        """The object that a server answers with."""
        return {
            "budget": self.budget,
            "queued_tokens": self.queued_tokens,
            "queued_requests": self.queued_requests,
            "partial_tokens": round(self.partial, 3),
            "fill_bounds": list(FILL_BOUNDS),
            "contexts": [_told(one) for one in self.contexts],
            "whole": _told(self.whole),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """The counters in a server's answer. Raises ValueError, KeyError or TypeError where it makes no sense."""
        return cls(
            tuple(_context(one) for one in told["contexts"]),
            int(told["budget"]),
            int(told["queued_tokens"]),
            int(told["queued_requests"]),
            _context(told["whole"]) if "whole" in told else ContextStats(),
            float(told.get("partial_tokens", 0.0)),
        )


@dataclass(frozen=True, slots=True)
class RunningTotal:
    """Counters that go on over the restarts of a server: they never go down.

    done: of the servers that are gone. last: of the one that lives, as it said last, and `server`
    which one that was.
    """

    done: EngineStats = EngineStats()
    last: EngineStats = EngineStats()
    server: object = None

    def seen(self, server: object, stats: EngineStats) -> RunningTotal:
        """After a look at a server."""
        goes_on = server == self.server and stats.follows(self.last)
        return RunningTotal(self.done if goes_on else self.total, stats, server)

    def idle(self) -> RunningTotal:
        """The same while no server lives: nothing waits in a queue then."""
        return replace(self, last=replace(self.last, queued_tokens=0, queued_requests=0, partial=0.0))

    @property
    def total(self) -> EngineStats:
        """Everything up to the last look."""
        return self.done.plus(self.last)


def _told(one: ContextStats) -> dict[str, Any]:
    return {
        "batches": one.batches,
        "sequences": one.sequences,
        "tokens": one.tokens,
        "fills": list(one.fills),
        "fill_sum": one.fill_sum,
        "computing_seconds": one.computing,
        "waiting_seconds": one.waiting,
    }


def _context(told: Mapping[str, Any]) -> ContextStats:
    fills = tuple(int(count) for count in told["fills"])
    if len(fills) != len(_NO_FILLS):
        raise ValueError(f"{len(fills)} counts are not {len(_NO_FILLS)}")
    return ContextStats(
        int(told["batches"]),
        int(told["sequences"]),
        int(told["tokens"]),
        fills,
        float(told["fill_sum"]),
        float(told["computing_seconds"]),
        float(told["waiting_seconds"]),
    )
