"""What is asked for is checked before anything is done, and a model that cannot be had is told of."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.core.errors import BackendStartFailed, BadAnswer, ModelError, UsageError, WaitingFull
from pipeline.core.fusion import By
from pipeline.runner.searching import MOST_PARTS, Asked, answer, wanted_documents, with_zones
from pipeline.store import models
from pipeline.store.database import Database
from pipeline.store.models import StoredModel
from pipeline.store.view import Filter
from tests.store import rows
from tests.store.library import HARBOUR, direction, embedded_as, fill_library

NOW = dt.datetime(2026, 7, 15, 12, 30, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(""), "there is nothing to look for"),
        (Asked(" \0\n"), "there is nothing to look for"),
        (Asked("a", by="magic"), 'by: should be fused or vector or text, not "magic"'),
        (Asked("a", type=["pdf", "odt"]), 'type: should be pdf or docx or text, not "odt"'),
        (Asked("a", path=["*", "[a"]), r'path: should have a "]" for each "[" ([a)'),
        (Asked("a", path=["!a"]), "path: say what is wanted, not what is not (!a)"),
        (Asked("a", path=[""]), "path: should be a path below the source"),
        (Asked("a", source=["docs"]), "source: an absolute path is wanted, not docs"),
        (Asked("a", source=["/docs/\0"]), "source: an absolute path is wanted"),
        (Asked("a", source=["/x"] * (MOST_PARTS + 1)), "source: 100 are the most"),
        (Asked("a", before="2026-02-30"), 'before: "2026-02-30" is no date'),
        (Asked("a", after="2026-02", before="2026-02"), "nothing is from 2026-02 on and before 2026-02"),
        (Asked("a", by="text", documents=True), "documents are found by their vectors alone"),
        (Asked("a", per_document=1, documents=True), "documents are found by their vectors alone"),
    ],
)
async def test_what_makes_no_sense_is_said_in_one_line(store: Database, asked: Asked, message: str) -> None:
    with pytest.raises(UsageError) as error:
        await answer(store, asked, embedded_as(0), By.FUSED)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_filter_is_what_was_typed() -> None:
    asked = Asked("a", source=["/docs"], path=["*.pdf"], type=[".PDF", "docx"], after="7d", before="2026-07-14T00:00Z")
    assert wanted_documents(asked, NOW) == Filter(
        ("/docs",), ("*.pdf",), ("pdf", "docx"), NOW - dt.timedelta(days=7), dt.datetime(2026, 7, 14, tzinfo=dt.UTC)
    )
    assert wanted_documents(Asked("a"), NOW).wants_all
    # Asked elsewhere and later it is the same.
    later = wanted_documents(with_zones(asked, NOW), NOW + dt.timedelta(days=3))
    assert later == wanted_documents(asked, NOW)


async def test_a_vector_that_no_other_can_be_compared_with_is_the_server_s_fault(store: Database) -> None:
    async def embed(_: StoredModel, __: str) -> NDArray[np.float32]:
        return np.ones(128, np.float32)

    with store.begin() as session:
        fill_library(session)
    said = await answer(store, Asked("dredging"), embed, By.FUSED)
    assert said["by"] == "text"
    assert said["degraded"].startswith("the embedding server gives vectors of 128 numbers, and those of ")
    with pytest.raises(BadAnswer, match="it serves another model"):
        await answer(store, Asked("dredging", by="vector"), embed, By.FUSED)


async def test_an_empty_index_has_no_model_and_no_results(store: Database) -> None:
    said = await answer(store, Asked("a", explain=True), embedded_as(0), By.FUSED)
    assert (said["model"], said["results"], said["nothing"]) == (None, [], None)


@pytest.mark.parametrize("error", [ModelError("it is gone"), BackendStartFailed("it is gone")])
async def test_without_a_model_it_goes_by_words_and_says_so(store: Database, error: Exception) -> None:
    async def embed(_: StoredModel, __: str) -> NDArray[np.float32]:
        raise error

    with store.begin() as session:
        fill_library(session)
    said = await answer(store, Asked("dredging"), embed, By.FUSED)
    assert (said["by"], said["degraded"]) == ("text", "it is gone")
    assert [hit["text"] for hit in said["results"]] == [HARBOUR[1][0]]
    for asked in (Asked("dredging", by="vector"), Asked("dredging", documents=True)):
        with pytest.raises(type(error)):
            await answer(store, asked, embed, By.FUSED)
    assert (await answer(store, Asked("dredging", by="text"), embed, By.FUSED))["degraded"] is None
    assert (await answer(store, Asked("dredging"), embed, By.TEXT))["degraded"] is None


async def test_too_many_questions_are_turned_away_and_not_answered_by_half(store: Database) -> None:
    async def embed(_: StoredModel, __: str) -> NDArray[np.float32]:
        raise WaitingFull("embedding", 1)

    with store.begin() as session:
        fill_library(session)
    with pytest.raises(WaitingFull):
        await answer(store, Asked("dredging"), embed, By.FUSED)


async def test_what_a_question_excludes_is_no_part_of_its_meaning(store: Database) -> None:
    embedded: list[str] = []

    async def embed(_: StoredModel, text: str) -> NDArray[np.float32]:
        embedded.append(text)
        return direction(0)

    with store.begin() as session:
        fill_library(session)
    said = await answer(store, Asked("boats -hull", k=10), embed, By.FUSED)
    assert [text.split() for text in embedded] == [["boats"]]
    assert said["query"] == "boats -hull"
    assert len(said["results"]) == 4
    assert not any("hull" in hit["text"].lower() for hit in said["results"])


async def test_search_that_moves_meanwhile_is_asked_again(store: Database) -> None:
    with store.begin() as session:
        fill_library(session)
        new = fill_library(session, rows.add_target(session, "new"), turned=30.0)
    asked_of: list[str] = []

    async def embed(model: StoredModel, _: str) -> NDArray[np.float32]:
        asked_of.append(model.name)
        if len(asked_of) == 1:
            with store.begin() as session:
                models.choose(session, new.model_id)
        return direction(30)

    said = await answer(store, Asked("anything", k=1, by="vector"), embed, By.FUSED)
    assert (asked_of, said["model"]) == (["m", "new"], "new")
    assert said["results"][0]["text"] == HARBOUR[0][0]
