"""The counts that the database keeps are those of its rows, whatever happened to these."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentState
from pipeline.store import library, models, overview
from pipeline.store.database import Database
from pipeline.store.tables import ContentRow, DocumentRow, ModelRow, SourceRow
from tests.store import rows
from tests.store.rows import utc_now

STATES = [state.value for state in DocumentState]
STEPS = 60
PLAIN = {"synchronize_session": False}


def some_id(session: Session, table: type[DocumentRow | ContentRow], dice: random.Random) -> int | None:
    ids = session.scalars(sa.select(table.id).order_by(table.id)).all()
    return dice.choice(ids) if ids else None


def add_document(session: Session, dice: random.Random) -> None:
    session.execute(
        sa.insert(DocumentRow),
        [
            {
                "source_id": dice.choice(session.scalars(sa.select(SourceRow.id).order_by(SourceRow.id)).all()),
                "path": f"{dice.random()}.pdf", "size": 1, "mtime_ns": 1, "found_at": utc_now(),
                "current_id": dice.choice([None, some_id(session, ContentRow, dice)]),
                "pending_id": dice.choice([None, some_id(session, ContentRow, dice)]),
                "problem": dice.choice([None, None, "it cannot be read"]),
            }
        ],
    )  # fmt: skip


def add_content(session: Session, dice: random.Random) -> None:
    session.execute(
        sa.insert(ContentRow),
        [
            {
                "sha256": str(dice.random()), "kind": "pdf", "recipe": "r", "created_at": utc_now(),
                "model_id": dice.choice(session.scalars(sa.select(ModelRow.id).order_by(ModelRow.id)).all()),
                "state": dice.choice(STATES), "chunk_count": dice.randrange(5), "embedded_count": dice.randrange(3),
            }
        ],
    )  # fmt: skip


def change_documents(session: Session, dice: random.Random) -> None:
    change: dict[str, Any] = dice.choice(
        [
            {"current_id": DocumentRow.pending_id, "pending_id": None},
            {"pending_id": some_id(session, ContentRow, dice)},
            {"pending_id": DocumentRow.current_id, "current_id": None},
            {"problem": dice.choice([None, "it is gone"])},
            {"size": 7},
            {"source_id": dice.choice(session.scalars(sa.select(SourceRow.id).order_by(SourceRow.id)).all())},
        ]
    )
    # Several at once, in one statement, among them copies of one content.
    which = DocumentRow.id % dice.choice([1, 2, 3]) == 0
    session.execute(
        sa.update(DocumentRow).where(which).values(change), execution_options={"synchronize_session": False}
    )


def change_contents(session: Session, dice: random.Random) -> None:
    change: dict[str, Any] = dice.choice(
        [
            {"state": dice.choice(STATES)},
            {"embedded_count": ContentRow.embedded_count + 1},
            {"chunk_count": dice.randrange(9), "embedded_count": 0, "state": DocumentState.EXTRACTED},
            {"state": DocumentState.FAILED, "embedded_count": dice.randrange(2)},
            {"claimed_by": None, "attempts": 3},
        ]
    )
    which = ContentRow.id % dice.choice([1, 2, 3]) == 0
    session.execute(sa.update(ContentRow).where(which).values(change), execution_options=PLAIN)


def remove(session: Session, dice: random.Random) -> None:
    if dice.random() < 0.1:  # a source, with its documents
        root = dice.choice(session.scalars(sa.select(SourceRow.root).order_by(SourceRow.root)).all())
        session.execute(sa.delete(SourceRow).where(SourceRow.root == root))
        library.ensure_source(session, root, utc_now())
        return
    session.execute(sa.delete(DocumentRow).where(DocumentRow.id == some_id(session, DocumentRow, dice)))
    library.drop_leftovers(session)


CHANGES = (add_document, add_document, add_content, change_documents, change_contents, remove)


@pytest.mark.parametrize("seed", range(2))
def test_counts_follow_every_change(store: Database, seed: int) -> None:
    dice = random.Random(seed)
    with store.begin() as session:
        for root in ("/a", "/b"):
            library.ensure_source(session, root, utc_now())
        for name in ("first", "second"):
            rows.add_target(session, name)
        for step in range(STEPS):
            change = dice.choice(CHANGES)
            change(session, dice)
            session.expire_all()
            assert kept(session) == counted(session), (step, change.__name__)


def kept(session: Session) -> dict[str, object]:
    """As people see it."""
    every = [overview.show_model(session, model_id) for model_id in session.scalars(sa.select(ModelRow.id))]
    return {
        "states": {state: n for state, n in overview.count_documents(session).items() if n},
        "chunks": overview.count_chunks(session),
        "sources": {line.root: line.documents for line in overview.list_sources(session)},
        "waiting": {line.name: line.waiting for line in every},
        "listed": {line.name for line in overview.list_models(session)},
        "unsearched": models.count_unsearched(session),
    }


def counted(session: Session) -> dict[str, object]:
    """The same of each row by itself."""
    contents = {row.id: row for row in session.scalars(sa.select(ContentRow))}
    documents = list(session.scalars(sa.select(DocumentRow)))
    known = {row.id: row for row in session.scalars(sa.select(ModelRow))}
    roots = {row.id: row.root for row in session.scalars(sa.select(SourceRow))}
    effective = {row.id: contents.get(row.pending_id or row.current_id or 0) for row in documents}
    states: Counter[str] = Counter()
    waiting = dict.fromkeys((model.name for model in known.values()), 0)
    unsearched = 0
    for row in documents:
        content = effective[row.id]
        states["failed" if row.problem is not None else content.state if content else "discovered"] += 1
        for model in known.values():
            through = content and content.model_id == model.id and content.state not in ("discovered", "extracted")
            waiting[model.name] += row.problem is None and not through
        current, pending = contents.get(row.current_id or 0), contents.get(row.pending_id or 0)
        useful = pending and pending.embedded_count > 0 and pending.state not in ("discovered", "extracted")
        if useful and not (current and known[current.model_id].active):
            unsearched += pending is not None and not known[pending.model_id].active
    wanted = {content.id: content for content in effective.values() if content}.values()
    return {
        "states": {state: n for state, n in {"total": len(documents), **states}.items() if n},
        "chunks": {"total": sum(c.chunk_count for c in wanted), "embedded": sum(c.embedded_count for c in wanted)},
        "sources": {root: sum(row.source_id == number for row in documents) for number, root in roots.items()},
        "waiting": waiting,
        "listed": {m.name for m in known.values() if m.active}
        | {known[contents[row.pending_id].model_id].name for row in documents if row.pending_id},
        "unsearched": unsearched,
    }
