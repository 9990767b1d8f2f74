"""The documents that the project ships, and the corpus that it measures with."""

from __future__ import annotations

import hashlib
import runpy
from pathlib import Path

import pytest

from benchmarks.corpus import write_corpus
from pipeline.core.documents import DocumentKind, Extracted
from pipeline.core.errors import NoText
from pipeline.ingest.extract import extract

DATA = Path(__file__).parents[2] / "data"
INBOX = DATA / "inbox"


def read(path: Path) -> Extracted:
    return extract(path.read_bytes(), DocumentKind(path.suffix[1:]), path.name)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_script_makes_the_inbox_the_same_each_time(tmp_path: Path) -> None:
    make_inbox = runpy.run_path(str(DATA / "make_inbox.py"))["make_inbox"]
    make_inbox(tmp_path / "a")
    make_inbox(tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert {path.name for path in INBOX.iterdir()} == {path.name for path in (tmp_path / "a").iterdir()}
    for path in (tmp_path / "a").iterdir():
        if path.stem != "delivery-note-scan":
            assert read(path).text == read(INBOX / path.name).text
    assert sum(path.stat().st_size for path in INBOX.iterdir()) < 400_000


@pytest.mark.parametrize(
    ("name", "page", "fact"),
    [
        ("heron-operations-handbook.pdf", 2, "at most three hours"),
        ("heron-operations-handbook.pdf", 3, "the power limit falls from 700 to 450 watts"),
        ("heron-operations-handbook.pdf", 4, "not been read for forty days"),
        ("heron-operations-handbook.pdf", 7, "contract number HX-20931"),
        ("tarnvik-observatory-2024.pdf", 3, "hyperbola with an eccentricity of 1.9"),
        ("tarnvik-observatory-2024.pdf", 5, "4096 by 4112 pixels"),
        ("seed-store-incident.pdf", 3, "each Monday at 09:00"),
        ("lab-equipment-guide-ko.pdf", 2, "필라멘트는 약 백 시간"),
        ("night-library-ja.pdf", 2, "四十トン"),
    ],
)
def test_one_page_holds_the_answer(name: str, page: int, fact: str) -> None:
    document = read(INBOX / name)
    asked = "".join(fact.casefold().split())
    holding = [
        one.number for one in document.pages if asked in "".join(document.text[one.start : one.end].casefold().split())
    ]
    assert holding == [page]


def test_headings_tables_and_notes_of_the_samples() -> None:
    handbook = read(INBOX / "heron-operations-handbook.pdf")
    assert len(handbook.headings) == 13
    for heading in handbook.headings:
        assert handbook.text[heading.offset :].startswith(f"{heading.title}\n\n")
    minutes = read(INBOX / "harbour-committee-minutes.docx")
    assert "7 to 10 metres | 21 | 110 | 7 more\n" in minutes.text
    assert "\n- Jonas Tveit: talk to the ferry company" in minutes.text
    agreement = read(INBOX / "mountain-huts-supply-agreement.docx")
    assert agreement.text.startswith("Agreement no. 2025-07\n\nFramework agreement")
    assert agreement.text.endswith("Signed in Ober-Lanzen")
    assert "\n\n[1] The ropeway has carried goods since 1954" in agreement.text
    assert agreement.title == "Framework agreement for the supply of bread and milk"


def test_the_scan_needs_ocr() -> None:
    with pytest.raises(NoText, match="any of its 2 pages"):
        read(INBOX / "delivery-note-scan.pdf")


def test_the_corpus_is_the_same_each_time_and_grows_at_its_end(tmp_path: Path) -> None:
    paths = write_corpus(tmp_path / "a", 30, seed=5)
    write_corpus(tmp_path / "b", 30, seed=5)
    longer = write_corpus(tmp_path / "c", 40, seed=5)
    other = write_corpus(tmp_path / "d", 12, seed=6)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert [path.read_bytes() for path in paths[:2]] == [path.read_bytes() for path in longer[:2]]
    assert other[0].read_bytes() != paths[0].read_bytes()
    documents = [read(path) for path in paths]
    assert [len(document.pages) for document in documents] == [12, 12, 6]
    words = [len(document.text[page.start : page.end].split()) for document in documents for page in document.pages]
    assert min(words) >= 350
    assert max(words) <= 540
    assert all(document.headings[0].offset == 0 and len(document.headings) > 5 for document in documents)
