"""The models that embeddings belong to, and the one that search uses."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.store.contents import drop_unused, promotable
from pipeline.store.tables import ContentRow, DocumentRow, ModelRow


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model as the database knows it."""

    id: int
    fingerprint: str
    name: str
    path: str
    dimension: int
    active: bool


@dataclass(frozen=True, slots=True)
class Target:
    """What a run makes of documents: vectors of a model, from chunks cut by a recipe."""

    model_id: int
    recipe: str


def known_fingerprints(session: Session) -> dict[tuple[str, int, int], str]:
    """Fingerprints by (path, size, mtime_ns) of the file, so that a big file is hashed once."""
    rows = session.execute(sa.select(ModelRow.path, ModelRow.size, ModelRow.mtime_ns, ModelRow.fingerprint))
    # One with a colon names a pooling too, and is no hash of a file.
    return {(path, size, mtime): print_ for path, size, mtime, print_ in rows if ":" not in print_}


def ensure_model(
    session: Session,
    *,
    fingerprint: str,
    name: str,
    path: str,
    size: int,
    mtime_ns: int,
    dimension: int,
    now: dt.datetime,
) -> StoredModel:
    """The model with this fingerprint, noted with where it lies now. The first one ever becomes active."""
    row = session.scalar(sa.select(ModelRow).where(ModelRow.fingerprint == fingerprint))
    if row is None:
        active = session.scalar(sa.select(sa.func.count()).select_from(ModelRow).where(ModelRow.active)) == 0
        row = ModelRow(fingerprint=fingerprint, created_at=now, active=active, dimension=dimension)
        session.add(row)
    row.name, row.path, row.size, row.mtime_ns, row.dimension = name, path, size, mtime_ns, dimension
    session.flush()
    return _plain(row)


def active_model(session: Session) -> StoredModel | None:
    """The model that search uses, or None while there is none."""
    row = session.scalar(sa.select(ModelRow).where(ModelRow.active))
    return None if row is None else _plain(row)


def activate_when_complete(session: Session, target: Target) -> bool:
    """Move search over to the target's model in one step, once every document has been through it.

    At once where the active model has made nothing that could be searched.

    Returns whether search moved. The old model's contents stay, so that moving back costs nothing.
    """
    model = session.get_one(ModelRow, target.model_id)
    if model.active:
        return False
    searched = (
        sa.select(sa.func.count())
        .select_from(DocumentRow)
        .join(ContentRow, ContentRow.id == DocumentRow.current_id)
        .join(ModelRow, ModelRow.id == ContentRow.model_id)
        .where(ModelRow.active, ContentRow.embedded_count > 0)
    )
    if session.scalar(searched) and _waiting(session, target):
        return False
    session.execute(sa.update(ModelRow).values(active=ModelRow.id == target.model_id))
    session.expire_all()
    ready = sa.select(ContentRow.id).where(ContentRow.model_id == target.model_id, promotable())
    session.execute(
        sa.update(DocumentRow)
        .where(DocumentRow.pending_id.in_(ready))
        .values(current_id=DocumentRow.pending_id, pending_id=None)
    )
    drop_unused(session)
    return True


def _waiting(session: Session, target: Target) -> bool:
    """Whether a document has not been through the target's model yet."""
    effective = sa.func.coalesce(DocumentRow.pending_id, DocumentRow.current_id)
    waiting = (
        sa.select(sa.func.count())
        .select_from(DocumentRow)
        .outerjoin(ContentRow, ContentRow.id == effective)
        .where(
            DocumentRow.problem.is_(None),
            sa.or_(
                ContentRow.id.is_(None),
                ContentRow.model_id != target.model_id,
                ContentRow.state.in_([DocumentState.DISCOVERED, DocumentState.EXTRACTED]),
            ),
        )
    )
    return bool(session.scalar(waiting))


def _plain(row: ModelRow) -> StoredModel:
    return StoredModel(row.id, row.fingerprint, row.name, row.path, row.dimension, row.active)
