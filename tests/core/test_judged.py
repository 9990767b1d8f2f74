"""Questions with known answers: what their file may hold, and what counts as an answer."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UsageError
from pipeline.core.judged import Passage, Place, Question, answers, file_matcher, parse_questions

SHIPPED = Path(__file__).parents[2] / "data" / "questions.jsonl"


def test_the_ways_to_say_where_an_answer_is() -> None:
    lines = [
        '{"question": "a", "file": "x.pdf"}',
        "",
        '{"question": "b", "file": "x.pdf", "page": 3, "tag": "words"}',
        '{"question": "c", "file": "x.pdf", "pages": [1, 2], "grade": 2}',
        '{"question": "d", "file": "x.docx", "page": null}',
        '{"question": "e", "relevant": [{"file": "x.pdf", "page": 1, "grade": 3}, '
        '{"file": "y/*.docx", "heading": "2 Fees"}]}',
    ]
    assert parse_questions(lines) == [
        Question("a", (Place("x.pdf"),), 1),
        Question("b", (Place("x.pdf", 3),), 3, "words"),
        Question("c", (Place("x.pdf", 1, grade=2.0), Place("x.pdf", 2, grade=2.0)), 4),
        Question("d", (Place("x.docx"),), 5),
        Question("e", (Place("x.pdf", 1, grade=3.0), Place("y/*.docx", heading="2 Fees")), 6),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "it is no JSON"),
        ("[]", "it should be a JSON object"),
        ("{}", 'it has no text under "question"'),
        ('{"question": " ", "file": "x"}', 'it has no text under "question"'),
        ('{"question": "q"}', 'either "file" or "relevant"'),
        ('{"question": "q", "file": "x", "relevant": [{"file": "x"}]}', 'either "file" or "relevant"'),
        ('{"question": "q", "relevant": []}', '"relevant" should be a list of places'),
        ('{"question": "q", "relevant": [3]}', "a place should be a JSON object"),
        ('{"question": "q", "relevant": [{"file": "x"}], "page": 3}', 'belong inside "relevant"'),
        ('{"question": "q", "relevant": [{"file": "x", "pge": 1}]}', 'a place has an unknown key "pge"'),
        ('{"question": "q", "file": "x", "pge": 1}', 'unknown key "pge"; known: file, grade, heading'),
        ('{"question": "q", "file": "", "page": 1}', '"file" should be a name'),
        ('{"question": "q", "file": "a[b"}', 'should have a "]" for each "["'),
        ('{"question": "q", "file": "x", "page": 0}', "a page should be a whole number from 1"),
        ('{"question": "q", "file": "x", "page": true}', "a page should be a whole number from 1"),
        ('{"question": "q", "file": "x", "page": "3"}', "a page should be a whole number from 1"),
        ('{"question": "q", "file": "x", "pages": []}', '"pages" should be a list'),
        ('{"question": "q", "file": "x", "pages": [1, null]}', "a page should be a whole number from 1"),
        ('{"question": "q", "file": "x", "page": 1, "pages": [1]}', '"page" or "pages", not both'),
        ('{"question": "q", "file": "x", "pages": [1, 1]}', "it names a place twice"),
        ('{"question": "q", "file": "x", "grade": 0}', '"grade" should be a number above 0'),
        ('{"question": "q", "file": "x", "grade": NaN}', '"grade" should be a number above 0'),
        ('{"question": "q", "file": "x", "heading": " "}', '"heading" should be a text'),
        ('{"question": "q", "file": "x", "heading": 3}', '"heading" should be a text'),
        ('{"question": "q", "file": "x", "tag": 1}', '"tag" should be a text'),
        ('{"question": "q", "file": "x", "page": ' + "[" * 100_000, "line 2"),
    ],
)
def test_a_bad_line_is_named_with_its_number(line: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_questions(['{"question": "fine", "file": "x"}', line])
    assert str(caught.value).startswith("line 2: ")
    assert problem in str(caught.value)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner)))
def test_no_value_is_an_accident(value: object) -> None:
    for key in ("question", "file", "page", "pages", "heading", "grade", "relevant", "tag"):
        line = json.dumps({"question": "q", "file": "x", key: value})
        with contextlib.suppress(UsageError):  # whatever else is raised fails the test
            assert parse_questions([line])[0].places


def test_nothing_in_it_is_said() -> None:
    with pytest.raises(UsageError, match="no question"):
        parse_questions(["", "  "])


@pytest.mark.parametrize(
    ("wanted", "path", "same"),
    [
        ("a.pdf", "/in/a.pdf", True),
        ("a.pdf", "/in/ba.pdf", False),
        ("a.pdf", "/in/a.pdf.docx", False),
        ("in/a.pdf", "/data/in/a.pdf", True),
        ("in/a.pdf", "/data/bin/a.pdf", False),
        ("/data/in/a.pdf", "/data/in/a.pdf", True),
        ("/in/a.pdf", "/data/in/a.pdf", False),
        ("*.pdf", "/data/in/a.pdf", True),
        ("in/*.pdf", "/data/in/a.pdf", True),
        ("in/*.pdf", "/data/in/deep/a.pdf", False),
        ("[1].pdf", "/data/[1].pdf", True),
        ("2024/", "/data/2024/q3/a.pdf", True),
    ],
)
def test_files_are_named_by_what_is_at_hand(wanted: str, path: str, same: bool) -> None:
    assert file_matcher(wanted)(path) is same


def test_a_passage_answers_where_one_of_its_files_and_a_page_is_meant() -> None:
    places = [Place("a.pdf", 2), Place("a.pdf", 3), Place("b.pdf"), Place("c.docx")]
    assert answers(places, Passage(["/x/a.pdf"], (2, 3))) == {0, 1}
    assert answers(places, Passage(["/x/a.pdf", "/y/b.pdf"], (1, 2))) == {0, 2}
    assert answers(places, Passage(["/x/c.docx"], None)) == {3}
    assert answers(places, Passage(["/x/a.pdf"], None)) == frozenset()
    fees = [Place("c.docx", heading="3  Fees for\nboats"), Place("c.docx", heading="Fees")]
    assert answers(fees, Passage(["/x/c.docx"], None, ["Minutes", "3 fees for boats"])) == {0}
    assert answers(fees, Passage(["/x/c.docx"], None)) == frozenset()


def test_the_questions_that_ship_can_be_read() -> None:
    questions = parse_questions(SHIPPED.read_text(encoding="utf-8").splitlines())
    inbox = {path.name for path in (SHIPPED.parent / "inbox").iterdir()}
    assert len(questions) > 50
    assert len({question.text for question in questions}) == len(questions)
    assert {place.file for question in questions for place in question.places} <= inbox


def test_the_documented_lines_can_be_read() -> None:
    text = (SHIPPED.parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", text, flags=re.DOTALL)
    assert len(parse_questions(example.splitlines())) == 3
