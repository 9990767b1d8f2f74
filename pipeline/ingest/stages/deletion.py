"""Forgets the documents whose files are gone, with a brake: a disk may be missing, or somebody's hand have slipped."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from pipeline.core.changes import Known, Moves, ancestors, emptied_folders, is_mass_deletion
from pipeline.core.errors import SourceEmptied
from pipeline.ingest.stages.look import Look, distrust
from pipeline.ingest.work import Work, utc_now
from pipeline.store import absent, library
from pipeline.store.scopes import Scope


async def delete(work: Work, looks: Sequence[Look], moves: Moves, *, touched: bool) -> None:
    """Forget the documents whose files are gone, and that did not turn up elsewhere."""
    left = {document.id for document in moves.unclaimed()}
    by_source: dict[int, list[tuple[Look, list[Known]]]] = defaultdict(list)
    for look in looks:
        gone = [document for document in look.changes.missing if document.id in left]
        by_source[look.place.source_id].append((look, gone))
    changes = work.progress.changes
    changes.moved = sum(len(look.changes.missing) for look in looks) - len(left)
    changes.new -= changes.moved
    waiting = [await work.store.read(absent.waiting_in, _scope(look)) for look in looks]
    asked = {document_id for known in waiting for document_id in known.values()}
    sure = [document for places in by_source.values() for document in _surely_gone(work, places, asked)]
    changes.removed = len(sure)
    if sure:
        await work.store.write(library.forget, sure)
    elif touched:
        await work.store.write(library.drop_leftovers)
    left -= {document.id for document in sure}
    for look, known in zip(looks, waiting, strict=True):
        held = [document.id for document in look.changes.missing if document.id in left]
        if known or held:
            await work.store.write(absent.note_absent, held, _back(look, known), utc_now())


def _scope(look: Look) -> Scope:
    return Scope(look.place.source_id, look.place.folder)


def _back(look: Look, waiting: Mapping[str, int]) -> list[int]:
    """The documents of these, by path, whose files are there again."""
    if not waiting:
        return []
    seen = look.seen
    there = {*(file.path for file in seen.found), *(file.path for file in seen.unreadable), *seen.away}
    return [document_id for path, document_id in waiting.items() if path in there]


def _surely_gone(work: Work, places: Sequence[tuple[Look, list[Known]]], asked: Collection[int]) -> list[Known]:
    """What may be deleted of what is gone from the places of one source.

    What a person should confirm first is among the run's errors instead. asked: documents that an earlier scan asked
    about; they wait for the answer, however few are left of them.
    """
    if work.confirm_deletions:
        return [document for _, gone in places for document in gone]
    root = places[0][0].place.root
    for look, gone in places:
        if look.changes.emptied and gone:
            where = "/".join(filter(None, [root.rstrip("/"), look.place.folder])) or root
            held = "1 document" if len(look.hashes) == 1 else f"{len(look.hashes)} documents"
            what = f"{where} held {held} and now holds none; nothing was deleted."
            _doubt(work, root, f"{what} If it is mounted and really empty")
    places = [(look, gone) for look, gone in places if not look.changes.emptied]
    everything = [document for _, gone in places for document in gone]
    known = max((look.of_source for look, _ in places), default=0)
    excluded = {document.id for document in everything if not work.looking.wanted.wants(document.path)}
    kept_out = f" ({len(excluded)} of them kept out by sources.include and sources.exclude)" if excluded else ""
    if is_mass_deletion(len(everything), known):
        _doubt(work, root, _gone(len(everything), known, root, kept_out))
        return []
    sure: list[Known] = []
    for look, gone in places:
        doubtful = emptied_folders([d for d in gone if d.id not in excluded], look.seen.found, look.seen.listed)
        for folder, count in doubtful.items():
            what = f"{root}/{folder} is there, but the {count} documents that it held are not: is a disk missing?"
            _doubt(work, root, f"{what} Nothing of it was deleted; if they are really gone")
        sure += [d for d in gone if d.id in excluded or doubtful.keys().isdisjoint(ancestors(d.path))]
    if before := sum(document.id in asked for document in sure):
        _doubt(work, root, _gone(before, known, root))
    return [document for document in sure if document.id not in asked]


def _gone(count: int, known: int, root: str, kept_out: str = "") -> str:
    return f"{count} of the {known} documents of {root} are gone{kept_out}; none of them was deleted. If that is meant"


def _doubt(work: Work, root: str, problem: str) -> None:
    confirm = f"`python -m pipeline run-now {shlex.quote(root)} --confirm-deletions`"
    distrust(work, SourceEmptied(root, f"{problem}: {confirm}"))
