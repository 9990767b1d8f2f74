"""What OCR costs and gets right: `python -m benchmarks.ocr`.

Pages of the documents that ship are drawn at 150 dots per inch, with the noise of a scanner, and read by Tesseract as a
run does it, on one core. Right are the words that the document's own text has, too.
"""

from __future__ import annotations

import argparse
import io
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pypdfium2

from pipeline.core.documents import DocumentKind
from pipeline.ingest.extract import extract
from pipeline.ingest.tesseract import Tesseract, find_tesseract

INBOX = Path(__file__).parents[1] / "data" / "inbox"
DOCUMENTS = ("heron-operations-handbook.pdf", "tarnvik-observatory-2024.pdf")
SCANNED_AT = 150
NOISE = 12.0
"""Standard deviation, in shades of grey of 256."""


def scan(data: bytes, pages: int) -> bytes:
    """The first pages of a PDF as pictures."""
    noise = np.random.default_rng(7)
    target = io.BytesIO()
    with closing(pypdfium2.PdfDocument(data)) as source, closing(pypdfium2.PdfDocument.new()) as made:
        for index in range(min(pages, len(source))):
            bitmap = source[index].render(scale=SCANNED_AT / 72, grayscale=True)
            pixels = bitmap.to_numpy()
            pixels[:] = np.clip(pixels + noise.normal(0.0, NOISE, pixels.shape), 0, 255).astype(np.uint8)
            width, height = source[index].get_size()
            page = made.new_page(width, height)
            image = pypdfium2.PdfImage.new(made)
            image.set_bitmap(bitmap)
            image.set_matrix(pypdfium2.PdfMatrix().scale(width, height))
            page.insert_obj(image)
            page.gen_content()
        made.save(target)
    return target.getvalue()


def words(text: str) -> Counter[str]:
    """The words of a text without the marks around them."""
    return Counter(word for each in text.split() if (word := each.strip(".,;:()\"'").casefold()))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=3, help="of each document (default: 3)")
    parser.add_argument("--dpi", type=int, nargs="+", default=[150, 200, 300, 400])
    options = parser.parse_args(arguments)
    for dpi in options.dpi:
        ocr = find_tesseract("eng", dpi=dpi, timeout_s=300)
        pages = seconds = right = wrong = total = 0.0
        for name in DOCUMENTS:
            whole = extract((INBOX / name).read_bytes(), DocumentKind.PDF, name)
            own = words(whole.text[: whole.pages[options.pages - 1].end])
            data = scan((INBOX / name).read_bytes(), options.pages)
            began = time.perf_counter()
            found = extract(data, DocumentKind.PDF, name, ocr=Tesseract(ocr, lambda _: None, 0.5))
            seconds += time.perf_counter() - began
            read = words(found.text)
            pages += len(found.pages)
            right += (own & read).total()
            wrong += (read - own).total()
            total += own.total()
        print(
            f"{ocr.engine} at {dpi} dpi: {pages / seconds:.2f} pages/s, {right / total:.1%} of the words,"
            f" {wrong / total:.1%} that are not there"
        )


if __name__ == "__main__":
    main()
