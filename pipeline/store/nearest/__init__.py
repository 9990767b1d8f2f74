"""The vectors nearest to a question: by whatever the database at hand does best, with the same answers.

Vectors and questions are unit vectors, so the cosine is their scalar product. Scores are always computed from the
vectors themselves, in float32, whatever chose them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.store.nearest import postgres, qdrant, sqlite
from pipeline.store.view import View

Found = list[tuple[int, float]]
"""Ids with their scores, best first; among equals the smallest id first."""


def nearest_chunks(
    session: Session, question: NDArray[np.float32], view: View, k: int, *, told: list[str] | None = None
) -> Found:
    """The `k` chunks in view whose vectors are nearest to `question` (float32[d], unit length).

    told: takes a few words on how they were looked for, for people: `exact, by numpy`.
    """
    home = session.info.get(qdrant.HOME)
    if home is not None:
        found = qdrant.nearest_chunks(session, question, view, k, home, told=told)
        if found is not None:
            return found
    if _is_postgresql(session):
        return postgres.nearest_chunks(session, question, view, k, told=told)
    return sqlite.nearest_chunks(session, question, view, k, told=told)


def nearest_documents(
    session: Session, question: NDArray[np.float32], view: View, k: int, *, told: list[str] | None = None
) -> Found:
    """The `k` contents in view whose own vectors are nearest to `question`, as `nearest_chunks`."""
    if _is_postgresql(session):
        return postgres.nearest_documents(session, question, view, k, told=told)
    return sqlite.nearest_documents(session, question, view, k, told=told)


def _is_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"
