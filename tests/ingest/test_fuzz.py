"""Damaged documents by the hundred, through real workers with the real extractor, and through whole runs.

NIGHTSHIFT_FUZZ_MUTANTS is how many of each kind there are, NIGHTSHIFT_FUZZ_SEED gives others.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from pipeline.core.documents import DocumentKind
from pipeline.core.errors import Broken, Encrypted, ExtractionError, NoText
from pipeline.ingest.pool import ExtractionPool
from tests.conftest import DEFAULT_MODEL
from tests.extract.sample_documents import docx, encrypted_pdf, p, pdf, root, run, styled, table
from tests.ingest.mutation import mutants_of_docx, mutants_of_pdf
from tests.runs import Host

INBOX = Path(__file__).parents[2] / "data" / "inbox"
MUTANTS = int(os.environ.get("NIGHTSHIFT_FUZZ_MUTANTS", "320"))
SEED = int(os.environ.get("NIGHTSHIFT_FUZZ_SEED", "1"))
MUTANTS_OF_A_RUN = 120
BETWEEN_NEIGHBOURS = 8

REPORT = pdf(
    [["1 One", "Some text on the first page."], ["2 Two", "More of it, and more.", "3 Three", "The end."]],
    outline=[(0, "1 One", 0), (1, "2 Two", 1)],
    information={"Title": "A report", "Author": "Somebody"},
)
LETTER = docx(
    styled("Heading", "H")
    + f'<w:p><w:pPr><w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr></w:pPr>{run("Counted")}</w:p>'
    + table(["a", "b"], ["c", table(["d", "e"])])
    + f'<w:p>{run("Text")}<w:r><w:footnoteReference w:id="1"/></w:r></w:p>'
    + p("The end.")
    + '<w:sectPr><w:headerReference w:type="default" r:id="header1"/></w:sectPr>',
    {
        "styles": root("styles", '<w:style w:styleId="H"><w:name w:val="heading 1"/><w:basedOn w:val="H"/></w:style>'),
        "numbering": root(
            "numbering",
            '<w:abstractNum w:abstractNumId="1"><w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="upperRoman"/>'
            '<w:lvlText w:val="%1."/></w:lvl></w:abstractNum><w:num w:numId="1"><w:abstractNumId w:val="1"/></w:num>',
        ),
        "footnotes": root("footnotes", f'<w:footnote w:id="1">{p("A note.")}</w:footnote>'),
        "header1": root("hdr", p("At the top")),
    },
)
GOOD = {
    DocumentKind.PDF: (INBOX / "seed-store-incident.pdf").read_bytes(),
    DocumentKind.DOCX: (INBOX / "mountain-huts-supply-agreement.docx").read_bytes(),
}
ORIGINALS = {
    DocumentKind.PDF: [
        REPORT,
        encrypted_pdf(REPORT, "", "owner", "AES-256"),
        encrypted_pdf(REPORT, "", "owner", "RC4-40"),
        (INBOX / "night-library-ja.pdf").read_bytes(),
        (INBOX / "seed-store-incident.pdf").read_bytes(),
    ],
    DocumentKind.DOCX: [LETTER, (INBOX / "mountain-huts-supply-agreement.docx").read_bytes()],
}
SMALL = {DocumentKind.PDF: ORIGINALS[DocumentKind.PDF][:3], DocumentKind.DOCX: ORIGINALS[DocumentKind.DOCX][:1]}
MAKERS: dict[DocumentKind, Callable[[Sequence[bytes], int], Iterator[bytes]]] = {
    DocumentKind.PDF: mutants_of_pdf,
    DocumentKind.DOCX: mutants_of_docx,
}


@pytest.fixture
async def reading() -> AsyncIterator[ExtractionPool]:
    before = set(psutil.Process().children(recursive=True))
    async with ExtractionPool(
        2, model_path=DEFAULT_MODEL, limit=128, overlap=16, pdf_engine="auto", memory_limit_bytes=2**30, nice=0
    ) as opened:
        yield opened
    assert set(psutil.Process().children(recursive=True)) <= before


async def read(reading: ExtractionPool, path: Path, data: bytes, kind: DocumentKind) -> str | type[ExtractionError]:
    """Its text, or how it ended. Any other error fails the test, one that may go away by itself included."""
    await asyncio.to_thread(path.write_bytes, data)
    try:
        found = await reading.extract(path, kind, hashlib.sha256(data).hexdigest())
    except (Broken, Encrypted, NoText) as error:
        assert error.reason  # noqa: PT017 - each says why
        assert "\n" not in error.reason  # noqa: PT017
        assert "took more than" not in error.reason, f"{path} hangs"  # noqa: PT017
        assert "nonsense" not in error.reason, f"{path} breaks the protocol"  # noqa: PT017
        return type(error)
    return "\n".join(chunk.text for chunk in found.chunks)


@pytest.mark.parametrize("kind", [DocumentKind.PDF, DocumentKind.DOCX])
async def test_every_mutant_ends_and_no_neighbour_is_lost(
    reading: ExtractionPool, tmp_path: Path, kind: DocumentKind
) -> None:
    waiting = enumerate(itertools.islice(MAKERS[kind](ORIGINALS[kind], SEED), MUTANTS))
    whole = await read(reading, tmp_path / "good", GOOD[kind], kind)
    assert isinstance(whole, str)
    ends: Counter[str] = Counter()

    async def reader(name: str) -> None:
        for number, mutant in waiting:
            path = tmp_path / f"{name}-{number}.{kind.value}"
            end = await read(reading, path, mutant, kind)
            await asyncio.to_thread(path.unlink)
            ends["Extracted" if isinstance(end, str) else end.__name__] += 1
            if number % BETWEEN_NEIGHBOURS == 0:
                assert await read(reading, tmp_path / f"good-{name}", GOOD[kind], kind) == whole

    async with asyncio.TaskGroup() as readers:
        for name in ("one", "two", "three"):
            readers.create_task(reader(name))
    assert ends.total() == MUTANTS
    # Both ends are reached, or the mutants would say nothing.
    assert min(ends["Extracted"], ends["Broken"]) > MUTANTS // 20, ends


@pytest.mark.slow
def test_a_folder_of_mutants_ends_and_the_good_ones_are_embedded(tmp_path: Path) -> None:
    host = Host(tmp_path, {"NIGHTSHIFT_EXTRACT_WORKERS": "2"})
    docs = tmp_path / "docs"
    docs.mkdir()
    mutants = {
        f"{number}.{kind.value}": mutant
        for kind in (DocumentKind.PDF, DocumentKind.DOCX)
        for number, mutant in enumerate(itertools.islice(MAKERS[kind](SMALL[kind], SEED + 1), MUTANTS_OF_A_RUN))
    }
    for name, mutant in mutants.items():
        (docs / name).write_bytes(mutant)
    good = [path for path in INBOX.iterdir() if path.name != "delivery-note-scan.pdf"]
    for path in good:
        shutil.copy(path, docs / f"good-{path.name}")
    report = host.run_json("run-now", str(docs))
    counts = report["documents"]
    assert counts["total"] == len(mutants) + len(good)
    assert counts["embedded"] + counts["empty"] + counts["encrypted"] + counts["failed"] == counts["total"]
    assert counts["failed"] > MUTANTS_OF_A_RUN // 10
    documents = {Path(document["file"]).name: document for document in host.run_json("documents", "list")}
    assert {documents[f"good-{path.name}"]["state"] for path in good} == {"embedded"}
    assert all(document["reason"] for document in documents.values() if document["state"] == "failed")
    again = host.run_json("run-now", str(docs))
    assert (again["chunks_embedded"], again["documents"], again["outcome"]) == (0, counts, report["outcome"])
    assert report["outcome"] == "complete"
