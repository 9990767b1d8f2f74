"""What a file is: by its name, which decides whether anybody looks at it, and by its first bytes, which count."""

from __future__ import annotations

from pipeline.core.documents import DocumentKind

KINDS = {".pdf": DocumentKind.PDF, ".docx": DocumentKind.DOCX, ".docm": DocumentKind.DOCX}
"""By suffix. A .docm is a DOCX with macros, which nothing here could run. Templates (.dotx) are no documents yet."""

HEAD_BYTES = 1024
"""So many bytes say what a file is: a PDF's header may stand anywhere in them (ISO 32000-1, annex H, note 13)."""

_ALL_KINDS = KINDS | {".text": DocumentKind.TEXT}
_PASSED_OVER = (".", "~$")


def is_passed_over(name: str) -> bool:
    """Whether a file or folder is nobody's document: hidden, or the lock file beside an open one (`~$x.docx`)."""
    return name.startswith(_PASSED_OVER)


def kind_of_name(name: str) -> DocumentKind | None:
    """What a file's name says it is; None for what is no document.

    What downloads and programs write to until they are done (`x.pdf.part`, `x.pdf.crdownload`, `~WRL0001.tmp`) has
    a suffix of its own, and so is none yet.
    """
    return None if is_passed_over(name) else _ALL_KINDS.get("." + name.rpartition(".")[2].lower())


def kind_of_content(head: bytes, named: DocumentKind) -> DocumentKind:
    """What a file's first HEAD_BYTES say it is, or what its name says where they say neither PDF nor DOCX."""
    if named is DocumentKind.TEXT:
        return named
    if head.startswith(b"PK\x03\x04"):
        return DocumentKind.DOCX
    return DocumentKind.PDF if b"%PDF-" in head[:HEAD_BYTES] else named
