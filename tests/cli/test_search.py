"""The `search` command: what a person and a program see, what it refuses, and what it does without the model."""

from __future__ import annotations

import json
import re

import pytest

from pipeline.cli.remote import DaemonClient
from pipeline.core.errors import UsageError
from pipeline.store import runs
from pipeline.store.database import Database
from tests.runs import Host
from tests.store import rows
from tests.store.library import DAY, FILES, HARBOUR, HUTS, fill_library

LONG = "Nothing of note. " * 60 + "The lighthouse keeper painted the lamp room. " + "Nothing of note. " * 60


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """The library, made by a model whose file is gone."""
    host = Host(tmp_path_factory.mktemp("search"), {})
    (host.data_dir / "docs").mkdir()
    files = dict(FILES) | {
        ("/docs", "long.pdf"): (DAY, [(LONG, 85)]),
        ("/docs", "ropes.pdf"): (
            DAY,
            [("Part \nRopes are kept dry.", 85), ("Part End", 86), ("part one of ropes\n\n", 87)],
        ),
        (str(host.data_dir / "docs"), "kiosk.pdf"): (DAY, [("A kiosk.", 3)]),
    }
    with Database.open(f"sqlite:///{host.database}") as store, store.begin() as session:
        fill_library(session, files=files)
        runs.finish_run(session, "run", "complete", None, rows.utc_now())
    return host


def test_a_person_sees_where_what_was_found_is(host: Host) -> None:
    said = host.run("search", "bread", "--by", "text")
    assert (said.returncode, said.stderr) == (0, "")
    first, second, third = said.stdout.splitlines()
    assert re.fullmatch(r"1\. \d\.\d{3}  /docs/2026/huts\.docx", first)
    assert (second, third) == ("   Part", "   Bread is carried up to the huts.")
    copies = host.run("search", "dredging", "--by", "text").stdout
    assert re.match(r"1\. \d\.\d{3}  /docs/harbour\.pdf, page 2\n", copies)
    assert copies.endswith("   also /more/copy of harbour.pdf\n")


def test_on_a_terminal_the_words_are_bold(host: Host) -> None:
    plain = host.run("search", "bread huts", "--by", "text", "-k", "1").stdout
    assert "\x1b" not in plain
    terminal = Host(host.data_dir, {"FORCE_COLOR": "1", "TERM": "xterm-256color"})
    shown = terminal.run("search", "bread huts", "--by", "text", "-k", "1").stdout
    assert "\x1b[1mBread\x1b[0m is carried up to the \x1b[1mhuts\x1b[0m." in shown
    assert re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", shown) == plain


def test_what_a_terminal_obeys_is_shown_and_not_done(host: Host) -> None:
    shown = host.run("search", "note", "--type", "text", "--by", "text").stdout
    assert "A note: <b>hull</b> \\x1b[31m\\u202e paint" in shown
    assert "\x1b" not in shown


def test_an_excerpt_is_around_the_words(host: Host) -> None:
    shown = host.run("search", "lighthouse lamp", "--by", "text").stdout.splitlines()[-1].strip()
    assert shown.startswith("...")
    assert shown.endswith("...")
    assert "lighthouse keeper painted the lamp room" in shown
    assert len(shown) <= 406


def test_headings_are_not_said_twice(host: Host) -> None:
    shown = host.run("search", "ropes part", "--by", "text", "--path", "ropes.pdf").stdout.splitlines()
    assert "   Ropes are kept dry." in shown
    assert "   name | price part one of ropes" in shown  # a table's header goes before it


def test_a_program_gets_all_of_it(host: Host) -> None:
    said = host.run_json("search", "bread", "--by", "text", "-k", "2")
    (hit,) = said.pop("results")
    assert said == {
        "query": "bread", "model": "m", "by": "text", "degraded": None, "nothing": None, "explain": None,
    }  # fmt: skip
    score = hit.pop("score")
    assert score > 0
    assert hit == {
        "rank": 1,
        "file": "/docs/2026/huts.docx",
        "also": [],
        "link": "file:///docs/2026/huts.docx",
        "type": "docx",
        "modified": "1970-01-03T00:00:00+00:00",
        "title": "Huts.docx",
        "pages": None,
        "heading": "Part",
        "headings": ["Part"],
        "table_header": None,
        "text": HUTS[0][0],
        "highlights": [[0, 5]],
        "excerpt": [0, len(HUTS[0][0])],
        "ranks": {"text": 1},
        "explain": None,
    }


def test_each_result_explains_itself(host: Host) -> None:
    said = host.run_json("search", "hull paint", "--by", "text", "--explain")
    for hit in said["results"]:
        place = hit["explain"]["text"]
        assert (place["rank"], place["score"], place["share"]) == (hit["rank"], hit["score"], None)
        assert sum(place["words"].values()) == pytest.approx(place["score"], abs=0.001)
    explained = said["explain"]
    assert (explained["documents"], explained["candidates"]) == (7, {"text": 4})
    assert set(explained["milliseconds"]) == {"filter", "text", "results"}
    shown = host.run("search", "hull paint", "--by", "text", "--explain").stdout
    assert re.search(r"\n   text: rank 1, BM25 \d\.\d+ \(paint \d\.\d\d, hull \d\.\d\d\)\n", shown)
    assert "\nmodel: m; ranked by: text; documents that the filter left: 7\n" in shown
    assert re.search(r"\nmilliseconds: filter [\d.]+, text [\d.]+, results [\d.]+\n\Z", shown)


def test_every_filter_can_be_typed(host: Host) -> None:
    options = ["--source", "/docs", "--source", "/more", "--path", "2026/", "--path", "*.pdf", "--type", ".DOCX"]
    dates = ["--after", "1970-01-03T00:00Z", "--before", "1970-01-04T00:00+00:00", "--per-document", "1"]
    (hit,) = host.run_json("search", "hull bread", "--by", "text", *options, *dates)["results"]
    assert hit["file"] == "/docs/2026/huts.docx"


def test_sources_are_typed_as_one_stands(host: Host) -> None:
    for typed in ("docs", "docs/../docs/kiosk.pdf"):
        (hit,) = host.run_json("search", "kiosk", "--by", "text", "--source", typed)["results"]
        assert hit["file"] == str(host.data_dir / "docs" / "kiosk.pdf")
    assert host.run_json("search", "kiosk", "--by", "text", "--source", "doc")["results"] == []


def test_nothing_is_told_from_no_documents(host: Host) -> None:
    assert host.run("search", "zebra", "--by", "text").stdout == "Nothing matches.\n"
    said = host.run_json("search", "zebra", "--by", "text", "--after", "1h", "--explain")
    assert (said["results"], said["nothing"]) == ([], "No document matches the filter.")
    assert said["explain"]["documents"] == 0


def test_a_source_that_is_not_known_is_told_from_an_empty_one(host: Host) -> None:
    said = host.run("search", "hull", "--by", "text", "--source", "/typo", "--source", "/docs/empty")
    assert said.returncode == 0
    assert said.stdout.startswith("No document matches the filter. /typo is in no known source; `")
    known = host.run("search", "hull", "--by", "text", "--source", "/docs/no")
    assert known.stdout == "No document matches the filter.\n"


@pytest.mark.parametrize("question", ["-orchid seeds", "-keeper"])
def test_a_question_that_begins_with_a_dash_comes_after_two_of_them(host: Host, question: str) -> None:
    refused = host.run("search", question, "--json")
    assert refused.returncode == 2
    assert "after `--`: search -k 3 -- " in json.loads(refused.stdout)["error"]
    assert host.run("search", "--by", "text", "--", question).returncode == 0
    assert "after `--`" not in host.run("search", "hull", "--sourc").stderr


def test_without_the_model_words_are_still_found(host: Host) -> None:
    said = host.run("search", "bread")
    assert said.returncode == 0
    assert re.match(r"1\. \d\.\d{3}  /docs/2026/huts\.docx\n", said.stdout)
    assert said.stderr.startswith("nightshift: looked for the words alone, because the model cannot be had: ")
    assert "/models/m.gguf" in said.stderr
    answered = host.run_json("search", "bread")
    assert (answered["by"], len(answered["results"])) == ("text", 1)
    assert "/models/m.gguf" in answered["degraded"]
    for options in (["--by", "vector"], ["--documents"]):
        refused = host.run("search", "bread", *options)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "/models/m.gguf" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_the_settings_say_what_to_rank_by(host: Host) -> None:
    by_words = Host(host.data_dir, {"NIGHTSHIFT_SEARCH_BY": "text"})
    said = by_words.run_json("search", "bread")
    assert (said["by"], said["degraded"]) == ("text", None)
    wrong = Host(host.data_dir, {"NIGHTSHIFT_SEARCH_BY": "magic"}).run("search", "bread")
    assert (wrong.returncode, "search.by" in wrong.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["\t\n"], "there is nothing to look for"),
        (["a", "--path", "[a"], 'path: should have a "]" for each "[" ([a)'),
        (["a", "--after", "soon"], 'after: "soon" is no date: use one such as 2026-01-31'),
        (["a", "--model", "nobody"], "nobody: no such model here"),
    ],
)
def test_what_makes_no_sense_is_one_line(host: Host, arguments: list[str], message: str) -> None:
    refused = host.run("search", *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_odd_bytes_in_a_question_are_no_crash(host: Host) -> None:
    said = host.run("search", "bread \udcff\udc80", "--by", "text", "--source", "/docs\udcff")
    assert (said.returncode, said.stderr) == (0, "")
    assert re.match(r"No document matches the filter\. /docs\S+ is in no known source; `", said.stdout)


def test_another_model_of_the_index_is_named_as_models_are(host: Host) -> None:
    assert HARBOUR[1][0] in host.run("search", "crowns", "--by", "text", "--model", "m.gguf").stdout


def test_a_question_that_no_url_holds_is_not_put_to_a_daemon() -> None:
    daemon = DaemonClient("http://127.0.0.1:1", None)
    with pytest.raises(UsageError, match="more than a daemon can be asked for"):
        daemon.get("/api/search?q=" + "x" * 100_000)
    daemon.close()
