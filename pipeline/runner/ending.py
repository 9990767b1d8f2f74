"""How a run is put on record: its outcome, what it measured and its report, in one transaction; then the files."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from sqlalchemy.orm import Session

from pipeline.backends.gpus import build_of
from pipeline.core.errors import StoreError
from pipeline.core.schedule import Job
from pipeline.ingest.progress import Progress
from pipeline.ingest.work import utc_now
from pipeline.runner.counting import Counted
from pipeline.runner.forecast import Timing, make_plan
from pipeline.runner.morning import Facts, make_report
from pipeline.runner.untold import keep_as_files
from pipeline.settings import Settings
from pipeline.store import reports, runs
from pipeline.store.database import Database
from pipeline.store.runs import Measured

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Ending:
    """What is known of a run for its record, filled while it goes on.

    jobs: the schedule, for the forecast; None where there is none to look at.
    fingerprint, model, device: what is embedded with, and where, once that is known.
    told: what the model server said about itself. unused_gpu: a GPU that it was built without, in words.
    until: the end of the job's window, once it is known that the run ended because its time was over.
    cut_off: that in words, once it is reported.
    interrupted: earlier runs that died.
    engine: what the engine counted meanwhile.
    """

    run_id: str
    settings: Settings
    progress: Progress
    task: str = "ingest"
    job: str | None = None
    sources: Sequence[str] = ()
    jobs: Sequence[Job] | None = None
    timing: Timing = field(default_factory=Timing)
    fingerprint: str | None = None
    model: str | None = None
    device: Callable[[], str | None] = lambda: None
    told: Mapping[str, Any] = field(default_factory=dict)
    unused_gpu: str | None = None
    until: dt.datetime | None = None
    cut_off: str | None = None
    interrupted: Sequence[tuple[str, dt.datetime]] = ()
    engine: Counted = field(default_factory=Counted)
    started_at: dt.datetime = field(default_factory=utc_now)
    _began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    def measured(self) -> Measured:
        """What the run has done so far, for its row."""
        meter = self.progress.meter
        return Measured(
            documents_read=meter.documents,
            documents_done=self.progress.documents_done,
            pages_read=meter.pages,
            characters=meter.characters,
            tokens_embedded=meter.tokens,
            extract_seconds=meter.reading.seconds,
            embed_seconds=meter.embedding.seconds,
            request_seconds=meter.slowest_request,
            fingerprint=self.fingerprint if meter.tokens else None,
            device=self.device() if meter.tokens else None,
        )

    async def end(self, store: Database, outcome: str, errors: Sequence[str]) -> None:
        """End the run in the database, with its report, and write the report's files.

        Raises StoreError where not even the end can be noted; without its report a run ends all the same.
        """
        now, measured, report = utc_now(), self.measured(), None
        try:
            # First, so that the plan knows what this run measured.
            await store.write(runs.heartbeat, self.run_id, now, measured)
            report = await store.read(self._report, outcome, errors, now)
        except StoreError as error:
            log.warning("the report could not be made", run=self.run_id, error=str(error))
        self.cut_off = None if report is None else report["cut_off"]
        await store.write(self._end, outcome, errors, now, measured, report)
        if report is not None:
            await keep_as_files(self.settings, report, now)

    def _end(
        self,
        session: Session,
        outcome: str,
        errors: Sequence[str],
        now: dt.datetime,
        measured: Measured,
        report: dict[str, Any] | None,
    ) -> None:
        runs.finish_run(session, self.run_id, outcome, "; ".join(errors) or self.cut_off, now, measured)
        if report is not None:
            reports.save_report(session, self.run_id, report)

    def _report(self, session: Session, outcome: str, errors: Sequence[str], now: dt.datetime) -> dict[str, Any] | None:
        """None for a run that had nothing to do, unless those are wanted too."""
        facts = Facts(
            run_id=self.run_id,
            job=self.job,
            task=self.task,
            outcome=outcome,
            started_at=self.started_at,
            finished_at=now,
            seconds=self.seconds,
            progress=self.progress,
            errors=errors,
            interrupted=self.interrupted,
            plan=self._plan(session, outcome, now),
            model=self.model,
            device=self.device(),
            device_name=self.told.get("device"),
            build=build_of(self.told),
            unused_gpu=self.unused_gpu,
            sources=self.sources,
            until=self.until,
        )
        return None if facts.empty and not self.settings.report.empty else make_report(session, facts)

    def _plan(self, session: Session, outcome: str, now: dt.datetime) -> dict[str, Any] | None:
        """The forecast of what comes after this run: the window of its job is used up, unless it is tried again."""
        if self.jobs is None:
            return None
        over = {} if self.job is None or outcome == "failed" else {self.job: now}
        return make_plan(session, self.jobs, now, replace(self.timing, finished=over)).as_json()
