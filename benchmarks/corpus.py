"""Make a corpus of PDFs with English prose to measure with: `python benchmarks/corpus.py OUT --pages 300`.

The same arguments give the same bytes. No two pages are alike, a page has 350 to 500 words in
paragraphs of natural length, and each document has headings in its outline, so that chunks come
out as they do from real reports.
"""

from __future__ import annotations

import argparse
import io
import random
from functools import cache
from pathlib import Path

from reportlab.lib.pagesizes import A4
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

PAGES_PER_DOCUMENT = 12
WORDS_PER_PAGE = (350, 460)

_MARGIN = 68
_BODY = ("Times-Roman", 10.5)
_LEADING = 13.5
_PAGES_PER_CHAPTER = 4

_TOPICS = {
    "water supply": (
        ["the pumping station", "the upper reservoir", "the old main", "the chlorine dosing unit", "the pressure zone"],
        ["leakage", "turbidity", "the night flow", "the hardness of the water", "the level of the reservoir"],
        ["cubic metres an hour", "milligrams a litre", "bar", "percent"],
        ["the waterworks", "the valley district", "the hydrology office"],
    ),
    "railway operation": (
        ["the signal box", "the northern junction", "the regional train", "the freight yard", "the overhead line"],
        ["delay", "the number of passengers", "the wear of the wheels", "the braking distance", "punctuality"],
        ["minutes", "trains a day", "metres", "percent"],
        ["the timetable office", "the depot", "the track department"],
    ),
    "bee keeping": (
        ["the eastern apiary", "the winter cluster", "the young queen", "the observation hive", "the lime avenue"],
        ["the load of mites", "the yield of honey", "the loss of colonies", "the moisture of the honey", "brood"],
        ["kilograms a hive", "mites a day", "colonies", "percent"],
        ["the beekeepers' association", "the field station", "the county inspector"],
    ),
    "paper conservation": (
        ["the herbarium", "the parish register", "the collection of maps", "the glass negatives", "the reading room"],
        ["acidity", "the relative humidity", "the fading of the ink", "mould", "the strength of the paper"],
        ["sheets a week", "lux", "volumes", "percent"],
        ["the conservation workshop", "the city archive", "the department of prints"],
    ),
    "wind power": (
        ["the third turbine", "the offshore platform", "the gearbox", "the substation", "the pitch controller"],
        ["availability", "icing", "the vibration of the tower", "the yield", "noise at the nearest house"],
        ["megawatt hours", "metres a second", "hours", "decibels"],
        ["the grid operator", "the service crew", "the cooperative"],
    ),
    "hospital logistics": (
        ["the pharmacy", "the central laundry", "the blood bank", "the night kitchen", "the pneumatic tube"],
        ["the time of delivery", "waste", "the stock of antibiotics", "the use of gloves", "the rate of errors"],
        ["deliveries a shift", "minutes", "kilograms", "percent"],
        ["the ward managers", "the purchasing office", "the infection control team"],
    ),
    "soil science": (
        ["the long-term plot", "the clay subsoil", "the hedge row", "the drained meadow", "the compost trial"],
        ["organic carbon", "erosion", "the count of earthworms", "nitrate in the drain", "compaction"],
        ["tonnes a hectare", "worms a square metre", "centimetres", "percent"],
        ["the experimental farm", "the soil laboratory", "the advisory service"],
    ),
    "machine learning": (
        ["the baseline model", "the validation set", "the tokenizer", "the retrieval index", "the inference server"],
        ["recall", "the loss on held-out text", "latency", "the memory footprint", "calibration"],
        ["points", "milliseconds", "gigabytes", "percent"],
        ["the evaluation group", "the platform team", "the annotators"],
    ),
}
_TEMPLATES = (
    "In {month} {year}, {thing} was inspected by {people}, and {quantity} stood at {number} {unit}.",
    "{People} found that {quantity} had {moved} by {number} {unit} since the survey of {year}.",
    "The cause lies in {thing}, which was built in {year} and has not been {verb} since.",
    "This is {adjective}, because {quantity} depends on {thing} more than on the weather.",
    "Where {thing} is {verb} in time, {quantity} stays below {number} {unit}.",
    "A comparison of {thing} with {other} shows that {quantity} differs by {number} {unit} between the two.",
    "{People} proposed to have {thing} {verb} before the end of {month}, at a cost of {number} thousand.",
    "Nobody expected {other} to matter, yet it explains {number} percent of the change in {quantity}.",
    "Measurements at {thing} began in {year} and were repeated every {month}, always by the same two people.",
    "If {quantity} should rise above {number} {unit}, {people} will have to act within {small} days.",
    "The earlier report claimed the opposite; its figures for {other}, however, rested on only {small} samples.",
    "It was {adjective} to see how quickly {thing} recovered after {other} had been {verb}.",
    "According to {people}, the main obstacle is not money but the {adjective} state of {thing}.",
    "For {quantity}, a value of {number} {unit} is regarded as {adjective}.",
    "Of the {number} complaints that reached {people} in {year}, most concerned {thing}.",
    "During the {adjective} weeks of {month}, {thing} had to be shut off on {small} days.",
    "Table {small} lists {quantity} for {thing} and for {other}, month by month.",
    "{People} disagree about {other}: one side wants it {verb}, the other would rather wait until {year}.",
    "Seen over the whole period, {quantity} has {moved} slowly, with a short interruption in {month} {year}.",
    "To keep {quantity} in check, {thing} is now {verb} every {small} weeks instead of twice a year.",
    "The {adjective} result was confirmed in {month}, when {other} showed {number} {unit} as well.",
    "What remains open is whether {thing} can be {verb} without disturbing {other}.",
    "A visit to {place} convinced {people} that {thing} can be run with half the staff.",
    "The team at {place} uses a different method, in which {quantity} is estimated from {other}.",
)
_OPENINGS = (
    "", "", "", "", "As a rule, ", "By contrast, ", "In the second half of the year, ", "For this reason, ",
    "On closer inspection, ", "At first sight, ", "After some discussion, ", "Even so, ",
)  # fmt: skip
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_ADJECTIVES = (
    "remarkable", "acceptable", "doubtful", "encouraging", "unusual", "plausible", "expensive", "early",
    "preliminary", "satisfactory", "surprising", "harmless", "dry", "consistent", "difficult",
)  # fmt: skip
_VERBS = ("repaired", "replaced", "measured", "cleaned", "documented", "tested", "extended", "insulated", "calibrated")
_MOVED = ("risen", "fallen", "changed", "improved", "drifted")
_PLACES = (
    "Aldermere", "Brankov", "Castelrosso", "Dunmore", "Eskilhamn", "Ferrand", "Gorizne", "Hallowby", "Istrava",
    "Jorvik Bay", "Kestrel Point", "Lindau-West", "Montclair", "Norrby", "Ostwick", "Pellworth",
)  # fmt: skip
_HEADINGS = (
    "What was measured at {place}", "The state of {thing}", "Why {quantity} matters", "Work planned for {year}",
    "Lessons from {month} {year}", "A closer look at {other}", "Costs and staff", "Results from {place}",
)  # fmt: skip


def write_corpus(folder: Path, pages: int, seed: int = 0, pages_per_document: int = PAGES_PER_DOCUMENT) -> list[Path]:
    """Write PDFs of `pages_per_document` pages, the last one shorter, with `pages` pages together.

    A longer corpus of the same seed begins with the documents of a shorter one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for number, first in enumerate(range(0, pages, pages_per_document), 1):
        path = folder / f"report-{number:05d}.pdf"
        path.write_bytes(_document(random.Random(f"{seed}/{number}"), number, min(pages_per_document, pages - first)))
        paths.append(path)
    return paths


def _document(choice: random.Random, number: int, pages: int) -> bytes:
    topic = choice.choice(list(_TOPICS))
    place = choice.choice(_PLACES)
    target = io.BytesIO()
    canvas = Canvas(target, pagesize=A4, invariant=1, pageCompression=1)
    canvas.setTitle(f"Report {number} on {topic} at {place}")
    canvas.setAuthor(f"Office of {topic}, {place}")
    for page in range(pages):
        chapter, within = divmod(page, _PAGES_PER_CHAPTER)
        height = A4[1] - _MARGIN
        if within == 0:
            title = f"{chapter + 1} {topic.capitalize()} at {choice.choice(_PLACES)}"
            height = _heading(canvas, title, height, level=0, key=f"{page}c")
        words = 0
        wanted = choice.randint(*WORDS_PER_PAGE)
        section = 0
        while words < wanted:
            if section % 3 == 0:
                title = _filled(choice.choice(_HEADINGS), choice, topic)
                height = _heading(canvas, title, height, level=1, key=f"{page}s{section}")
            paragraph = _paragraph(choice, topic, wanted - words)
            words += len(paragraph.split())
            height = _body(canvas, paragraph, height)
            section += 1
        canvas.setFont(*_BODY)
        canvas.drawCentredString(A4[0] / 2, _MARGIN / 2, str(page + 1))
        canvas.showPage()
    canvas.save()
    return target.getvalue()


def _paragraph(choice: random.Random, topic: str, words: int) -> str:
    """Three to eight sentences, fewer where no more than `words` are wanted."""
    sentences: list[str] = []
    for template in choice.sample(_TEMPLATES, choice.randint(3, 8)):
        sentence = _filled(template, choice, topic)
        opening = choice.choice(_OPENINGS)
        if opening:
            # Only what a template begins with is lowered: a name or an abbreviation never stands there.
            sentence = opening + sentence[0].lower() + sentence[1:]
        sentences.append(sentence[0].upper() + sentence[1:])
        words -= len(sentence.split())
        if words <= 0:
            break
    return " ".join(sentences)


def _filled(template: str, choice: random.Random, topic: str) -> str:
    things, quantities, units, people = _TOPICS[topic]
    thing, other = choice.sample(things, 2)
    group = choice.choice(people)
    number = choice.choice((str(choice.randint(2, 980)), f"{choice.uniform(0.5, 90):.1f}"))
    return template.format(
        thing=thing,
        other=other,
        quantity=choice.choice(quantities),
        unit=choice.choice(units),
        people=group,
        People=group.capitalize(),
        place=choice.choice(_PLACES),
        month=choice.choice(_MONTHS),
        year=choice.randint(1952, 2025),
        number=number,
        small=choice.randint(2, 19),
        adjective=choice.choice(_ADJECTIVES),
        verb=choice.choice(_VERBS),
        moved=choice.choice(_MOVED),
    )


def _heading(canvas: Canvas, title: str, height: float, *, level: int, key: str) -> float:
    canvas.bookmarkPage(key)
    canvas.addOutlineEntry(title, key, level=level)
    size = (15, 12)[level]
    canvas.setFont("Helvetica-Bold", size)
    canvas.drawString(_MARGIN, height - size, title)
    return height - size * 1.9


def _body(canvas: Canvas, paragraph: str, height: float) -> float:
    text = canvas.beginText(_MARGIN, height - _LEADING)
    text.setFont(*_BODY, leading=_LEADING)
    lines = _wrapped(paragraph)
    for line in lines:
        text.textLine(line)
    canvas.drawText(text)
    return height - _LEADING * (len(lines) + 0.6)


def _wrapped(paragraph: str) -> list[str]:
    lines: list[str] = []
    line: list[str] = []
    left = width = A4[0] - 2 * _MARGIN
    for word in paragraph.split():
        needed = _width(word) + _width(" ")
        if line and needed > left:
            lines.append(" ".join(line))
            line, left = [], width
        line.append(word)
        left -= needed
    return [*lines, " ".join(line)]


@cache
def _width(word: str) -> float:
    return float(stringWidth(word, *_BODY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the PDFs go; it is made if it is not there")
    parser.add_argument("--pages", type=int, default=300, help="pages of all documents together (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="another number gives other documents (default: 0)")
    parser.add_argument("--pages-per-document", type=int, default=PAGES_PER_DOCUMENT)
    options = parser.parse_args()
    paths = write_corpus(options.folder, options.pages, options.seed, options.pages_per_document)
    size = sum(path.stat().st_size for path in paths)
    print(f"{len(paths)} documents, {options.pages} pages, {size:,} bytes in {options.folder}")


if __name__ == "__main__":
    main()
