"""From the paths that somebody named to the sources they lie in."""

from __future__ import annotations

import os
import re
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog
from sqlalchemy.orm import Session

from pipeline.core.errors import UsageError
from pipeline.core.globs import PathFilter
from pipeline.core.kinds import KINDS, is_passed_over, kind_of_name
from pipeline.ingest.names import real_path, spelled_out, stored_name
from pipeline.ingest.watched import Silent, watched
from pipeline.ingest.work import Place, utc_now
from pipeline.store import library
from pipeline.store.scopes import Scope

log = structlog.get_logger(__name__)

MARK = ".nightshift-folder"
SHOWN = 200
"""Characters of a path that is refused: a nonsensical one may have thousands."""

"""A file in a folder that is a host's own, by which it is told from those of other hosts at the same path."""


@dataclass(frozen=True, slots=True)
class Named:
    """A path that somebody named, and what there is.

    full: absolute, without links, as it is stored. there: `silent` where the disk or the share did not answer.
    mark: what is written in it, where it is a folder of this host's own (`own_folder`).
    """

    path: Path
    full: str
    there: Literal["folder", "file", "nothing", "silent"]
    mark: str | None = None


async def look_at_paths(paths: Sequence[Path], silence: float, own: Sequence[Path] = ()) -> list[Named]:
    """Look what there is. silence: seconds without an answer after which a path is left alone.

    own: folders that are this host's own, whatever other hosts that share the database have at these paths.
    """
    return [await _watched_look(path, silence, own) for path in paths]


async def _watched_look(path: Path, silence: float, own: Sequence[Path]) -> Named:
    try:
        return await watched(lambda _: _look_at(path, own), silence)
    except OSError as error:  # a name that is too long for any file, or a folder that may not be entered
        raise UsageError(f"{str(path)[:SHOWN]}: {error.strerror}") from error
    except Silent:
        asks_no_disk = os.path.abspath(path)  # noqa: PTH100, ASYNC240
        return Named(path, stored_name(asks_no_disk), "silent")


def _look_at(path: Path, own: Sequence[Path]) -> Named:
    full = stored_name(os.path.realpath(path))
    if path.exists() and not full.isascii() and not path.samefile(meant := real_path("/", full)):
        raise UsageError(
            f"{spelled_out(str(path))}: its name is stored like that of {spelled_out(str(meant))}, which is there too: "
            "rename one of the two"
        )
    if not path.is_dir():
        return Named(path, full, "file" if path.exists() else "nothing")
    is_own = any(path.samefile(folder) for folder in own if folder.exists())
    return Named(path, full, "folder", _mark_of(path) if is_own else None)


def _mark_of(folder: Path) -> str | None:
    """What is written in a folder of this host's own, now if it was not before; None where that cannot be."""
    try:
        return _read_mark(folder) or _write_mark(folder)
    except OSError as error:
        log.warning("a folder cannot be marked as this host's own", folder=str(folder), error=str(error))
        return None


def _read_mark(folder: Path) -> str | None:
    try:
        found = (folder / MARK).read_bytes().strip()
    except FileNotFoundError:
        return None
    return found.decode() if re.fullmatch(rb"[0-9a-f]{32}", found) else None


def _write_mark(folder: Path) -> str | None:
    unfinished = folder / f"{MARK}.{secrets.token_hex(4)}"
    try:
        with unfinished.open("xb") as file:
            file.write(secrets.token_hex(16).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(folder / MARK)
    finally:
        unfinished.unlink(missing_ok=True)
    return _read_mark(folder)


def check_paths(session: Session, paths: Sequence[Named], wanted: PathFilter | None = None) -> None:
    """Look whether `paths` can be ingested, and change nothing.

    Raises:
        UsageError: as `find_places`, or `wanted` keeps a path out.
    """
    for named in paths:
        _, folder = _root_and_folder(session, named)
        if wanted is None or not folder:
            continue
        is_wanted = wanted.wants(folder) if named.there == "file" else wanted.wants_below(folder)
        if not is_wanted:
            raise UsageError(
                f"{named.path}: kept out by sources.include and sources.exclude; see `python -m pipeline config`"
            )


def find_places(session: Session, paths: Sequence[Named], run_id: str | None = None) -> list[Place]:
    """The places that `paths` mean: inside a known source where there is one, else a new source.

    A path that is gone or silent but was known is a place all the same: the scan says what is wrong with it.

    Raises:
        UsageError: there is no such path, or it is a file of another kind.
        RunInProgress: one is around a source that another run than this may be at work on.
    """
    places: dict[tuple[str, str], Place] = {}
    for named in paths:
        root, folder = _root_and_folder(session, named)
        source_id = library.ensure_source(session, root, utc_now(), mark=None if folder else named.mark, run_id=run_id)
        places[root, folder] = Place(source_id, root, folder)
    # A source that was found inside a later one is a part of that now.
    known = library.sources(session)
    return [place for place in places.values() if place.root in known]


def _root_and_folder(session: Session, named: Named) -> tuple[str, str]:
    path, full = named.path, named.full
    known = library.sources(session)
    root = library.enclosing_source(known, full)
    if named.there == "silent" and root is None:
        raise UsageError(f"{path}: its disk or its share gives no answer")
    if named.there == "nothing" and full not in known:
        raise UsageError(f"{path}: {_absent(session, known, full)}")
    if named.there == "file" and full not in known:
        if is_passed_over(path.name):
            why = "hidden files" if path.name.startswith(".") else "Word's lock files"
            raise UsageError(f"{path}: {why} are passed over: give it another name")
        if kind_of_name(path.name) is None:
            kinds = " or ".join(KINDS)
            raise UsageError(f"{path}: not a document that can be read; its name should end in {kinds}")
    if root is None:
        return (full, "") if named.there == "folder" else (os.path.dirname(full), os.path.basename(full))  # noqa: PTH119, PTH120
    return root, full.removeprefix(root).lstrip("/")


def _absent(session: Session, known: dict[str, int], full: str) -> str:
    """What to say of a path that is not there: its documents may still be in the index."""
    root = library.enclosing_source(known, full)
    scope = Scope(known[root], full.removeprefix(root).lstrip("/")) if root else None
    if scope and library.known_documents(session, scope):
        return (
            "no such file or folder, but it is still in the index; if it is gone for good: "
            f"`python -m pipeline documents forget {shlex.quote(full)}`"
        )
    if kind_of_name(os.path.basename(full)):  # noqa: PTH119
        return "no such file"
    return "no such file or folder: make it and put documents there, or name a PATH"
