"""Search, put together: what a person or a program asks, and the answer as one JSON object."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentKind
from pipeline.core.errors import BackendError, BadAnswer, ModelError, UsageError
from pipeline.core.fusion import By, share
from pipeline.core.globs import compile_globs
from pipeline.core.words import without_excluded
from pipeline.ingest.links import link_to
from pipeline.runner.moments import parse_moment
from pipeline.store import inventory, models
from pipeline.store.database import Database
from pipeline.store.models import StoredModel
from pipeline.store.search import Account, DocumentHit, Hit, Place, Query, count_searched, find, find_documents
from pipeline.store.view import Filter, unknown_sources, view_of

Embed = Callable[[StoredModel, str], Awaitable[NDArray[np.float32]]]
"""Makes the vector, float32[d] of unit length, of a question by a model."""

MOST_PARTS = 100
"""Sources, globs or types in one filter."""

_NO_MODEL = (ModelError, BackendError)
"""What keeps a question from having a vector, though words can still be looked for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for, as it was typed, but for sources, which are absolute.

    by: fused, vector or text; None: as the settings have it. model: another one than search uses (see `find_model`).
    per_document: passages of one document at most. documents: whole documents, by their own vectors.
    The other fields narrow it down, see `store.view.Filter`.
    """

    text: str
    k: int = 5
    by: str | None = None
    source: Sequence[str] = ()
    path: Sequence[str] = ()
    type: Sequence[str] = ()
    after: str | None = None
    before: str | None = None
    per_document: int | None = None
    model: str | None = None
    explain: bool = False
    documents: bool = False

    def parameters(self) -> list[tuple[str, str]]:
        """As a query to `/api/search`, or to `/api/search/documents` where `documents` is set; `model` is not told."""
        found = [("q", self.text)]
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in ("text", "documents", "model") or value == each.default:
                continue
            listed = value if isinstance(value, list | tuple) else [value]
            found += [(each.name, str(one).lower() if one is True else str(one)) for one in listed]
        return found


async def answer(store: Database, asked: Asked, embed: Embed, default: By) -> dict[str, Any]:
    """What is found, best first, as JSON has it: docs/search.md lists the fields.

    Ranked by meaning and words it goes by words alone where the model cannot be had, and `degraded` says why.

    Raises:
        UsageError: what is asked makes no sense; one line says what.
        ModelError, BackendError, AdmissionError: ranked by meaning alone, and the model cannot be had.
    """
    text, by, wanted = _checked(asked, default)
    while True:
        model = await store.read(stored_model, asked.model)
        if model is None:
            return _said(asked, None, by, None, [])
        account, vector, degraded = Account(), None, None
        began = time.perf_counter()
        if by is not By.TEXT:
            try:
                vector = _fitting(await embed(model, without_excluded(text)), model)
            except _NO_MODEL as error:
                if by is By.VECTOR or asked.documents:
                    raise
                by, degraded = By.TEXT, str(error)
            account.seconds["question"] = time.perf_counter() - began
        query = Query(text, vector, by, asked.k, asked.per_document)
        found = await store.read(_find, model, query, wanted, asked, account)
        if found is not None:
            return _said(asked, model, by, degraded, *found)
        # Search moved to another model while the question was embedded: once more, with the one that it has now.


def _fitting(vector: NDArray[np.float32], model: StoredModel) -> NDArray[np.float32]:
    """The vector of a question, if it can be compared with the model's. Raises BadAnswer: a server gave another."""
    if vector.shape != (model.dimension,):
        raise BadAnswer(
            f"the embedding server gives vectors of {vector.size} numbers, and those of {model.name} have "
            f"{model.dimension}: it serves another model"
        )
    return vector


def _checked(asked: Asked, default: By) -> tuple[str, By, Filter]:
    # Half a character, or none, is in no document; what stores and sends text would choke on it.
    text = asked.text.encode("utf-8", "replace").decode().replace("\0", " ")
    if not text.strip():
        raise UsageError("there is nothing to look for")
    if asked.by is not None and asked.by not in list(By):
        raise UsageError(f'by: should be {" or ".join(By)}, not "{asked.by}"')
    by = By(asked.by) if asked.by else default
    if asked.documents:
        if asked.by not in (None, By.VECTOR) or asked.per_document:
            raise UsageError("documents are found by their vectors alone: leave `by` and `per_document` out")
        by = By.VECTOR
    return text, by, wanted_documents(asked, dt.datetime.now().astimezone())


def with_zones(asked: Asked, now: dt.datetime) -> Asked:
    """The same with times that mean the same to whoever is asked, whatever the clock there shows. Raises UsageError."""
    after, before = _moment("after", asked.after, now), _moment("before", asked.before, now)
    return replace(asked, after=after.isoformat() if after else None, before=before.isoformat() if before else None)


def wanted_documents(asked: Asked, now: dt.datetime) -> Filter:
    """The filter that is meant. Raises UsageError."""
    for name in ("source", "path", "type"):
        if len(getattr(asked, name)) > MOST_PARTS:
            raise UsageError(f"{name}: {MOST_PARTS} are the most")
    for source in asked.source:
        if not source.startswith("/") or "\0" in source:
            raise UsageError(f"source: an absolute path is wanted, not {source}")
    for glob in asked.path:
        if glob.startswith("!"):
            raise UsageError(f"path: say what is wanted, not what is not ({glob})")
    kinds = [kind.lower().removeprefix(".") for kind in asked.type]
    for kind in kinds:
        if kind not in list(DocumentKind):
            raise UsageError(f'type: should be {" or ".join(DocumentKind)}, not "{kind}"')
    try:
        compile_globs(asked.path)
    except ValueError as error:
        raise UsageError(f"path: {error}") from error
    after, before = _moment("after", asked.after, now), _moment("before", asked.before, now)
    if after and before and after >= before:
        raise UsageError(f"nothing is from {asked.after} on and before {asked.before}")
    return Filter(tuple(asked.source), tuple(asked.path), tuple(kinds), after, before)


def _moment(name: str, typed: str | None, now: dt.datetime) -> dt.datetime | None:
    if typed is None:
        return None
    try:
        return parse_moment(typed, now)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error


def stored_model(session: Session, name: str | None) -> StoredModel | None:
    """The model that a name means (see `find_model`), or the one that search uses; None where there is none yet."""
    if name is None:
        return models.active_model(session)
    found = inventory.find_model(inventory.list_inventory(session), name)
    return StoredModel(found.id, found.fingerprint, found.name, found.path, found.dimension, found.active)


def _find(
    session: Session, model: StoredModel, query: Query, wanted: Filter, asked: Asked, account: Account
) -> tuple[Sequence[Hit | DocumentHit], Account, int | None, Sequence[str]] | None:
    """What is found, of how many contents where that is to be told, and which of the filter's sources are unknown.

    None where the model is another now.
    """
    now = stored_model(session, asked.model)
    if now is None or now.id != model.id:
        return None
    with account.timed("filter"):
        view = view_of(session, model.id, wanted)
    hits: Sequence[Hit | DocumentHit]
    if asked.documents and query.vector is not None:
        hits = find_documents(session, query.vector, view, query.k, account)
    else:
        hits = find(session, query, view, account)
    searched = count_searched(session, view) if asked.explain or not hits else None
    return hits, account, searched, [] if hits else unknown_sources(session, wanted.sources)


def _said(
    asked: Asked,
    model: StoredModel | None,
    by: By,
    degraded: str | None,
    hits: Sequence[Hit | DocumentHit],
    account: Account | None = None,
    searched: int | None = None,
    unknown: Sequence[str] = (),
) -> dict[str, Any]:
    return {
        "query": asked.text,
        "model": model.name if model else None,
        "by": by.value,
        "degraded": degraded,
        "results": [
            _document(rank, hit) if isinstance(hit, DocumentHit) else _hit(rank, hit, by, explain=asked.explain)
            for rank, hit in enumerate(hits, start=1)
        ],
        "nothing": None if hits or model is None else _nothing(searched, unknown),
        "explain": _how(account, searched) if asked.explain and account else None,
    }


def _nothing(searched: int | None, unknown: Sequence[str]) -> str:
    said = "No document matches the filter." if searched == 0 else "Nothing matches."
    if not unknown:
        return said
    are = "is" if len(unknown) == 1 else "are"
    return f"{said} {', '.join(unknown)} {are} in no known source; `status` lists these."


def _how(account: Account, searched: int | None) -> dict[str, Any]:
    return {
        "documents": searched,
        "how": account.how,
        "candidates": account.candidates,
        "milliseconds": {part: round(1000 * seconds, 1) for part, seconds in account.seconds.items()},
    }


def _hit(rank: int, hit: Hit, by: By, *, explain: bool) -> dict[str, Any]:
    return {
        "rank": rank,
        "score": round(hit.score, 6),
        **_file(hit, hit.page_first),
        "title": hit.title,
        "pages": None if hit.page_first is None else [hit.page_first, hit.page_last or hit.page_first],
        "heading": " > ".join(hit.headings) or None,
        "headings": list(hit.headings),
        "table_header": hit.prefix or None,
        "text": hit.text,
        "highlights": [list(span) for span in hit.highlights],
        "excerpt": list(hit.excerpt),
        "ranks": {name: place.rank for name, place in hit.places.items()},
        "explain": {name: _place(place, by) for name, place in hit.places.items()} if explain else None,
    }


def _place(place: Place, by: By) -> dict[str, Any]:
    return {
        "rank": place.rank,
        "score": round(place.score, 6),
        "words": {word: round(part, 4) for word, part in place.words.items()},
        "weight": round(place.weight, 4) if by is By.FUSED else None,
        "share": round(share(place.rank, place.weight), 6) if by is By.FUSED else None,
    }


def _document(rank: int, hit: DocumentHit) -> dict[str, Any]:
    return {
        "rank": rank,
        "score": round(hit.score, 6),
        **_file(hit, None),
        "title": hit.title,
        "pages": hit.page_count,
        "method": hit.method,
    }


def _file(hit: Hit | DocumentHit, page: int | None) -> Mapping[str, Any]:
    return {
        "file": hit.file,
        "also": list(hit.also),
        "link": link_to(hit.file, hit.kind, page),
        "type": hit.kind,
        "modified": hit.modified.isoformat() if hit.modified else None,
    }
