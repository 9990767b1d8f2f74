"""Pages of a PDF that have no text are drawn, and whoever can reads them."""

from __future__ import annotations

import hashlib
import math
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipeline.core.documents import Recognition
from pipeline.core.errors import ExtractionError, NotRecognised
from pipeline.ingest.extract.recognised import POINTS_PER_INCH, RecognisedPage, recognised
from pipeline.ingest.extract.with_pdfium import opened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.ingest.extract.places import PagePlaces
    from pipeline.ingest.extract.reading import Step

FAILURES_AT_MOST = 3
"""After so many pages in a row that could not be read, the rest of the document is not tried: each may take long."""

# A page of 500 by 700 mm at 300 dots per inch; larger ones are drawn coarser.
_PIXELS_AT_MOST = 50_000_000
# What Tesseract takes (INT16_MAX), with a margin.
_SIDE_AT_MOST = 32_000


class Recogniser(Protocol):
    """Reads pictures of pages. engine: its name and version. dpi: how finely it wants them drawn."""

    engine: str
    languages: str
    dpi: int

    def __call__(self, image: bytes, dpi: int) -> str:
        """Tesseract's table of what is on the picture, a PGM.

        Raises NotRecognised for this page, Unstable where that is not the page's doing.
        """
        ...


class _Drawn(NamedTuple):
    image: bytes
    dpi: float
    width: float
    height: float


def read_scans(
    data: bytes, passwords: Sequence[str], numbers: Sequence[int], ocr: Recogniser, step: Step
) -> tuple[dict[int, tuple[str, PagePlaces]], Recognition]:
    """The raw text of those of the pages `numbers` (from 1) that have any, with its places.

    Pages that look the same are read once. `step` is called for each page.
    """
    found: dict[int, RecognisedPage] = {}
    failed: dict[int, str] = {}
    known: dict[bytes, RecognisedPage | None] = {}
    in_a_row = 0
    try:
        with closing(opened(data, passwords)) as document:
            for number in numbers:
                try:
                    page = _read(document, number - 1, ocr, known)
                except NotRecognised as error:
                    failed[number] = str(error)
                    in_a_row += 1
                    if in_a_row == FAILURES_AT_MOST:
                        break
                else:
                    in_a_row = 0
                    if page is not None:
                        found[number] = page
                step(1)
    except ExtractionError as error:
        if error.transient:
            raise
        failed[numbers[0]] = "PDFium, which draws pages, does not open the document"
    characters = sum(page.characters for page in found.values())
    recognition = Recognition(
        engine=ocr.engine,
        languages=ocr.languages,
        pages=list(found),
        confidence=sum(page.confidence * page.characters for page in found.values()) / characters if found else None,
        failed=failed,
    )
    return {number: (page.text, page.places) for number, page in found.items()}, recognition


def _read(
    document: Any, index: int, ocr: Recogniser, known: dict[bytes, RecognisedPage | None]
) -> RecognisedPage | None:
    drawn = _drawn(document, index, ocr.dpi)
    if drawn is None:
        return None
    digest = hashlib.sha256(drawn.image).digest()
    if digest not in known:
        known[digest] = recognised(ocr(drawn.image, round(drawn.dpi)), drawn.dpi, drawn.width, drawn.height)
    return known[digest]


def _drawn(document: Any, index: int, dpi: int) -> _Drawn | None:
    """The page in shades of grey, as a PGM (netpbm's `P5`); None where it is of one shade. Raises NotRecognised."""
    try:
        with closing(document[index]) as page:
            width, height = page.get_size()
            scale = _scale(width, height, dpi)
            with closing(page.render(scale=scale, grayscale=True, may_draw_forms=False)) as bitmap:
                pixels = bytes(bitmap.buffer)
                if bitmap.stride != bitmap.width:
                    rows = (pixels[start : start + bitmap.width] for start in range(0, len(pixels), bitmap.stride))
                    pixels = b"".join(rows)
                head = b"P5\n%d %d\n255\n" % (bitmap.width, bitmap.height)
    except MemoryError:
        raise
    except Exception as error:
        raise NotRecognised(f"the page cannot be drawn ({type(error).__name__})") from error
    if pixels.count(pixels[:1]) == len(pixels):
        return None
    return _Drawn(head + pixels, scale * POINTS_PER_INCH, width, height)


def _scale(width: float, height: float, dpi: int) -> float:
    """Pixels per point. Raises ValueError for a page that is no page."""
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"a page of {width} by {height} points")
    wanted = dpi / POINTS_PER_INCH
    return min(wanted, math.sqrt(_PIXELS_AT_MOST / (width * height)), _SIDE_AT_MOST / max(width, height))
