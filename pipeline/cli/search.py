"""`search`: the passages that answer a question best, or whole documents."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.cli.asking import ask_daemon, gpu_is_ours
from pipeline.cli.console import complain, errors_explained, not_there_yet, open_store, out, print_json
from pipeline.cli.documents import pages
from pipeline.cli.view import printable
from pipeline.cli.words import as_called
from pipeline.core.fusion import RRF_K, By
from pipeline.ingest.names import stored_name
from pipeline.runner.mirroring import beside
from pipeline.runner.searching import Asked, answer, with_zones
from pipeline.runner.target import unaliased
from pipeline.settings import LoadedSettings
from pipeline.store.database import Database

Json = Mapping[str, Any]


def search_command(asked: Asked, database: str | None, *, as_json: bool) -> None:
    """Search, and print what was found. Sources are as a person types them."""
    with errors_explained(as_json=as_json), open_store(database) as (loaded, store):
        asked = with_zones(asked, dt.datetime.now().astimezone())
        asked = dataclasses.replace(asked, source=[_absolute(source) for source in asked.source])
        asked = dataclasses.replace(asked, model=unaliased(loaded.settings, asked.model))
        said = _answer(loaded, store, asked)
        nothing = not_there_yet(loaded) or "Nothing is in the index yet: `python -m pipeline run-now` fills it."
    if as_json:
        print_json(said)
        return
    if said["degraded"]:
        complain(f"looked for the words alone, because the model cannot be had: {said['degraded']}")
    _print(said, nothing)


def _answer(loaded: LoadedSettings, store: Database, asked: Asked) -> dict[str, Any]:
    async def by_our_own_server(model: Any, text: str) -> Any:
        # Slow to import, for all that a model server needs; a daemon that answers, or words, need none of it.
        from pipeline.runner.question import embed_question

        return await embed_question(loaded.settings, model, text, on_gpu=gpu_is_ours(loaded.settings))

    async def by_ourselves() -> dict[str, Any]:
        async with beside(loaded.settings, store):
            return await answer(store, asked, by_our_own_server, By(loaded.settings.search.by))

    return ask_daemon(loaded.settings, asked) or asyncio.run(by_ourselves())


def _absolute(source: str) -> str:
    return stored_name(os.path.realpath(os.path.expanduser(source)))  # noqa: PTH111 - as runs store it


def _print(said: Json, nothing: str) -> None:
    console = out()
    if not said["results"]:
        _line(console, as_called(said["nothing"] or nothing))
    for hit in said["results"]:
        _print_hit(console, hit, said["by"])
    if said["explain"]:
        _line(console, "")
        for line in _account(said):
            _line(console, line)


def _print_hit(console: Console, hit: Json, by: str) -> None:
    where = hit["file"]
    if isinstance(hit["pages"], list):
        where += f", {pages(*hit['pages'])}"
    # A fused score says nothing by itself: it is a sum of reciprocal ranks.
    score = "" if by == By.FUSED and "text" in hit else f"{hit['score']:.3f}  "
    _line(console, f"{hit['rank']}. {score}{where}", f"bold link {hit['link']}")
    if hit.get("heading"):
        _line(console, f"   {hit['heading']}", "italic")
    if "text" in hit:
        console.print(Text("   ") + _excerpt(hit), soft_wrap=True)
    elif hit["title"]:
        _line(console, f"   {hit['title']}")
    for other in hit["also"]:
        _line(console, f"   also {other}")
    for line in _places(hit.get("explain") or {}, hit["score"]):
        _line(console, f"   {line}", "dim")


def _excerpt(hit: Json) -> Text:
    """The part of a passage that says most, on one line, without the headings that stand above it already."""
    text, (start, end) = hit["text"].rstrip(), hit["excerpt"]
    end = len(text[:end].rstrip())
    before, header = ("" if start == 0 else "..."), (hit["table_header"] or "" if start == 0 else "")
    if start == 0 and not header:
        start = _after_headings(text, end, hit["headings"])
    found = Text(before) + _one_line(header)
    at = start
    for first, last in hit["highlights"]:
        if first < start or last > end:
            continue
        found += _one_line(text[at:first])
        found.append(printable(text[first:last]), "bold")
        at = last
    return found + _one_line(text[at:end]) + Text("..." if end < len(text) else "")


def _after_headings(text: str, end: int, headings: Sequence[str]) -> int:
    """Where a passage goes on that begins with its headings; 0 where it is nothing but these."""
    at = 0
    for heading in headings:
        words = r"\s+".join(re.escape(word) for word in heading.split())
        repeated = re.compile(rf"\s*{words}\s*").match(text, at, end)
        at = repeated.end() if repeated else at
    return at if text[at:end].strip() else 0


def _one_line(text: str) -> Text:
    """With single spaces for all that separates words."""
    inside = " ".join(text.split())
    left = " " if text[:1].isspace() else ""
    right = " " if inside and text[-1:].isspace() else ""
    return Text(printable(left + inside + right))


def _places(explained: Mapping[str, Json], score: float) -> Iterator[str]:
    """How a passage came to its place."""
    for name, place in explained.items():
        measure = "cosine" if name == "vector" else "BM25"
        words = ", ".join(
            f"{word} {part:.2f}" for word, part in sorted(place["words"].items(), key=lambda one: -one[1])
        )
        line = f"{name}: rank {place['rank']}, {measure} {place['score']:.3f}"
        yield line + (f" ({words})" if words else "")
    shares = [place for place in explained.values() if place["share"] is not None]
    if shares:
        sum_of = " + ".join(f"{place['weight']:.3g}/({RRF_K} + {place['rank']})" for place in shares)
        yield f"fused: {sum_of} = {score:.5f}"


def _account(said: Json) -> Iterator[str]:
    """How the search went."""
    explained = said["explain"]
    yield f"model: {said['model']}; ranked by: {said['by']}; documents that the filter left: {explained['documents']:,}"
    for name, how in explained["how"].items():
        yield f"{name}: {how}, {explained['candidates'][name]:,} candidates"
    spent = (f"{part} {milliseconds:,.1f}" for part, milliseconds in explained["milliseconds"].items())
    yield f"milliseconds: {', '.join(spent)}"


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(printable(text), soft_wrap=True, markup=False, style=style)
