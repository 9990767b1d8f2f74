"""How well headings are told from other lines: `python benchmarks/headings.py FOLDER`.

Every PDF below the folder that has an outline is read as if it had none, and the headings that its letters give are
compared with the titles of the outline. A title above everything, a list of contents or of references is rarely in one,
so right headings count as wrong ones here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pypdfium2

from pipeline.ingest.extract.letters import headings_by_letters
from pipeline.ingest.extract.margins import marginal_lines
from pipeline.ingest.extract.pdfium_page import read_page
from pipeline.ingest.extract.places import lines_of
from pipeline.ingest.extract.text import one_line

_MOST_PAGES = 150


def compare(data: bytes) -> tuple[int, int, int] | None:
    """Headings found that the outline has, found that it has not, and missed; None where nothing can be compared."""
    with closing(pypdfium2.PdfDocument(data)) as document:
        titles = {_words(bookmark.get_title()) for bookmark in document.get_toc()} - {""}
        if not titles or not 1 < len(document) <= _MOST_PAGES:
            return None
        read = [read_page(document, index, letters=True) for index in range(len(document))]
    lines = [list(lines_of(text)) for text, _ in read]
    places = [where for _, where in read]
    found = [_words(item.title) for item in headings_by_letters(lines, places, marginal_lines(lines, places))]
    right = sum(title in titles for title in found)
    return right, len(found) - right, len(titles.difference(found))


def _words(title: str) -> str:
    """A title without its number, in small letters."""
    first, _, rest = one_line(title).casefold().partition(" ")
    return "".join(
        filter(str.isalnum, rest if (rest and first[-1:].isdecimal()) or first.endswith(".") else f"{first}{rest}")
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="PDFs, also in folders below it")
    parser.add_argument("--every", type=int, default=1, help="read only every so manieth file (default: 1)")
    options = parser.parse_args(arguments)
    documents = right = wrong = missed = 0
    for path in sorted(options.folder.rglob("*.pdf"))[:: options.every]:
        try:
            result = compare(path.read_bytes())
        except (pypdfium2.PdfiumError, OSError) as error:
            print(f"{path}: {error}")
            continue
        if result is not None:
            documents += 1
            right, wrong, missed = right + result[0], wrong + result[1], missed + result[2]
    print(f"{documents} documents: {right + wrong} headings found, {right} of them in the outline; {missed} missed")


if __name__ == "__main__":
    main()
