"""How far a run has come. Written by the run alone; whoever shows it only reads."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pipeline.core.causes import Causes
from pipeline.ingest.meter import Meter

Phase = Literal["scanning", "working", "finishing"]

FAILURES_KEPT = 20
WINDOW_SECONDS = 30.0

SETTLING_SECONDS = 20.0
"""In about so long the estimate of the time that is left follows a change of what it is made from."""

FIRST_ESTIMATE = 5.0
"""Seconds of embedding before an estimate is made."""


class Failure(NamedTuple):
    """A document that gave nothing to search. state: as in the database. reason: for a person."""

    path: str
    state: str
    reason: str


@dataclass(slots=True)
class Changed:
    """Files of a scan: new, with other bytes than before, elsewhere than before, gone, and as they were.

    remade: documents to be made anew, whatever the scan found, because the model or the recipe is another one.
    """

    new: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    remade: int = 0


@dataclass(slots=True)
class Progress:
    """The counters of one run.

    started_monotonic: when it began, on the monotonic clock that every `now` here is read from, in seconds.
    documents_total: documents that this run has work for.
    documents_read: those whose chunks are known, and counted in `chunks_total`, or that failed.
    documents_done: those whose vectors are all stored.
    documents_failed: those that ended empty, encrypted or failed.
    chunks_done: chunks embedded and stored in this run, of `chunks_total` known so far.
    chunks_under_way: chunks that the model server has computed and not answered yet, by its own count; a fraction.
    chunks_reused: chunks that had a vector from before; they are not among those.
    current: the document last opened; empty once all are read.
    failures: the last few.
    resumed: an earlier run did a part of the documents, so that the counters here are of what was left.
    changes: what the folders held, compared with what was known.
    causes: all failures of this run, by their cause. meter: what it measured.
    unsettled: files that are still being written to, which a later run reads.
    waiting: why nothing goes on at the moment; empty where it does.
    """

    started_monotonic: float
    phase: Phase = "scanning"
    documents_total: int = 0
    documents_read: int = 0
    documents_done: int = 0
    documents_failed: int = 0
    chunks_total: int = 0
    chunks_done: int = 0
    chunks_under_way: float = 0.0
    chunks_reused: int = 0
    current: str = ""
    failures: deque[Failure] = field(default_factory=lambda: deque(maxlen=FAILURES_KEPT))
    resumed: bool = False
    changes: Changed = field(default_factory=Changed)
    causes: Causes = field(default_factory=Causes)
    meter: Meter = field(default_factory=Meter)
    unsettled: list[str] = field(default_factory=list)
    waiting: str = ""
    _marks: deque[tuple[float, float]] = field(default_factory=deque)
    _embedding_since: float | None = None
    _left: float | None = None
    _left_at: float = 0.0

    def document_read(self, chunks: int, *, reused: int = 0) -> None:
        """A document was cut into so many chunks that are yet to be embedded, and `reused` others."""
        self.documents_read += 1
        self.chunks_total += chunks
        self.chunks_reused += reused

    def document_failed(self, path: str, state: str, reason: str, *, was_read: bool = False) -> None:
        """A document ended without being embedded; `was_read` where its chunks had been counted."""
        self.documents_read += not was_read
        self.documents_failed += 1
        if self.current == path:
            self.current = ""
        self.failures.append(Failure(path, state, reason))
        self.causes.add(path, state, reason)

    def document_retried(self, path: str) -> None:
        """A document that had failed is tried once more."""
        self.documents_read -= 1
        self.documents_failed -= 1
        for failure in [failure for failure in self.failures if failure.path == path]:
            self.failures.remove(failure)

    def document_done(self) -> None:
        """A document's last vector was stored."""
        self.documents_done += 1

    @property
    def chunks_computed(self) -> float:
        """Chunks embedded in this run, and the part of those under way that is computed."""
        return self.chunks_done + self.chunks_under_way

    def chunks_embedded(self, count: int, now: float) -> None:
        """The vectors of so many more chunks were stored."""
        self.chunks_done += count
        # What was stored is no longer under way; the next tick says how much is.
        self.chunks_under_way = max(0.0, self.chunks_under_way - count)
        self._mark(now)

    def tick(self, now: float, chunks_under_way: float) -> None:
        """A second of embedding went by. chunks_under_way: as the field; what was shown once is not taken back."""
        if self._embedding_since is None:
            self._embedding_since = now
        seen = max((done for _, done in self._marks), default=0.0)
        self.chunks_under_way = max(chunks_under_way, seen - self.chunks_done)
        self._mark(now)
        self._estimate(now)

    def _mark(self, now: float) -> None:
        self._marks.append((now, self.chunks_computed))
        while len(self._marks) > 1 and self._marks[1][0] <= now - WINDOW_SECONDS:
            self._marks.popleft()

    def rate(self, now: float) -> float:
        """Chunks a second over the last half minute, or since the start where that is less; 0.0 before the first.

        The start is that of the embedding, where it is known: the load of a model is no slow chunk.
        """
        began = self.started_monotonic if self._embedding_since is None else self._embedding_since
        since, before = max(began, now - WINDOW_SECONDS), 0.0
        for moment, done in self._marks:
            if moment > since:
                break
            before = done
        return max(0.0, self.chunks_computed - before) / (now - since) if now > since else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Until all is embedded at the present rate, or None while nothing can be said.

        Documents that were not read yet are taken to have as many chunks as those that were. The estimate does not
        jump with what it is made from: it follows within some seconds.
        """
        if self._left is None:
            return None if self._embedding_since is not None else self._seconds_left(now)
        return max(0.0, self._left - (now - self._left_at))

    def _estimate(self, now: float) -> None:
        found, known_for = self._seconds_left(now), now - (self._embedding_since or now)
        if found is None or known_for < FIRST_ESTIMATE:
            return
        if self._left is not None:
            before = self._left - (now - self._left_at)
            settling = min(SETTLING_SECONDS, known_for / 2)
            found = before + (found - before) * (1 - math.exp((self._left_at - now) / settling))
        self._left, self._left_at = found, now

    def _seconds_left(self, now: float) -> float | None:
        rate = self.rate(now)
        if rate <= 0 or self.documents_read <= 0:
            return None
        expected = self.chunks_total * max(1.0, self.documents_total / self.documents_read)
        return max(0.0, expected - self.chunks_computed) / rate
