"""What the database keeps count of by itself, and numbers that must not be given twice. SQLite only.

PostgreSQL counts when it is asked, in views, and numbers by sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.verifying import Disagreement

KEY = "source_id, unreadable, state, pending_model_id, pending_useful, current_model_id"

DOCUMENTS = """
SELECT d.source_id AS source_id, d.problem IS NOT NULL AS unreadable,
       COALESCE(p.state, c.state, 'discovered') AS state, COALESCE(p.model_id, 0) AS pending_model_id,
       p.id IS NOT NULL AND p.embedded_count > 0 AND p.state IN ('embedded', 'empty', 'encrypted', 'failed')
           AS pending_useful,
       COALESCE(c.model_id, 0) AS current_model_id, COUNT(*) AS documents
FROM documents AS d LEFT JOIN contents AS p ON p.id = d.pending_id LEFT JOIN contents AS c ON c.id = d.current_id
GROUP BY 1, 2, 3, 4, 5, 6
"""
"""As migration 0006 counts them, in the order of KEY."""

CHUNKS = """
SELECT COALESCE(SUM(chunk_count), 0), COALESCE(SUM(embedded_count), 0) FROM contents
WHERE id IN (SELECT COALESCE(pending_id, current_id) FROM documents)
"""


def document_counts(session: Session) -> Iterator[Disagreement]:
    """The kept counts of documents are those that counting gives."""
    if not _is_sqlite(session):
        return
    kept = _counts(session, f"SELECT {KEY}, documents FROM document_counts WHERE documents <> 0")  # noqa: S608
    counted = _counts(session, DOCUMENTS)
    for key in sorted(kept.keys() | counted.keys()):
        if kept.get(key) != counted.get(key):
            where = ", ".join(f"{name} {value}" for name, value in zip(KEY.split(", "), key, strict=True))
            found, expected = kept.get(key, 0), counted.get(key, 0)
            yield Disagreement("count-documents", f"{found} ({where})", f"{expected}", {"source": int(key[0])})


def chunk_counts(session: Session) -> Iterator[Disagreement]:
    """The kept counts of chunks are those that adding up gives."""
    if not _is_sqlite(session):
        return
    kept = [tuple(row) for row in session.execute(sa.text("SELECT chunks, embedded FROM chunk_counts"))]
    counted = tuple(session.execute(sa.text(CHUNKS)).one())
    if kept != [counted]:
        found = " and ".join(f"{chunks} chunks, {embedded} embedded" for chunks, embedded in kept) or "no row"
        yield Disagreement("count-chunks", found, f"{counted[0]} chunks, {counted[1]} embedded")


def chunk_numbers(session: Session) -> Iterator[Disagreement]:
    """The last number that a chunk was given is not below one that a chunk has."""
    if not _is_sqlite(session):
        return
    noted = list(session.scalars(sa.text("SELECT last FROM chunk_numbers")))
    highest = session.scalar(sa.text("SELECT COALESCE(MAX(id), 0) FROM chunks")) or 0
    if len(noted) != 1 or noted[0] < highest:
        yield Disagreement("chunk-numbers", f"{', '.join(map(str, noted)) or 'none'}", f"at least {highest}")


def _counts(session: Session, query: str) -> dict[tuple[Any, ...], int]:
    return {tuple(row[:-1]): int(row[-1]) for row in session.execute(sa.text(query))}


def _is_sqlite(session: Session) -> bool:
    return session.get_bind().dialect.name == "sqlite"
