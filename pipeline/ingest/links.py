"""Links that open a document, a PDF at its page."""

from __future__ import annotations

import os
from urllib.parse import quote

from pipeline.core.documents import DocumentKind
from pipeline.ingest.names import real_path


def link_to(file: str, kind: str | None, page: int | None = None) -> str:
    """A `file:` URI of the file stored under this absolute path, whatever bytes are in its name.

    kind: what its content is; of a PDF, `page` (from 1) becomes a fragment that browsers and most viewers open at
    (RFC 8118, section 3).
    """
    # What stands outside of ASCII may stand for bytes that are no text, and only the disk knows.
    path = file if file.isascii() else os.fspath(real_path("/", file))
    uri = "file://" + quote(os.fsencode(path))
    return f"{uri}#page={page}" if page is not None and kind == DocumentKind.PDF else uri
