"""Documents become damaged ones: the same seed gives the same bytes."""

from __future__ import annotations

import io
import random
import re
import zipfile
import zlib
from typing import TYPE_CHECKING

from pypdf import PdfReader, PdfWriter
from pypdf.generic import DecodedStreamObject, StreamObject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_NUMBERS = (b"0", b"-1", b"1", b"255", b"65536", b"2147483647", b"2147483648", b"4294967295", b"99999999999", b"1e9")
_PDF_TOKEN = re.compile(rb"\d+ \d+ R\b|\d+|/[A-Za-z][A-Za-z0-9]*|<<|>>|\[|\]|\bobj\b|endobj|endstream|Tj|TJ|Tf|BT|ET")
_PDF_STREAM = re.compile(rb"/Length (\d+)(.*?)stream\r?\n(.*?)\r?\nendstream", re.DOTALL)
_XML_TOKEN = re.compile(rb'<[^<>]+>|"[^"<>]*"|[^<>"]+')
_DOUBLED_AT_MOST = 4096


def mutants_of_pdf(originals: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Without end: in turn raw bytes, tokens of its objects, and what is inside its streams."""
    plain = [_unpacked(original) for original in originals]
    choice = random.Random(f"pdf {seed}")
    while True:
        yield bytes_changed(choice, choice.choice(originals), originals)
        yield _tokens_changed(choice, choice.choice(plain), _PDF_TOKEN, _pdf_token)
        yield _streams_changed(choice, choice.choice(plain))
        yield bytes_changed(choice, choice.choice(plain), plain)


def mutants_of_docx(originals: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Without end: in turn the bytes of the archive, its length fields, and the bytes and tokens of its parts."""
    choice = random.Random(f"docx {seed}")
    while True:
        yield bytes_changed(choice, choice.choice(originals), originals)
        yield _zip_fields_changed(choice, choice.choice(originals))
        yield _parts_changed(choice, choice.choice(originals), lambda part: bytes_changed(choice, part, [part]))
        yield _parts_changed(
            choice, choice.choice(originals), lambda part: _tokens_changed(choice, part, _XML_TOKEN, _xml_token)
        )


def bytes_changed(choice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Bits turned, pieces deleted, doubled, zeroed, put in from elsewhere; at times the end gone."""
    mutant = bytearray(data)
    for _ in range(choice.choice((1, 1, 2, 4, 16))):
        at = choice.randrange(max(1, len(mutant)))
        length = min(_DOUBLED_AT_MOST, int(choice.expovariate(1 / 60)) + 1)
        match choice.randrange(6):
            case 0:
                mutant[at : at + 1] = bytes([(mutant[at] if mutant else 0) ^ 1 << choice.randrange(8)])
            case 1:
                del mutant[at : at + length]
            case 2:
                mutant[at:at] = mutant[at : at + length] * choice.choice((1, 1, 1, 50))
            case 3:
                mutant[at : at + length] = bytes(length)
            case 4:
                mutant[at : at + 4] = choice.choice((*_NUMBERS, b"\xff\xff\xff\xff", bytes(4)))
            case _:
                other = choice.choice(others)
                start = choice.randrange(len(other))
                mutant[at : at + choice.choice((0, length))] = other[start : start + length * 4]
    if choice.random() < 0.15:
        del mutant[choice.randrange(max(1, len(mutant))) :]
    return bytes(mutant)


def _tokens_changed(
    choice: random.Random, data: bytes, token: re.Pattern[bytes], changed: Callable[[random.Random, bytes], bytes]
) -> bytes:
    """Some tokens become others, of this document or none, go, or come twice."""
    places = [match.span() for match in token.finditer(data)]
    if not places:
        return data
    picked = sorted(choice.sample(places, min(len(places), choice.choice((1, 1, 2, 3, 8)))), reverse=True)
    mutant = bytearray(data)
    for start, end in picked:
        own = data[start:end]
        other = choice.choice(places)
        mutant[start:end] = choice.choice(
            (b"", own + own, data[slice(*other)], changed(choice, own), changed(choice, own))
        )
    return bytes(mutant)


def _pdf_token(choice: random.Random, token: bytes) -> bytes:
    if token.endswith(b" R"):
        return b"%d 0 R" % choice.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 99999999))
    return choice.choice(_NUMBERS) if token.isdigit() else choice.choice((b"null", b"<<", b"[[[[", b"/Kids", b"(" * 99))


def _xml_token(choice: random.Random, token: bytes) -> bytes:
    if token.startswith(b'"'):
        return b'"' + choice.choice((*_NUMBERS, b"", b"x" * 5000, "\u2028\U0001f642".encode())) + b'"'
    if token.startswith(b"<"):
        return choice.choice((token * 40, token.replace(b"w:", b"m:"), b"<w:tbl>", b"</w:p>", b"<w:p>", b"<!--"))
    return choice.choice((b"&amp;" * 99, b"&x;", b"]]>", "\ufffe\u202e".encode(), token * 40))


def _unpacked(data: bytes) -> bytes:
    """The same PDF with its streams as they are, so that a change in them is a change of what they say."""
    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted:
        return data
    writer = PdfWriter(clone_from=reader)
    for number, found in enumerate(writer._objects, 1):
        if isinstance(found, StreamObject) and found.get("/Filter") is not None and "/Subtype" not in found:
            plain = DecodedStreamObject()
            plain.update({key: value for key, value in found.items() if key not in ("/Filter", "/DecodeParms")})
            plain.set_data(found.get_data())
            writer._replace_object(number, plain)
    target = io.BytesIO()
    writer.write(target)
    return target.getvalue()


def _streams_changed(choice: random.Random, data: bytes) -> bytes:
    """What one stream says is changed, and packed; at times the pack itself is damaged, or its length a lie."""
    streams = list(_PDF_STREAM.finditer(data))
    if not streams:
        return bytes_changed(choice, data, [data])
    match = choice.choice(streams)
    content = _tokens_changed(choice, match[3], _PDF_TOKEN, _pdf_token)
    content = zlib.compress(bytes_changed(choice, content or b" ", [data]))
    filters = b"/FlateDecode"
    match choice.randrange(4):
        case 0:
            content = bytes_changed(choice, content, [content])
        case 1:
            depth = choice.randint(1, 20)
            for _ in range(depth):
                content = zlib.compress(content)
            filters = b"[" + b"/FlateDecode " * (depth + 1) + b"]"
        case _:
            pass
    length = choice.choice((b"%d" % len(content), b"%d" % len(content), *_NUMBERS))
    changed = b"/Filter %b/Length %b%bstream\n%b\nendstream" % (filters, length, match[2], content)
    return data[: match.start()] + changed + data[match.end() :]


def _zip_fields_changed(choice: random.Random, data: bytes) -> bytes:
    """Sizes, offsets, counts, methods and flags of the archive's own records become others."""
    records = ((b"PK\x03\x04", 30), (b"PK\x01\x02", 46), (b"PK\x05\x06", 22))
    mutant = bytearray(data)
    for _ in range(choice.randint(1, 3)):
        signature, size = choice.choice(records)
        places = [match.start() for match in re.finditer(re.escape(signature), data)]
        field = choice.randrange(4, size - 1, 2)
        at = choice.choice(places) + field
        value = choice.choice((0, 1, 8, 99, 0x7FFF, 0xFFFF, choice.randrange(0x10000)))
        mutant[at : at + 2] = value.to_bytes(2, "little")
    return bytes(mutant)


def _parts_changed(choice: random.Random, data: bytes, changed: Callable[[bytes], bytes]) -> bytes:
    """Some parts are changed and the archive is sound again; or one is gone, or there twice, or has another's name."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        parts = [(name, source.read(name)) for name in source.namelist()]
    written = [number for number, (name, _) in enumerate(parts) if name.endswith((".xml", ".rels"))]
    for number in choice.sample(written, min(len(written), choice.choice((1, 1, 2)))):
        name, content = parts[number]
        parts[number] = (name, changed(content or b" "))
    match choice.randrange(10):
        case 0:
            del parts[choice.randrange(len(parts))]
        case 1:
            parts.append((choice.choice(parts)[0] + choice.choice(("", ".xml")), choice.choice(parts)[1]))
        case _:
            pass
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in dict(parts).items():
            archive.writestr(name, content)
    return target.getvalue()
