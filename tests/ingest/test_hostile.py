"""Files made to do harm, through real workers with the real extractor: each costs itself alone, and says why."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import socket
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import psutil
import pytest

from pipeline.core.documents import DocumentKind
from pipeline.core.errors import Broken, NoText
from pipeline.ingest.pool import ExtractionPool
from tests.conftest import DEFAULT_MODEL
from tests.extract.sample_documents import R, docx, p, pdf, rewritten, root, run

GOOD = pdf([["The night train leaves from platform nine."]])
MEBIBYTE = 1 << 20
MEMORY = 256 * MEBIBYTE
TIMEOUT_S = 5.0
TOO_MUCH = r"needs more than 0\.2 GiB|may need more memory|took more than"
FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
CATALOG = b"<</Type/Catalog/Pages 2 0 R>>"
HELLO = b"BT /F 9 Tf 9 9 Td (Hello there) Tj ET"


def raw_pdf(objects: Mapping[int, bytes]) -> bytes:
    """A PDF of these objects; 1 is the catalog."""
    out = bytearray(b"%PDF-1.7\n")
    lines = [b"0000000000 65535 f \n"] * (max(objects) + 1)
    for number, body in objects.items():
        lines[number] = b"%010d 00000 n \n" % len(out)
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    size = len(lines)
    trailer = b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (size, len(out))
    return bytes(out) + b"xref\n0 %d\n" % size + b"".join(lines) + trailer


def stream(data: bytes, entries: bytes = b"") -> bytes:
    return b"<</Length %d%b>>\nstream\n%b\nendstream" % (len(data), entries, data)


def one_page(content: bytes, kids: bytes = b"3 0 R", count: int = 1) -> bytes:
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Resources<</Font<</F 5 0 R>>>>/Contents 4 0 R>>"
    pages = b"<</Type/Pages/Kids[%b]/Count %d>>" % (kids, count)
    return raw_pdf({1: CATALOG, 2: pages, 3: page, 4: content, 5: FONT})


def squeezed(piece: bytes, times: int, rounds: int = 1) -> bytes:
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(piece) for _ in range(times)) + packer.flush()
    for _ in range(rounds - 1):
        data = zlib.compress(data, 9)
    return data


def forms(*, circle: bool) -> bytes:
    """A form that draws the next one twice, thirty deep, or itself."""
    shown = {
        number: stream(
            HELLO if number == 39 else b"/X Do /X Do",
            b"/Type/XObject/Subtype/Form/BBox[0 0 600 800]/Resources<</Font<</F 5 0 R>>/XObject<</X %d 0 R>>>>"
            % (number if circle else number + 1),
        )
        for number in range(10, 40)
    }
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Resources<</XObject<</X 10 0 R>>>>/Contents 4 0 R>>"
    return raw_pdf(
        {1: CATALOG, 2: b"<</Type/Pages/Kids[3 0 R]/Count 1>>", 3: page, 4: stream(b"/X Do"), 5: FONT, **shown}
    )


def circle_of_outlines() -> bytes:
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Resources<</Font<</F 5 0 R>>>>/Contents 4 0 R>>"
    entry = b"<</Title(a)/First %d 0 R/Next %d 0 R/Dest[3 0 R/Fit]>>"
    return raw_pdf(
        {
            1: b"<</Type/Catalog/Pages 2 0 R/Outlines 6 0 R>>",
            2: b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            3: page,
            4: stream(HELLO),
            5: FONT,
            6: b"<</First 7 0 R/Last 8 0 R>>",
            7: entry % (8, 8),
            8: entry % (7, 7),
        }
    )


PDFS: dict[str, tuple[Callable[[], bytes], str]] = {
    # name: the file, and the text that it has or what is said of it
    "flate bomb": (lambda: one_page(stream(squeezed(bytes(MEBIBYTE), 320), b"/Filter/FlateDecode")), TOO_MUCH),
    "flate bomb of text": (
        lambda: one_page(stream(squeezed((HELLO + b"\n") * 20_000, 450), b"/Filter/FlateDecode")),
        TOO_MUCH,
    ),
    "three filters deep": (
        lambda: one_page(stream(squeezed(bytes(MEBIBYTE), 320, 3), b"/Filter[/FlateDecode/FlateDecode/FlateDecode]")),
        TOO_MUCH,
    ),
    "a thousand filters": (
        lambda: one_page(stream(b"~>", b"/Filter[" + b"/ASCII85Decode/LZWDecode/RunLengthDecode" * 400 + b"]")),
        "no text on its only page",
    ),
    "a page count of two billion": (lambda: one_page(stream(HELLO), count=2**31 - 1), "=Hello there"),
    "a million pages that are not there": (
        lambda: one_page(stream(HELLO), count=1_000_000),
        "=Hello there|took more than",
    ),
    "a million times the same page": (lambda: one_page(stream(HELLO), b"3 0 R " * 1_000_000, 1_000_000), TOO_MUCH),
    "a page tree in a circle": (
        lambda: one_page(stream(HELLO), kids=b"2 0 R", count=5),
        "none of its 5 pages can be read",
    ),
    "a page tree of two in a circle": (
        lambda: raw_pdf(
            {
                1: CATALOG,
                2: b"<</Type/Pages/Kids[3 0 R]/Count 1000>>",
                3: b"<</Type/Pages/Kids[2 0 R 3 0 R]/Count 1000/Parent 2 0 R>>",
            }
        ),
        "none of its 1000 pages can be read",
    ),
    "a page tree that doubles": (
        lambda: raw_pdf(
            {
                1: CATALOG,
                **{
                    number: b"<</Type/Pages/Kids[%d 0 R %d 0 R]/Count %d>>"
                    % (number + 1, number + 1, 2 ** (30 - number))
                    for number in range(2, 30)
                },
                30: b"<</Type/Page/MediaBox[0 0 9 9]>>",
            }
        ),
        "damaged|no text|" + TOO_MUCH,
    ),
    "a page tree twenty thousand deep": (
        lambda: raw_pdf(
            {
                1: CATALOG,
                **{n: b"<</Type/Pages/Kids[%d 0 R]/Count 1>>" % (n + 1) for n in range(2, 20_000)},
                20_000: b"<</Type/Page/MediaBox[0 0 9 9]>>",
            }
        ),
        "damaged|no text",
    ),
    "arrays without end": (lambda: one_page(stream(b"[" * 1_000_000)), "no text on its only page"),
    "a form that draws itself": (lambda: forms(circle=True), "damaged|no text|crashed|" + TOO_MUCH),
    "forms that double": (lambda: forms(circle=False), "crashed|" + TOO_MUCH),
    "an outline in a circle": (lambda: circle_of_outlines(), "=Hello there"),
    "a cross-reference table that leads to itself": (
        lambda: one_page(stream(HELLO)).replace(b"/Root 1 0 R", b"/Root 1 0 R/Prev 9"),
        "=Hello there",
    ),
}


def zip_bomb(part: str, mebibytes: int, piece: bytes = bytes(MEBIBYTE)) -> bytes:
    """A DOCX one of whose parts is that large when it is unpacked."""
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(docx(p("x")))) as source,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in source.namelist():
            if name != part:
                bomb.writestr(name, source.read(name))
        with bomb.open(part, "w", force_zip64=True) as member:
            for _ in range(mebibytes):
                member.write(piece)
    return target.getvalue()


def declared(data: bytes, part: str, size: int) -> bytes:
    """The same archive, which now says that `part` holds `size` bytes."""
    changed = bytearray(data)
    at = changed.index(b"PK\x01\x02")
    while at >= 0:
        (length,) = struct.unpack_from("<H", changed, at + 28)
        if changed[at + 46 : at + 46 + length] == part.encode():
            struct.pack_into("<I", changed, at + 24, size)
            (local,) = struct.unpack_from("<I", changed, at + 42)
            struct.pack_into("<I", changed, local + 22, size)
        at = changed.find(b"PK\x01\x02", at + 4)
    return bytes(changed)


def declaring(doctype: str, body: str) -> bytes:
    document = root("document", f"<w:body>{body}</w:body>").replace("?>", "?>" + doctype, 1)
    return rewritten(docx(p("x")), {"word/document.xml": document.encode()})


def noted(kind: str, count: int) -> bytes:
    """Notes, each of which refers twice to the next one, and the last to the first."""
    refer = '<w:r><w:{}Reference w:id="{}"/></w:r>'.format
    notes = "".join(
        f'<w:{kind} w:id="{n}"><w:p>{run(f"note {n} ")}{refer(kind, n % count + 1) * 2}</w:p></w:{kind}>'
        for n in range(1, count + 1)
    )
    return docx(f"<w:p>{run('Body')}{refer(kind, 1)}</w:p>", {f"{kind}s": root(f"{kind}s", notes)})


LAUGHS = (
    '<!DOCTYPE w [<!ENTITY a0 "lol">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10)) + "]>"
)
ROW = "<w:tr>" + f"<w:tc><w:p>{run('cell')}</w:p></w:tc>" * 2 + "</w:tr>"
DOCXS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a part of 300 MiB": (lambda: zip_bomb("word/document.xml", 300), "refused: .* would unpack to 300 MiB"),
    "a picture of 4 GiB": (
        lambda: declared(zip_bomb("word/media/a.png", 1), "word/media/a.png", 2**32 - 2),
        "refused: it would unpack to 4,096 MiB",
    ),
    "a part of 64 MiB of nothing": (
        lambda: zip_bomb("word/document.xml", 64),
        "the XML inside this DOCX cannot be read",
    ),
    "a part that says it is small": (
        lambda: declared(zip_bomb("word/document.xml", 300), "word/document.xml", 1000),
        "the ZIP container of this DOCX cannot be read|" + TOO_MUCH,
    ),
    "content types that say they are small": (
        lambda: declared(zip_bomb("[Content_Types].xml", 300), "[Content_Types].xml", 1000),
        "the ZIP container of this DOCX cannot be read|" + TOO_MUCH,
    ),
    "a tree larger than the memory": (lambda: docx("<w:p/>" * (60 * MEBIBYTE // 6)), TOO_MUCH),
    "a million rows": (lambda: docx(f"<w:tbl>{ROW * 1_000_000}</w:tbl>"), TOO_MUCH),
    "tables a hundred thousand deep": (lambda: docx("<w:tbl><w:tr><w:tc>" * 100_000), "the XML inside this DOCX"),
    "a billion laughs": (lambda: declaring(LAUGHS, p("&a9;")), "declares entities|the XML inside"),
    "a billion laughs in an attribute": (
        lambda: declaring(LAUGHS, p("x").replace("<w:p>", '<w:p w:x="&a9;">')),
        "declares entities|the XML inside",
    ),
    "an external entity": (
        lambda: declaring('<!DOCTYPE w [<!ENTITY x SYSTEM "file:///etc/passwd">]>', p("a&x;b")),
        "refused: its part word/document.xml declares entities",
    ),
    "a footnote in a circle": (lambda: noted("footnote", 1), "=[1]"),
    "endnotes in a circle": (lambda: noted("endnote", 2), "=[i]"),
    "forty footnotes that double": (lambda: noted("footnote", 40), "=note 40"),
}


@pytest.fixture
async def reading(tmp_path: Path) -> AsyncIterator[ExtractionPool]:
    before = set(psutil.Process().children(recursive=True))
    async with ExtractionPool(
        2,
        model_path=DEFAULT_MODEL,
        limit=256,
        overlap=32,
        pdf_engine="auto",
        timeout_s=TIMEOUT_S,
        timeout_per_mib_s=0.1,
        timeout_per_page_s=0.001,
        memory_limit_bytes=MEMORY,
        nice=0,
    ) as opened:
        yield opened
    assert set(psutil.Process().children(recursive=True)) <= before


async def ending(reading: ExtractionPool, path: Path, data: bytes, kind: DocumentKind) -> str:
    """`=` and its text, or why there is none. Any other exception fails the test."""
    await asyncio.to_thread(path.write_bytes, data)
    try:
        found = await reading.extract(path, kind, hashlib.sha256(data).hexdigest())
    except (Broken, NoText) as error:
        return error.reason
    finally:
        await asyncio.to_thread(path.unlink)
    return "=" + "\n".join(chunk.text for chunk in found.chunks)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "cases"), [(DocumentKind.PDF, PDFS), (DocumentKind.DOCX, DOCXS)])
async def test_each_costs_itself_alone_and_says_why(
    reading: ExtractionPool,
    tmp_path: Path,
    kind: DocumentKind,
    cases: Mapping[str, tuple[Callable[[], bytes], str]],
) -> None:
    """One after the other, each beside a good document, whose text is always all there."""
    unexpected = {}
    for name, (made, expected) in cases.items():
        told, neighbour = await asyncio.gather(
            ending(reading, tmp_path / f"bad.{kind.value}", await asyncio.to_thread(made), kind),
            ending(reading, tmp_path / "good.pdf", GOOD, DocumentKind.PDF),
        )
        assert neighbour == "=The night train leaves from platform nine."
        text, _, reason = expected.removeprefix("=").partition("|") if expected[0] == "=" else ("", "", expected)
        fits = text in told if told[0] == "=" and text else bool(reason and re.search(reason, told))
        if not fits or (told[0] != "=" and "\n" in told):
            unexpected[name] = told[:200]
    assert unexpected == {}


async def test_nothing_is_fetched_for_a_document(reading: ExtractionPool, tmp_path: Path) -> None:
    """Templates, pictures, parts and entities that stand elsewhere stay there, and the text is read without them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        kinds = ("attachedTemplate", "image", "styles", "header", "footnotes", "hyperlink", "subDocument")
        relations = "".join(
            f'<Relationship Id="r{n}" Type="{R}/{kind}" Target="{address}/{kind}" TargetMode="External"/>'
            for n, kind in enumerate(kinds)
        )
        package = "http://schemas.openxmlformats.org/package/2006/relationships"
        linked = rewritten(
            docx(p("Text of its own.") + '<w:sectPr><w:headerReference w:type="default" r:id="r3"/></w:sectPr>'),
            {"word/_rels/document.xml.rels": f'<Relationships xmlns="{package}">{relations}</Relationships>'.encode()},
        )
        assert await ending(reading, tmp_path / "a.docx", linked, DocumentKind.DOCX) == "=Text of its own."
        outside = declaring(f'<!DOCTYPE w SYSTEM "{address}/w.dtd">', p("text"))
        assert "declares entities" in await ending(reading, tmp_path / "b.docx", outside, DocumentKind.DOCX)
        action = raw_pdf(
            {
                1: b"<</Type/Catalog/Pages 2 0 R/OpenAction<</S/URI/URI(%b)>>>>" % address.encode(),
                2: b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
                3: b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Resources<</Font<</F 5 0 R>>>>/Contents 4 0 R>>",
                4: stream(b"", b"/F<</FS/URL/F(%b)>>" % address.encode()),
                5: FONT,
            }
        )
        assert "no text" in await ending(reading, tmp_path / "c.pdf", action, DocumentKind.PDF)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
