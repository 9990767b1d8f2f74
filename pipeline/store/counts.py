"""Documents and chunks as they are counted: however many there are, the answer takes the same time on SQLite.

The database itself keeps these counts, in the transaction that changes a row (see migration 0006): tables with
triggers on SQLite, views that count when they are asked on PostgreSQL.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.store.tables import ModelRow

_counts = sa.table(
    "document_counts",
    sa.column("source_id", sa.Integer),
    sa.column("unreadable", sa.Boolean),
    sa.column("state", sa.String),
    sa.column("pending_model_id", sa.Integer),
    sa.column("pending_useful", sa.Boolean),
    sa.column("current_model_id", sa.Integer),
    sa.column("documents", sa.Integer),
).c
"""Documents by source and by what they have. The state is that of what a document waits for, else of what it has; a
model is 0 where there is none; what is pending is useful where search could find something of it."""

_chunks = sa.table("chunk_counts", sa.column("chunks", sa.Integer), sa.column("embedded", sa.Integer)).c

_sum = sa.func.coalesce(sa.func.sum(_counts.documents), 0)
_model_id = sa.case((_counts.pending_model_id != 0, _counts.pending_model_id), else_=_counts.current_model_id)


def by_state(session: Session) -> dict[str, int]:
    """Documents by their state; one whose file cannot be read has failed."""
    state = sa.case((_counts.unreadable, DocumentState.FAILED.value), else_=_counts.state)
    return {str(name): int(number) for name, number in session.execute(sa.select(state, _sum).group_by(state))}


def by_source(session: Session) -> dict[int, int]:
    """Documents by the id of their source; a source without documents may be missing."""
    query = sa.select(_counts.source_id, _sum).group_by(_counts.source_id)
    return {int(source_id): int(number) for source_id, number in session.execute(query)}


def chunks(session: Session) -> tuple[int, int]:
    """Chunks of all documents, and those with a vector; those of copies count once."""
    total, embedded = session.execute(sa.select(_chunks.chunks, _chunks.embedded)).one()
    return int(total), int(embedded)


def awaited_models(session: Session) -> set[int]:
    """The models whose vectors documents wait for."""
    query = sa.select(_counts.pending_model_id).where(_counts.pending_model_id != 0, _counts.documents > 0)
    return set(session.scalars(query.distinct()))


def waiting_for(session: Session, model_id: int) -> int:
    """Documents that have not been through a model; those that cannot even be read do not count."""
    on_their_way = _counts.state.in_([DocumentState.DISCOVERED, DocumentState.EXTRACTED])
    missing = sa.and_(~_counts.unreadable, sa.or_(_model_id != model_id, on_their_way))
    return int(session.scalar(sa.select(_sum).where(missing)) or 0)


def unsearched(session: Session) -> int:
    """Documents that were embedded by another model than the active one, and are found once search moves."""
    active = sa.select(ModelRow.id).where(ModelRow.active)
    return int(
        session.scalar(
            sa.select(_sum).where(
                _counts.pending_useful, _counts.pending_model_id.not_in(active), _counts.current_model_id.not_in(active)
            )
        )
        or 0
    )
