"""`eval` as a process: the real search over real documents, and figures that can be worked out by hand."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.app import run
from pipeline.core.fusion import By
from pipeline.core.judged import parse_questions
from pipeline.runner.question import embed_questions
from pipeline.runner.searching import Asked, answer
from pipeline.settings import Settings
from pipeline.settings.fields import EmbeddingSettings
from pipeline.store.database import Database
from pipeline.store.models import StoredModel, active_model
from tests.conftest import DEFAULT_MODEL
from tests.runs import ROOT, SMALL_CHUNKS, Host

DOCUMENTS = ("seed-store-incident.pdf", "harbour-committee-minutes.docx")
SEED, HARBOUR = DOCUMENTS


def write(folder: Path, *questions: dict[str, Any]) -> str:
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(question) + "\n" for question in questions), encoding="utf-8")
    return str(file)


def make_host(folder: Path, **settings: str) -> Host:
    host = Host(folder, {"NIGHTSHIFT_EMBEDDING_MODEL": str(DEFAULT_MODEL)} | settings)
    (folder / "inbox").mkdir(parents=True)
    for name in DOCUMENTS:
        shutil.copy(ROOT / "data" / "inbox" / name, folder / "inbox")
    return host


async def test_the_figures_are_those_of_the_results_that_search_gives(tmp_path: Path, database_url: str) -> None:
    host = make_host(tmp_path / "data", NIGHTSHIFT_DATABASE_URL=database_url)
    host.run_json("db", "upgrade")
    host.run_json("run-now")
    questions: list[dict[str, Any]] = [
        {"question": "Yolanda Reyes", "file": SEED, "page": 3, "tag": "words"},
        {"question": "why was the generator not bought", "file": "inbox/seed-store-*.pdf", "page": 3},
        {
            "question": "cake",
            "relevant": [{"file": HARBOUR, "heading": "4 Any other business"}, {"file": SEED, "page": 3}],
        },
        {"question": "what do guest boats pay", "file": HARBOUR},
        {"question": "the temperature of the third store", "file": SEED, "pages": [1, 3], "grade": 2},
    ]
    judged = host.run_json("eval", write(tmp_path, *questions), "-k", "3")
    (side,) = judged["sides"]
    assert (judged["questions"], side["counted"], side["files"], side["not_counted"]) == (5, 5, 2, [])
    assert judged["differences"] is None
    parsed = parse_questions(map(json.dumps, questions))
    with Database.open(database_url) as store:
        answered = await searched(store, host, [question.text for question in parsed], k=3)
    for by, results in answered.items():
        recalls, ranks, gains = [], [], []
        for question, hits in zip(parsed, results, strict=True):
            found: set[int] = set()
            first, gain = 0.0, 0.0
            for rank, hit in enumerate(hits, start=1):
                pages = hit["pages"] or [0, -1]
                shown = {
                    number
                    for number, place in enumerate(question.places)
                    if hit["file"].endswith("pdf" if "seed" in place.file else "docx")
                    and (place.page is None or pages[0] <= place.page <= pages[1])
                    and (place.heading is None or place.heading in hit["headings"])
                }
                first = first or (1 / rank if shown else 0.0)
                gain += max([question.places[one].grade for one in shown - found], default=0.0) / math.log2(rank + 1)
                found |= shown
            best = [place.grade / math.log2(rank + 1) for rank, place in enumerate(question.places, start=1)]
            recalls.append(len(found) / len(question.places))
            ranks.append(first)
            gains.append(gain / sum(best))
        scores = side["scores"][by]
        assert list(scores) == ["recall@1", "recall@3", "MRR", "nDCG@3"]
        assert scores["recall@3"]["value"] == pytest.approx(sum(recalls) / 5)
        assert scores["MRR"]["value"] == pytest.approx(sum(ranks) / 5)
        assert scores["nDCG@3"]["value"] == pytest.approx(sum(gains) / 5)
        assert [one["rankings"][by]["MRR"] for one in side["results"]] == ranks
        for of in scores.values():
            assert 0 <= of["low"] <= of["value"] <= of["high"] <= 1
    assert list(side["scores"]) == list(answered)
    assert side["scores"]["text"]["recall@1"]["value"] > 0


async def searched(store: Database, host: Host, texts: list[str], k: int) -> dict[str, list[Any]]:
    """By ranking what `search` gives for each text."""
    model = await store.read(active_model)
    assert model is not None
    settings = Settings(data_dir=host.data_dir, embedding=EmbeddingSettings(model=str(DEFAULT_MODEL)))
    vectors = dict(zip(texts, await embed_questions(settings, model, texts), strict=True))

    async def embed(_: StoredModel, text: str) -> Any:
        return vectors[text]

    return {
        by.value: [(await answer(store, Asked(text, k, by.value), embed, by))["results"] for text in texts]
        for by in (By.VECTOR, By.TEXT, By.FUSED)
    }


def test_what_says_nothing_about_the_index_is_told_and_not_counted(tmp_path: Path) -> None:
    host = make_host(tmp_path / "data")
    host.run_json("run-now")
    file = write(
        tmp_path,
        {"question": "Yolanda Reyes", "file": SEED, "page": 3},
        {"question": "gone", "file": "nowhere.pdf"},
        {"question": "beyond", "file": SEED, "page": 99},
        {"question": "no pages", "file": HARBOUR, "page": 2},
        {"question": "no heading", "file": HARBOUR, "heading": "17 Sharks"},
        {"question": "half of it", "relevant": [{"file": SEED, "page": 1}, {"file": "nowhere.pdf"}]},
        {"question": "zyzzyva quux", "file": SEED},
    )
    judged = host.run_json("eval", file, "--by", "text")
    (side,) = judged["sides"]
    assert {one["line"]: one["why"] for one in side["not_counted"]} == {
        2: "nowhere.pdf is not in the index",
        3: f"{SEED} has 3 pages, and none is page 99",
        4: f"{HARBOUR} has no pages, and none is page 2",
        5: f"{HARBOUR} has no heading 17 Sharks",
    }
    assert side["counted"] == 3
    assert list(side["scores"]) == ["text"]

    # To look for words needs no model, and says of each question what it missed.
    host.settings["NIGHTSHIFT_EMBEDDING_MODEL"] = str(tmp_path / "gone.gguf")
    told = host.run("eval", file, "--by", "text", "--misses")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("3 questions, 2 files, model ")
    assert "\n  line 7: zyzzyva quux\n" in told.stdout
    assert f"wanted {SEED}; first was nothing" in told.stdout
    assert "\nNot counted: 4 of 7 questions\n  line 2: gone (nowhere.pdf is not in the index)\n" in told.stdout

    nothing = host.run("eval", write(tmp_path, {"question": "gone", "file": "nowhere.pdf"}))
    assert nothing.returncode == 2
    assert "none of the 1 questions is about what is in the index: nowhere.pdf is not in the index" in nothing.stderr


@pytest.mark.parametrize(
    ("content", "arguments", "problem"),
    [
        (b'{"question": "a", "file": "b"}\n{"question": 3, "file": "b"}\n', (), "line 2: it has no text"),
        (b"\xff\xfe\x00", (), "is no text in UTF-8"),
        (b"", (), "there is no question in it"),
        (None, (), "cannot be read: No such file"),
        (b'{"question": "a", "file": "b"}', ("--by", "magic"), '--by: should be fused or vector or text, not "magic"'),
        (b'{"question": "a", "file": "b"}', (), "nothing is in the index yet"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    content: bytes | None,
    arguments: tuple[str, ...],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "questions.jsonl"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["nightshift", "eval", str(file), *arguments])
    assert run() == 2
    said = capsys.readouterr().err
    assert problem in said
    assert said.count("\n") == 1
    assert not (tmp_path / "nightshift.db").exists()


@pytest.mark.timeout(300)
def test_two_models_and_two_ways_to_cut_are_compared_question_by_question(tmp_path: Path) -> None:
    host = make_host(tmp_path / "data")
    host.run_json("run-now")
    host.settings["NIGHTSHIFT_EMBEDDING_POOLING"] = "cls"
    host.run_json("run-now")
    models = host.run_json("models")["models"]
    (cls,) = (model["fingerprint"] for model in models if ":" in model["fingerprint"])
    (mean,) = (model["fingerprint"] for model in models if ":" not in model["fingerprint"])
    shipped = (ROOT / "data" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    file = write(tmp_path, *(asked for asked in map(json.loads, shipped) if asked.get("file") in DOCUMENTS))

    judged = host.run_json("eval", file, "--model", mean, "--against", cls)
    one, other = judged["sides"]
    assert (one["fingerprint"], other["fingerprint"]) == (mean, cls)
    assert one["counted"] == other["counted"] > 20
    for by, measures in judged["differences"].items():
        for measure, of in measures.items():
            mine, theirs = ([result["rankings"][by][measure] for result in side["results"]] for side in judged["sides"])
            assert of["mean"]["value"] == pytest.approx(
                one["scores"][by][measure]["value"] - other["scores"][by][measure]["value"]
            )
            assert of["better"] == sum(a > b for a, b in zip(mine, theirs, strict=True))
            assert of["worse"] == sum(a < b for a, b in zip(mine, theirs, strict=True))
            assert 0 < of["p"] <= 1
    # The words are the same; the vectors of a model that was trained for the mean are worse by their first token.
    assert judged["differences"]["text"]["MRR"]["p"] == 1.0
    assert judged["differences"]["vector"]["MRR"]["mean"]["value"] > 0
    # The other way about, it is the same with the signs changed.
    turned = host.run_json("eval", file, "--model", cls, "--against", mean)["differences"]["vector"]["nDCG@10"]
    straight = judged["differences"]["vector"]["nDCG@10"]
    assert turned["mean"]["value"] == -straight["mean"]["value"]
    assert (turned["better"], turned["worse"], turned["p"]) == (straight["worse"], straight["better"], straight["p"])

    del host.settings["NIGHTSHIFT_EMBEDDING_POOLING"]
    host.settings.update(SMALL_CHUNKS)
    small = f"sqlite:///{tmp_path / 'small.db'}"
    host.run_json("run-now", str(host.data_dir / "inbox"), "--database", small)
    told = host.run("eval", file, "--model", mean, "--against-database", small)
    assert told.returncode == 0, told.stderr
    first, *others = told.stdout.splitlines()
    assert first.startswith("A: ")
    assert first.endswith(str(host.database))
    assert any(line.startswith("B: ") and line.endswith("small.db") for line in others)
    assert "\nA against B, question by question\n" in told.stdout
    assert "rank of the first answer, A and B\n" in told.stdout
