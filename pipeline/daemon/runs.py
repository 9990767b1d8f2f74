"""The runs of a daemon: one at a time, with the embedding slot's server, for a job or for a person."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog

from pipeline.core.errors import NightshiftError, StoreError
from pipeline.core.shift import Task
from pipeline.ingest.embedding import Embedder
from pipeline.ingest.progress import Progress
from pipeline.ingest.work import utc_now
from pipeline.runner.run import Run, carry_out, new_run_id
from pipeline.settings import Settings
from pipeline.store import jobs
from pipeline.store.database import Database

log = structlog.get_logger(__name__)

FAILED_KEPT = 50

REST_SECONDS = 30.0
"""Between a run that failed and the next try at a job's task: what failed may need a moment."""

CUT_OFF_SECONDS = 10.0

Origin = Literal["person", "texts", "job"]


@dataclass(slots=True)
class ActiveRun:
    """A run at work. task: the job's that it is for, None for a person's or for texts."""

    id: str
    task: Task | None
    origin: Origin
    progress: Progress
    stop: asyncio.Event
    work: asyncio.Task[None]
    by_hand: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A run that a person asked for and that waits for its turn. paths: None is the inbox and all that waits."""

    id: str
    paths: Sequence[Path] | None
    origin: Literal["person", "texts"] = "person"


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A run that ended with an error, perhaps before it had a row."""

    at: dt.datetime
    error: str


@dataclass(slots=True)
class Runs:
    """Begins runs when it is told to, and knows the one at work.

    changed: called when one begins or ends. on_end: told each outcome and how many chunks it embedded.
    """

    settings: Settings
    store: Database
    changed: Callable[[], None]
    active: ActiveRun | None = None
    asked: deque[Asked] = field(default_factory=deque)
    clock: Callable[[], dt.datetime] = utc_now
    on_end: Callable[[str, int], None] = lambda outcome, chunks: None
    failed: dict[str, FailedRun] = field(default_factory=dict)
    _last: Origin | None = None
    _rest_until: float = 0.0

    def ask(self, paths: Sequence[Path] | None, origin: Literal["person", "texts"] = "person") -> str:
        """Queue a person's run; returns its id."""
        asked = Asked(new_run_id(), paths, origin)
        self.asked.append(asked)
        self.changed()
        return asked.id

    def start(self, embedder: Embedder, task: Task | None) -> bool:
        """Begin what was asked for first, else the task; whether anything was begun."""
        if self.active is not None:
            return False
        # Texts go before a job's long run, but a stream of them must not keep it from ever beginning.
        starved = task is not None and self._last == "texts" and self._only_texts
        if self.asked and not starved:
            asked = self.asked.popleft()
            self._begin(asked.id, asked.paths, embedder, None, asked.origin)
            return True
        if task is not None and asyncio.get_running_loop().time() >= self._rest_until:
            sources = [Path(source) for source in task.job.sources] or None
            self._begin(new_run_id(), sources, embedder, task, "job")
            return True
        return False

    def refuse(self, why: str) -> None:
        """Fail what was asked for, and say why: nothing can do it."""
        for asked in list(self.asked):
            if asked.origin == "person":
                self.asked.remove(asked)
                self._fail(asked.id, why)

    def stop(self, *, by_hand: bool = False) -> bool:
        """Have the run at work store its batches in flight and end; whether there is one.

        by_hand: a person wants it, and a job's task is then done with for its window.
        """
        if self.active is None:
            return False
        self.active.by_hand = self.active.by_hand or by_hand
        self.active.stop.set()
        return True

    async def ended_within(self, seconds: float) -> None:
        """Wait until no run is at work; after so many seconds it is cut off, which loses its batches in flight."""
        try:
            async with asyncio.timeout(seconds):
                await self.ended()
        except TimeoutError:
            if self.active is not None:
                log.warning("a run did not end in time and is cut off", run=self.active.id)
                self.active.work.cancel()
                await asyncio.wait([self.active.work], timeout=CUT_OFF_SECONDS)

    @property
    def wanted_by_a_person(self) -> bool:
        """Whether somebody waits for a run. Texts wait until the mode serves them anyway."""
        at_work = self.active is not None and self.active.origin == "person"
        return at_work or any(asked.origin == "person" for asked in self.asked)

    @property
    def _only_texts(self) -> bool:
        return all(asked.origin == "texts" for asked in self.asked)

    async def ended(self) -> None:
        """Wait until no run is at work."""
        while self.active is not None:
            await asyncio.wait([self.active.work])

    def _begin(
        self,
        run_id: str,
        paths: Sequence[Path] | None,
        embedder: Embedder,
        task: Task | None,
        origin: Origin,
    ) -> None:
        progress, stop = Progress(started_monotonic=time.monotonic()), asyncio.Event()
        run = Run(self.settings, self.store, paths, progress, stop, embedder, id=run_id, task=task)
        work = asyncio.create_task(self._work(run, task), name=f"run {run_id}")
        self.active = ActiveRun(run_id, task, origin, progress, stop, work)
        self.changed()

    async def _work(self, run: Run, task: Task | None) -> None:
        outcome = "failed"
        try:
            if task is not None:
                await self.store.write(jobs.note_started, task.job.name, utc_now(), window_start=task.window.start)
            report = await carry_out(run)
            outcome = report.outcome
            log.info("a run ended", run=run.id, outcome=outcome, chunks=report.chunks_embedded, errors=report.errors)
        except NightshiftError as error:
            log.error("a run failed", run=run.id, error=str(error))
            self._fail(run.id, str(error))
        finally:
            if task is not None:
                await self._note_finished(task, outcome)
            self.on_end(outcome, run.progress.chunks_done)
            if outcome == "failed":
                self._rest_until = asyncio.get_running_loop().time() + REST_SECONDS
            self._last, self.active = None if self.active is None else self.active.origin, None
            self.changed()

    def _fail(self, run_id: str, why: str) -> None:
        self.failed[run_id] = FailedRun(utc_now(), why)
        while len(self.failed) > FAILED_KEPT:
            self.failed.pop(next(iter(self.failed)))

    async def _note_finished(self, task: Task, outcome: str) -> None:
        # Stopped at the end of its time, it has had its window: what is left is the next one's.
        by_hand = self.active is not None and self.active.by_hand
        in_time = outcome == "stopped" and (by_hand or self.clock() >= task.stop_at - dt.timedelta(seconds=1))
        try:
            await self.store.write(
                jobs.note_finished, task.job.name, outcome, utc_now(), done=outcome == "complete" or in_time
            )
        except StoreError as error:
            log.error("a job's end could not be noted", job=task.job.name, error=str(error))
