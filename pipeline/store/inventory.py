"""What each model has made of the documents, and which model a person means."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.naming import Names, find_named, names_of
from pipeline.store.models import StoredModel, choose, count_embedded, count_missing
from pipeline.store.tables import ContentRow, DocumentRow, ModelRow

ROW_BYTES = 120
"""What a chunk takes in the tables beside its text and its vector, about."""

SHORTEST_PREFIX = 4
"""Characters of a fingerprint that may stand for it."""


@dataclass(frozen=True, slots=True)
class ModelInventory:
    """A model, and what the database holds of it.

    path: of its file, where it was last. active: search uses it. building: documents wait for it.
    set_aside: a person moved search away from it, and it does not move back by itself.
    documents: that have been through it as they are now. missing: that have not; what cannot be read is in neither.
    embedded: those of `documents` that came out with all their vectors; the others gave it no text, or failed.
    unreadable: documents whose file cannot be read at present.
    contents, chunks: what it made, chunks being those with a vector. size: what that takes, in bytes, about.
    last_embedded_at: when it last finished a document; None where it never did.
    """

    id: int
    name: str
    path: str
    fingerprint: str
    dimension: int
    active: bool
    building: bool
    set_aside: bool
    documents: int
    missing: int
    contents: int
    chunks: int
    size: int
    created_at: dt.datetime
    last_embedded_at: dt.datetime | None
    embedded: int = 0
    unreadable: int = 0

    @property
    def complete(self) -> bool:
        """Whether search can move to it without losing a document."""
        return not self.missing


@dataclass(frozen=True, slots=True)
class ModelUsed:
    """What a wish to search with a model came to.

    before: what search used; None where it was this one, or none. moved: whether that changed anything.
    missing: documents that are not found until they have been through the model.
    """

    model: ModelInventory
    before: ModelInventory | None
    missing: int

    @property
    def moved(self) -> bool:
        """Whether search used another model before."""
        return self.before is not None


def use_model(session: Session, wanted: str, *, anyway: bool = False) -> ModelUsed:
    """Move search to the model that `wanted` means (see `find_model`), in this transaction.

    Raises:
        UsageError: there is no such model, or more than one.
        ModelIncomplete: it lacks documents, and not `anyway`.
    """
    known = list_inventory(session)
    model = find_model(known, wanted)
    before = next((other for other in known if other.active and other.id != model.id), None)
    missing = choose(session, model.id, anyway=anyway)
    after = next(other for other in list_inventory(session) if other.id == model.id)
    return ModelUsed(after, before, missing)


def list_inventory(session: Session) -> list[ModelInventory]:
    """The model that search uses, then the others that made something or are to, the oldest first."""
    found = [_inventory(session, row) for row in session.scalars(sa.select(ModelRow).order_by(ModelRow.id))]
    kept = [model for model in found if model.active or model.contents]
    return sorted(kept, key=lambda model: not model.active)


def find_model(models: Sequence[ModelInventory], wanted: str) -> ModelInventory:
    """The model that `wanted` means: one of its names (see `core.naming`), or the start of its fingerprint.

    A fingerprint may be given with the pooling before it (`cls:3f0a`) or without.

    Raises:
        UsageError: it means none of them, or more than one.
    """
    start = wanted.lower() if len(wanted.rpartition(":")[2]) >= SHORTEST_PREFIX else "-"

    def names(model: ModelInventory) -> Names:
        digest = model.fingerprint.rpartition(":")[2]
        # In this order: without a pooling it is the model with its own, where there are both.
        begins = [[wanted] if each.startswith(start) else [] for each in (model.fingerprint, digest)]
        return [[model.fingerprint], *names_of(model.path, model.name), *begins]

    return find_named(wanted, models, names, _described, ask="`python -m pipeline models` says more")


def _described(model: ModelInventory) -> str:
    return f"{PurePath(model.path).name} ({model.name}, fingerprint {short_fingerprint(model)})"


def short_fingerprint(model: ModelInventory | StoredModel) -> str:
    """The start of a fingerprint, with its pooling: enough to name a model by."""
    pooling, colon, digest = model.fingerprint.rpartition(":")
    return f"{pooling}{colon}{digest[:8]}"


def _inventory(session: Session, row: ModelRow) -> ModelInventory:
    contents, chunks, characters, last = session.execute(
        sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(ContentRow.embedded_count), 0),
            sa.func.coalesce(sa.func.sum(ContentRow.characters), 0),
            sa.func.max(ContentRow.embedded_at),
        ).where(ContentRow.model_id == row.id)
    ).one()
    waited_for = sa.select(DocumentRow.id).join(ContentRow, ContentRow.id == DocumentRow.pending_id)
    building = session.scalar(waited_for.where(ContentRow.model_id == row.id).limit(1)) is not None
    missing = count_missing(session, row.id)
    every, unreadable = session.execute(
        sa.select(sa.func.count(), sa.func.count(DocumentRow.problem)).select_from(DocumentRow)
    ).one()
    return ModelInventory(
        id=row.id,
        name=row.name,
        path=row.path,
        fingerprint=row.fingerprint,
        dimension=row.dimension,
        active=row.active,
        building=building and not row.active,
        set_aside=row.set_aside,
        documents=every - unreadable - missing,
        missing=missing,
        contents=contents,
        chunks=int(chunks),
        size=int(chunks) * (4 * row.dimension + ROW_BYTES) + int(characters),
        created_at=row.created_at,
        last_embedded_at=last,
        embedded=count_embedded(session, row.id),
        unreadable=unreadable,
    )
