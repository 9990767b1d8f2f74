"""Search by day: the daemon as a process, with the GPU's place taken by the language model."""

from __future__ import annotations

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.daemon.daemons import Daemon, Place, add_samples, make_place, wait_for

QUESTION = "why did it get warm"


def filled(folder: Path, *, idle: str = "300") -> Place:
    """A host that serves the language model, over an index of one document."""
    place = make_place(folder, search_idle=idle)
    add_samples(place, "seed-store-incident.pdf")
    made = place.command("run-now", "--json")
    assert made.returncode == 0, made.stderr
    return place


def ask(daemon: Daemon, question: str = QUESTION) -> httpx.Response:
    parameters: dict[str, str | int] = {"q": question, "k": 1, "by": "vector"}
    return httpx.get(f"{daemon.url}/api/search", params=parameters, timeout=60)


def right(answer: httpx.Response) -> bool:
    return answer.status_code == 200 and answer.json()["results"][0]["file"].endswith("seed-store-incident.pdf")


def questions(daemon: Daemon) -> Any:
    return daemon.get("/api/status")["host"]["questions"]


@pytest.mark.timeout(300)
def test_questions_are_answered_in_every_mode_and_while_it_changes(tmp_path: Path) -> None:
    place = filled(tmp_path)
    with place.daemon() as daemon:
        wait_for(lambda: daemon.mode() == "generation", "generation")
        assert questions(daemon)["state"] == "stopped"
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda _: right(ask(daemon)), range(16)))
        state = questions(daemon)
        assert (state["state"], state["starts"], state["answered"]) == ("ready", 1, 16)
        page = httpx.get(f"{daemon.url}/metrics", timeout=20).text
        assert "nightshift_question_server_up 1.0" in page
        assert "nightshift_questions_total 16.0" in page

        # Its death is the next question's start, and nothing of the mode's.
        psutil.Process(state["pid"]).kill()
        assert right(ask(daemon))
        again = questions(daemon)
        assert (again["starts"], again["pid"] != state["pid"]) == (2, True)
        assert daemon.mode() == "generation"

        wrong: list[str] = []
        asked = 0
        over = threading.Event()

        def keep_asking() -> None:
            nonlocal asked
            while not over.is_set():
                answer = ask(daemon)
                asked += 1
                if not right(answer):
                    wrong.append(f"{answer.status_code} {answer.text[:300]}")

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            for mode in ("embedding", "generation", "idle", "mixed", "generation", "embedding"):
                daemon.switch(mode)
                before = asked
                wait_for(lambda: asked > before + 2, f"questions in {mode}")  # noqa: B023
        finally:
            over.set()
            asking.join(60)
        assert wrong == []
        # The embedding slot answers now: the small server goes, and does not come back.
        wait_for(lambda: questions(daemon)["state"] == "stopped", "the end of the server")
        answered = questions(daemon)["answered"]
        assert right(ask(daemon))
        assert (questions(daemon)["answered"], questions(daemon)["pid"]) == (answered, None)
        journal = daemon.get("/api/switches?limit=100")
        assert {row["outcome"] for row in journal} == {"done"}
        # What the journal proves about the slots' servers has nothing of this one.
        assert not {pid for row in journal for pid in row["pids"]} & {state["pid"], again["pid"]}


def test_the_server_for_questions_goes_when_nobody_asks(tmp_path: Path) -> None:
    place = filled(tmp_path, idle="0.2")
    with place.daemon() as daemon:
        wait_for(lambda: daemon.mode() == "generation", "generation")
        for starts in (1, 2):
            assert right(ask(daemon))
            wait_for(lambda: questions(daemon)["state"] == "stopped", "the end of the server")
            assert questions(daemon)["starts"] == starts
        servers = [child for child in daemon.children() if "--contexts=1" in child.cmdline()]
        assert servers == []


def test_search_on_the_command_line_has_the_daemon_answer(tmp_path: Path) -> None:
    place = filled(tmp_path)
    alone = place.command("search", QUESTION, "--json")
    with place.daemon() as daemon:
        wait_for(lambda: daemon.mode() == "generation", "generation")
        beside = place.command("search", QUESTION, "--json")
        assert questions(daemon)["answered"] == 1
        assert same_but_for_rounding(json.loads(beside.stdout), json.loads(alone.stdout))
        told = place.command("search", QUESTION)
        assert questions(daemon)["answered"] == 2
        assert "seed-store-incident.pdf, page " in told.stdout
        whole = place.command("search", QUESTION, "--documents", "--json")
        assert json.loads(whole.stdout)["results"][0]["method"] in ("mean", "model")
        assert questions(daemon)["answered"] == 3
        wrong = place.command("search", QUESTION, "--type", "exe")
        assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
        # What is not the daemon's is found out here.
        elsewhere = place.command("search", QUESTION, "--database", f"sqlite:///{tmp_path / 'other.db'}")
        assert elsewhere.stdout.startswith("There is no database at ")
        assert questions(daemon)["answered"] == 3


def same_but_for_rounding(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 1e-3
    if isinstance(one, dict) and isinstance(other, dict):
        return set(one) == set(other) and all(same_but_for_rounding(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_but_for_rounding, one, other))
    return bool(one == other)


def test_a_killed_daemon_leaves_no_server_for_questions(tmp_path: Path) -> None:
    place = filled(tmp_path)
    daemon = place.start()
    wait_for(lambda: daemon.mode() == "generation", "generation")
    assert right(ask(daemon))
    children = daemon.children()
    assert questions(daemon)["pid"] in {child.pid for child in children}
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait(10)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    with place.daemon() as next_one:
        assert right(ask(next_one))
