"""All checks of a database, one after the other in one snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core.verifying import Disagreement, Tally, is_beyond_belief
from pipeline.store.checks import copies, counts, database, rows, values, vectors, words
from pipeline.store.scopes import folder_of_source
from pipeline.store.tables import ChunkRow, DocumentRow, SourceRow

Check = Callable[[Session], Iterator[Disagreement]]

BEFORE: Mapping[str, Check] = {
    "the database file": database.damage,
    "values": values.damaged_values,
}
ROWS: Mapping[str, Check] = {
    "indexes and triggers": database.missing_parts,
    "references": database.orphans,
    "models": rows.one_active_model,
    "chunks": rows.chunks_in_one_place,
    "documents": rows.contents_as_counted,
    "texts": rows.texts_of_chunks,
    "the queue": rows.queued_tokens,
    "copies": rows.copied_columns,
    "claims": rows.claims,
    "leftovers": rows.unwanted_contents,
    "bytes": rows.bytes_of_documents,
    "what search sees": rows.shown_when_done,
    "counts of documents": counts.document_counts,
    "counts of chunks": counts.chunk_counts,
    "numbers of chunks": counts.chunk_numbers,
    "the index of words": words.indexed_chunks,
    "documents without vectors": vectors.missing_document_vectors,
    "vectors of documents": vectors.document_vectors,
    "quantized copies": copies.stale_copies,
}


_OF_CHUNKS = ("chunk-missing", "chunk-nowhere", "vector-length", "vector-not-finite", "vector-norm")
"""What of a document with these would make the mean another one."""


def check_database(
    session: Session, tally: Tally, sample: int, seed: int, tell: Callable[[str, int, int], None] = lambda *_: None
) -> None:
    """Run every check. tell: what is looked at now, how much of it is done, and how much there is (0: not known).

    What is damaged is looked at no further: what would be found is not to be believed.
    """
    for name, check in BEFORE.items():
        tell(name, 0, 0)
        tally.add(check(session))
        if is_beyond_belief(tally):
            return
    for name, check in ROWS.items():
        tell(name, 0, 0)
        tally.add(check(session))
    total = session.scalar(sa.text("SELECT COUNT(*) FROM embeddings")) or 0
    done = 0

    def beat(more: int) -> None:
        nonlocal done
        done += more
        tell("vectors", done, total)

    tell("vectors", 0, total)
    tally.add(vectors.chunk_vectors(session, beat))
    if sample:
        tell("means", 0, 0)
        bad = {int(one.ids["content"]) for code, listed in tally.kept.items() if code in _OF_CHUNKS for one in listed}
        tally.add(vectors.means(session, sample, seed, bad))
        tally.add(words.words_of_chunks(session, max(sample, words.SAMPLE), seed))


def located(session: Session, found: list[Disagreement]) -> list[Disagreement]:
    """The same, each with the file that it is about, and where in it."""
    return [one if one.where else replace(one, where=_where(session, one)) for one in found]


def _where(session: Session, one: Disagreement) -> str:
    parts: list[str] = []
    content_id = one.ids.get("content")
    chunk = session.get(ChunkRow, int(one.ids["chunk"])) if "chunk" in one.ids else None
    if chunk is not None and content_id is None:
        content_id = chunk.content_id
    file = _file(session, one.ids.get("document"), content_id)
    if file is not None:
        parts.append(file)
    elif content_id is not None:
        parts.append(f"content {content_id}")
    if chunk is not None:
        parts.append(f"chunk {chunk.ordinal}")
        if chunk.page_first is not None:
            parts.append(f"page {chunk.page_first}")
    elif "chunk" in one.ids:
        parts.append(f"chunk number {one.ids['chunk']}")
    if "table" in one.ids:
        parts.append(f"{one.ids['table']} {one.ids['key']}")
    if not parts and one.ids:
        parts = [f"{name} {value}" for name, value in one.ids.items()]
    return ", ".join(parts) or "the database"


def _file(session: Session, document_id: int | str | None, content_id: int | str | None) -> str | None:
    query = sa.select(folder_of_source(), DocumentRow.path).join(DocumentRow, DocumentRow.source_id == SourceRow.id)
    if document_id is not None:
        query = query.where(DocumentRow.id == document_id)
    elif content_id is not None:
        mine = sa.or_(DocumentRow.current_id == content_id, DocumentRow.pending_id == content_id)
        query = query.where(mine).order_by(DocumentRow.id)
    else:
        return None
    found = session.execute(query.limit(1)).first()
    return f"{found[0].rstrip('/')}/{found[1]}" if found else None
