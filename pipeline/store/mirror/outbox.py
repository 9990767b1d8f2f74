"""The outbox: which contents a mirror has to bring in line with what search sees.

Rows are written by triggers (migration 0011), one for each change, while a mirror is registered. Whoever delivers
reads them and the contents in one snapshot, and deletes just the rows that it read: a later change has a row of its
own, and the content's turn comes again. What a mirror may hold is noted before it is sent, so that points can be
taken back whenever the process died.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session

from pipeline.core.retrying import LONGEST
from pipeline.store.bulk import table_of
from pipeline.store.contents import IN_CLAUSE
from pipeline.store.tables import ContentRow, DocumentRow, MirroredRow, MirrorRow, ModelRow, OutboxRow, may_be_tried

NAME = "qdrant"


@dataclass(frozen=True, slots=True, order=True)
class ContentKey:
    """What a content is made of: the same wherever and whenever it is made. fingerprint: of its model."""

    fingerprint: str
    sha256: str
    kind: str
    recipe: str


@dataclass(frozen=True, slots=True)
class Owed:
    """A content that is to be brought in line. rows: of the outbox. points: the mirror may hold so many of it."""

    key: ContentKey
    rows: Sequence[int]
    attempts: int
    points: int


@dataclass(frozen=True, slots=True)
class Mirror:
    """The mirror that is registered; its fields are those of `MirrorRow`."""

    location: str
    created_at: dt.datetime
    attempts: int
    error: str | None
    due_at: dt.datetime | None
    in_line_at: dt.datetime | None
    looked_at: dt.datetime | None
    shown: str | None


def find_mirror(session: Session) -> Mirror | None:
    """The mirror that is registered; None where there is none."""
    row = session.get(MirrorRow, NAME)
    if row is None:
        return None
    return Mirror(
        row.location,
        row.created_at,
        row.attempts,
        row.error,
        row.due_at,
        row.in_line_at,
        row.looked_at,
        row.shown,
    )


def count_owed(session: Session) -> int:
    """How many contents are to be brought in line."""
    keys = sa.select(OutboxRow.sha256, OutboxRow.kind, OutboxRow.recipe, OutboxRow.fingerprint).distinct().subquery()
    return session.scalar(sa.select(sa.func.count()).select_from(keys)) or 0


def standing(session: Session) -> dict[str, Any] | None:
    """What reports tell of the mirror: how many documents it is `owed`, and its last `error`; None where none is."""
    mirror = find_mirror(session)
    return None if mirror is None else {"owed": count_owed(session), "error": mirror.error}


def owed_contents(session: Session, model_id: int, limit: int) -> list[int]:
    """Up to `limit` contents of a model that are to be brought in line, where they are there yet."""
    same = (
        ContentRow.sha256 == OutboxRow.sha256,
        ContentRow.kind == OutboxRow.kind,
        ContentRow.recipe == OutboxRow.recipe,
        ModelRow.fingerprint == OutboxRow.fingerprint,
    )
    query = sa.select(ContentRow.id).join(ModelRow, ModelRow.id == ContentRow.model_id).join(OutboxRow, sa.and_(*same))
    return list(session.scalars(query.where(ModelRow.id == model_id).distinct().limit(limit)))


def is_owed(session: Session, key: ContentKey) -> bool:
    """Whether this content is to be brought in line."""
    row = sa.select(OutboxRow.id).where(*(getattr(OutboxRow, name) == getattr(key, name) for name in _KEY))
    return session.scalar(row.limit(1)) is not None


def owes(session: Session, due_by: dt.datetime | None = None) -> bool:
    """Whether anything is owed; with `due_by`, that is due by then."""
    query = sa.select(OutboxRow.id).limit(1)
    if due_by is not None:
        query = query.where(_is_due(due_by))
    return session.scalar(query) is not None


def register(session: Session, location: str, now: dt.datetime) -> bool:
    """Owe everything that search sees to a mirror at `location`; returns False where it is registered there already."""
    _no_change_meanwhile(session)
    row = session.get(MirrorRow, NAME)
    if row is not None and row.location == location:
        return False
    _clear(session)
    session.add(MirrorRow(name=NAME, location=location, created_at=now))
    session.flush()
    owe_all(session)
    return True


def forget(session: Session) -> bool:
    """Owe nothing to the mirror any more; returns whether there was one. What it holds stays there."""
    _no_change_meanwhile(session)
    there = session.get(MirrorRow, NAME) is not None
    _clear(session)
    return there


def owe_all(session: Session) -> None:
    """Owe what search sees, and what the mirror may hold."""
    seen = sa.select(DocumentRow.current_id).where(DocumentRow.current_id.is_not(None))
    contents = (
        sa.select(ModelRow.fingerprint, ContentRow.sha256, ContentRow.kind, ContentRow.recipe)
        .join(ModelRow, ModelRow.id == ContentRow.model_id)
        .where(ContentRow.id.in_(seen))
    )
    session.execute(sa.insert(OutboxRow).from_select(_KEY, sa.union(contents, _held())))


def owe_held(session: Session, fingerprint: str) -> None:
    """Owe what the mirror may hold of one model: it lost it."""
    held = _held().where(MirroredRow.fingerprint == fingerprint)
    session.execute(sa.insert(OutboxRow).from_select(_KEY, held))


def holds(session: Session, fingerprint: str) -> bool:
    """Whether the mirror may hold anything of a model."""
    return session.scalar(_held().where(MirroredRow.fingerprint == fingerprint).limit(1)) is not None


def fingerprints(session: Session) -> list[str]:
    """Of every model that the database knows."""
    return list(session.scalars(sa.select(ModelRow.fingerprint).order_by(ModelRow.id)))


def due_now(session: Session) -> None:
    """Let all that is to be tried later be tried now."""
    session.execute(sa.update(OutboxRow).where(OutboxRow.due_at.is_not(None)).values(due_at=None))
    _update(session, due_at=None)


def owe(session: Session, keys: Iterable[ContentKey]) -> None:
    """Owe these contents."""
    rows = [_columns(key) for key in keys]
    if rows:
        session.connection().execute(sa.insert(table_of(OutboxRow)), rows)


def due(session: Session, now: dt.datetime, limit: int) -> list[Owed]:
    """Up to `limit` contents that are due: those of the model that search uses first, then in their order."""
    active = session.scalars(sa.select(ModelRow.fingerprint).where(ModelRow.active)).all()
    columns = (OutboxRow.fingerprint, OutboxRow.sha256, OutboxRow.kind, OutboxRow.recipe)
    query = sa.select(*columns).where(_is_due(now)).order_by(OutboxRow.id).limit(limit)
    rows = session.execute(query.where(OutboxRow.fingerprint.in_(active))).all() or session.execute(query).all()
    keys = list(dict.fromkeys(ContentKey(*row) for row in rows))
    found: dict[ContentKey, list[tuple[int, int]]] = {key: [] for key in keys}
    hashes = [key.sha256 for key in keys]
    for *named, number, attempts in session.execute(
        sa.select(*columns, OutboxRow.id, OutboxRow.attempts).where(OutboxRow.sha256.in_(hashes)).order_by(OutboxRow.id)
    ):
        found.get(ContentKey(*named), []).append((number, attempts))
    held = held_of(session, keys)
    return [
        Owed(key, [number for number, _ in found[key]], max(tries for _, tries in found[key]), held.get(key, 0))
        for key in keys
    ]


def held_of(session: Session, keys: Sequence[ContentKey]) -> dict[ContentKey, int]:
    """How many points the mirror may hold of each content, where it may hold any; ordinals are below that."""
    found: dict[ContentKey, int] = {}
    wanted = set(keys)
    for start in range(0, len(keys), IN_CLAUSE):
        hashes = [key.sha256 for key in keys[start : start + IN_CLAUSE]]
        for row in session.scalars(sa.select(MirroredRow).where(MirroredRow.sha256.in_(hashes))):
            key = ContentKey(row.fingerprint, row.sha256, row.kind, row.recipe)
            if key in wanted:
                found[key] = row.points
    return found


def intend(session: Session, points: Sequence[tuple[ContentKey, int]]) -> None:
    """Note that the mirror may hold so many points of each content from now on, or more where it was more."""
    if not points:
        return
    table = table_of(MirroredRow)
    on_postgresql = session.get_bind().dialect.name == "postgresql"
    insert = postgresql_insert(table) if on_postgresql else sqlite_insert(table)
    more = sa.case((insert.excluded.points > table.c.points, insert.excluded.points), else_=table.c.points)
    statement = insert.on_conflict_do_update(index_elements=[table.c[name] for name in _KEY], set_={"points": more})
    session.connection().execute(statement, [{**_columns(key), "points": count} for key, count in points])


def settle(session: Session, done: Sequence[tuple[Owed, int]]) -> None:
    """These contents are in line, each with so many points: what was owed of them by then is no more."""
    rows = [number for owed, _ in done for number in owed.rows]
    for start in range(0, len(rows), IN_CLAUSE):
        session.execute(sa.delete(OutboxRow).where(OutboxRow.id.in_(rows[start : start + IN_CLAUSE])))
    table = table_of(MirroredRow)
    this = [table.c[name] == sa.bindparam(f"this_{name}") for name in _KEY]
    kept = [{**_this(owed.key), "held": count} for owed, count in done if count]
    gone = [_this(owed.key) for owed, count in done if not count]
    if kept:
        session.connection().execute(sa.update(table).where(*this).values(points=sa.bindparam("held")), kept)
    if gone:
        session.connection().execute(sa.delete(table).where(*this), gone)


def put_off(session: Session, owed: Owed, error: str, due_at: dt.datetime) -> None:
    """The mirror did not take this content: it is tried again at `due_at`, or once it changes."""
    session.execute(
        sa.update(OutboxRow)
        .where(OutboxRow.id.in_(owed.rows))
        .values(attempts=owed.attempts + 1, error=error, due_at=due_at)
    )


def note_held(session: Session, points: Sequence[tuple[ContentKey, int]]) -> None:
    """The mirror was found to hold so many points of each content: each is to be brought in line."""
    intend(session, points)
    owe(session, [key for key, _ in points])


def note_looked(session: Session, now: dt.datetime) -> None:
    """All that the mirror held from before is noted."""
    _update(session, looked_at=now)


def note_shown(session: Session, fingerprint: str | None) -> None:
    """The alias stands for this model, or for nothing that is known."""
    _update(session, shown=fingerprint)


def note_away(session: Session, error: str, due_at: dt.datetime) -> None:
    """The mirror could not be used. due_at: when to try again."""
    _update(session, attempts=MirrorRow.attempts + 1, error=error, due_at=due_at)


def note_there(session: Session, now: dt.datetime) -> None:
    """The mirror took what it was sent; it is in line from `now` where nothing is owed."""
    _update(session, attempts=0, error=None, due_at=None)
    if not owes(session):
        _update(session, in_line_at=now)


def errors(session: Session, limit: int = 5) -> list[tuple[ContentKey, int, str]]:
    """Some of the contents that the mirror did not take: how often that was, and what it said."""
    rows = session.scalars(sa.select(OutboxRow).where(OutboxRow.error.is_not(None)).order_by(OutboxRow.id).limit(limit))
    return [
        (ContentKey(row.fingerprint, row.sha256, row.kind, row.recipe), row.attempts, row.error or "") for row in rows
    ]


_KEY = ("fingerprint", "sha256", "kind", "recipe")


def _held() -> sa.Select[str, str, str, str]:
    return sa.select(MirroredRow.fingerprint, MirroredRow.sha256, MirroredRow.kind, MirroredRow.recipe)


def _is_due(now: dt.datetime) -> sa.ColumnElement[bool]:
    return may_be_tried(OutboxRow.due_at, now, LONGEST)


def _columns(key: ContentKey) -> dict[str, str]:
    return {name: getattr(key, name) for name in _KEY}


def _this(key: ContentKey) -> dict[str, str]:
    return {f"this_{name}": getattr(key, name) for name in _KEY}


def _update(session: Session, **values: object) -> None:
    session.execute(sa.update(MirrorRow).where(MirrorRow.name == NAME).values(**values))


def _clear(session: Session) -> None:
    for table in (OutboxRow, MirroredRow, MirrorRow):
        session.execute(sa.delete(table))


def _no_change_meanwhile(session: Session) -> None:
    """Let nobody change what search sees from here to the end of this transaction.

    A transaction that began before the mirror was registered has looked whether there is one, and owes it nothing.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.text("LOCK TABLE documents, contents, embeddings IN SHARE ROW EXCLUSIVE MODE"))
