"""Whatever the bytes are, they end in a document or in one of the errors that are explained."""

from __future__ import annotations

import gc
import io
import random
import zipfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.documents import DocumentKind, Extracted
from pipeline.core.errors import ExtractionError
from pipeline.ingest.extract import extract
from tests.extract.sample_documents import docx, encrypted_pdf, p, pdf, rewritten, root, run, styled, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.ingest.extract import PdfEngine

ENGINES: tuple[PdfEngine, ...] = ("auto", "pdfium", "pypdf")

PLAIN = pdf([["1 One", "Some text on the first page."], ["2 Two", "More of it."]], outline=[(0, "1 One", 0)])
LOCKED = encrypted_pdf(PLAIN, "", "owner", "AES-256")
LETTER = docx(
    styled("Heading", "H") + table(["a", "b"], ["c", "d"]) + p("Text.") + f"<w:p>{run('More')}</w:p>",
    {
        "styles": root("styles", '<w:style w:styleId="H"><w:name w:val="heading 1"/></w:style>'),
        "footnotes": root("footnotes", f'<w:footnote w:id="1">{p("A note.")}</w:footnote>'),
    },
)


def outcome(data: bytes, kind: DocumentKind, engine: PdfEngine = "auto") -> Extracted | ExtractionError:
    """Any other exception fails the test."""
    try:
        extracted = extract(data, kind, f"a.{kind.value}", pdf_engine=engine)
    except ExtractionError as error:
        return error
    extracted.text.encode("utf-8")
    ends = [0, *(page.end for page in extracted.pages)]
    assert [page.start for page in extracted.pages] == ends[:-1]
    assert not extracted.pages or ends[-1] == len(extracted.text)
    offsets = [heading.offset for heading in extracted.headings]
    assert offsets == sorted(offsets)
    assert all(0 <= offset <= len(extracted.text) for offset in offsets)
    return extracted


def mutants(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Bytes changed, cut out, doubled, or the end gone."""
    choice = random.Random(seed)
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(choice.randint(1, 12)):
            at = choice.randrange(len(mutant))
            match choice.randrange(4):
                case 0:
                    mutant[at] = choice.randrange(256)
                case 1:
                    del mutant[at : at + choice.randint(1, 40)]
                case 2:
                    mutant[at:at] = mutant[at : at + choice.randint(1, 40)]
                case _:
                    mutant[at : at + 4] = choice.choice((b"9999", b"-1  ", b"<<<<", b"%PDF", bytes(4)))
        yield bytes(mutant[: choice.randrange(len(mutant))] if choice.random() < 0.2 else mutant)


@pytest.mark.parametrize(("data", "seed"), [(PLAIN, 1), (LOCKED, 2)])
def test_mutants_of_pdfs(data: bytes, seed: int) -> None:
    outcomes = [outcome(mutant, DocumentKind.PDF) for mutant in mutants(data, 150, seed)]
    assert all(end.reason and "\n" not in end.reason for end in outcomes if isinstance(end, ExtractionError))
    # Both ends are reached, or the mutants would say nothing.
    assert any(isinstance(end, Extracted) for end in outcomes)
    assert any(isinstance(end, ExtractionError) for end in outcomes)
    gc.collect()


def test_mutants_of_pdfs_with_pypdf_alone() -> None:
    outcomes = [outcome(mutant, DocumentKind.PDF, "pypdf") for mutant in mutants(PLAIN, 100, 3)]
    assert any(isinstance(end, Extracted) for end in outcomes)


@pytest.mark.parametrize("cut", range(0, len(PLAIN), 97))
def test_a_pdf_that_ends_anywhere(cut: int) -> None:
    outcome(PLAIN[:cut], DocumentKind.PDF)


def test_mutants_of_a_docx_archive() -> None:
    outcomes = [outcome(mutant, DocumentKind.DOCX) for mutant in mutants(LETTER, 150, 4)]
    assert any(isinstance(end, ExtractionError) for end in outcomes)


def test_mutants_of_the_parts_inside_a_docx() -> None:
    with zipfile.ZipFile(io.BytesIO(LETTER)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    outcomes = [
        outcome(rewritten(LETTER, {name: mutant}), DocumentKind.DOCX)
        for seed, (name, content) in enumerate(members.items())
        for mutant in mutants(content, 30, seed)
    ]
    assert any(isinstance(end, Extracted) for end in outcomes)


@given(st.binary(max_size=300), st.sampled_from(DocumentKind))
@settings(max_examples=200, deadline=None)
def test_any_bytes_behind_any_signature(tail: bytes, kind: DocumentKind) -> None:
    for head in (b"", b"%PDF-1.7\n", b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        outcome(head + tail, kind)


def test_nesting_without_end_is_an_error_and_no_crash() -> None:
    deep = "".join("<w:tbl><w:tr><w:tc>" for _ in range(5000))
    assert isinstance(outcome(docx(deep), DocumentKind.DOCX), ExtractionError)
    near = p("x")
    for _ in range(60):
        near = table([near, "b"])
    assert isinstance(outcome(docx(near), DocumentKind.DOCX), Extracted)


def test_a_heading_that_is_no_text_costs_only_headings() -> None:
    odd = pdf([["One"]], outline=[(0, "ABCDEFGHIJKL", 0)]).replace(b"(ABCDEFGHIJKL)", b"<FEFFD8000041>")
    assert b"<FEFFD8000041>" in odd
    for engine in ENGINES:
        end = outcome(odd, DocumentKind.PDF, engine)
        assert isinstance(end, Extracted)
        assert end.text == "One"


def test_an_outline_in_a_circle_ends() -> None:
    circle = pdf([["One"], ["Two"]], outline=[(0, "One", 0), (0, "Two", 1)])
    position = circle.index(b"/Next ")
    number = circle[position + 6 : circle.index(b" ", position + 6)]
    own = circle.rindex(b" 0 obj", 0, position)
    start = circle.rindex(b"\n", 0, own) + 1
    looped = circle.replace(b"/Next " + number, b"/Next " + circle[start:own].rjust(len(number)), 1)
    assert looped != circle
    for engine in ENGINES:
        assert isinstance(outcome(looped, DocumentKind.PDF, engine), Extracted)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_page_is_told_of_as_it_is_read(engine: PdfEngine) -> None:
    told: list[int] = []
    found = extract(pdf([["One"], [], ["Three"]]), DocumentKind.PDF, "a.pdf", pdf_engine=engine, step=told.append)
    assert (told, len(found.pages)) == ([1, 1, 1], 3)
