"""`search`: the passages nearest in meaning to a question."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.cli.console import errors_explained, not_there_yet, open_store, out, print_json
from pipeline.cli.documents import pages
from pipeline.cli.view import printable
from pipeline.cli.words import as_called
from pipeline.core.errors import BackendRefused, UsageError
from pipeline.ingest.links import link_to
from pipeline.runner.question import embed_question
from pipeline.settings import Settings
from pipeline.store import models
from pipeline.store.database import Database
from pipeline.store.models import StoredModel
from pipeline.store.search import DocumentHit, Hit, search_active, search_documents

Found = TypeVar("Found")

EXCERPT = 400
"""Characters of each passage on a terminal; --json gives it whole."""


def search_command(text: str, k: int, database: str | None, *, as_json: bool) -> None:
    """Search, and print what was found."""
    model, hits, nothing = _ask(text, k, database, search_active, as_json=as_json)
    if as_json:
        print_json(_as_json(text, model, hits))
    else:
        _say(hits, nothing)


def search_documents_command(text: str, k: int, database: str | None, *, as_json: bool) -> None:
    """Search for whole documents, and print what was found."""
    model, hits, nothing = _ask(text, k, database, search_documents, as_json=as_json)
    if as_json:
        found = [
            {
                "rank": rank,
                "score": round(hit.score, 6),
                "file": hit.file,
                "also": list(hit.also),
                "title": hit.title,
                "link": link_to(hit.file, hit.kind, None),
                "pages": hit.page_count,
                "method": hit.method,
            }
            for rank, hit in enumerate(hits, start=1)
        ]
        print_json({"query": text, "model": model.name if model else None, "results": found})
    else:
        _say_documents(hits, nothing)


def _say_documents(hits: Sequence[DocumentHit], nothing: str) -> None:
    console = out()

    def line(text: str, style: str = "") -> None:
        console.print(printable(text), soft_wrap=True, markup=False, style=style)

    if not hits:
        line(nothing)
    for rank, hit in enumerate(hits, start=1):
        line(f"{rank}. {hit.score:.3f}  {hit.file}", f"bold link {link_to(hit.file, hit.kind, None)}")
        if hit.title:
            line(f"   {hit.title}")
        for other in hit.also:
            line(f"   also {other}")


def _ask(
    text: str,
    k: int,
    database: str | None,
    find: Callable[[Any, NDArray[np.float32], int, int], list[Found] | None],
    *,
    as_json: bool,
) -> tuple[StoredModel | None, list[Found], str]:
    """What is found, by which model, and what to say where that is nothing."""
    with errors_explained(as_json=as_json), open_store(database) as (loaded, store):
        if not text.strip():
            raise UsageError("there is nothing to look for")
        nothing = not_there_yet(loaded) or as_called(
            "Nothing is in the index yet: `python -m pipeline run-now` fills it."
        )
        return *_search(loaded.settings, store, text, k, find), nothing


def _search(
    settings: Settings,
    store: Database,
    text: str,
    k: int,
    find: Callable[[Any, NDArray[np.float32], int, int], list[Found] | None],
) -> tuple[StoredModel | None, list[Found]]:
    """What is found, and by which model; None where there is none yet."""
    while True:
        with store.snapshot() as session:
            model = models.active_model(session)
        if model is None:
            return None, []
        vector = _vector(settings, model, text)
        with store.snapshot() as session:
            hits = find(session, vector, model.id, k)
        if hits is not None:
            return model, hits
        # Search moved over while the question was embedded: once more, with the model that it has now.


def _as_json(text: str, model: StoredModel | None, hits: Sequence[Hit]) -> dict[str, Any]:
    return {
        "query": text,
        "model": model.name if model else None,
        "results": [
            {
                "rank": rank,
                "score": round(hit.score, 6),
                "file": hit.file,
                "also": list(hit.also),
                "title": hit.title,
                "link": link_to(hit.file, hit.kind, hit.page_first),
                "pages": None if hit.page_first is None else [hit.page_first, hit.page_last],
                "heading": " > ".join(hit.headings) or None,
                "table_header": hit.prefix or None,
                "text": hit.text,
            }
            for rank, hit in enumerate(hits, start=1)
        ],
    }


def _vector(settings: Settings, model: StoredModel, text: str) -> NDArray[np.float32]:
    try:
        return asyncio.run(embed_question(settings, model, text))
    except BackendRefused as error:
        if error.status != HTTPStatus.BAD_REQUEST:
            raise
        tokens = re.search(r"(\d+) tokens.* the (\d+) that", str(error))
        size = f": {int(tokens[1]):,} tokens, and {int(tokens[2]):,} are the most" if tokens else ""
        raise UsageError(f"the text is too long for the model{size}; ask for less at once") from error


def _excerpt(hit: Hit) -> str:
    """The passage on one line, without the headings that stand above it already."""
    passage = " ".join((hit.prefix + hit.text).split())
    for heading in hit.headings:
        passage = passage.removeprefix(" ".join(heading.split())).lstrip()
    passage = passage or " ".join(hit.text.split())
    return passage if len(passage) <= EXCERPT else f"{passage[:EXCERPT]}..."


def _say(hits: Sequence[Hit], nothing: str) -> None:
    console = out()

    def line(text: str, style: str = "") -> None:
        console.print(printable(text), soft_wrap=True, markup=False, style=style)

    if not hits:
        line(nothing)
    for rank, hit in enumerate(hits, start=1):
        where = [hit.file]
        if hit.page_first is not None:
            where.append(pages(hit.page_first, hit.page_last))
        link = link_to(hit.file, hit.kind, hit.page_first)
        line(f"{rank}. {hit.score:.3f}  {', '.join(where)}", f"bold link {link}")
        if hit.headings:
            line(f"   {' > '.join(hit.headings)}", "italic")
        line(f"   {_excerpt(hit)}")
        for other in hit.also:
            line(f"   also {other}")
