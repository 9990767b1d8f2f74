"""`documents`: the list of them, and finding one by a part of its name."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from rich.cells import cell_len

from pipeline.cli import documents
from pipeline.core.changes import Moves
from pipeline.ingest.names import stored_name
from pipeline.store import library
from pipeline.store.database import Database
from tests.store import rows
from tests.store.rows import utc_now

DECOMPOSED = unicodedata.normalize("NFD", "보고서/회의록 Änderung.pdf")
NAMES = [
    "보고서/예산안 2026.pdf",
    DECOMPOSED,
    "100% cotton.pdf",
    "100 percent.pdf",
    "a_b.pdf",
    "aXb.pdf",
    "what *is* this?.pdf",
    "ΣΊΣΥΦΟΣ.docx",
    "STRASSE.pdf",
    stored_name("caf\udce9.pdf"),
    "two\nlines.pdf",
    "reports/[draft].pdf",
]


CASES: list[tuple[str, set[str]]] = [
    ("예산안", {"보고서/예산안 2026.pdf"}),
    (unicodedata.normalize("NFD", "예산"), {"보고서/예산안 2026.pdf"}),
    ("회의록", {DECOMPOSED}),
    (unicodedata.normalize("NFD", "회의록 äNDER"), {DECOMPOSED}),
    ("ÄNDERUNG", {DECOMPOSED}),
    ("COTTON", {"100% cotton.pdf"}),
    ("100%", {"100% cotton.pdf"}),
    ("%", {"100% cotton.pdf"}),
    ("a_b", {"a_b.pdf"}),
    ("*is*", {"what *is* this?.pdf"}),
    ("?", {"what *is* this?.pdf"}),
    ("σίσυφος", {"ΣΊΣΥΦΟΣ.docx"}),
    ("straße", {"STRASSE.pdf"}),
    (r"caf\xe9", {r"caf\xe9.pdf"}),
    ("caf\udce9", {r"caf\xe9.pdf"}),
    (r"two\nlines", {r"two\nlines.pdf"}),
    ("[draft]", {"reports/[draft].pdf"}),
    ("reports/", {"reports/[draft].pdf"}),  # with a slash it names folders too
    ("보고서/", {"보고서/예산안 2026.pdf", DECOMPOSED}),
    ("docs", set()),  # without one it does not
    ("nothing of the kind", set()),
]


@pytest.fixture
def listed(
    store: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """What `documents` prints, with these options."""
    monkeypatch.setenv("NIGHTSHIFT_DATABASE_URL", database_url)
    with store.begin() as session:
        rows.begin(session)
        source, target = library.ensure_source(session, "/docs/all", utc_now()), rows.add_target(session)
        files = [rows.read_file(name, f"text {number}") for number, name in enumerate(NAMES)]
        library.register(session, source, files, Moves([]), target, utc_now())

    def run(part: str | None = None, states: list[str] | None = None, limit: int | None = None) -> list[str]:
        documents.list_command(states, part, None, limit, as_json=False)
        return capsys.readouterr().out.splitlines()

    return run


def names(lines: list[str]) -> set[str]:
    return {line.partition("/docs/all/")[2] for line in lines[1:]}


def test_a_list_has_a_header_above_its_columns(listed: Any) -> None:
    header, *lines = listed()
    assert header.split() == ["id", "state", "embedded/chunks", "file"]
    assert len(lines) == len(NAMES)
    places = [header.index(name) for name in ("state", "file")]
    assert all([line.index("discovered"), line.index("/docs/all")] == places for line in lines)
    assert {line.index("/") for line in lines} == {header.index("/")}
    # Whatever is in a name, it is the last column, and begins in the same cell.
    assert {cell_len(line[: line.index("/docs/all")]) for line in lines} == {header.index("file")}


def test_a_part_of_a_name_finds_it_and_means_itself(listed: Any) -> None:
    assert [(part, names(listed(part))) for part, _ in CASES] == CASES


def test_a_part_goes_with_states_and_a_limit(listed: Any) -> None:
    assert len(listed(".PDF", limit=3)) == 1 + 3
    assert len(listed("100", ["discovered"])) == 1 + 2
    assert listed("100", ["embedded"]) == ["No documents with 100 in their names that are embedded."]
    assert listed(None, ["embedded", "failed"]) == ["No documents that are embedded or failed."]
