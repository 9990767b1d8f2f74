"""The journal of switches, kept in the database. The database may be slow or away: a switch does not wait for it."""

from __future__ import annotations

import asyncio
import copy

import structlog
from sqlalchemy.orm import Session

from pipeline.core.errors import NightshiftError
from pipeline.ingest.work import utc_now
from pipeline.store import switches
from pipeline.store.database import Database
from pipeline.store.switches import Phase, SwitchOutcome, SwitchReason
from pipeline.switcher.record import SwitchRecord
from pipeline.web.metrics import Metrics

log = structlog.get_logger(__name__)

PATIENCE = 2.0
"""Seconds that a switch waits for the database before its first phase and after its last."""


class StoredJournal:
    """Writes each record as it grows, in order, beside the switch."""

    def __init__(self, store: Database, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._last: asyncio.Task[None] | None = None

    async def write(self, record: SwitchRecord) -> None:
        """Keep `record` as it is now. A database that is away costs the row, not the switch."""
        ended = record.outcome != "running"
        if ended:
            self._metrics.observe_switch(
                record.from_mode,
                record.to_mode,
                reason=record.reason,
                outcome=record.outcome,
                seconds=record.seconds,
                phases=record.phases,
            )
        now = copy.copy(record)
        now.phases = dict(record.phases)
        self._last = asyncio.create_task(self._write_after(self._last, record, now), name="journal")
        if ended or not record.phases:
            await asyncio.wait([self._last], timeout=PATIENCE)

    async def _write_after(self, before: asyncio.Task[None] | None, record: SwitchRecord, now: SwitchRecord) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            if record.row_id is None:
                record.row_id = await self._store.write(_begin, now)
            await self._store.write(_note, record.row_id, now)
        except NightshiftError as error:
            log.error("a switch could not be journalled", error=str(error))


def _begin(session: Session, record: SwitchRecord) -> int:
    return switches.begin_switch(
        session,
        record.from_mode,
        record.to_mode,
        SwitchReason(record.reason),
        record.started_at,
        detail=record.detail or None,
        device=record.device,
        memory_before=record.memory_before,
        pids_before=record.pids_before,
        in_flight=record.in_flight,
    )


def _note(session: Session, row_id: int, record: SwitchRecord) -> None:
    known = {"memory_after": record.memory_after, "pids_after": record.pids_after or None, "cut": record.cut}
    phases = {Phase(name): seconds for name, seconds in record.phases.items()}
    switches.note_progress(session, row_id, phases, **known)  # type: ignore[arg-type]  # of several types
    if record.outcome != "running":
        switches.end_switch(session, row_id, SwitchOutcome(record.outcome), utc_now(), error=record.error)
