"""The runs of a daemon: one at a time, with the embedding slot's server, for a job or for a person."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import structlog

from pipeline.core.errors import NightshiftError, StoreError
from pipeline.core.schedule import Job
from pipeline.core.shift import Task
from pipeline.ingest.embedding import Embedder
from pipeline.ingest.progress import Progress
from pipeline.ingest.work import utc_now
from pipeline.runner.forecast import timing_of
from pipeline.runner.run import Run, carry_out, new_run_id
from pipeline.settings import Settings
from pipeline.store import jobs
from pipeline.store.database import Database

log = structlog.get_logger(__name__)

KEPT = 50
"""Runs of which what became of them is remembered."""

REST_SECONDS = 30.0
"""Between a run that failed and the next try at a job's task: what failed may need a moment."""

CUT_OFF_SECONDS = 10.0

T = TypeVar("T")

Origin = Literal["person", "texts", "job"]


@dataclass(slots=True)
class ActiveRun:
    """A run at work. task: the job's that it is for, None for a person's or for texts.

    reads_only: it needs no model, and makes room for a run that does.
    """

    id: str
    task: Task | None
    origin: Origin
    progress: Progress
    stop: asyncio.Event
    work: asyncio.Task[None]
    by_hand: bool = False
    reads_only: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A run that a person asked for and that waits for its turn.

    paths: None is the inbox and all that waits. confirm_deletions: the person said that many documents may be gone.
    reads_only: documents are only read.
    """

    id: str
    paths: Sequence[Path] | None
    origin: Literal["person", "texts"] = "person"
    confirm_deletions: bool = False
    reads_only: bool = False


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A run that ended with an error, perhaps before it had a row."""

    at: dt.datetime
    error: str


@dataclass(slots=True)
class Runs:
    """Begins runs when it is told to, and knows the one at work.

    changed: called when one begins or ends. on_end: told each outcome and how many chunks it embedded.
    read_jobs: the schedule, for the forecasts in the reports.
    results: what the last runs came to, as `run-now --json` says it.
    """

    settings: Settings
    store: Database
    changed: Callable[[], None]
    active: ActiveRun | None = None
    asked: deque[Asked] = field(default_factory=deque)
    clock: Callable[[], dt.datetime] = utc_now
    on_end: Callable[[str, int], None] = lambda outcome, chunks: None
    read_jobs: Callable[[], Sequence[Job]] = tuple
    failed: dict[str, FailedRun] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    _last: Origin | None = None
    _rest_until: float = 0.0

    def ask(
        self,
        paths: Sequence[Path] | None,
        origin: Literal["person", "texts"] = "person",
        *,
        confirm_deletions: bool = False,
        reads_only: bool = False,
    ) -> str:
        """Queue a person's run; returns its id."""
        asked = Asked(new_run_id(), paths, origin, confirm_deletions, reads_only)
        self.asked.append(asked)
        self.changed()
        return asked.id

    def start(self, embedder: Embedder, task: Task | None, device: str | None = None) -> bool:
        """Begin what was asked for first, else the task; whether anything was begun."""
        if self.active is not None:
            return False
        # Texts go before a job's long run, but a stream of them must not keep it from ever beginning.
        starved = task is not None and self._last == "texts" and self._only_texts
        if self.asked and not starved:
            self._begin_asked(self.asked.popleft(), embedder, device)
            return True
        if task is not None and asyncio.get_running_loop().time() >= self._rest_until:
            sources = [Path(source) for source in task.job.sources] or None
            self._begin(new_run_id(), sources, embedder, task, "job", device=device)
            return True
        return False

    def start_reading(self, task: Task | None) -> bool:
        """Begin what needs no model: what was asked for first, else the task; whether anything was begun."""
        if self.active is not None:
            return False
        asked = next((asked for asked in self.asked if asked.reads_only), None)
        if asked is not None:
            self.asked.remove(asked)
            self._begin_asked(asked, None, None)
            return True
        if task is not None and asyncio.get_running_loop().time() >= self._rest_until:
            sources = [Path(source) for source in task.job.sources] or None
            self._begin(new_run_id(), sources, None, task, "job", reads_only=True)
            return True
        return False

    def refuse(self, why: str, *, reading: bool = False) -> None:
        """Fail what was asked for, and say why: nothing can do it. reading: also what needs no model."""
        for asked in list(self.asked):
            if asked.origin == "person" and (reading or not asked.reads_only):
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
        """Whether somebody waits for a run with the model. Texts wait until the mode serves them anyway."""
        at_work = self.active is not None and self.active.origin == "person" and not self.active.reads_only
        return at_work or any(asked.origin == "person" and not asked.reads_only for asked in self.asked)

    @property
    def texts_wait(self) -> bool:
        """Whether texts wait for a run."""
        return any(asked.origin == "texts" for asked in self.asked)

    @property
    def _only_texts(self) -> bool:
        return all(asked.origin == "texts" for asked in self.asked)

    async def ended(self) -> None:
        """Wait until no run is at work."""
        while self.active is not None:
            await asyncio.wait([self.active.work])

    def _begin_asked(self, asked: Asked, embedder: Embedder | None, device: str | None) -> None:
        self._begin(
            asked.id,
            asked.paths,
            embedder,
            None,
            asked.origin,
            confirm_deletions=asked.confirm_deletions,
            reads_only=asked.reads_only,
            device=device,
        )

    def _begin(
        self,
        run_id: str,
        paths: Sequence[Path] | None,
        embedder: Embedder | None,
        task: Task | None,
        origin: Origin,
        *,
        confirm_deletions: bool = False,
        reads_only: bool = False,
        device: str | None = None,
    ) -> None:
        progress, stop = Progress(started_monotonic=time.monotonic()), asyncio.Event()
        run = Run(
            self.settings,
            self.store,
            paths,
            progress,
            stop,
            embedder,
            id=run_id,
            task=task,
            confirm_deletions=confirm_deletions,
            reads_only=reads_only,
            device=device,
            jobs=self.read_jobs(),
            clock=self.clock,
            timing=timing_of(self.settings),
        )
        work = asyncio.create_task(self._work(run, task), name=f"run {run_id}")
        self.active = ActiveRun(run_id, task, origin, progress, stop, work, reads_only=reads_only)
        self.changed()

    async def _work(self, run: Run, task: Task | None) -> None:
        outcome, out_of_time = "failed", False
        try:
            if task is not None:
                await self.store.write(jobs.note_started, task.job.name, self.clock(), window_start=task.window.start)
            report = await carry_out(run)
            outcome, out_of_time = report.outcome, report.out_of_time
            _keep(self.results, run.id, report.as_json())
            why = {"because": report.cut_off} if report.cut_off else {}
            log.info(
                "a run ended", run=run.id, outcome=outcome, chunks=report.chunks_embedded, errors=report.errors, **why
            )
        except NightshiftError as error:
            log.error("a run failed", run=run.id, error=str(error))
            self._fail(run.id, str(error))
        except asyncio.CancelledError:
            outcome = "stopped"  # we cut it off, which is no failure of its own
            raise
        finally:
            if task is not None:
                await self._note_finished(task, outcome, out_of_time=out_of_time)
            self.on_end(outcome, run.progress.chunks_done)
            if outcome == "failed":
                self._rest_until = asyncio.get_running_loop().time() + REST_SECONDS
            self._last, self.active = None if self.active is None else self.active.origin, None
            self.changed()

    def _fail(self, run_id: str, why: str) -> None:
        _keep(self.failed, run_id, FailedRun(utc_now(), why))

    async def _note_finished(self, task: Task, outcome: str, *, out_of_time: bool) -> None:
        # Stopped at the end of its time, it has had its window: what is left is the next one's.
        by_hand = self.active is not None and self.active.by_hand
        now = self.clock()
        at_the_end = out_of_time or now >= task.stop_at - dt.timedelta(seconds=1)
        in_time = outcome == "stopped" and (by_hand or at_the_end)
        try:
            done = outcome == "complete" or in_time
            await self.store.write(jobs.note_finished, task.job.name, outcome, now, done=done)
        except StoreError as error:
            log.error("a job's end could not be noted", job=task.job.name, error=str(error))


def _keep(kept: dict[str, T], run_id: str, what: T) -> None:
    kept[run_id] = what
    while len(kept) > KEPT:
        kept.pop(next(iter(kept)))
