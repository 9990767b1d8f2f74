from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pytest

from pipeline.ingest.links import link_to
from pipeline.ingest.names import stored_name


@pytest.mark.parametrize(
    "name", [b"a b#c?d%20.pdf", "\u00fcber \u5c71.pdf".encode(), b"r\xe9sum\xe9.pdf", b"\xef\x9e\x80.pdf"]
)
def test_a_link_leads_to_the_very_file(tmp_path: Path, name: bytes) -> None:
    try:
        file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        file.write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes no such names")
    link = link_to(stored_name(os.fspath(file)), "pdf", 7)
    parts = urlsplit(link)
    assert link.isascii()
    assert (parts.scheme, parts.netloc, parts.fragment, parts.query) == ("file", "", "page=7", "")
    assert Path(os.fsdecode(unquote_to_bytes(parts.path))).samefile(file)


def test_only_a_pdf_is_opened_at_a_page() -> None:
    assert link_to("/in/a.pdf", "pdf", 3) == "file:///in/a.pdf#page=3"
    assert link_to("/in/a.pdf", "pdf") == "file:///in/a.pdf"
    assert link_to("/in/a.docx", "docx", 3) == "file:///in/a.docx"
    assert link_to("/in/a", None, 3) == "file:///in/a"
