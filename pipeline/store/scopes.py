"""Which documents are meant: a source, a folder in it, or one file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from pipeline.store.tables import ContentRow, DocumentRow, SourceRow


@dataclass(frozen=True, slots=True)
class Scope:
    """The documents of a source at or below `folder` (empty: all of them; a file's path: just that one)."""

    source_id: int
    folder: str = ""


def in_scope(scopes: Sequence[Scope] | None) -> sa.ColumnElement[bool]:
    """A condition on `documents`; None means every document."""
    if scopes is None:
        return sa.true()
    return sa.or_(sa.false(), *(_one(scope) for scope in scopes))


def in_sources(source_ids: Collection[int] | None) -> sa.ColumnElement[bool]:
    """A condition on `documents`: it is in one of these sources; None means any."""
    return sa.true() if source_ids is None else DocumentRow.source_id.in_(sorted(source_ids))


def wanted_contents(scopes: Sequence[Scope] | None, within: Collection[int] | None = None) -> sa.ColumnElement[bool]:
    """A condition on `contents`: a document in scope, and in one of the sources `within`, is waiting for it."""
    return sa.exists().where(
        DocumentRow.pending_id == ContentRow.id, DocumentRow.problem.is_(None), in_scope(scopes), in_sources(within)
    )


def folder_of_source() -> sa.ColumnElement[str]:
    """Of a row of `sources`: the path of its folder, on the hosts that have it."""
    return sa.func.coalesce(SourceRow.folder, SourceRow.root)


def _one(scope: Scope) -> sa.ColumnElement[bool]:
    mine = DocumentRow.source_id == scope.source_id
    if not scope.folder:
        return mine
    # "0" is the character after "/": the folder is a range of paths, and LIKE would need escaping.
    below = sa.and_(DocumentRow.path >= scope.folder + "/", DocumentRow.path < scope.folder + "0")
    return sa.and_(mine, sa.or_(DocumentRow.path == scope.folder, below))
