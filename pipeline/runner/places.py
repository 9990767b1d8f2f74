"""From the paths that somebody named to the sources they lie in."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from pipeline.core.errors import UsageError
from pipeline.ingest.files import KINDS, kind_of
from pipeline.ingest.names import stored_name
from pipeline.ingest.work import Place, utc_now
from pipeline.store import library
from pipeline.store.scopes import Scope


def check_paths(session: Session, paths: Sequence[Path]) -> None:
    """Look whether `paths` can be ingested, and change nothing.

    Raises:
        UsageError: as `find_places`.
    """
    for path in paths:
        _root_and_folder(session, path)


def find_places(session: Session, paths: Sequence[Path]) -> list[Place]:
    """The places that `paths` mean: inside a known source where there is one, else a new source.

    A path that is gone but was known is a place all the same: the scan says what is wrong with it.

    Raises:
        UsageError: there is no such path, or it is a file of another kind.
    """
    places: dict[tuple[str, str], Place] = {}
    for path in paths:
        root, folder = _root_and_folder(session, path)
        source_id = library.ensure_source(session, root, utc_now())
        places[root, folder] = Place(source_id, root, folder)
    # A source that was found inside a later one is a part of that now.
    known = library.sources(session)
    return [place for place in places.values() if place.root in known]


def _root_and_folder(session: Session, path: Path) -> tuple[str, str]:
    full = stored_name(os.path.realpath(path))
    known = library.sources(session)
    is_folder = path.is_dir()
    if not is_folder and full not in known:
        if not path.exists():
            raise UsageError(f"{path}: {_absent(session, known, full)}")
        if path.name.startswith((".", "~$")):
            why = "hidden files" if path.name.startswith(".") else "Word's lock files"
            raise UsageError(f"{path}: {why} are passed over: give it another name")
        if kind_of(path.name) is None:
            kinds = " or ".join(KINDS)
            raise UsageError(f"{path}: not a document that can be read; its name should end in {kinds}")
    root = library.enclosing_source(known, full)
    if root is None:
        return (full, "") if is_folder else (os.path.dirname(full), os.path.basename(full))  # noqa: PTH119, PTH120
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
    if kind_of(os.path.basename(full)):  # noqa: PTH119
        return "no such file"
    return "no such file or folder: make it and put documents there, or name a PATH"
