"""Questions whose answers are known: how they are written down, and what answers them.

A line is a JSON object: `question`; `file`, and `page`, `pages` or `heading` where the answer is there; or `relevant`,
a list of objects with these keys, for several places. `grade` says how good a place is (1 where it is not said), `tag`
what the question is to show.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipeline.core.errors import UsageError
from pipeline.core.globs import compile_globs

_PLACE = frozenset({"file", "page", "pages", "heading", "grade"})
_LINE = _PLACE | {"question", "relevant", "tag"}
MOST_PAGES = 1_000_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where an answer is: on a page of a file, under a heading, or anywhere in it.

    file: a name, the end of a path, or a glob. heading: as it stands in the text, but for spaces and case.
    """

    file: str
    page: int | None = None
    heading: str | None = None
    grade: float = 1.0


@dataclass(frozen=True, slots=True)
class Question:
    """A question and where its answers are, each place once. line: of its file, from 1."""

    text: str
    places: Sequence[Place]
    line: int
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Passage:
    """What a search found. files: all that hold it, absolute. pages: first and last; None where it has none."""

    files: Sequence[str]
    pages: tuple[int, int] | None
    headings: Sequence[str] = ()


def parse_questions(lines: Iterable[str]) -> list[Question]:
    """The questions of a file of JSON lines; empty lines are passed over.

    Raises:
        UsageError: a line is not what it should be; the message begins with its number.
    """
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(_question(json.loads(line), number))
        except (ValueError, RecursionError) as error:
            problem = f"it is no JSON ({error})" if isinstance(error, json.JSONDecodeError) else str(error)
            raise UsageError(f"line {number}: {problem}") from error
    if not found:
        raise UsageError("there is no question in it")
    return found


def answers(places: Sequence[Place], passage: Passage) -> frozenset[int]:
    """Which of the places the passage shows, by their positions."""
    return frozenset(
        number
        for number, place in enumerate(places)
        if _on_page(place, passage.pages)
        and is_under(place, passage.headings)
        and any(map(file_matcher(place.file), passage.files))
    )


@lru_cache
def file_matcher(wanted: str) -> Callable[[str], bool]:
    """Whether an absolute path is the file that a name, the end of a path, or a glob means. Raises ValueError."""
    ending = "/" + wanted.lstrip("/")
    glob = wanted if wanted.startswith("/") or "/" not in wanted.rstrip("/") else f"**/{wanted}"
    expression = compile_globs([glob])
    assert expression is not None
    return lambda path: (
        path == wanted
        or (not wanted.startswith("/") and path.endswith(ending))
        or expression.fullmatch(path.lstrip("/")) is not None
    )


def is_under(place: Place, headings: Iterable[str]) -> bool:
    """Whether one of the headings is the place's; any is, where it names none."""
    return place.heading is None or _plain(place.heading) in map(_plain, headings)


def _plain(heading: str) -> str:
    return " ".join(heading.split()).casefold()


def _on_page(place: Place, pages: tuple[int, int] | None) -> bool:
    return place.page is None or (pages is not None and pages[0] <= place.page <= pages[1])


def _question(given: Any, line: int) -> Question:
    _keys(given, _LINE, "it")
    text = given.get("question")
    if not isinstance(text, str) or not text.strip():
        raise ValueError('it has no text under "question"')
    tag = given.get("tag", "")
    if not isinstance(tag, str):
        raise ValueError('"tag" should be a text')  # noqa: TRY004  as below
    if ("relevant" in given) == ("file" in given):
        raise ValueError('it should have either "file" or "relevant"')
    if "file" in given:
        places = _places(given)
    else:
        if _PLACE & given.keys():
            raise ValueError('"page", "pages", "heading" and "grade" belong inside "relevant"')
        listed = given["relevant"]
        if not isinstance(listed, list) or not listed:
            raise ValueError('"relevant" should be a list of places, and not empty')
        for one in listed:
            _keys(one, _PLACE, "a place")
        places = [place for one in listed for place in _places(one)]
    spots = {(place.file, place.page, place.heading) for place in places}
    if len(spots) < len(places):
        raise ValueError("it names a place twice")
    return Question(text, tuple(places), line, tag)


def _places(given: Mapping[str, Any]) -> list[Place]:
    file, grade = given.get("file"), given.get("grade", 1)
    if not isinstance(file, str) or not file.strip():
        raise ValueError('"file" should be a name, the end of a path, or a glob')
    file_matcher(file)  # which says what is wrong with a glob
    if isinstance(grade, bool) or not isinstance(grade, int | float) or not 0 < grade <= 100:
        raise ValueError('"grade" should be a number above 0, and at most 100')
    if "page" in given and "pages" in given:
        raise ValueError('it should have "page" or "pages", not both')
    heading = given.get("heading")
    if heading is not None and (not isinstance(heading, str) or not heading.strip()):
        raise ValueError('"heading" should be a text')
    pages: Any = given.get("pages", [given.get("page")])
    if not isinstance(pages, list) or not pages:
        raise ValueError('"pages" should be a list of page numbers, and not empty')
    if any(page is None for page in pages) and "pages" not in given:
        return [Place(file, None, heading, float(grade))]
    if any(type(page) is not int or not 1 <= page <= MOST_PAGES for page in pages):
        raise ValueError("a page should be a whole number from 1")
    return [Place(file, page, heading, float(grade)) for page in pages]


def _keys(given: Any, known: frozenset[str], what: str) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{what} should be a JSON object")  # noqa: TRY004  the caller names the line
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ValueError(f'{what} has an unknown key "{unknown[0]}"; known: {", ".join(sorted(known))}')
