"""The tables of vectors on SQLite, and what is read of them, as arrays."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstrumentedAttribute

from pipeline.core.vectors import TopK
from pipeline.store.nearest.comparing import take_in
from pipeline.store.tables import ChunkRow, ContentEmbeddingRow, EmbeddingRow
from pipeline.store.view import View, listed_ids, searched_contents

BLOCK = 4096

Conditions = Sequence[sa.ColumnElement[bool]]


@dataclass(frozen=True, slots=True)
class Shelf:
    """A table of vectors, and which of its rows are in view."""

    row_id: InstrumentedAttribute[int]
    vector: InstrumentedAttribute[bytes]
    in_view: Conditions = field(repr=False)

    def rows(self) -> sa.Select[int, bytes]:
        """The ids and vectors that are in view."""
        return sa.select(self.row_id, self.vector).where(*self.in_view)


def chunks(view: View) -> Shelf:
    """The vectors of chunks."""
    mine, seen = EmbeddingRow.model_id == view.model_id, EmbeddingRow.content_id.in_(searched_contents(view))
    return Shelf(EmbeddingRow.chunk_id, EmbeddingRow.vector, (mine, seen))


def chunks_by_contents(view: View) -> Shelf:
    """The same, found by what is in view and not by a look at every row."""
    listed = sa.select(ChunkRow.id).where(ChunkRow.content_id.in_(searched_contents(view)))
    return Shelf(EmbeddingRow.chunk_id, EmbeddingRow.vector, (EmbeddingRow.chunk_id.in_(listed),))


def documents(view: View) -> Shelf:
    """The vectors of documents, by their contents."""
    own = ContentEmbeddingRow.content_id
    return Shelf(own, ContentEmbeddingRow.vector, (own.in_(searched_contents(view)),))


def compare(connection: Connection, rows: sa.Select[int, bytes], question: NDArray[np.float32], best: TopK) -> None:
    """Take rows of ids and vectors in, some thousand at a time."""
    with closing(raw(connection, rows)) as read:
        for some in read:
            take_in(connection, [row[0] for row in some], [row[1] for row in some], question, best)


def raw(connection: Connection, rows: sa.Executable) -> Generator[Sequence[tuple[Any, ...]]]:
    """Rows as the driver gives them: for millions of them, objects that know their columns take most of the time."""
    with connection.execute(rows) as result:
        cursor = result.cursor
        while cursor is not None:
            try:
                some = cursor.fetchmany(BLOCK)
            except sqlite3.Error as error:
                raise DBAPIError(str(rows), None, error) from error
            if not some:
                return
            yield some


def listed(ids: NDArray[np.int64]) -> sa.Select[int]:
    """Numbers as a table, in one parameter."""
    return listed_ids(json.dumps(ids.tolist()))
