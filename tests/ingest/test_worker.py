"""The worker with the real extractor and the real tokenizer."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import sys
from pathlib import Path

import docx
from reportlab.pdfgen.canvas import Canvas

from pipeline.core.documents import DocumentKind
from pipeline.ingest.pool import ExtractedChunks, ExtractionPool, worker_environment

MODEL = Path(__file__).parents[2] / "data" / "models" / "all-MiniLM-L6-v2-F16.gguf"


async def read(path: Path, content: bytes, kind: DocumentKind) -> ExtractedChunks:
    await asyncio.to_thread(path.write_bytes, content)
    async with ExtractionPool(1, model_path=MODEL, limit=256, overlap=32, pdf_engine="auto") as pool:
        return await pool.extract(path, kind, hashlib.sha256(content).hexdigest())


async def test_a_pdf(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    canvas = Canvas(buffer)
    for page in (1, 2, 3):
        if page != 2:
            canvas.drawString(72, 700, f"The night train leaves from platform {page}.")
        canvas.showPage()
    canvas.save()
    found = await read(tmp_path / "a.pdf", buffer.getvalue(), DocumentKind.PDF)
    assert "platform 1" in found.chunks[0].text
    assert (found.chunks[0].page_first, found.chunks[-1].page_last) == (1, 3)
    assert (found.page_count, found.empty_pages) == (3, (2,))


async def test_a_docx(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_heading("Timetable", 1)
    document.add_paragraph("The night train leaves late. " * 20)
    document.add_heading("Prices", 1)
    document.add_paragraph("A ticket costs nothing at all. " * 20)
    buffer = io.BytesIO()
    document.save(buffer)
    found = await read(tmp_path / "a.docx", buffer.getvalue(), DocumentKind.DOCX)
    assert [chunk.headings for chunk in found.chunks] == [("Timetable",), ("Prices",)]
    assert found.page_count is None
    assert found.chunks[0].page_first is None


async def start_worker(parent: int) -> asyncio.subprocess.Process:
    options = {
        "--model": MODEL,
        "--limit": 64,
        "--overlap": 8,
        "--pdf-engine": "auto",
        "--memory-limit": 2**30,
        "--nice": 0,
        "--parent": parent,
        "--extractor": "pipeline.ingest.extract:extract",
    }
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pipeline.ingest.worker"),
        *(str(part) for pair in options.items() for part in pair),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=worker_environment(os.environ),
    )


async def test_it_ends_with_its_input() -> None:
    process = await start_worker(os.getpid())
    assert process.stdin is not None
    process.stdin.close()
    async with asyncio.timeout(60):
        await process.communicate()
    assert process.returncode == 0


async def test_an_orphan_ends_at_once() -> None:
    process = await start_worker(parent=1)
    async with asyncio.timeout(60):
        assert (await process.communicate())[0] == b""
    assert process.returncode == 0


async def test_a_job_that_is_no_job_ends_it() -> None:
    process = await start_worker(os.getpid())
    assert process.stdin is not None
    process.stdin.write(b"\xff\xff\xff\xff")
    async with asyncio.timeout(60):
        await process.wait()
        process.stdin.close()
        await process.communicate()
    assert process.returncode == 0
