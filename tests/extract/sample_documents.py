"""Small real files for the tests: PDFs by reportlab, DOCX packages written part by part."""

from __future__ import annotations

import io
import itertools
import zipfile
from typing import TYPE_CHECKING

from pypdf import PdfReader, PdfWriter
from reportlab.lib.pagesizes import A4
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_NAMESPACES = (
    f'xmlns:w="{W}" xmlns:r="{R}" xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    ' xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math" xmlns:v="urn:schemas-microsoft-com:vml"'
    ' xmlns:wps="http://schemas.microsoft.com/office/word/2010/wordprocessingShape"'
)
_MAIN = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
_PART = "application/vnd.openxmlformats-officedocument.wordprocessingml.{}+xml"


def pdf(
    pages: Sequence[Sequence[str]],
    *,
    outline: Sequence[tuple[int, str, int]] = (),
    information: Mapping[str, str] | None = None,
    font: str = "Helvetica",
    rule: bool = True,
) -> bytes:
    """A PDF of these lines; `outline` is (level from 0, title, page from 0), `rule` draws a line."""
    target = io.BytesIO()
    canvas = Canvas(target, pagesize=A4, invariant=1)
    if font not in pdfmetrics.getRegisteredFontNames() and font != "Helvetica":
        pdfmetrics.registerFont(UnicodeCIDFont(font))
    for key, value in (information or {}).items():
        getattr(canvas, f"set{key}")(value)
    for number, lines in enumerate(pages):
        canvas.setFont(font, 10)
        for row, line in enumerate(lines):
            canvas.drawString(60, 780 - 14 * row, line)
        if rule:
            canvas.line(50, 40, 500, 40)
        for order, (level, title, page) in enumerate(outline):
            if page == number:
                canvas.bookmarkPage(str(order))
                canvas.addOutlineEntry(title, str(order), level=level)
        canvas.showPage()
    canvas.save()
    return target.getvalue()


Drawn = tuple[float, float, str, str, float]
"""x, y from the upper edge, a line, its font and the size of its letters."""


def drawn_pdf(pages: Sequence[Sequence[Drawn]], *, rotate: int = 0) -> bytes:
    """A PDF whose lines are drawn in the order and at the places given; the page is shown turned by `rotate`."""
    target = io.BytesIO()
    width, height = A4
    canvas = Canvas(target, pagesize=A4 if rotate % 180 == 0 else (height, width), invariant=1)
    for lines in pages:
        canvas.setPageRotation(rotate)
        if rotate == 90:
            canvas.transform(0, 1, -1, 0, height, 0)
        elif rotate == 180:
            canvas.transform(-1, 0, 0, -1, width, height)
        elif rotate == 270:
            canvas.transform(0, -1, 1, 0, 0, width)
        for x, y, text, font, size in lines:
            canvas.setFont(font, size)
            canvas.drawString(x, height - y, text)
        canvas.showPage()
    canvas.save()
    return target.getvalue()


PROSE = (
    "When the ferry came in that evening, nobody on the quay had expected it, and the harbour master was still at the "
    "table with his sister, who kept the books of three boats and a shed full of nets. They went down together in the "
    "rain. What they saw was a hull without lights, and on its deck eleven crates, each of them marked with the name "
    "of an island that neither of them knew. She counted them twice. He signed for them, because somebody had to, and "
    "had them carried into the shed, where they stood for the rest of the winter between the nets and the paint. "
)


def prose(line: int, width: float = 470, size: float = 10) -> list[str]:
    """`line` lines of prose, no two of which are alike, that fill a column of this width."""
    words = itertools.cycle(PROSE.split())
    lines: list[str] = []
    for number in range(line):
        text = f"{next(words)} {number}"
        while stringWidth(f"{text} {(word := next(words))}", "Times-Roman", size) < width:
            text += f" {word}"
        lines.append(text)
    return lines


def body(lines: Sequence[str], *, x: float = 60, top: float = 110, step: float = 13, size: float = 10) -> list[Drawn]:
    """Lines below each other, in the font of the text."""
    return [(x, top + step * row, line, "Times-Roman", size) for row, line in enumerate(lines)]


def encrypted_pdf(data: bytes, user: str, owner: str, algorithm: str) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(data)))
    writer.encrypt(user, owner, algorithm=algorithm)
    target = io.BytesIO()
    writer.write(target)
    return target.getvalue()


def root(name: str, content: str) -> str:
    """One part: `w:name` around `content`, with every namespace that the tests use."""
    return f'<?xml version="1.0" encoding="UTF-8"?><w:{name} {_NAMESPACES}>{content}</w:{name}>'


def docx(
    body: str, parts: Mapping[str, str] | None = None, others: Mapping[str, bytes] | None = None, main: str = _MAIN
) -> bytes:
    """A DOCX with this body. `parts` are related to the document by their names: styles, header1, footnotes."""
    parts = dict(parts or {})
    types = "".join(
        f'<Override PartName="/word/{name}.xml" ContentType="{_PART.format(name.rstrip("0123456789"))}"/>'
        for name in parts
    )
    relations = "".join(
        f'<Relationship Id="{name}" Type="{R}/{name.rstrip("0123456789")}" Target="{name}.xml"/>' for name in parts
    )
    package = "http://schemas.openxmlformats.org/package/2006"
    members = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/><Default Extension="png" ContentType="image/png"/>'
        f'<Override PartName="/word/document.xml" ContentType="{main}"/>{types}</Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="r1" Type="{R}/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/_rels/document.xml.rels": f'<Relationships xmlns="{package}/relationships">{relations}</Relationships>',
        "word/document.xml": root("document", f"<w:body>{body}</w:body>"),
        **{f"word/{name}.xml": content for name, content in parts.items()},
    }
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**{key: value.encode() for key, value in members.items()}, **(others or {})}.items():
            archive.writestr(name, content)
    return target.getvalue()


def rewritten(data: bytes, changes: Mapping[str, bytes]) -> bytes:
    """The same archive with some members replaced or added."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        members = {name: source.read(name) for name in source.namelist()}
        for name, content in {**members, **changes}.items():
            archive.writestr(name, content)
    return target.getvalue()


def p(text: str, properties: str = "") -> str:
    """One paragraph."""
    return f"<w:p><w:pPr>{properties}</w:pPr>{run(text)}</w:p>"


def run(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'


def styled(text: str, style: str) -> str:
    return p(text, f'<w:pStyle w:val="{style}"/>')


def table(*rows: Sequence[str]) -> str:
    """Cells are the XML of their content, or plain text."""
    return "<w:tbl><w:tblPr/>" + "".join(f"<w:tr>{''.join(map(cell, row))}</w:tr>" for row in rows) + "</w:tbl>"


def cell(content: str, properties: str = "") -> str:
    if content.startswith("<w:tc>"):
        return content
    return f"<w:tc><w:tcPr>{properties}</w:tcPr>{content if content.startswith('<') else p(content)}</w:tc>"
