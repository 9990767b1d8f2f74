"""What `tune` measured: the best options for a model on a device, by one build of an engine."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.store.tables import ChunkRow, ContentRow, ModelRow, TuningRow

SAMPLE_PLACES = 64
"""Places in the table of chunks that a sample is taken from: one document is not like the others."""


@dataclass(frozen=True, slots=True)
class StoredTuning:
    """The best options, and how they were found.

    fingerprint: of the model, as `models.fingerprint`. device, build: as the engine's server names them.
    options: over the defaults; empty where the defaults are the best. trials: each an object with
    `options`, `tokens_per_second` (all measurements of it) and `problem` (why there is none).
    """

    fingerprint: str
    device: str
    build: str
    engine: str
    options: Mapping[str, Any]
    tokens_per_second: float
    trials: Sequence[Mapping[str, Any]]
    measured_at: dt.datetime


def keep_tuning(session: Session, tuning: StoredTuning) -> None:
    """Keep a tuning in place of the one before for the same model, device, build and engine."""
    key = (tuning.fingerprint, tuning.device, tuning.build, tuning.engine)
    row = session.get(TuningRow, key)
    if row is None:
        row = TuningRow(fingerprint=key[0], device=key[1], build=key[2], engine=key[3])
        session.add(row)
    row.options, row.trials = dict(tuning.options), [dict(trial) for trial in tuning.trials]
    row.tokens_per_second, row.measured_at = tuning.tokens_per_second, tuning.measured_at
    session.flush()


def tunings_of(session: Session, fingerprint: str) -> list[StoredTuning]:
    """All that are kept for a model, the last measured first."""
    wanted = sa.select(TuningRow).where(TuningRow.fingerprint == fingerprint)
    return [_plain(row) for row in session.scalars(wanted.order_by(TuningRow.measured_at.desc(), TuningRow.engine))]


def all_tunings(session: Session) -> list[tuple[str | None, StoredTuning]]:
    """All that are kept, each with the name of its model where that is known; those measured last first."""
    found = session.execute(
        sa.select(ModelRow.name, TuningRow)
        .join(ModelRow, ModelRow.fingerprint == TuningRow.fingerprint, isouter=True)
        .select_from(TuningRow)
        .order_by(TuningRow.measured_at.desc(), TuningRow.engine)
    )
    return [(name, _plain(row)) for name, row in found]


def forget_tunings(session: Session, fingerprint: str) -> int:
    """Drop all that are kept for a model; returns how many there were."""
    done = session.execute(sa.delete(TuningRow).where(TuningRow.fingerprint == fingerprint))
    return int(getattr(done, "rowcount", 0))


def sample_texts(session: Session, model_id: int, most: int) -> list[str]:
    """Texts of up to `most` chunks of a model's contents, from places all over the table."""
    first, last = session.execute(sa.select(sa.func.min(ChunkRow.id), sa.func.max(ChunkRow.id))).one()
    if first is None:
        return []
    found: dict[int, str] = {}
    each = -(-most // SAMPLE_PLACES)
    for place in range(SAMPLE_PLACES):
        start = first + (last - first) * place // SAMPLE_PLACES
        rows = session.execute(
            sa.select(ChunkRow.id, ChunkRow.text)
            .join(ContentRow, ContentRow.id == ChunkRow.content_id)
            .where(ChunkRow.id >= start, ContentRow.model_id == model_id, ChunkRow.error.is_(None))
            .order_by(ChunkRow.id)
            .limit(each)
        )
        found.update((row.id, row.text) for row in rows)
    return list(found.values())[:most]


def _plain(row: TuningRow) -> StoredTuning:
    return StoredTuning(
        row.fingerprint,
        row.device,
        row.build,
        row.engine,
        row.options,
        row.tokens_per_second,
        row.trials,
        row.measured_at,
    )
