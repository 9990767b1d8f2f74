"""`/api/search` takes what the command line takes, and its answers have the described form."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlencode

import pytest

from pipeline.core.fusion import By
from pipeline.daemon.searching import Searching
from pipeline.runner.searching import Asked, answer
from pipeline.settings import Settings
from pipeline.store.database import Database
from tests.store.library import embedded_as, fill_library
from tests.web.conftest import Api


async def test_search(api: Api) -> None:
    found = (await api.http.get("/api/search", params={"q": "when is it due?", "k": 2})).json()
    assert (found["query"], found["model"], len(found["results"])) == ("when is it due?", "tiny-minilm", 2)
    assert found["results"][0]["pages"] == [1, 2]
    assert api.world.asked == [Asked("when is it due?", 2, source=[], path=[], type=[])]


async def test_search_for_documents(api: Api) -> None:
    found = (await api.http.get("/api/search/documents?q=when+is+it+due%3F&k=2&type=pdf")).json()
    (hit,) = found["results"]
    assert (found["query"], hit["method"], hit["pages"]) == ("when is it due?", "mean", 2)
    assert api.world.asked == [Asked("when is it due?", 2, source=[], path=[], type=["pdf"], documents=True)]


EVERYTHING = Asked(
    "a \"b\" & c=d? 'e' +ö",
    7,
    by="text",
    source=["/data/a b", "/data/ü&x=1"],
    path=["/2026/**", "*.pdf"],
    type=["pdf", "docx"],
    after="2026-01-31T00:00:00+01:00",
    before="7d",
    per_document=2,
    explain=True,
)


async def test_all_that_can_be_asked_comes_through_the_query(api: Api) -> None:
    answered = await api.http.get(f"/api/search?{urlencode(EVERYTHING.parameters())}")
    assert answered.status_code == 200
    assert api.world.asked == [EVERYTHING]


def test_the_model_to_search_by_is_no_parameter() -> None:
    assert Asked("a", model="m", documents=True).parameters() == [("q", "a")]


@pytest.mark.parametrize("path", ["/api/search", "/api/search/documents"])
@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"q": ""},
        {"q": "a", "k": 0},
        {"q": "a", "k": 1001},
        {"q": "a" * 8001},
        {"q": "a", "by": "magic"},
        {"q": "a", "per_document": 0},
        {"q": "a", "sources": "/data"},
        {"q": "a", "path": ["*"] * 101},
    ],
)
async def test_what_makes_no_sense_is_422_and_says_where(api: Api, path: str, wrong: dict[str, str]) -> None:
    answered = await api.http.get(path, params=wrong)
    assert answered.status_code == 422
    assert any(name in answered.json()["detail"] for name in [*wrong, "q"])


async def test_the_answers_have_the_described_form(store: Database) -> None:
    with store.begin() as session:
        fill_library(session)
    searching = Searching(store, embedded_as(0), Settings())
    for asked in (Asked("hull paint", 3, explain=True), Asked("hull", by="text"), Asked("x", path=["none"])):
        plain = await answer(store, asked, embedded_as(0), By.FUSED)
        shaped = json.loads((await searching.passages(asked)).model_dump_json())
        assert without_times(shaped) == without_times(plain)
        plain = await answer(store, Asked("x", documents=True), embedded_as(0), By.FUSED)
        shaped = json.loads((await searching.documents(Asked("x", documents=True))).model_dump_json())
        assert shaped == plain


def without_times(said: dict[str, object]) -> dict[str, object]:
    explained = said["explain"]
    if isinstance(explained, dict):
        assert set(explained.pop("milliseconds")) >= {"filter", "results"}
    return said


def test_the_parameters_and_the_fields_are_documented(api: Api) -> None:
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text(encoding="utf-8")
    described = api.app.openapi()
    names = {each["name"] for each in described["paths"]["/api/search"]["get"]["parameters"]}
    fields = {
        field
        for shape in ("SearchResults", "SearchHit", "Explanation", "Place")
        for field in described["components"]["schemas"][shape]["properties"]
    }
    assert [name for name in sorted(names | fields) if f"`{name}`" not in page] == []
