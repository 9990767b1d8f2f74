"""What Tesseract recognised on a page, as lines with their places. Pure; the table may hold anything.

The columns are those of its `tsv` output: level, page, block, paragraph, line, word, left, top, width, height (pixels),
confidence (0 to 100, below 0 for what is no word) and text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.ingest.extract.places import PagePlaces, Place
from pipeline.ingest.extract.text import HYPHEN_MARK

POINTS_PER_INCH = 72

# Of drawings, handwriting and foreign scripts Tesseract makes letters, too, but does not believe in them: lines of
# print have 80 and more, those of a picture less than this.
_CONFIDENCE_AT_LEAST = 50.0
_COLUMNS = 12
_WORD = "5"
_HYPHENATED = re.compile(r"[^\W\d_][-\u2010]$")
# Chinese and Japanese are written without spaces, and each of their characters may come as a word.
_UNSPACED = re.compile("[\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\uff00-\uffef]")


class RecognisedPage(NamedTuple):
    """The text as `PdfReading.pages` wants it and its places; how many characters, and how sure they are, 0 to 100."""

    text: str
    places: PagePlaces
    characters: int
    confidence: float


@dataclass(slots=True)
class _Line:
    paragraph: tuple[str, ...]
    words: list[str] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    characters: int = 0
    confidence: float = 0.0

    @property
    def text(self) -> str:
        joined = self.words[0]
        for word in self.words[1:]:
            spaced = not (_UNSPACED.match(joined[-1]) and _UNSPACED.match(word[0]))
            joined += f" {word}" if spaced else word
        return joined

    def place(self, scale: float) -> Place:
        left, top = (min(box[side] for box in self.boxes) * scale for side in (0, 1))
        right, bottom = (max(box[side] for box in self.boxes) * scale for side in (2, 3))
        # Of a word or two, a box that is higher than wide says nothing.
        upright = right - left >= bottom - top or self.characters < len("word")
        return Place(left, top, right, bottom, upright=upright)


def recognised(table: str, dpi: float, width: float, height: float) -> RecognisedPage | None:
    """The text of a page of this size in points; None where there is none that can be believed."""
    lines = [line for line in _lines(table) if line.confidence >= _CONFIDENCE_AT_LEAST * line.characters]
    characters = sum(line.characters for line in lines)
    if not characters:
        return None
    pieces: list[str] = []
    places: list[Place | None] = []
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else None
        goes_on = following is not None and following.paragraph == line.paragraph
        text = line.text
        if goes_on and _HYPHENATED.search(text):
            pieces.append(text[:-1] + HYPHEN_MARK)
        else:
            pieces.append(text + "\n")
        places.append(line.place(POINTS_PER_INCH / dpi))
        if not goes_on:
            pieces.append("\n")
            places.append(None)
    confidence = sum(line.confidence for line in lines) / characters
    return RecognisedPage("".join(pieces), PagePlaces(width, height, places), characters, confidence)


def _lines(table: str) -> list[_Line]:
    lines: dict[tuple[str, ...], _Line] = {}
    for row in table.split("\n"):
        cells = row.split("\t")
        if len(cells) != _COLUMNS or cells[0] != _WORD:
            continue
        word = "".join(cells[11].replace(HYPHEN_MARK, "").split())
        try:
            left, top, across, down = (float(int(cell)) for cell in cells[6:10])
            confidence = float(cells[10])
        except (OverflowError, ValueError):
            continue
        if not word or not 0 <= confidence <= 100:
            continue
        line = lines.setdefault(tuple(cells[1:5]), _Line(tuple(cells[1:4])))
        line.words.append(word)
        line.boxes.append((left, top, left + across, top + down))
        line.characters += len(word)
        line.confidence += confidence * len(word)
    return list(lines.values())
