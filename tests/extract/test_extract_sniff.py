from __future__ import annotations

import io
import zipfile

import pytest

from pipeline.core.documents import DocumentKind
from pipeline.core.errors import Encrypted, ExtractionError
from pipeline.ingest.extract import extract
from pipeline.ingest.extract.sniff import identify
from tests.extract.sample_documents import docx, p, pdf

OLE2 = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)


def zipped(members: dict[str, str]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


def refusal(data: bytes, kind: DocumentKind, name: str) -> ExtractionError:
    with pytest.raises(ExtractionError) as caught:
        extract(data, kind, name)
    return caught.value


def test_a_docx_named_pdf_and_a_pdf_named_docx_are_read_as_what_they_are() -> None:
    assert extract(docx(p("Hello")), DocumentKind.PDF, "report.PDF").text.strip() == "Hello"
    assert extract(pdf([["Hello"]]), DocumentKind.DOCX, "letter.docx").text.strip() == "Hello"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{\\rtf1\\ansi Hello}", "rich text (RTF)"),
        (b"\n <!DOCTYPE html><p>Hi", "a web page (HTML)"),
        (b"\xef\xbb\xbf<html><p>Hi", "a web page (HTML)"),
        (b"<?xml version='1.0'?><a/>", "an XML file"),
        (b"Dear reader, this is text.\n", "plain text"),
        ("안녕하세요. ".encode() * 100, "plain text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "a picture (PNG)"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "a picture (JPEG)"),
        (b"%!PS-Adobe-3.0\n", "PostScript"),
        (b"\x1f\x8b\x08" + bytes(40), "a gzip archive"),
        (OLE2 + "WordDocument".encode("utf-16-le"), "an old Word document (DOC)"),
        (OLE2 + "Workbook".encode("utf-16-le"), "an old Excel workbook (XLS)"),
        (OLE2, "an old Office document"),
        (OLE2 + "EncryptedPackage".encode("utf-16-le"), "an encrypted Office document"),
        (zipped({"xl/workbook.xml": "<a/>"}), "an Excel workbook (XLSX)"),
        (zipped({"mimetype": "application/vnd.oasis.opendocument.text"}), "an OpenDocument text (ODT)"),
        (zipped({"readme.txt": "hello"}), "a ZIP archive: unpack it"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a Git LFS pointer: fetch the document itself with `git lfs pull`",
        ),
    ],
)
def test_other_content_is_said_by_its_name(data: bytes, said: str) -> None:
    error = refusal(data, DocumentKind.PDF, "a.pdf")
    assert error.reason.startswith(f"named .pdf, but its content is {said}")
    assert error.state == "failed"


def test_unknown_bytes_are_said_to_be_unknown() -> None:
    error = refusal(b"\x01\x02\x80\x00" * 100, DocumentKind.DOCX, "a.docx")
    assert error.reason == "named .docx, but its content is not a Word document (DOCX), nor anything else that is known"


@pytest.mark.parametrize("kind", [DocumentKind.PDF, DocumentKind.DOCX])
def test_an_empty_file_and_one_of_zero_bytes_are_told_apart(kind: DocumentKind) -> None:
    assert refusal(b"", kind, "a").reason == "the file has no bytes"
    assert "nothing but zero bytes" in refusal(bytes(4096), kind, "a").reason


def test_an_encrypted_docx_needs_a_password() -> None:
    error = refusal(OLE2 + "EncryptedPackage".encode("utf-16-le"), DocumentKind.DOCX, "a.docx")
    assert isinstance(error, Encrypted)
    assert error.reason.startswith("needs a password")


def test_a_docx_that_was_cut_short_is_damaged_and_not_something_else() -> None:
    whole = docx(p("Hello"))
    assert "cut short" in refusal(whole[: len(whole) // 2], DocumentKind.DOCX, "a.docx").reason


def test_a_pdf_header_may_come_late_and_a_zip_is_known_by_its_content_types() -> None:
    assert identify(b"HTTP/1.1 200 OK\r\n\r\n" + pdf([["Hello"]])) == "a PDF"
    assert identify(bytes(1024) + b"%PDF-1.4") != "a PDF"
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    assert identify(zipped({"[Content_Types].xml": f'<Override ContentType="{main}"/>'})) == "a Word document (DOCX)"
