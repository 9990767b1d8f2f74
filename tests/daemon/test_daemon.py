"""The daemon as a process: real models, real requests, real kills."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from benchmarks.corpus import write_corpus
from tests.daemon.daemons import ALWAYS, Daemon, add_samples, make_place, wait_for
from tests.runs import ROOT, rows

CHAT = {"model": "any", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 24}
SWITCHES = 50


class Traffic:
    """Clients that ask without pause, and what became of each request."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        ways = (self.chat, self.stream, self.stream, self.embed, self.embed)
        self._threads = [threading.Thread(target=self._ask, args=(way,)) for way in ways]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a request hangs"

    def _ask(self, way: object) -> None:
        with httpx.Client(base_url=self.daemon.url, timeout=45) as client:
            while not self._stop.is_set():
                try:
                    outcome = way(client)  # type: ignore[operator]
                except httpx.HTTPError as error:
                    outcome = f"WRONG {way.__name__}: {error!r}"  # type: ignore[attr-defined]
                with self._lock:
                    self.outcomes[outcome] += 1
                    if outcome.startswith("WRONG"):
                        self.wrong.append(outcome)
                time.sleep(0.02)

    def chat(self, client: httpx.Client) -> str:
        return self._classify(client.post("/v1/chat/completions", json=CHAT), "choices")

    def embed(self, client: httpx.Client) -> str:
        return self._classify(client.post("/v1/embeddings", json={"model": "any", "input": ["one", "two"]}), "data")

    def stream(self, client: httpx.Client) -> str:
        with client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as answer:
            if answer.status_code != 200:
                answer.read()
                return self._classify(answer, "choices")
            events = [line for line in answer.iter_lines() if line.startswith("data: ")]
        if not events or events[-1] != "data: [DONE]":
            return f"WRONG stream: ends with {events[-1:]}"
        return "cut with an error event" if any('"error"' in event for event in events) else "streamed"

    def _classify(self, answer: httpx.Response, key: str) -> str:
        if answer.status_code == 200:
            return "answered" if answer.json()[key] else f"WRONG empty answer {answer.text[:100]}"
        if answer.status_code in (429, 503) and "retry-after" in answer.headers and answer.json()["error"]["message"]:
            return f"refused {answer.status_code}"
        return f"WRONG {answer.status_code} {dict(answer.headers)} {answer.text[:200]}"


@pytest.mark.timeout(600)
def test_fifty_switches_under_traffic_answer_or_refuse_every_request(tmp_path: Path) -> None:
    place = make_place(tmp_path, gateway_max_wait="20", gateway_max_waiting="3")
    # The jobs that ship: each slot is served at some hour, so that each refusal can say when.
    (place.jobs / "always.toml").unlink()
    for job in (ROOT / "jobs").glob("*.toml"):
        shutil.copy(job, place.jobs)
    order = random.Random(5)
    modes = ["generation", "embedding", "mixed", "idle"]
    memory: list[int] = []
    with place.daemon() as daemon:
        daemon.switch("generation")
        process = psutil.Process(daemon.process.pid)
        with Traffic(daemon) as traffic:
            done = 0
            while done < SWITCHES:
                target = order.choice([mode for mode in modes if mode != daemon.mode()])
                daemon.switch(target)
                done += 1
                memory.append(process.memory_info().rss)
                time.sleep(order.uniform(0, 0.2))
        assert traffic.wrong == []
        assert {"answered", "streamed", "refused 503"} <= set(traffic.outcomes)
        assert sum(traffic.outcomes.values()) > 2 * SWITCHES
        # Some growth at first is caches; after that a leak would show with each further switch.
        assert max(memory[-10:]) < max(memory[:15]) * 1.15
        journal = daemon.get(f"/api/switches?limit={SWITCHES + 10}")
        assert len([row for row in journal if row["outcome"] == "done"]) >= SWITCHES
        for row in journal[:SWITCHES]:
            assert {"close", "drain", "stop", "release", "start", "ready", "canary", "open"} == set(row["phases"])
        children = daemon.children()
        expected = {"generation": 1, "embedding": 1, "mixed": 2, "idle": 0}[daemon.mode()]
        models = [c for c in children if "llama" in " ".join(c.cmdline())]
        assert len(models) >= expected
    assert not [child for child in children if child.is_running()]


def test_the_official_client_works(tmp_path: Path) -> None:
    place = make_place(tmp_path, mode="mixed", api_key="sesame")
    with place.daemon() as daemon:
        client = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="sesame", max_retries=0)
        wait_for(lambda: {m.status for m in client.models.list()} == {"serving"}, "both models")  # type: ignore[attr-defined]
        answer = client.chat.completions.create(
            model="any", messages=[{"role": "user", "content": "hello"}], max_tokens=8
        )
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 8
        parts = list(
            client.chat.completions.create(
                model="any", messages=[{"role": "user", "content": "hello"}], max_tokens=8, stream=True
            )
        )
        assert parts[-1].choices[0].finish_reason == "length"
        assert client.completions.create(model="any", prompt="hello", max_tokens=4).choices[0].text
        vectors = client.embeddings.create(model="any", input=["a night shift", "a day shift"]).data
        assert [len(vector.embedding) for vector in vectors] == [384, 384]
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="wrong", max_retries=0).models.list()
        assert httpx.get(f"{daemon.url}/health").json() == {"status": "healthy"}
        assert httpx.get(f"{daemon.url}/api/status").status_code == 401


@pytest.mark.timeout(600)
def test_a_daemon_killed_in_any_phase_leaves_no_orphan_and_comes_back_in_the_right_mode(tmp_path: Path) -> None:
    place = make_place(tmp_path, language_model=True)
    moments = random.Random(11)
    seen: set[str] = set()
    target = "generation"
    for phase in ("stop", "drain", "start", "ready", "canary", None, None, None):
        daemon = place.start()
        wait_for(lambda: daemon.mode() == target, f"the mode {target} after a restart")  # noqa: B023
        target = "embedding" if target == "generation" else "generation"
        holding = _hold_the_embedding_slot(daemon) if phase == "drain" else None
        switch = threading.Thread(target=_switch_quietly, args=(daemon, target))
        switch.start()
        deadline = time.monotonic() + (moments.uniform(0.0, 0.8) if phase is None else 5.0)
        while time.monotonic() < deadline:
            switching = daemon.get("/api/status")["host"]["switching"]
            if switching is not None:
                seen.add(switching["phase"])
                if phase == switching["phase"]:
                    break
            elif phase is not None and not switch.is_alive():
                break  # it was through that phase before anybody could look
        children = daemon.children()
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait(10)
        switch.join(20)
        if holding is not None:
            holding.join(20)
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive, f"killed in {phase}: {[' '.join(p.cmdline()) for p in alive]}"
        held = rows(place.data / "nightshift.db", "SELECT mode FROM holds")
        target = held[0][0] if held else "generation"
    assert {"drain", "ready"} <= seen
    with place.daemon() as last:
        wait_for(lambda: last.mode() == target, "the right mode")
        outcomes = {row["outcome"] for row in last.get("/api/switches?limit=100")}
        assert outcomes <= {"done", "interrupted"}
        assert "interrupted" in outcomes


def _hold_the_embedding_slot(daemon: Daemon) -> threading.Thread:
    """A request that takes the embedding model many seconds, so that a switch has to wait for it."""
    long = " ".join(f"the night shift counts lamp {number}" for number in range(60))

    def hold() -> None:
        with contextlib.suppress(httpx.HTTPError):
            daemon.post("/v1/embeddings", {"model": "any", "input": [long] * 400}, timeout=120)

    thread = threading.Thread(target=hold)
    thread.start()
    wait_for(lambda: daemon.get("/api/status")["host"]["slots"][1]["in_flight"] > 0, "the request's admission")
    return thread


def _switch_quietly(daemon: Daemon, target: str) -> None:
    try:
        httpx.post(f"{daemon.url}/api/switch", json={"mode": target}, timeout=30)
    except httpx.HTTPError:
        return


def test_a_model_server_that_dies_is_brought_back(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    with place.daemon() as daemon:
        wait_for(lambda: daemon.mode() == "generation", "generation")
        slot = next(s for s in daemon.get("/api/status")["host"]["slots"] if s["slot"] == "generation")
        psutil.Process(slot["pid"]).kill()
        wait_for(lambda: any(row["reason"] == "recovery" for row in daemon.get("/api/switches")), "a recovery")
        wait_for(lambda: daemon.post("/v1/chat/completions", CHAT).status_code == 200, "an answer")


def test_sigterm_stores_the_run_and_leaves_nothing(tmp_path: Path) -> None:
    place = make_place(tmp_path, mode="embedding", language_model=False)
    write_corpus(place.data / "inbox", pages=120)
    with place.daemon() as daemon:
        daemon.post("/api/runs", {})
        wait_for(lambda: (daemon.get("/api/runs/current")["run"] or {}).get("chunks_done"), "the first vectors")
    ((state, chunks),) = rows(place.data / "nightshift.db", "SELECT state, chunks_embedded FROM runs")
    assert state == "stopped"
    assert rows(place.data / "nightshift.db", "SELECT count(*) FROM embeddings") == [(chunks,)]


def test_sigterm_ends_a_run_whose_model_server_has_died(tmp_path: Path) -> None:
    place = make_place(tmp_path, mode="embedding", language_model=False)
    write_corpus(place.data / "inbox", pages=120)
    with place.daemon() as daemon:
        daemon.post("/api/runs", {})
        wait_for(lambda: (daemon.get("/api/runs/current")["run"] or {}).get("chunks_done"), "the first vectors")
        slot = next(s for s in daemon.get("/api/status")["host"]["slots"] if s["slot"] == "embedding")
        psutil.Process(slot["pid"]).kill()
    assert rows(place.data / "nightshift.db", "SELECT count(*) FROM runs WHERE state = 'running'") == [(0,)]


def test_jobs_are_taken_up_without_a_restart_and_a_broken_one_keeps_the_old(tmp_path: Path) -> None:
    place = make_place(tmp_path, mode="idle")
    job = place.jobs / "always.toml"
    with place.daemon() as daemon:
        wait_for(lambda: daemon.get("/api/status")["host"]["wanted"] == "idle", "idle")
        job.write_text(ALWAYS.format(mode="embedding"))
        wait_for(lambda: daemon.mode() == "embedding", "embedding, by the changed file")
        job.write_text("mode = 'nonsense'")
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: daemon.get("/api/jobs")["problems"], "the report of the broken file")
        assert daemon.mode() == "embedding"
        assert daemon.get("/api/jobs")["jobs"][0]["mode"] == "embedding"

        # Names of files and folders that are not UTF-8 reach it and come back, as they are stored.
        job.rename(place.jobs / os.fsdecode(b"n\xff.toml"))
        folder = tmp_path / os.fsdecode(b"in\xff")
        folder.mkdir()
        shutil.copy(ROOT / "data" / "inbox" / "harbour-committee-minutes.docx", folder)
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "n\uf7ff.toml" in daemon.get("/api/jobs")["problems"][0]["file"], "the file's new name")
        assert any("n\uf7ff.toml" in problem for problem in daemon.get("/management/health")["problems"])
        done = place.command("run-now", str(folder), "--json")
        assert (done.returncode, json.loads(done.stdout)["outcome"]) == (0, "complete"), done.stderr

        # Its database is taken away, and put back.
        database, elsewhere = place.data / "nightshift.db", tmp_path / "elsewhere.db"
        database.rename(elsewhere)
        health = httpx.get(f"{daemon.url}/management/health", timeout=20)
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        assert f"{database} was deleted while it was in use" in health.json()["problems"][0]
        told = place.command("status").stdout
        assert f"{database} was deleted while it was in use" in told
        assert "makes it" not in told
        elsewhere.rename(database)
        assert httpx.get(f"{daemon.url}/management/health", timeout=20).status_code == 200


def test_run_now_beside_a_daemon_hands_the_work_to_it(tmp_path: Path) -> None:
    place = make_place(tmp_path, mode="embedding", language_model=False)
    add_samples(place, "seed-store-incident.pdf", "delivery-note-scan.pdf")
    with place.daemon() as daemon:
        second = place.command("daemon", "--port", "0")
        assert second.returncode == 1
        assert f"pid {daemon.process.pid}" in second.stderr
        assert "there is no language model: NIGHTSHIFT_GENERATION_MODEL is not set." in daemon.log.read_text()
        told = place.command("run-now", "--database", f"sqlite:///{tmp_path}/other.db")
        assert (told.returncode, "leave --database and --model out" in told.stderr) == (2, True)
        wait_for(lambda: daemon.mode() == "embedding", "embedding")
        status = place.command("status").stdout
        assert f"daemon     {daemon.url} (pid {daemon.process.pid}), since " in status
        assert "\nmode       embedding since " in status
        assert "\nlanguage   no model: " in status
        assert "\nembedding  MiniLM L6 H384 Uncased (llama-cpp on " in status
        said = json.loads(place.command("status", "--json").stdout)["daemon"]
        assert (said["url"], said["mode"], said["models"]["generation"]) == (daemon.url, "embedding", None)
        result = place.command("run-now", "--json")
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        assert report["outcome"] == "complete"
        assert report["documents"]["embedded"] == 1
        assert report["documents"]["empty"] == 1
        assert report["chunks_embedded"] == report["chunks"]["total"] > 0
        assert "by its own settings" not in result.stderr
        told = place.command("run-now")
        assert "Complete: 1 of 2 documents embedded (1 empty), " in told.stdout
        assert "\nNot embedded: 1 document, none of them new\n  " in told.stdout
        assert told.stdout.count("delivery-note-scan.pdf") == 1
        # What is set for this command alone is not used, and that is said.
        place.settings["NIGHTSHIFT_CHUNK_TOKENS"] = "100"
        passed_by = place.command("run-now")
        assert passed_by.returncode == 0
        warning = "the daemon does the run by its own settings; not used, and set otherwise here: chunk.tokens"
        assert f"nightshift: {warning}\n" in passed_by.stderr
        del place.settings["NIGHTSHIFT_CHUNK_TOKENS"]
        wrong = place.command("run-now", str(tmp_path / "nowhere"))
        assert wrong.returncode == 2
        assert "no such file or folder" in wrong.stderr
        found = httpx.get(f"{daemon.url}/api/search", params={"q": "why did it get warm", "k": 1}).json()
        assert found["results"][0]["file"].endswith("seed-store-incident.pdf")


def test_an_operators_run_by_day_leaves_the_language_model_serving(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    add_samples(place, "seed-store-incident.pdf")
    with place.daemon() as daemon:
        wait_for(lambda: daemon.mode() == "generation", "generation")
        result = place.command("run-now", "--json")
        assert json.loads(result.stdout)["outcome"] == "complete"
        wait_for(lambda: daemon.mode() == "generation", "generation again")
        journal = daemon.get("/api/switches?limit=3")
        assert [(row["source"], row["target"], row["reason"]) for row in journal[:2]] == [
            ("mixed", "generation", "schedule"),
            ("generation", "mixed", "request"),
        ]


def test_texts_are_queued_embedded_and_found(tmp_path: Path) -> None:
    place = make_place(tmp_path, mode="idle", language_model=False, gateway_max_texts="2")
    with place.daemon() as daemon:
        taken = [
            daemon.post("/embed", {"text": f"The red door number {n} leads to the boiler room."}) for n in (1, 2, 3)
        ]
        assert [answer.status_code for answer in taken] == [202, 202, 429]
        assert taken[2].json() == {"detail": "Queue full"}
        first = taken[0].json()["id"]
        assert daemon.get(f"/embed/{first}")["status"] == "queued"
        daemon.switch("embedding")
        wait_for(lambda: daemon.get(f"/embed/{first}")["status"] == "embedded", "the embedding")
        found = httpx.get(f"{daemon.url}/api/search", params={"q": "boiler room", "k": 1}).json()
        assert "red door" in found["results"][0]["text"]
        assert daemon.post("/embed", {"text": "One more."}).status_code == 202


def test_a_hold_ends_by_itself(tmp_path: Path) -> None:
    place = make_place(tmp_path, mode="idle", language_model=False)
    with place.daemon() as daemon:
        held = place.command("switch", "embedding", "--hold", "3s")
        assert held.returncode == 0, held.stderr
        assert daemon.mode() == "embedding"
        wait_for(lambda: daemon.mode() == "idle", "the end of the hold")
        shown = place.command("switches", "--json")
        assert [row["to"] for row in json.loads(shown.stdout)][:2] == ["idle", "embedding"]
        assert place.command("switch", "nonsense").returncode == 2


@pytest.mark.timeout(300)
def test_a_fresh_installation_without_a_language_model_runs_its_nights(tmp_path: Path) -> None:
    place = make_place(tmp_path, mode="generation", language_model=False)
    write_corpus(place.data / "inbox", pages=6, pages_per_document=3)
    (place.jobs / "night.toml").write_text(
        'cron = "0 0 * * *"\nuntil = "24:00"\nmode = "embedding"\ntask = "ingest"\npriority = 1\ntimezone = "UTC"\n'
    )
    with place.daemon() as daemon:
        wait_for(lambda: daemon.get("/api/status")["documents"]["embedded"] == 2, "the night's work", 120)
        wait_for(lambda: daemon.mode() == "generation", "the day")
        status = daemon.get("/api/status")
        assert status["last_run"]["job"] == "night"
        assert any("NIGHTSHIFT_GENERATION_MODEL" in problem for problem in status["host"]["problems"])
        refused = daemon.post("/v1/chat/completions", CHAT)
        assert refused.status_code in (404, 503)


@pytest.mark.parametrize("arguments", [["--host", "0.0.0.0"]])  # refused before it is bound
def test_an_open_door_is_refused_unless_said_twice(tmp_path: Path, arguments: list[str]) -> None:
    place = make_place(tmp_path, language_model=False)
    result = place.command("daemon", "--port", "0", *arguments)
    assert result.returncode == 2
    assert "NIGHTSHIFT_API_KEY" in result.stderr
