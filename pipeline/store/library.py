"""Sources and documents: which files there are, and which content each has or waits for."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.changes import Known, Moves, is_below
from pipeline.core.documents import DocumentKind, DocumentState
from pipeline.core.errors import RunInProgress
from pipeline.store.bulk import insert_new
from pipeline.store.contents import IN_CLAUSE, drop_unused, promote
from pipeline.store.database import host_of
from pipeline.store.locks import transaction_lock
from pipeline.store.models import Target
from pipeline.store.runs import living_runs
from pipeline.store.scopes import Scope, folder_of_source, in_scope
from pipeline.store.tables import ContentRow, DocumentRow, SourceHostRow, SourceRow


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file whose bytes were read: `mtime_ns` may be UNSETTLED, `path` is relative to the source."""

    path: str
    kind: DocumentKind
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class UnreadableFile:
    """A file that could not be read, and why."""

    path: str
    size: int
    problem: str


def sources(session: Session) -> dict[str, int]:
    """The folders that are sources, and their ids. Of folders that are a host's own only those of this host."""
    mine = sa.exists().where(SourceHostRow.source_id == SourceRow.id, SourceHostRow.host == host_of(session))
    rows = session.execute(
        sa.select(folder_of_source(), SourceRow.id)
        .where(sa.or_(SourceRow.mark.is_(None), mine))
        .order_by(SourceRow.mark.is_not(None))  # where both are at one path, the host's own counts
    )
    return dict(rows.all())


def ensure_source(
    session: Session, root: str, now: dt.datetime, *, mark: str | None = None, run_id: str | None = None
) -> int:
    """The id of the source at `root`, made if need be.

    Sources inside it become part of it, so that no file is two documents.

    mark: what is written in the folder, where it is this host's own. run_id: the run that asks.

    Raises:
        RunInProgress: another run than that one may be at work on a source inside it.
    """
    transaction_lock(session, "sources")
    known = sources(session)
    row = None if mark is None else _own_source(session, root, mark)
    if row is None:
        if root in known:
            return known[root]
        row = SourceRow(root=_free_name(session, root, mark), created_at=now, mark=mark)
        row.folder = None if row.root == root else root
        if session.get_bind().dialect.name == "sqlite":
            # SQLite gives numbers out again. Documents whose source was lost are no documents of a new one.
            last = [session.scalar(sa.select(sa.func.max(c))) for c in (SourceRow.id, DocumentRow.source_id)]
            row.id = max(number or 0 for number in last) + 1
        session.add(row)
        session.flush()
        _take_in(session, row.id, root, known, run_id)
    if mark is not None:
        session.merge(SourceHostRow(source_id=row.id, host=host_of(session), looked_at=now))
        session.flush()
    return row.id


def _own_source(session: Session, folder: str, mark: str) -> SourceRow | None:
    """The source that a host's own folder is, noted with its mark."""
    here = session.scalars(sa.select(SourceRow).where(folder_of_source() == folder).order_by(SourceRow.id)).all()
    for row in here:
        if row.mark == mark:
            return row
    for row in here:
        hosts = sa.select(SourceHostRow.host).where(SourceHostRow.source_id == row.id)
        # Noted before there were marks, or made anew by the only host that has it.
        if row.mark is None or set(session.scalars(hosts)) <= {host_of(session)}:
            row.mark = mark
            return row
    return None


def _free_name(session: Session, folder: str, mark: str | None) -> str:
    """The folder's path; with the host's name, where another host has a folder of its own there."""
    taken = set(session.scalars(sa.select(SourceRow.root).where(folder_of_source() == folder)))
    names = (folder, f"{folder} ({host_of(session)})", f"{folder} ({host_of(session)} {mark})")
    return next(name for name in names if name not in taken)


def _take_in(session: Session, source_id: int, root: str, known: Mapping[str, int], run_id: str | None) -> None:
    prefix = root.rstrip("/") + "/"
    inner = {folder: inner_id for folder, inner_id in known.items() if folder.startswith(prefix)}
    for run in living_runs(session) if inner and run_id is not None else []:
        if run.id != run_id:
            raise RunInProgress(f"run {run.id} (on {run.process.host}), which may be at work on {min(inner)}")
    for folder, inner_id in inner.items():
        relative = folder.removeprefix(prefix)
        session.execute(
            sa.update(DocumentRow)
            .where(DocumentRow.source_id == inner_id)
            .values(source_id=source_id, path=sa.literal(relative + "/") + DocumentRow.path)
        )
        session.execute(sa.delete(SourceRow).where(SourceRow.id == inner_id))


def known_documents(session: Session, scope: Scope) -> list[Known]:
    """The documents in scope, as `classify_changes` wants them."""
    readable = sa.case((DocumentRow.problem.is_(None), DocumentRow.sha256))
    query = sa.select(DocumentRow.id, DocumentRow.path, DocumentRow.size, DocumentRow.mtime_ns, readable)
    # Past the ORM, which would take twice as long for the same tuples: there may be a million.
    return list(itertools.starmap(Known, session.connection().execute(query.where(in_scope([scope])))))


def count_documents_of(session: Session, source_id: int) -> int:
    """How many documents are known in a source."""
    query = sa.select(sa.func.count()).select_from(DocumentRow).where(DocumentRow.source_id == source_id)
    return session.scalar(query) or 0


def register(
    session: Session,
    source_id: int,
    files: Sequence[ReadFile],
    moves: Moves,
    target: Target,
    now: dt.datetime,
    priority: int = 0,
) -> int:
    """Note files that were read: new, changed, or moved here. What they are to become waits in the queue.

    Returns how many contents this added to the queue. What is no longer wanted stays until `drop_leftovers`,
    because another file of the same scan may turn out to hold it.
    """
    places = {(f.sha256, f.kind): _InLine(priority, f.mtime_ns if f.mtime_ns > 0 else _ns(now)) for f in files}
    contents, added = _ensure_contents(session, places, target, now)
    rows = _documents_at(session, source_id, [f.path for f in files])
    wanted: set[int] = set()
    new: list[dict[str, Any]] = []
    for file in files:
        row = rows.get(file.path) or _moved_here(session, source_id, file, moves)
        content_id = contents[file.sha256, file.kind]
        wanted.add(content_id)
        facts = {"size": file.size, "mtime_ns": file.mtime_ns, "sha256": file.sha256}
        if row is None:
            place = {"source_id": source_id, "path": file.path, "found_at": now}
            new.append(place | facts | {"pending_id": content_id})
            continue
        row.size, row.mtime_ns, row.sha256 = file.size, file.mtime_ns, file.sha256
        row.problem = row.gone_at = None
        _point_at(row, content_id)
    session.flush()
    if new:
        session.execute(sa.insert(DocumentRow), new)
    promote(session, sorted(wanted), drop=False)  # what is already done for a copy is done for this one
    return added


def note_unreadable(session: Session, source_id: int, files: Sequence[UnreadableFile], now: dt.datetime) -> None:
    """Note files that could not be read. What was known of them stays; they count as failed until they can be."""
    rows = _documents_at(session, source_id, [f.path for f in files])
    for file in files:
        row = rows.get(file.path)
        if row is None:
            row = DocumentRow(source_id=source_id, path=file.path, mtime_ns=0, found_at=now)
            session.add(row)
        row.size, row.problem = file.size, file.problem


def forget(session: Session, documents: Iterable[Known]) -> int:
    """Delete documents whose files are gone, and whatever any model made of them; returns how many."""
    ids = [document.id for document in documents]
    for start in range(0, len(ids), IN_CLAUSE):
        session.execute(sa.delete(DocumentRow).where(DocumentRow.id.in_(ids[start : start + IN_CLAUSE])))
    drop_unused(session)
    return len(ids)


def drop_leftovers(session: Session) -> int:
    """After a scan: delete what no document wants any more; returns how many contents that were."""
    return drop_unused(session)


def retarget(
    session: Session, scopes: Sequence[Scope] | None, target: Target, now: dt.datetime, limit: int = 500
) -> int:
    """Let up to `limit` documents in scope that were made for another model or recipe be made anew.

    They stay searchable as they are until then. Returns how many were changed; 0 means that all fit.
    """
    effective = sa.func.coalesce(DocumentRow.pending_id, DocumentRow.current_id)
    rows = session.execute(
        sa.select(DocumentRow, ContentRow.kind, ContentRow.priority)
        .join(ContentRow, ContentRow.id == effective)
        .where(
            in_scope(scopes),
            DocumentRow.sha256.is_not(None),
            sa.or_(ContentRow.model_id != target.model_id, ContentRow.recipe != target.recipe),
        )
        .limit(limit)
    ).all()
    found = [(row, str(row.sha256), DocumentKind(kind), priority) for row, kind, priority in rows]
    places = {(sha256, kind): _InLine(priority, row.mtime_ns) for row, sha256, kind, priority in found}
    contents, _ = _ensure_contents(session, places, target, now)
    for row, sha256, kind, _ in found:
        _point_at(row, contents[sha256, kind])
    session.flush()
    promote(session, sorted(set(contents.values())), drop=False)
    return len(found)


def enclosing_source(roots: Iterable[str], path: str) -> str | None:
    """The source that holds `path`, if one does: the innermost."""
    inside = [root for root in roots if is_below(path, root.rstrip("/"))]
    return max(inside, key=len, default=None)


def _point_at(row: DocumentRow, content_id: int) -> None:
    """Make `row` wait for a content, or for nothing where it has it already."""
    row.pending_id = None if row.current_id == content_id else content_id


def _moved_here(session: Session, source_id: int, file: ReadFile, moves: Moves) -> DocumentRow | None:
    moved = moves.claim(file.path, file.sha256)
    row = session.get(DocumentRow, moved.id) if moved else None
    if row is not None:
        row.source_id, row.path = source_id, file.path
    return row


def _documents_at(session: Session, source_id: int, paths: Sequence[str]) -> dict[str, DocumentRow]:
    found: dict[str, DocumentRow] = {}
    for start in range(0, len(paths), IN_CLAUSE):
        some = DocumentRow.path.in_(paths[start : start + IN_CLAUSE])
        query = sa.select(DocumentRow).where(DocumentRow.source_id == source_id, some)
        found |= {row.path: row for row in session.scalars(query)}
    return found


class _InLine(NamedTuple):
    """What a content that waits is taken up by, see `ContentRow`."""

    priority: int
    modified_ns: int


def _ns(instant: dt.datetime) -> int:
    return int(instant.timestamp()) * 10**9


def _ensure_contents(
    session: Session, wanted: Mapping[tuple[str, DocumentKind], _InLine], target: Target, now: dt.datetime
) -> tuple[dict[tuple[str, DocumentKind], int], int]:
    mine = (ContentRow.model_id == target.model_id, ContentRow.recipe == target.recipe)
    hashes = sorted({sha256 for sha256, _ in wanted})
    query = sa.select(ContentRow.sha256, ContentRow.kind, ContentRow.id).where(*mine, ContentRow.sha256.in_(hashes))

    def known() -> dict[tuple[str, DocumentKind], int]:
        return {(sha256, DocumentKind(kind)): content_id for sha256, kind, content_id in session.execute(query)}

    found = known()
    new = [
        {
            "sha256": sha256,
            "kind": kind,
            "model_id": target.model_id,
            "recipe": target.recipe,
            "state": DocumentState.DISCOVERED,
            "created_at": now,
            "priority": wanted[sha256, kind].priority,
            "modified_ns": wanted[sha256, kind].modified_ns,
        }
        for sha256, kind in sorted(wanted.keys() - found.keys())
    ]
    if new:
        insert_new(session, ContentRow, new)  # another host may have found the same bytes meanwhile
        found = known()
    return found, len(new)
