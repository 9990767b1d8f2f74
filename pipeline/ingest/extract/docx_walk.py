"""The body of a DOCX, a header or a note, walked in document order, becomes blocks.

Knows the elements of WordprocessingML. What it does not know it looks into, so that a wrapper
of a later version of Word hides no text. Deleted, moved-away and hidden text is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline.ingest.extract.docx_blocks import BREAKS, HARD_BREAK, RENDERED_BREAK, Block
from pipeline.ingest.extract.docx_names import MC, M, W, child_of, children_named, is_on, number_of, value_of
from pipeline.ingest.extract.docx_numbering import BULLET, formatted
from pipeline.ingest.extract.docx_styles import BODY_TEXT_LEVEL, own_outline, starts_page
from pipeline.ingest.extract.docx_tables import CELL_SEPARATOR, header_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.ingest.extract.docx_names import Element
    from pipeline.ingest.extract.docx_numbering import Numbering
    from pipeline.ingest.extract.docx_styles import Styles

_INDENT = "  "
_DEEPEST_LIST_LEVEL = 8
# Word's own limit.
_COLUMNS_AT_MOST = 63
# A whole paragraph of prose with an outline level is a slip of its author, and no heading.
_LONGEST_HEADING = 300

_CHARACTERS = {
    W + "tab": " ",
    W + "ptab": " ",
    W + "br": "\n",
    W + "cr": "\n",
    W + "noBreakHyphen": "-",
    W + "lastRenderedPageBreak": RENDERED_BREAK,
}
_PASSED_OVER = frozenset(
    W + name
    for name in (
        "pPr",
        "rPr",
        "del",
        "moveFrom",
        "instrText",
        "delText",
        "delInstrText",
        "rt",
        "sdtPr",
        "sectPr",
        "tblPr",
    )
)
_PICTURES = frozenset(W + name for name in ("drawing", "pict", "object"))


@dataclass(slots=True)
class _Line:
    """What one paragraph holds: text, the places of its note marks in it, and what hangs on it."""

    pieces: list[str] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    boxes: list[Element] = field(default_factory=list)
    notes: list[tuple[str, Element]] = field(default_factory=list)

    def text(self, *, marks: bool = True) -> str:
        if marks:
            return "".join(self.pieces)
        return "".join(piece for place, piece in enumerate(self.pieces) if place not in self.marks)

    def extend(self, other: _Line) -> None:
        self.marks += [len(self.pieces) + place for place in other.marks]
        self.pieces += other.pieces
        self.boxes += other.boxes
        self.notes += other.notes


class Walker:
    """Walks one story. It keeps what Word carries from paragraph to paragraph: list counts, open fields, notes."""

    def __init__(
        self, styles: Styles, numbering: Numbering, footnotes: Element | None, endnotes: Element | None
    ) -> None:
        self._styles = styles
        self._numbering = numbering
        self._footnotes = _notes(footnotes, "footnote")
        self._endnotes = _notes(endnotes, "endnote")
        # A note belongs to its first reference: one that leads to itself would never end.
        self._footnote_marks: dict[str, str] = {}
        self._endnote_marks: dict[str, str] = {}
        self._endnotes_seen: list[tuple[str, Element]] = []
        # For each field that has begun, whether its result has, too.
        self._fields: list[bool] = []

    def blocks(self, container: Element) -> Iterator[Block]:
        """The blocks in `container`, in the order of the document."""
        for child in container:
            tag = child.tag
            if tag == W + "p":
                yield from self._paragraph(child)
            elif tag == W + "tbl":
                yield from self._table(child)
            elif tag == W + "sdt":
                content = _content(child)
                if content is not None:
                    yield from self.blocks(content)
            elif tag == MC + "AlternateContent":
                yield from self._alternative_blocks(child)
            elif isinstance(tag, str) and tag not in _PASSED_OVER:
                yield from self.blocks(child)

    def endnotes(self) -> Iterator[Block]:
        """The endnotes that the blocks so far referred to."""
        while self._endnotes_seen:
            mark, note = self._endnotes_seen.pop(0)
            yield from self._note(mark, note)

    def _alternative_blocks(self, element: Element) -> Iterator[Block]:
        for branch in _branches(element):
            blocks = list(self.blocks(branch))
            if blocks:
                yield from blocks
                return

    def _paragraph(self, paragraph: Element) -> Iterator[Block]:
        properties = child_of(paragraph, "pPr")
        line = _Line()
        if starts_page(properties):
            line.pieces.append(HARD_BREAK)
        self._inline(paragraph, line)
        # A field's code that never ends would swallow the rest of the document.
        self._fields = [shown for shown in self._fields if shown]
        yield self._block(properties, line)
        for box in line.boxes:
            yield from (block.as_aside() for block in self.blocks(box))
        for mark, note in line.notes:
            yield from self._note(mark, note)

    def _block(self, properties: Element | None, line: _Line) -> Block:
        style = value_of(child_of(properties, "pStyle"))
        plain = line.text(marks=False)
        level = self._heading_level(properties, style) if len(plain) <= _LONGEST_HEADING else None
        if level is not None and not BREAKS.sub("", plain).strip():
            return Block(plain)
        label, depth = self._label(properties, style)
        if level is not None:
            number = f"{label} " if label and label != BULLET else ""
            return Block(plain, prefix=number, level=level, title=self._styles.is_title(style))
        if label:
            return Block(line.text(), "item", prefix=_INDENT * min(depth, _DEEPEST_LIST_LEVEL) + label + " ")
        return Block(line.text())

    def _heading_level(self, properties: Element | None, style: str | None) -> int | None:
        outline = own_outline(properties)
        if outline is None:
            return self._styles.heading_level(style)
        return None if outline >= BODY_TEXT_LEVEL else outline + 1

    def _label(self, properties: Element | None, style: str | None) -> tuple[str, int]:
        """(what Word writes before the paragraph, how deep its list is nested). Numbering 0 switches it off."""
        number = number_of(child_of(properties, "numPr", "numId"))
        depth = number_of(child_of(properties, "numPr", "ilvl"))
        if number is None:
            styled = self._styles.numbering(style)
            if styled is None:
                return "", 0
            number, own_depth, owner = styled
            if depth is None:
                depth = self._numbering.level_of_style(number, owner) if own_depth is None else own_depth
        depth = depth or 0
        return (self._numbering.next_label(number, depth) if number else ""), depth

    def _note(self, mark: str, note: Element) -> Iterator[Block]:
        first = True
        for block in self.blocks(note):
            yield replace(block.as_aside(), prefix=f"{mark} {block.prefix}" if first else block.prefix)
            first = False

    def _inline(self, element: Element, line: _Line) -> None:
        for child in element:
            tag = child.tag
            if not isinstance(tag, str) or tag in _PASSED_OVER:
                continue
            if tag == W + "r":
                if not is_on(child_of(child, "rPr", "vanish")):
                    self._inline(child, line)
            elif tag in (W + "t", M + "t"):
                if all(self._fields):
                    line.pieces.append(child.text or "")
            elif tag in _CHARACTERS:
                page = tag == W + "br" and value_of(child, "type") == "page"
                line.pieces.append(HARD_BREAK if page else _CHARACTERS[tag])
            elif tag == W + "fldChar":
                self._field(value_of(child, "fldCharType"))
            elif tag in (W + "footnoteReference", W + "endnoteReference"):
                self._reference(child, line)
            elif tag == W + "sdt":
                content = _content(child)
                if content is not None:
                    self._inline(content, line)
            elif tag == MC + "AlternateContent":
                self._alternative(child, line)
            elif tag in _PICTURES:
                line.boxes += _text_boxes(child)
            else:
                self._inline(child, line)

    def _alternative(self, element: Element, line: _Line) -> None:
        """Word writes the same thing twice, for itself and for older programs: the first that has text is enough."""
        for branch in _branches(element):
            other = _Line()
            self._inline(branch, other)
            if other.boxes or other.text().strip():
                line.extend(other)
                return

    def _field(self, kind: str | None) -> None:
        if kind == "begin":
            self._fields.append(False)
        elif kind == "separate" and self._fields:
            self._fields[-1] = True
        elif kind == "end" and self._fields:
            self._fields.pop()

    def _reference(self, reference: Element, line: _Line) -> None:
        identity = value_of(reference, "id") or ""
        if reference.tag == W + "footnoteReference" and identity in self._footnotes:
            mark = f"[{len(self._footnote_marks) + 1}]"
            if self._footnote_marks.setdefault(identity, mark) is mark:
                line.notes.append((mark, self._footnotes[identity]))
            mark = self._footnote_marks[identity]
        elif reference.tag == W + "endnoteReference" and identity in self._endnotes:
            mark = f"[{formatted(len(self._endnote_marks) + 1, 'lowerRoman')}]"
            if self._endnote_marks.setdefault(identity, mark) is mark:
                self._endnotes_seen.append((mark, self._endnotes[identity]))
            mark = self._endnote_marks[identity]
        else:
            return
        line.marks.append(len(line.pieces))
        line.pieces.append(mark)

    def _table(self, table: Element) -> Iterator[Block]:
        elements = [row for row in _wrapped(table, "tr") if child_of(row, "trPr", "del") is None]
        rows = [list(_wrapped(row, "tc")) for row in elements]
        if max(map(len, rows), default=0) <= 1:
            # A single column is a frame around text, and its text is read as if there were no frame.
            for cell in (cell for row in rows for cell in row):
                yield from self.blocks(cell)
            return
        asides: list[Block] = []
        headers = 0
        for number, row in enumerate(rows):
            blocks = list(self._row(row, asides))
            if number == 0:
                headers = header_rows(table, elements, rows, blocks[0].text if blocks else "")
            # Only the row itself: what follows it is a table inside of it.
            yield from (replace(block, header=number < headers and block is blocks[0]) for block in blocks)
        yield from asides

    def _row(self, cells: Iterable[Element], asides: list[Block]) -> Iterator[Block]:
        texts: list[str] = []
        nested: list[Block] = []
        pages = ""
        for cell in cells:
            properties = child_of(cell, "tcPr")
            if child_of(properties, "cellDel") is not None:
                continue
            if _continues(child_of(properties, "hMerge")):
                texts.append("")
                continue
            blocks = [] if _continues(child_of(properties, "vMerge")) else list(self.blocks(cell))
            asides += [block for block in blocks if block.aside]
            nested += [block for block in blocks if block.kind == "row"]
            own = [block.prefix.lstrip() + block.text for block in blocks if not block.aside and block.kind != "row"]
            text = " ".join(own)
            # Word marks the new page in every cell of a row that it parts.
            marks = "".join(BREAKS.findall(text))
            pages = max(pages, marks, key=len)
            texts.append(" ".join(BREAKS.sub("", text).split()))
            # What follows a wide cell stays below the name of its own column.
            span = number_of(child_of(properties, "gridSpan")) or 1
            texts += [""] * (min(span, _COLUMNS_AT_MOST) - 1)
        while texts and not texts[-1]:
            texts.pop()
        if texts:
            yield Block(pages + CELL_SEPARATOR.join(texts), "row")
        elif pages:
            yield Block(pages)
        yield from (replace(block, prefix=_INDENT + block.prefix, header=False) for block in nested)


def _notes(root: Element | None, name: str) -> dict[str, Element]:
    """By id. Those with a type are separators."""
    if root is None:
        return {}
    return {
        identity: note
        for note in children_named(root, name)
        if (identity := value_of(note, "id")) is not None and value_of(note, "type") in (None, "normal")
    }


def _content(control: Element) -> Element | None:
    """What a content control holds, unless it still shows its own hint of what to fill in."""
    if is_on(child_of(control, "sdtPr", "showingPlcHdr")):
        return None
    return child_of(control, "sdtContent")


def _branches(element: Element) -> list[Element]:
    return [*element.iterchildren(MC + "Choice"), *element.iterchildren(MC + "Fallback")]


def _text_boxes(element: Element) -> list[Element]:
    boxes: list[Element] = []
    for child in element:
        if child.tag == W + "txbxContent":
            boxes.append(child)
        elif child.tag == MC + "AlternateContent":
            boxes += next(filter(None, map(_text_boxes, _branches(child))), [])
        else:
            boxes += _text_boxes(child)
    return boxes


def _wrapped(element: Element, name: str) -> Iterator[Element]:
    """The children `w:name`, also where content controls or custom XML stand around them."""
    for child in element:
        if child.tag == W + name:
            yield child
        elif child.tag == W + "sdt":
            content = child_of(child, "sdtContent")
            if content is not None:
                yield from _wrapped(content, name)
        elif child.tag in (W + "customXml", W + "ins", W + "moveTo"):
            yield from _wrapped(child, name)


def _continues(merge: Element | None) -> bool:
    """Whether a cell belongs to the one above or before it (ECMA-376, part 1, 17.4.84)."""
    return merge is not None and value_of(merge) in (None, "continue")
