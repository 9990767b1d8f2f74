"""Scans for tests: the pages of a PDF as pictures of themselves."""

from __future__ import annotations

import io
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pypdfium2

if TYPE_CHECKING:
    from collections.abc import Collection


def scanned(data: bytes, numbers: Collection[int] | None = None, *, dpi: int = 200, turned: int = 0) -> bytes:
    """The same PDF, in which the pages `numbers` (from 1; None: all) are pictures, turned by so many degrees."""
    target = io.BytesIO()
    with closing(pypdfium2.PdfDocument(data)) as source, closing(pypdfium2.PdfDocument.new()) as made:
        for index in range(len(source)):
            if numbers is not None and index + 1 not in numbers:
                made.import_pages(source, [index])
                continue
            with closing(source[index]) as page:
                picture = page.render(scale=dpi / 72, grayscale=True, rotation=turned)
            _add_picture(made, picture, 72 / dpi)
        made.save(target)
    return target.getvalue()


def _add_picture(made: Any, picture: Any, points: float) -> None:
    width, height = picture.width * points, picture.height * points
    with closing(made.new_page(width, height)) as page:
        image = pypdfium2.PdfImage.new(made)
        image.set_bitmap(picture)
        image.set_matrix(pypdfium2.PdfMatrix().scale(width, height))
        page.insert_obj(image)
        page.gen_content()
