"""`documents`: list them, show one, send back what failed, forget what is gone."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer

from pipeline.cli.console import confirmed, errors_explained, not_there_yet, open_store, out, print_json
from pipeline.cli.view import printable, unescaped
from pipeline.cli.words import counted, moment
from pipeline.core.changes import Known, is_below
from pipeline.core.documents import DocumentState
from pipeline.core.errors import UsageError
from pipeline.ingest.links import link_to
from pipeline.ingest.names import stored_name
from pipeline.store import library, overview
from pipeline.store.database import Database
from pipeline.store.overview import FAILING, ChunkLine, DocumentLine, DocumentView
from pipeline.store.retry import retry_documents
from pipeline.store.scopes import Scope

LEFT_SHOWN = 5
_OWN_VECTOR = {"model": "by the model, over the whole text", "mean": "the mean of its chunks, weighted by their tokens"}
_TRIED_AGAIN = (*FAILING, DocumentState.DISCOVERED)


def list_command(
    states: Sequence[str] | None, part: str | None, database: str | None, limit: int | None, *, as_json: bool
) -> None:
    """Print the documents, one to a line. part: of their names; None is all."""
    with errors_explained(as_json=as_json), open_store(database) as (loaded, store):
        wanted, missing = _states(states), not_there_yet(loaded)
        with store.snapshot() as session:
            lines = overview.list_documents(session, wanted, limit=limit, named=None if part is None else _has(part))
    if as_json:
        print_json([_line_as_json(line) for line in lines])
        return
    if not lines:
        named = "" if part is None else f" with {part} in their names"
        _print_line(missing or f"No documents{named}{' that are ' if wanted else ''}{' or '.join(wanted or ())}.")
        return
    width = max(len("id"), *(len(str(line.id)) for line in lines))
    _print_line(f"{'id':>{width}}  {'state':<10} embedded/chunks file")
    for line in lines:
        reason = f": {line.reason}" if line.reason else ""
        older = "; its earlier text is still searched" if line.older and line.state in FAILING else ""
        textless = f"; no text on {line.pages_without_text} of {line.pages} pages" if line.pages_without_text else ""
        count = f"{line.embedded:>8}/{line.chunks:<6}"
        _print_line(f"{line.id:>{width}}  {line.state.value:<10} {count} {line.file}{reason}{older}{textless}")


def _has(part: str) -> Callable[[str], bool]:
    """Whether a path has `part` in its file's name, or anywhere where `part` names folders; case counts for nothing."""
    wanted = {_folded(stored_name(written)) for written in (part, unescaped(part))}

    def has(path: str) -> bool:
        looked_at = _folded(path if "/" in part else path.rpartition("/")[2])
        return any(one in looked_at for one in wanted)

    return has


def _folded(name: str) -> str:
    """A name without regard to case, and to whether its letters are composed (macOS takes them apart)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def show_command(name: str, database: str | None, *, as_json: bool) -> None:
    """Print one document with its chunks."""
    with errors_explained(as_json=as_json), open_store(database) as (_, store), store.snapshot() as session:
        view = overview.show_document(session, _one(store, name).id)
        assert view is not None, name
    if as_json:
        print_json(_view_as_json(view))
        return
    line = view.line
    facts: list[tuple[str, object]] = [
        ("file", line.file),
        ("state", line.state.value + (f" at {view.stage}: {line.reason}" if line.reason else "")),
        ("title", line.title),
        ("pages", line.pages or None),
        ("size", f"{view.size:,} bytes"),
        ("sha256", view.sha256),
        ("chunks", f"{line.embedded:,} of {line.chunks:,} embedded"),
        ("own vector", _OWN_VECTOR.get(view.method or "", view.method)),
        ("read by", view.details.get("engine")),
        ("OCR", _recognised(view.details)),
        ("no text on", ", ".join(f"page {n}" for n in view.details.get("pages_without_text", [])) or None),
        ("attempts", view.attempts or None),
        ("next try", view.retry_at and moment(view.retry_at)),
        ("open", link_to(line.file, view.kind)),
        ("searched", _searched(view)),
        ("file gone", view.gone_at and f"since {moment(view.gone_at)}; its deletion waits to be confirmed"),
    ]
    facts += sorted(view.details.get("metadata", {}).items())
    for fact, value in facts:
        if value:
            _print_line(f"{fact:<12} {value}")
    for chunk in view.chunks:
        _print("")
        _print_line(_chunk_title(chunk), link_to(line.file, view.kind, chunk.page_first))
        _print((chunk.prefix + chunk.text).strip(), indent="    ")


def _recognised(details: Mapping[str, Any]) -> str | None:
    """What OCR did with a document; None where it did nothing."""
    ocr = details.get("ocr")
    if not ocr:
        return None
    pages = ", ".join(f"page {number}" for number in details.get("pages_ocr", [])) or "no page"
    sure = "" if ocr["confidence"] is None else f", {ocr['confidence']} % sure"
    failed = "".join(f"; page {number} failed: {reason}" for number, reason in ocr["failed"].items())
    return f"{pages} by {ocr['engine']} ({ocr['languages']}{sure}){failed}"


def retry_command(
    names: Sequence[str], states: Sequence[str] | None, database: str | None, *, everything: bool, as_json: bool
) -> None:
    """Send documents back into the queue. JSON: `retried`: how many; `left`: those with nothing to try again."""
    with errors_explained(as_json=as_json), open_store(database) as (_, store):
        if not (names or states or everything):
            raise UsageError("say which: names, --state, or --all for all that are empty, encrypted or failed")
        found = {line.id: line for line in (_one(store, name) for name in names)}
        if states or everything:
            with store.snapshot() as session:
                found |= {line.id: line for line in overview.list_documents(session, _states(states) or FAILING)}
        left = [line for line in found.values() if line.state not in _TRIED_AGAIN]
        with store.begin() as session:
            changed = retry_documents(session, [line.id for line in found.values() if line.state in _TRIED_AGAIN])
    if as_json:
        print_json({"retried": changed, "left": [_line_as_json(line) for line in left]})
        return
    _print_line(f"{counted(changed, 'document')} will be tried again by the next run.")
    for line in left[:LEFT_SHOWN]:
        what = (
            "there is nothing to try again" if line.state is DocumentState.EMBEDDED else "the next run goes on with it"
        )
        _print_line(f"{line.id} ({line.file}) is {line.state.value}: {what}")
    if len(left) > LEFT_SHOWN:
        _print_line(f"and {len(left) - LEFT_SHOWN:,} more that are embedded or on their way")


def forget_command(name: str, database: str | None, *, yes: bool, as_json: bool) -> None:
    """Remove the documents at or below a path, or one by its number or the end of its path. JSON: `removed`."""
    with errors_explained(as_json=as_json), open_store(database) as (_, store):
        if not name.strip():
            raise UsageError("an empty NAME: a folder, a file, or a document's number")
        documents, where = _below(store, name) or _named(store, name)
        if not yes and not confirmed(f"Remove {counted(len(documents), 'document')} ({where}) from the index?"):
            raise typer.Abort
        with store.begin() as session:
            removed = library.forget(session, documents)
    if as_json:
        print_json({"removed": removed})
        return
    gone = f"{counted(removed, 'document')} removed from the index."
    _print_line(f"{gone} Files that are still there come back with the next run.")


def _below(store: Database, name: str) -> tuple[list[Known], str] | None:
    """The documents at or below a path, and the path; None where there are none."""
    full = stored_name(os.path.realpath(name))
    with store.snapshot() as session:
        known = library.sources(session)
        inside = [root for root in known if is_below(root, full)]
        root = library.enclosing_source(known, full)
        scopes = [Scope(known[source]) for source in inside]
        if root is not None and root not in inside:
            scopes.append(Scope(known[root], full.removeprefix(root).lstrip("/")))
        documents = [document for scope in scopes for document in library.known_documents(session, scope)]
    return (documents, full) if documents else None


def _named(store: Database, name: str) -> tuple[list[Known], str]:
    line = _one(store, name)
    with store.snapshot() as session:
        for source_id in library.sources(session).values():
            documents = library.known_documents(session, Scope(source_id))
            if found := [document for document in documents if document.id == line.id]:
                return found, line.file
    raise UsageError(f"{name}: no such document; `python -m pipeline documents` lists them")


def _one(store: Database, name: str) -> DocumentLine:
    with store.snapshot() as session:
        found = next(
            (
                documents
                for wanted in dict.fromkeys([name, unescaped(name)])
                for written in (stored_name(os.path.realpath(wanted)), stored_name(wanted))
                if "\0" not in wanted and (documents := overview.find_documents(session, written))
            ),
            [],
        )
    if not found:
        raise UsageError(f"{name}: no such document; `python -m pipeline documents` lists them")
    if len(found) > 1:
        raise UsageError(f"{name}: more than one document: {', '.join(f'{d.id} ({d.file})' for d in found[:5])}")
    return found[0]


def _states(names: Sequence[str] | None) -> list[DocumentState] | None:
    if not names:
        return None
    unknown = next((name for name in names if name.lower() not in {*DocumentState}), None)
    if unknown is not None:
        raise UsageError(f"no such state: {unknown}; there are {', '.join(DocumentState)}")
    return [DocumentState(name.lower()) for name in names]


def _print(text: str, indent: str = "") -> None:
    console = out()
    for line in text.splitlines() or [""]:
        console.print(indent + printable(line, console.encoding), soft_wrap=True, markup=False)


def _print_line(text: str, link: str = "") -> None:
    """One line, whatever a name or a reason holds; on a terminal, it leads to `link`."""
    console = out()
    style = f"link {link}" if link else ""
    console.print(printable(text, console.encoding), soft_wrap=True, markup=False, style=style)


def _chunk_title(chunk: ChunkLine) -> str:
    parts = [f"chunk {chunk.ordinal}", counted(chunk.tokens, "token")]
    if chunk.page_first is not None:
        parts.append(pages(chunk.page_first, chunk.page_last))
    if chunk.headings:
        parts.append(" > ".join(chunk.headings))
    parts.append("embedded" if chunk.embedded else f"failed: {chunk.error}" if chunk.error else "waiting")
    return "-- " + ", ".join(parts)


def _searched(view: DocumentView) -> str | None:
    if not view.line.older:
        return None
    if view.line.state in FAILING:
        return "its earlier text"
    return "an older version of it, until this one is done"


def pages(first: int | None, last: int | None) -> str:
    """A page span in words."""
    return f"page {first}" if first == last else f"pages {first} to {last}"


def _line_as_json(line: DocumentLine) -> dict[str, Any]:
    return dataclasses.asdict(line)


def _view_as_json(view: DocumentView) -> dict[str, Any]:
    rest = {f.name: getattr(view, f.name) for f in dataclasses.fields(view) if f.name not in ("line", "chunks")}
    chunks = [
        dataclasses.asdict(chunk) | {"link": link_to(view.line.file, view.kind, chunk.page_first)}
        for chunk in view.chunks
    ]
    link = {"link": link_to(view.line.file, view.kind)}
    return _line_as_json(view.line) | link | rest | {"chunk_list": chunks}
