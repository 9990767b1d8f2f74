"""Search by words: the same answers on both databases, which are those of a search that looks at every chunk."""

from __future__ import annotations

import _sqlite3
import ctypes
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pipeline.core import bm25
from pipeline.core.documents import Chunk
from pipeline.core.errors import SchemaError
from pipeline.core.words import BORDER, indexed, wanted
from pipeline.store import library, queue
from pipeline.store.database import Database, make_engine, upgrade
from pipeline.store.models import Target
from pipeline.store.queue import ExtractedContent
from pipeline.store.tables import ChunkRow
from pipeline.store.view import Filter, View, view_of
from pipeline.store.words import FEW, TextMatch, matching_chunks
from tests.store import rows

WORDS = (
    "the pump of basin seal pressure valve was replaced in March 2024 by maintenance",
    "Größe Dichtung Straße für Übung wurde geprüft Maß",
    "café élève naïf pièce où déjà façade",
    "αντλία πίεση βαλβίδα τον Μάρτιο ελέγχθηκε",
    "насос давление клапан был заменён в марте ёлка",
    "東京都の人口 圧力ポンプ 部品を交換しました 茶",
    "foo_bar-12 INV-2024-0042 ops@example.org 192.168.0.1 3.5mm x² fi\ufb01",
    "हिन्दी पंप दबाव 압력 펌프 밸브 ไทยปั๊ม",
)

QUESTIONS = (
    "pump", "the pump", "basin pressure valve", "Übung MASS", "uebung", "cafe ELEVE où", "ΠΊΕΣΗ αντλια", "насос ёлка",
    "東京", "茶", "圧力ポンプの部品", "foo_bar", "INV-2024-0042", "ops@example.org", "192.168.0.1", "दबाव पंप", "압력",
    "ปั๊ม", '"the pump"', '"basin seal" pressure', '"東京都"', "pump -basin", 'pressure -"the pump" -valve',
    '"pump" "seal"', "nowhere to be found pump", "was in by of the",
)  # fmt: skip


def texts(number: int) -> list[str]:
    chosen = random.Random(7)
    every = [word for line in WORDS for word in line.split()]
    made = []
    for _ in range(number):
        own = chosen.choice(WORDS).split() * 3 + every
        made.append(" ".join(chosen.choice(own) for _ in range(chosen.randint(1, 60))) + ".")
    return made


def store_texts(session: Session, target: Target, name: str, made: Sequence[str], *, embed: bool = True) -> None:
    """A document with a chunk of each text; every third has headings, every fourth the header of a table."""
    rows.register(session, library.ensure_source(session, "/docs", rows.utc_now()), target, **{name: name})
    chunks = [
        Chunk(
            ordinal, 1000 * ordinal, 1000 * ordinal + len(text), text, 1, 1,
            ("Über uns", "Pumps") if ordinal % 3 == 0 else (), rows.tokens_of(text) * (1 + len(text) // 40),
            "Größe | Preis\n" if ordinal % 4 == 0 else "",
        )
        for ordinal, text in enumerate(made)
    ]  # fmt: skip
    for content in queue.claim_to_extract(session, "run", None, target, rows.utc_now(), 100):
        extracted = ExtractedContent("Title", {}, 1, 1000 * len(chunks), chunks)
        queue.store_extracted(session, content.content_id, extracted, rows.utc_now())
    if embed:
        for content_id in queue.claim_to_embed(session, "run", None, target, rows.utc_now(), 100):
            waiting = queue.pending_chunks(session, content_id, 0, 10_000)
            made_of = [(chunk, rows.vector(number)) for number, chunk in enumerate(waiting)]
            queue.store_vectors(session, "run", made_of, [], rows.utc_now())


def fill(store: Database, *documents: Sequence[str]) -> View:
    with store.begin() as session:
        rows.begin(session)
        target = rows.add_target(session)
        for number, made in enumerate(documents):
            store_texts(session, target, f"d{number}", made)
        return view_of(session, target.model_id)


Words = dict[int, tuple[list[str], int]]
"""Of chunks by their ids: their words, and how many tokens they have."""


def words_of_all(session: Session) -> Words:
    return {
        chunk.id: (indexed([*chunk.headings, chunk.prefix, chunk.text]).split(), chunk.token_count)
        for chunk in session.scalars(sa.select(ChunkRow))
    }


def reference(chunks: Words, question: str) -> list[tuple[int, float]]:
    """BM25 of every chunk, by the definition, from the texts alone."""
    asked = wanted(question)
    holding = {word: sum(word in words for words, _ in chunks.values()) for word in asked.words}
    known = [word for word in asked.words if holding[word]]
    rare = [word for word in known if holding[word] <= max(FEW, len(chunks)) / 2] or known
    rarities = {word: bm25.rarity(len(chunks), holding[word]) for word in known}
    average = sum(length for _, length in chunks.values()) / len(chunks)

    def follows(words: list[str], phrase: Sequence[str]) -> bool:
        return any(tuple(words[at : at + len(phrase)]) == tuple(phrase) for at in range(len(words)))

    scores = {}
    for chunk_id, (words, length) in chunks.items():
        fits = all(follows(words, phrase) for phrase in asked.phrases) if asked.phrases else set(words) & set(rare)
        if fits and not any(follows(words, phrase) for phrase in asked.excluded):
            scores[chunk_id] = sum(bm25.shares(Counter(words), rarities, length, average).values())
    return sorted(((one, round(score, 9)) for one, score in scores.items()), key=lambda pair: (-pair[1], pair[0]))


def shown(matches: Sequence[TextMatch]) -> list[tuple[int, float]]:
    return [(match.chunk_id, round(match.score, 9)) for match in matches]


def test_what_is_found_is_what_a_look_at_every_chunk_finds(store: Database) -> None:
    made = texts(350)
    view = fill(store, made[:200], made[200:])
    with store.snapshot() as session:
        chunks = words_of_all(session)
        for question in QUESTIONS:
            expected = reference(chunks, question)
            assert bool(expected) == (question != "uebung"), question
            for k in (5, 1000):
                found = matching_chunks(session, question, view, k)
                assert shown(found) == expected[:k], question
                assert all(match.score == pytest.approx(sum(match.terms.values())) for match in found)


def test_each_word_has_its_share(store: Database) -> None:
    view = fill(store, ["pump pump seal", "pump", "valve"])
    with store.snapshot() as session:
        best, other = matching_chunks(session, "PUMP seal other", view, 10)
    assert set(best.terms) == {"pump", "seal"}
    assert set(other.terms) == {"pump"}
    assert best.terms["seal"] > best.terms["pump"] > other.terms["pump"] * 0.9


def test_headings_and_the_header_of_a_table_are_found_and_no_phrase_reaches_into_them(store: Database) -> None:
    view = fill(store, ["first text"])
    with store.snapshot() as session:
        assert [len(matching_chunks(session, question, view, 10)) for question in (
            "uber", "pumps", "preis", '"uber uns"', '"uns pumps"', '"pumps grosse"', '"preis first"', BORDER
        )] == [1, 1, 1, 1, 0, 0, 0, 0]  # fmt: skip


def test_a_match_says_how_much_of_the_question_it_has(store: Database) -> None:
    view = fill(store, ["pump seal", "pump", "pump valve", "valve"])
    with store.snapshot() as session:

        def coverages(question: str) -> dict[int, float]:
            return {match.chunk_id: match.coverage for match in matching_chunks(session, question, view, 10)}

        pump, seal, unknown = bm25.rarity(4, 3), bm25.rarity(4, 1), bm25.rarity(4, 0)
        assert coverages("pump seal") == pytest.approx({1: 1, 2: pump / (pump + seal), 3: pump / (pump + seal)})
        assert coverages("pump nowhere") == pytest.approx(dict.fromkeys([1, 2, 3], pump / (pump + unknown)))
        assert coverages("pump -valve") == pytest.approx({1: 1, 2: 1})
        assert coverages('"pump seal" nowhere') == {1: 1}


HOSTILE = (
    '"', '""', "'", "''", "' OR 1=1 --", 'a" OR "b', "pump*", "^pump", "words:pump", "chunk_words_index:pump",
    "NEAR(pump)", "pump:*", "pump:A", "pump & !seal", "pump <-> seal", "pump \\", "\\'", "(pump", "pump)",
    "{words}: pump", "+", "-", "-pump", '-"pump"', "%s %(x)s :x", "\x00", "pump\x00seal", "\ud800", "💚", "", " \n",
    " ".join(f'"pump x{number}" -y{number}' for number in range(5_000)), '"' + "pump " * 5_000 + '"',
    BORDER, "AND", "OR NOT", "x" * 100_000, "pump " * 50_000, "\u0301", "\u202e", '"' * 10_001,
)  # fmt: skip


def test_no_question_is_taken_for_anything_but_words(store: Database) -> None:
    view = fill(store, ["pump and seal, or not", "valve"])
    for question in HOSTILE:
        with store.snapshot() as session:
            found = [match.chunk_id for match in matching_chunks(session, question, view, 10)]
        asked = wanted(question)
        expected = {"pump", "seal", "and", "or", "not"} & set(asked.words) and not asked.phrases
        assert found == ([1] if expected else []), question[:40]


ODD = (
    "x" * 3_000_000,
    " ".join("x" * 40_000 + f"{number}" for number in range(300)),
    "я" * 5_000 + " end",
    " ".join(f"{number:x}я東京" for number in range(200_000)),
    "one two " * 200_000 + "last",
    "a\u0301" * 100_000,
    "bell\x07 escape\x1b del\x7f \u2028 \ufffe \U0010ffff \ufdfa 'quoted' \\back\\ :1A",
    "",
)


def test_no_text_is_too_odd_to_be_stored(store: Database) -> None:
    with store.begin() as session:
        rows.begin(session)
        target = rows.add_target(session)
        store_texts(session, target, "odd", ODD)
        view = view_of(session, target.model_id)
    with store.snapshot() as session:
        assert {match.chunk_id for match in matching_chunks(session, "x" * 3_000_000, view, 10)} == {1, 2}
        assert [match.chunk_id for match in matching_chunks(session, "я" * 5000, view, 10)] == [3]
        assert [match.chunk_id for match in matching_chunks(session, "escape quoted 1A", view, 10)] == [7]
        assert [match.chunk_id for match in matching_chunks(session, '"two one"', view, 10)] == [5]


def test_the_index_follows_what_is_stored_replaced_and_deleted(store: Database) -> None:
    view = fill(store, ["old words", "other"])
    with store.begin() as session:
        store_texts(session, Target(view.model_id, "r"), "e", ["new words"])
    with store.begin() as session:
        store_texts(session, Target(view.model_id, "r"), "f", ["rolled back"])
        session.rollback()

    def found(question: str) -> list[int]:
        with store.snapshot() as session:
            return [match.chunk_id for match in matching_chunks(session, question, view, 10)]

    assert sorted(found("words")) == [1, 3]
    assert found("rolled") == []
    with store.begin() as session:
        session.execute(sa.text("UPDATE chunk_words SET words = 'changed' WHERE chunk_id = 2"))
        session.execute(sa.text("DELETE FROM documents WHERE path = 'd0.pdf'"))
        session.execute(sa.text("DELETE FROM contents WHERE id NOT IN (SELECT current_id FROM documents)"))
    assert found("words") == [3]
    assert found("old") == []
    with store.snapshot() as session:
        assert session.scalar(sa.text("SELECT COUNT(*) FROM chunk_words")) == 1
    if store.engine.dialect.name == "sqlite":
        with store.begin() as session:  # fails where the index and what it is of disagree
            session.execute(
                sa.text("INSERT INTO chunk_words_index (chunk_words_index, rank) VALUES ('integrity-check', 1)")
            )


def test_only_what_is_in_view_is_found(store: Database) -> None:
    common = ["pump seal"] * 900  # more than are looked at in one go
    with store.begin() as session:
        rows.begin(session)
        target, other = rows.add_target(session), rows.add_target(session, "other")
        store_texts(session, target, "many", common)
        store_texts(session, target, "few", ["a long text about a pump and other things", "valve"])
        store_texts(session, target, "waiting", ["pump"], embed=False)
        rows.register(session, library.ensure_source(session, "/more", rows.utc_now()), target, elsewhere="elsewhere")
        hidden = session.scalar(sa.text("SELECT current_id FROM documents WHERE path = 'many.pdf'"))
        views = [
            view_of(session, target.model_id),
            view_of(session, target.model_id, Filter(paths=["few*"])),
            view_of(session, other.model_id),
        ]
    with store.snapshot() as session:
        everything, narrow, nothing = [matching_chunks(session, "pump", view, 1000) for view in views]
    assert len(everything) == 901
    assert [match.chunk_id for match in narrow] == [901]
    assert nothing == []
    with store.begin() as session:  # no longer shown, though still there
        session.execute(
            sa.text("UPDATE documents SET current_id = NULL WHERE current_id = :hidden"), {"hidden": hidden}
        )
    with store.snapshot() as session:
        view = view_of(session, target.model_id)
        assert [match.chunk_id for match in matching_chunks(session, "pump", view, 10)] == [901]


def test_a_sqlite_without_fts5_is_told_of(tmp_path: Path) -> None:
    """The library that Python has is made to forget its extensions, in this database's connections only."""
    library_of_python = ctypes.PyDLL(_sqlite3.__file__)
    if not hasattr(library_of_python, "sqlite3_drop_modules"):
        pytest.skip("this Python's SQLite is linked into it")
    library_of_python.sqlite3_drop_modules.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    engine = make_engine(f"sqlite:///{tmp_path / 'x.db'}")

    @sa.event.listens_for(engine, "connect")
    def forget(connection: Any, _record: object) -> None:
        # A connection begins with its reference count, its type, and SQLite's own handle.
        handle = ctypes.cast(id(connection), ctypes.POINTER(ctypes.c_void_p))[object.__basicsize__ // 8]
        library_of_python.sqlite3_drop_modules(handle, None)

    with pytest.raises(SchemaError, match="was built without FTS5"):
        upgrade(engine)
    engine.dispose()
