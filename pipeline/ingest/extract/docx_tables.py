"""Which rows of a table say what its columns mean.

Word repeats on each page the rows that its author marked. Few authors do, so the first row of a table counts, too,
where it reads like a header, and the table is formatted as having one or has figures below a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.ingest.extract.docx_blocks import BREAKS
from pipeline.ingest.extract.docx_names import W, child_of, is_on, value_of

if TYPE_CHECKING:
    from pipeline.ingest.extract.docx_names import Element

CELL_SEPARATOR = " | "

_MARKED_AT_MOST = 3
_ROWS_AT_LEAST = 3
_LONGEST_CELL = 60
# So many rows below the first one are looked at for columns of figures, and no fewer tell anything.
_COMPARED = 8
_COMPARED_AT_LEAST = 3
# Two columns may as well be names and what they stand for, the first of them no different from the others.
_COLUMNS_AT_LEAST = 3
# The bit of tblLook that formats the first row (ECMA-376, part 1, 17.4.55).
_FIRST_ROW = 0x0020


def header_rows(table: Element, rows: Sequence[Element], cells: Sequence[Sequence[Element]], first: str) -> int:
    """How many of the first `rows` of a table are its header. cells: those of each row. first: the first one's text."""
    marked = 0
    for row in rows:
        if not is_on(child_of(row, "trPr", "tblHeader")):
            break
        marked += 1
    if marked:
        return marked if marked < len(rows) and (marked <= _MARKED_AT_MOST or marked * 2 <= len(rows)) else 0
    if len(rows) < _ROWS_AT_LEAST or not _reads_like_header(BREAKS.sub("", first)):
        return 0
    return int(_is_formatted(table) or _is_bold(rows[0]) or _has_figures(cells))


def _has_figures(cells: Sequence[Sequence[Element]]) -> bool:
    """Whether a column has figures in each row but the first."""
    below = [row for row in cells[1 : _COMPARED + 1] if len(row) == len(cells[0])]
    if (
        len(cells[0]) < _COLUMNS_AT_LEAST
        or len(below) < _COMPARED_AT_LEAST
        or len(below) < len(cells[1 : _COMPARED + 1])
    ):
        return False
    return any(all(_text(cell)[:1].isdecimal() for cell in column) for column in zip(*below, strict=True))


def _text(cell: Element) -> str:
    return "".join(text.text or "" for text in cell.iter(W + "t")).strip()


def _is_formatted(table: Element) -> bool:
    look = child_of(table, "tblPr", "tblLook")
    named = value_of(look, "firstRow")
    if named is not None:
        return named in ("1", "true", "on")
    try:
        return bool(int(value_of(look) or "0", 16) & _FIRST_ROW)
    except ValueError:
        return False


def _is_bold(row: Element) -> bool:
    runs = [run for run in row.iter(W + "r") if any((text.text or "").strip() for text in run.iter(W + "t"))]
    return bool(runs) and all(is_on(child_of(run, "rPr", "b")) for run in runs)


def _reads_like_header(row: str) -> bool:
    """Short names, no two alike and no figures. The corner above row names may be empty."""
    cells = [cell.strip() for cell in row.split(CELL_SEPARATOR)]
    filled = [cell for cell in cells[1:] if cell] + ([cells[0]] if cells[0] else [])
    if len(filled) < max(2, len(cells) - 1) or len(set(filled)) < len(filled):
        return False
    return all(
        len(cell) <= _LONGEST_CELL and any(character.isalpha() for character in cell) and not cell[0].isdecimal()
        for cell in filled
    )
