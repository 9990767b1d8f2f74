"""What a file's content is, whatever its name says.

Knows signatures, and the names inside a ZIP or OLE2 container. Reads no document.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import PurePath
from typing import TYPE_CHECKING

from pipeline.core.documents import DocumentKind
from pipeline.core.errors import Broken, Encrypted

if TYPE_CHECKING:
    from typing import Final

PDF = "a PDF"
DOCX = "a Word document (DOCX)"
ENCRYPTED_OFFICE = "an encrypted Office document"
BROKEN_ZIP = "a damaged ZIP container"
TEXT = "plain text"
LFS_POINTER = "a Git LFS pointer"
ZIP = "a ZIP archive"
UNKNOWN = "nothing that Nightshift knows"

_OWN: Final = {DocumentKind.PDF: PDF, DocumentKind.DOCX: DOCX}

# The PDF reference (ISO 32000-1, annex H, note 13) lets the header stand anywhere in the first 1024 bytes.
_PDF_HEADER_WITHIN: Final = 1024

_SIGNATURES: Final = (
    (b"{\\rtf", "rich text (RTF)"),
    (b"%!PS", "PostScript"),
    (b"\x89PNG\r\n\x1a\n", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"GIF8", "a picture (GIF)"),
    (b"BM", "a picture (BMP)"),
    (b"II*\x00", "a picture (TIFF)"),
    (b"MM\x00*", "a picture (TIFF)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"AT&TFORM", "a scanned document (DjVu)"),
    (b"version https://git-lfs.github.com/", LFS_POINTER),
)
_MARKUP: Final = (
    (b"<!doctype html", "a web page (HTML)"),
    (b"<html", "a web page (HTML)"),
    (b"<?xml", "an XML file"),
)
_ZIP_PARTS: Final = (
    ("word/document.xml", DOCX),
    ("xl/workbook.xml", "an Excel workbook (XLSX)"),
    ("ppt/presentation.xml", "a PowerPoint presentation (PPTX)"),
)
_MAIN_TYPES: Final = (
    (b"wordprocessingml.document.main+xml", DOCX),
    (b"wordprocessingml.template.main+xml", DOCX),
    (b"ms-word.document.macroEnabled.main+xml", DOCX),
    (b"ms-word.template.macroEnabledTemplate.main+xml", DOCX),
)
_ZIP_MIMETYPES: Final = (
    (b"application/vnd.oasis.opendocument.text", "an OpenDocument text (ODT)"),
    (b"application/vnd.oasis.opendocument.spreadsheet", "an OpenDocument spreadsheet (ODS)"),
    (b"application/vnd.oasis.opendocument.presentation", "an OpenDocument presentation (ODP)"),
    (b"application/epub+zip", "an e-book (EPUB)"),
    (b"application/hwp+zip", "a Hangul document (HWPX)"),
)
_OTHER_ADVICE: Final = {LFS_POINTER: "fetch the document itself with `git lfs pull`", ZIP: "unpack it"}
_OLE2_SIGNATURE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OLE2_STREAMS: Final = (
    ("EncryptedPackage", ENCRYPTED_OFFICE),
    ("WordDocument", "an old Word document (DOC)"),
    ("Workbook", "an old Excel workbook (XLS)"),
    ("PowerPoint Document", "an old PowerPoint presentation (PPT)"),
    ("HwpSummaryInformation", "an old Hangul document (HWP)"),
)
_READ_AT_MOST: Final = 1 << 20


def check_content(data: bytes, kind: DocumentKind, name: str) -> DocumentKind:
    """Of which kind the content is, which need not be the one that the name says.

    Raises:
        Encrypted: an Office document that was saved with a password.
        Broken: anything else, said by its name and with what to do.
    """
    if not data:
        raise Broken("the file has no bytes")
    if not data.strip(b"\x00"):
        raise Broken("damaged: the file holds nothing but zero bytes, so a disk or a transfer lost its content")
    content = identify(data)
    own = next((kind for kind, words in _OWN.items() if words == content), None)
    if own is not None:
        return own
    if kind is DocumentKind.DOCX and content == ENCRYPTED_OFFICE:
        raise Encrypted("needs a password: it was saved as an encrypted Office document")
    if kind is DocumentKind.DOCX and content == BROKEN_ZIP:
        raise Broken(
            "damaged: the ZIP container of this DOCX cannot be read, so a copy or download was probably cut short"
        )
    suffix = PurePath(name).suffix or f".{kind.value}"
    if content == UNKNOWN:
        raise Broken(f"named {suffix}, but its content is not {_OWN[kind]}, nor anything else that is known")
    todo = _OTHER_ADVICE.get(content, f"save or export it as {kind.value.upper()} first")
    raise Broken(f"named {suffix}, but its content is {content}: {todo}")


def identify(data: bytes) -> str:
    """What `data` is, as words that fit behind "its content is"."""
    head = data[:_PDF_HEADER_WITHIN]
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _identify_zip(data)
    if b"%PDF-" in head:
        return PDF
    if data.startswith(_OLE2_SIGNATURE):
        return _identify_ole2(data)
    for signature, content in _SIGNATURES:
        if data.startswith(signature):
            return content
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "a picture (WebP)"
    if data[4:8] == b"ftyp":
        return "a picture or a film (HEIC, MP4)"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for signature, content in _MARKUP:
        if start.startswith(signature):
            return content
    return TEXT if _is_text(head) else UNKNOWN


def _identify_zip(data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = set(archive.namelist())
            for part, content in _ZIP_PARTS:
                if part in names:
                    return content
            if "[Content_Types].xml" in names:
                types = _beginning(archive, "[Content_Types].xml")
                for main, content in _MAIN_TYPES:
                    if main in types:
                        return content
            if "mimetype" in names:
                mimetype = _beginning(archive, "mimetype")
                for signature, content in _ZIP_MIMETYPES:
                    if mimetype.startswith(signature):
                        return content
    except Exception:  # noqa: BLE001 - zipfile lets a dozen kinds of exception through for damaged archives
        return BROKEN_ZIP
    return ZIP


def _beginning(archive: zipfile.ZipFile, member: str) -> bytes:
    with archive.open(member) as stream:
        return stream.read(_READ_AT_MOST)


def _identify_ole2(data: bytes) -> str:
    for stream, content in _OLE2_STREAMS:
        if stream.encode("utf-16-le") in data:
            return content
    return "an old Office document"


def _is_text(head: bytes) -> bool:
    if b"\x00" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        # The head may end inside a character; anything earlier is not text.
        return error.start >= len(head) - 3 and len(head) == _PDF_HEADER_WITHIN
    return True
