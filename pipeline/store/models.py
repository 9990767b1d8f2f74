"""The models that embeddings belong to, and the one that search uses."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from pipeline.core.documents import DocumentState
from pipeline.core.errors import ModelIncomplete
from pipeline.store import counts
from pipeline.store.contents import drop_unused, promotable
from pipeline.store.locks import transaction_lock
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
    transaction_lock(session, "models")
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


def every_model(session: Session) -> list[StoredModel]:
    """All models that there are, oldest first."""
    return [_plain(row) for row in session.scalars(sa.select(ModelRow).order_by(ModelRow.id))]


def activate_when_complete(session: Session, target: Target) -> bool:
    """Move search over to the target's model in one step, once every document has been through it.

    At once where the active model has made nothing that could be searched; not by itself where a person
    moved search away from it (see `choose`).

    Returns whether search moved. The old model's contents stay, so that moving back costs nothing.
    """
    model = session.get_one(ModelRow, target.model_id)
    if model.active or model.set_aside:
        return False
    if _anything_searched(session) and _waiting(session, target):
        return False
    _move_search(session, target.model_id)
    drop_unused(session)
    return True


def choose(session: Session, model_id: int, *, anyway: bool = False) -> int:
    """Move search over to a model in one step, because a person wants it.

    It stays there: search does not move back by itself to the model that it moved away from.

    anyway: even where documents have not been through it; search does not find those until they have.
    Returns how many these are.

    Raises:
        ModelIncomplete: there are some, and not `anyway`. Nothing was changed.
    """
    session.execute(sa.select(ModelRow.id).order_by(ModelRow.id).with_for_update())  # two that choose take turns
    model = session.get_one(ModelRow, model_id)
    missing = count_missing(session, model_id)
    if model.active:
        return missing
    if missing and not anyway:
        raise ModelIncomplete(model.name, missing)
    session.execute(sa.update(ModelRow).where(ModelRow.active).values(set_aside=True))
    session.execute(sa.update(ModelRow).where(ModelRow.id == model_id).values(set_aside=False))
    _move_search(session, model_id)
    return missing


def count_missing(session: Session, model_id: int) -> int:
    """How many documents have not been through a model as they are now; those that cannot be read do not count."""
    through = sa.exists().where(*_made_of_it(model_id), ContentRow.state.not_in(_ON_THEIR_WAY))
    query = sa.select(sa.func.count()).select_from(DocumentRow)
    return session.scalar(query.where(DocumentRow.problem.is_(None), ~through)) or 0


def count_embedded(session: Session, model_id: int) -> int:
    """How many documents a model embedded as they are now; those that cannot be read do not count."""
    embedded = sa.exists().where(*_made_of_it(model_id), ContentRow.state == DocumentState.EMBEDDED)
    query = sa.select(sa.func.count()).select_from(DocumentRow)
    return session.scalar(query.where(DocumentRow.problem.is_(None), embedded)) or 0


def count_unsearched(session: Session) -> int:
    """How many documents were embedded by another model than the active one, and are found once search moves."""
    return counts.unsearched(session)


def _move_search(session: Session, model_id: int) -> None:
    """Make a model the active one, and let every document show what that model made of it as it is now."""
    # First: on PostgreSQL whoever else moves search, or lets it see a content, waits here until this is over.
    session.execute(sa.update(ModelRow).values(active=ModelRow.id == model_id))
    session.expire_all()
    best = shown_by(model_id)
    still_pending = sa.case((DocumentRow.pending_id == best, None), else_=DocumentRow.pending_id)
    session.execute(
        sa.update(DocumentRow)
        .where(best.is_not(None))
        .values(current_id=best, pending_id=still_pending)
        .execution_options(synchronize_session=False)
    )
    session.expire_all()


def shown_by(model_id: int) -> sa.ColumnElement[int]:
    """Of a row of `documents`: the content that it shows while a model is the active one, where that made one of it."""
    waiting = sa.select(ContentRow.id).where(
        ContentRow.id == DocumentRow.pending_id, ContentRow.model_id == model_id, promotable()
    )
    newest = sa.select(sa.func.max(ContentRow.id)).where(*_made_of_it(model_id), promotable())
    searchable = ContentRow.embedded_count > 0
    # What has vectors first: as in `promote`, other settings take no text away.
    candidates = (waiting.where(searchable), newest.where(searchable), waiting, newest)
    return sa.func.coalesce(*(candidate.scalar_subquery() for candidate in candidates))


_ON_THEIR_WAY = (DocumentState.DISCOVERED, DocumentState.EXTRACTED)


def _made_of_it(model_id: int) -> tuple[sa.ColumnElement[bool], ...]:
    """Conditions on `contents`: a model made it, or is to make it, of the bytes that the document has now."""
    present = aliased(ContentRow)
    kind = sa.select(present.kind).where(present.id == sa.func.coalesce(DocumentRow.pending_id, DocumentRow.current_id))
    return (
        ContentRow.sha256 == DocumentRow.sha256,
        ContentRow.kind == kind.correlate(DocumentRow).scalar_subquery(),
        ContentRow.model_id == model_id,
    )


def _anything_searched(session: Session) -> bool:
    searched = (
        sa.select(sa.func.count())
        .select_from(DocumentRow)
        .join(ContentRow, ContentRow.id == DocumentRow.current_id)
        .join(ModelRow, ModelRow.id == ContentRow.model_id)
        .where(ModelRow.active, ContentRow.embedded_count > 0)
    )
    return bool(session.scalar(searched))


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
                ContentRow.state.in_(_ON_THEIR_WAY),
            ),
        )
    )
    return bool(session.scalar(waiting))


def _plain(row: ModelRow) -> StoredModel:
    return StoredModel(row.id, row.fingerprint, row.name, row.path, row.dimension, row.active)
