"""What people see of the database."""

from __future__ import annotations

import dataclasses

import numpy as np

from pipeline.store import library, overview, queue
from pipeline.store.database import Database
from tests.store import rows
from tests.store.rows import utc_now


def test_pages_without_text_are_counted_in_a_list(store: Database) -> None:
    with store.begin() as session:
        rows.begin(session)
        source, target = library.ensure_source(session, "/docs", utc_now()), rows.add_target(session)
        rows.register(session, source, target, a="whole", b="partly", c="waits")
        claimed = queue.claim_to_extract(session, "run", None, target, utc_now(), 2, "oldest")
        for content, without in zip(claimed, [[], [2, 3, 9]], strict=True):
            found = dataclasses.replace(
                rows.extracted(content.sha256), details={"engine": "test", "pages_without_text": without}
            )
            queue.store_extracted(session, content.content_id, found, utc_now())
        lines = overview.list_documents(session)
    assert sorted(line.pages_without_text for line in lines) == [0, 0, 3]


def test_a_hit_says_what_kind_of_file_it_is_in(store: Database) -> None:
    with store.begin() as session:
        rows.begin(session)
        source, target = library.ensure_source(session, "/docs", utc_now()), rows.add_target(session)
        rows.register(session, source, target, a="alpha")
        rows.extract_all(session, target)
        rows.embed_all(session, target)
        hits = rows.search(session, np.full(rows.DIMENSION, 0.5, np.float32), target.model_id, 1)
    assert [(hit.kind, hit.file, hit.page_first) for hit in hits] == [("pdf", "/docs/a.pdf", 1)]


def test_the_header_of_a_table_is_kept_apart_from_a_chunk_s_text(store: Database) -> None:
    with store.begin() as session:
        rows.begin(session)
        source, target = library.ensure_source(session, "/docs", utc_now()), rows.add_target(session)
        rows.register(session, source, target, a="alpha")
        (content,) = queue.claim_to_extract(session, "run", None, target, utc_now(), 1, "oldest")
        found = rows.extracted("one | two\n", "three | four\n")
        chunks = [found.chunks[0], dataclasses.replace(found.chunks[1], prefix="A | B\n")]
        queue.store_extracted(session, content.content_id, dataclasses.replace(found, chunks=chunks), utc_now())
        rows.embed_all(session, target)
        hits = rows.search(session, np.full(rows.DIMENSION, 0.5, np.float32), target.model_id, 2)
        (line,) = overview.list_documents(session)
        view = overview.show_document(session, line.id)
    assert {(hit.prefix, hit.text) for hit in hits} == {("", "one | two\n"), ("A | B\n", "three | four\n")}
    assert view is not None
    assert [chunk.prefix for chunk in view.chunks] == ["", "A | B\n"]
