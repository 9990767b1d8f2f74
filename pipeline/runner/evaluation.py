"""How well search finds what is known to be the answer: the real search, question by question, put into numbers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipeline.core.errors import UsageError
from pipeline.core.evaluation import Difference, Mean, Ranking, compare, mean, ndcg, recall, reciprocal_rank
from pipeline.core.fusion import By
from pipeline.core.judged import Passage, Place, Question, answers, file_matcher, is_under
from pipeline.core.words import without_excluded
from pipeline.runner.searching import stored_model
from pipeline.store.database import Database
from pipeline.store.models import StoredModel
from pipeline.store.search import Hit, Query, find
from pipeline.store.searchable import SearchableFile, headings_of, searchable_files
from pipeline.store.view import view_of

EmbedAll = Callable[[StoredModel, Sequence[str]], Awaitable[NDArray[np.float32]]]
"""Makes the vectors, float32[n, d] of unit length, of questions by a model."""

USUAL_CUTS = (1, 5)
"""Ranks that recall is cut at besides the last."""


@dataclass(frozen=True, slots=True)
class Apart:
    """A question that is not counted, and why."""

    question: Question
    why: str


@dataclass(frozen=True)
class Answered:
    """A question and what a ranking made of it. first: the best result; None where there was none at all."""

    question: Question
    ranking: Ranking
    first: Hit | None

    @property
    def rank(self) -> int | None:
        """Of the first result that answers."""
        return next((rank for rank, shown in enumerate(self.ranking, start=1) if shown), None)


@dataclass(frozen=True)
class Scores:
    """What a ranking came to over all questions, which are in the same order in all `Scores` of an evaluation.

    k: results that were looked at.
    """

    by: By
    k: int
    answered: Sequence[Answered]

    @cached_property
    def measured(self) -> Mapping[str, Sequence[float]]:
        """By measure its value for each question."""
        cuts = sorted({cut for cut in USUAL_CUTS if cut < self.k} | {self.k})
        return {
            **{
                f"recall@{cut}": [recall(one.ranking, len(one.question.places), cut) for one in self.answered]
                for cut in cuts
            },
            "MRR": [reciprocal_rank(one.ranking) for one in self.answered],
            f"nDCG@{self.k}": [
                ndcg(one.ranking, [place.grade for place in one.question.places], self.k) for one in self.answered
            ],
        }

    @cached_property
    def means(self) -> Mapping[str, Mean]:
        """By measure."""
        return {measure: mean(values) for measure, values in self.measured.items()}

    def tagged(self, tag: str) -> Scores:
        """Of the questions with a tag alone."""
        return Scores(self.by, self.k, [one for one in self.answered if one.question.tag == tag])

    def against(self, other: Scores) -> Mapping[str, Difference]:
        """By measure how much better this is than the other, over the same questions."""
        return {measure: compare(values, other.measured[measure]) for measure, values in self.measured.items()}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One index and model, judged. scores: by ranking. apart: questions that say nothing about it."""

    model: StoredModel
    files: int
    scores: Mapping[By, Scores]
    apart: Sequence[Apart]


@dataclass(frozen=True, slots=True)
class Side:
    """What is judged. model: the name of one in the database; None for the one that search uses."""

    store: Database
    model: str | None = None


async def evaluate(
    sides: Sequence[Side], questions: Sequence[Question], rankings: Sequence[By], k: int, embed: EmbedAll
) -> list[Evaluation]:
    """Each side judged by the questions that say something about all of them.

    Raises:
        UsageError: there is no such model, no vectors, or no question about what is in the index.
        ModelError, BackendError: a ranking by meaning is wanted and the questions cannot be embedded.
    """
    looked = [await side.store.read(_look, side.model, questions) for side in sides]
    left_out = {one.question.line for look in looked for one in look.apart}
    asked = [question for question in questions if question.line not in left_out]
    if not asked:
        why = next((look.apart[0].why for look in looked if look.apart), "they are about different files")
        raise UsageError(f"none of the {len(questions)} questions is about what is in the index: {why}")
    vectors: dict[str, NDArray[np.float32]] = {}
    found = []
    for side, look in zip(sides, looked, strict=True):
        model = look.model
        if any(by is not By.TEXT for by in rankings) and model.fingerprint not in vectors:
            vectors[model.fingerprint] = await embed(model, [without_excluded(one.text) for one in asked])
        # Places that are not there cannot be found, by whatever ranking.
        mine = [replace(one, places=tuple(place for place in one.places if look.index.holds(place))) for one in asked]
        scores = await side.store.read(_scores, model, mine, vectors.get(model.fingerprint), rankings, k)
        found.append(Evaluation(model, look.index.size, scores, look.apart))
    return found


class _Index:
    """Which files there are, to be asked for by a name, the end of a path, or a glob."""

    def __init__(self, files: Sequence[SearchableFile]) -> None:
        self.size = len(files)
        self._files = files
        self._named: dict[str, list[SearchableFile]] = {}
        for file in files:
            self._named.setdefault(file.path.rpartition("/")[2], []).append(file)
        self._found: dict[str, list[SearchableFile]] = {}
        self._headings: dict[int, set[str]] = {}

    def files(self, wanted: str) -> list[SearchableFile]:
        """Those that are meant."""
        if wanted not in self._found:
            means = file_matcher(wanted)
            # Mostly it is a name: all files are looked through for nothing else but globs, and for what is not there.
            named = [file for file in self._named.get(wanted.rpartition("/")[2], []) if means(file.path)]
            self._found[wanted] = named or [file for file in self._files if means(file.path)]
        return self._found[wanted]

    def read_headings(self, session: Session, questions: Sequence[Question]) -> None:
        """Learn the headings of the files of which questions name some."""
        named = {place.file for question in questions for place in question.places if place.heading}
        contents = {file.content_id for wanted in named for file in self.files(wanted)}
        self._headings = headings_of(session, contents) if contents else {}

    def holds(self, place: Place) -> bool:
        """Whether there is such a file, with such a page and heading."""
        return any(
            (place.page is None or place.page <= file.pages)
            and is_under(place, self._headings.get(file.content_id, ()))
            for file in self.files(place.file)
        )

    def why_not(self, question: Question) -> str | None:
        """Why a question says nothing about this index; None where one of its places is in there."""
        if any(map(self.holds, question.places)):
            return None
        place = question.places[0]
        pages = [file.pages for file in self.files(place.file)]
        if not pages:
            return f"{place.file} is not in the index"
        if place.page is not None and place.page > max(pages):
            return f"{place.file} has {max(pages) or 'no'} pages, and none is page {place.page}"
        return f"{place.file} has no heading {place.heading}"


@dataclass(frozen=True, slots=True)
class _Look:
    model: StoredModel
    index: _Index
    apart: Sequence[Apart]


def _look(session: Session, name: str | None, questions: Sequence[Question]) -> _Look:
    model = stored_model(session, name)
    if model is None:
        raise UsageError("nothing is in the index yet: `python -m pipeline run-now` fills it")
    index = _Index(searchable_files(session, view_of(session, model.id)))
    index.read_headings(session, questions)
    judged = ((question, index.why_not(question)) for question in questions)
    return _Look(model, index, [Apart(question, why) for question, why in judged if why])


def _scores(
    session: Session,
    model: StoredModel,
    questions: Sequence[Question],
    vectors: NDArray[np.float32] | None,
    rankings: Sequence[By],
    k: int,
) -> dict[By, Scores]:
    """In one transaction, so that all of it is about one state of the index."""
    view = view_of(session, model.id)

    def answered(by: By) -> Iterator[Answered]:
        for number, question in enumerate(questions):
            vector = None if by is By.TEXT or vectors is None else vectors[number]
            hits = find(session, Query(question.text, vector, by, k), view)
            yield Answered(
                question, [answers(question.places, _passage(hit)) for hit in hits], hits[0] if hits else None
            )

    return {by: Scores(by, k, list(answered(by))) for by in rankings}


def _passage(hit: Hit) -> Passage:
    pages = None if hit.page_first is None else (hit.page_first, hit.page_last or hit.page_first)
    return Passage([hit.file, *hit.also], pages, hit.headings)
