"""The management of the host: each endpoint's shape, and what it does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import structlog

from pipeline.core.documents import DocumentState
from pipeline.core.errors import (
    BackendStartFailed,
    ModelError,
    ModelIncomplete,
    NightshiftError,
    RunInProgress,
    SchemaError,
    SwitchDeferred,
    SwitchFailed,
    SwitchUnderWay,
    UsageError,
)
from pipeline.core.modes import Mode, Slot
from pipeline.web import shapes
from pipeline.web.api import FAILING
from tests.web.conftest import Api


async def test_status_is_all_of_it(api: Api) -> None:
    api.world.run = "r9"
    status = (await api.http.get("/api/status")).json()
    assert status["host"]["mode"] == "mixed"
    assert [(slot["slot"], slot["state"], slot["gate"]) for slot in status["host"]["slots"]] == [
        ("generation", "ready", "open"),
        ("embedding", "ready", "open"),
    ]
    assert status["run"]["run_id"] == "r9"
    assert status["documents"]["failed"] == 1
    assert status["chunks"] == {"total": 12, "embedded": 9}
    assert (status["model"], status["last_run"], status["version"]) == (None, None, "9.9")


async def test_models_are_listed_and_search_is_moved(api: Api) -> None:
    models = (await api.http.get("/api/models")).json()
    listed = [(model["name"], model["active"], model["missing"]) for model in models]
    assert listed == [("old", True, 0), ("new", False, 2)]
    used = await api.http.post("/api/models/use", json={"model": "new", "anyway": True})
    assert (used.status_code, used.json()["model"]["name"], used.json()["missing"]) == (200, "new", 1)
    assert api.world.used == [("new", True)]
    api.world.failure = ModelIncomplete("new", 2)
    refused = await api.http.post("/api/models/use", json={"model": "new"})
    assert (refused.status_code, "2 documents have not been through new" in refused.json()["detail"]) == (409, True)


async def test_config_jobs_and_journal(api: Api) -> None:
    assert (await api.http.get("/api/config")).json() == [
        {"key": "chunk.tokens", "value": 512, "origin": "nightshift.toml"}
    ]
    jobs = (await api.http.get("/api/jobs")).json()
    assert jobs["problems"] == [{"file": "jobs/a.toml", "line": 3, "message": "cron: never fires"}]
    rows = (await api.http.get("/api/switches", params={"limit": 3})).json()
    assert [(row["source"], row["target"], row["phases"]) for row in rows] == [
        ("generation", "embedding", {"drain": 0.5})
    ] * 3
    assert len((await api.http.get("/api/runs", params={"limit": 2})).json()) == 2


async def test_switch_and_hold(api: Api) -> None:
    done = await api.http.post("/api/switch", json={"mode": "embedding", "hold": "2h"})
    assert (done.status_code, done.json()["mode"], done.json()["seconds"]) == (200, "embedding", 1.25)
    await api.http.post("/api/switch", json={"mode": "idle", "hold": 90})
    await api.http.post("/api/switch", json={"mode": "mixed"})
    assert api.world.switches == [
        (Mode.EMBEDDING, "operator", 7200.0),
        (Mode.IDLE, "operator", 90.0),
        (Mode.MIXED, "operator", None),
    ]
    assert (await api.http.delete("/api/hold")).status_code == 404
    api.world.hold = 5.0
    assert (await api.http.delete("/api/hold")).status_code == 204


async def test_a_switch_that_makes_no_sense(api: Api) -> None:
    bodies: list[dict[str, object]] = [
        {},
        {"mode": "sleep"},
        {"mode": "idle", "hold": "soon"},
        {"mode": "idle", "hold": -1},
        {"mode": "idle", "hold": 32 * 86400},
        {"mode": "idle", "hold": 10**40},
        {"mode": "idle", "hold": "9" * 5000 + "d"},
        {"mode": "idle", "x": 1},
    ]
    for body in bodies:
        answer = await api.http.post("/api/switch", json=body)
        assert answer.status_code == 422
        assert isinstance(answer.json()["detail"], str)
    assert not api.world.switches


async def test_errors_have_a_status_and_their_own_words(api: Api) -> None:
    errors: list[tuple[NightshiftError, int]] = [
        (SwitchUnderWay("a switch to mixed is under way"), 409),
        (SwitchDeferred("requests are in flight"), 409),
        (SwitchFailed("back in generation"), 503),
        (RunInProgress("run r1"), 409),
        (UsageError("nothing at /x"), 400),
        (SchemaError("older tables"), 503),
        (ModelError("no such file"), 503),
        (BackendStartFailed("out of memory"), 503),
        (NightshiftError("anything"), 503),
    ]
    for error, status in errors:
        api.world.failure = error
        for answer in (
            await api.http.post("/api/switch", json={"mode": "idle"}),
            await api.http.post("/api/runs"),
            await api.http.get("/api/search", params={"q": "a"}),
        ):
            assert (answer.status_code, answer.json()) == (status, {"detail": str(error)})


async def test_what_was_not_foreseen_is_a_500_without_its_words(api: Api) -> None:
    api.world.failure = RuntimeError("secret")
    with structlog.testing.capture_logs() as logged:
        answer = await api.http.post("/api/runs")
    assert (answer.status_code, "secret" in answer.text) == (500, False)
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["a request failed"]


async def test_runs(api: Api) -> None:
    assert (await api.http.get("/api/runs/current")).json() == {"run": None}
    assert (await api.http.post("/api/runs/current/stop")).json() == {"stopping": False}
    started = await api.http.post("/api/runs", json={"paths": ["/data/reports"]})
    assert (started.status_code, started.json()) == (202, {"run_id": "r2"})
    assert api.world.run_paths == ["/data/reports"]
    assert not api.world.run_confirmed
    assert (await api.http.get("/api/runs/current")).json()["run"]["chunks_done"] == 40
    stopped = await api.http.post("/api/runs/current/stop")
    assert (stopped.status_code, stopped.json()) == (202, {"stopping": True})
    assert (await api.http.post("/api/runs", json={"confirm_deletions": True})).status_code == 202
    assert [api.world.run_paths, api.world.run_confirmed] == [None, True]
    assert (await api.http.post("/api/runs")).status_code == 202
    assert [api.world.run_paths, api.world.run_confirmed] == [None, False]
    assert (await api.http.get("/api/runs/run1/result")).json() == {"outcome": "complete"}
    assert (await api.http.get("/api/runs/run7/result")).status_code == 404


async def test_documents(api: Api) -> None:
    everything = (await api.http.get("/api/documents")).json()
    assert [line["id"] for line in everything] == [1, 2, 3]
    some = await api.http.get("/api/documents", params={"state": ["failed", "empty"], "limit": 1, "offset": 1})
    assert [line["id"] for line in some.json()] == [3]
    one = (await api.http.get("/api/documents/1")).json()
    assert (one["file"], one["chunk_list"][0]["text"]) == ("/inbox/1.pdf", "words")
    assert (await api.http.get("/api/documents/7")).status_code == 404
    assert (await api.http.get("/api/documents", params={"state": "lost"})).status_code == 422


async def test_retry(api: Api) -> None:
    assert (await api.http.post("/api/documents/1/retry")).json() == {"documents": 1}
    assert (await api.http.post("/api/documents/7/retry")).status_code == 404
    assert (await api.http.post("/api/documents/retry")).json() == {"documents": 2}
    await api.http.post("/api/documents/retry", json={"states": ["failed"]})
    assert api.world.retried == [([1], FAILING), (None, FAILING), (None, [DocumentState.FAILED])]


async def test_upload(api: Api) -> None:
    content = b"%PDF-1.7" + b"x" * 3_000_000
    name = "R\u00e9sum\u00e9 2026.pdf"
    answer = await api.http.put(f"/api/documents/{name}", content=content)
    assert answer.status_code == 201
    uploaded = shapes.Uploaded.model_validate(answer.json())
    assert Path(uploaded.file) == api.world.inbox / name
    assert (uploaded.size, uploaded.replaced) == (len(content), False)
    assert uploaded.sha256 == hashlib.sha256(content).hexdigest()
    assert (api.world.inbox / name).read_bytes() == content
    assert (await api.http.put(f"/api/documents/{name}", content=b"%PDF")).json()["replaced"] is True
    (api.world.inbox / "folder.pdf").mkdir()
    refused = await api.http.put("/api/documents/folder.pdf", content=b"%PDF")
    assert (refused.status_code, "the inbox has a folder of that name" in refused.text) == (400, True)
    (api.world.inbox / "folder.pdf").rmdir()
    assert [path.name for path in api.world.inbox.iterdir()] == [name]


async def test_names_that_no_document_can_have(api: Api) -> None:
    long = "x" * 200
    for name in (
        "..%2Fa.pdf",
        "a/b.pdf",
        "a.txt",
        "a.text",
        ".hidden.pdf",
        "%00.pdf",
        "a%1B.pdf",
        "caf%E9.pdf",
        "C:%5Ca.pdf",
        "pdf",
        f"{long}.pdf",
    ):
        answer = await api.http.put(f"/api/documents/{name}", content=b"%PDF")
        assert answer.status_code == 400, name
        assert ".text," not in answer.text
    assert not list(api.world.inbox.iterdir())


async def test_unknown_paths_have_the_form_of_their_api(api: Api) -> None:
    assert (await api.http.get("/v1/audio")).json()["error"]["type"] == "not_found_error"
    assert (await api.http.get("/v1/embeddings")).status_code == 405
    assert (await api.http.get("/api/nothing")).json() == {"detail": "Not Found"}


async def test_cors_is_off(api: Api) -> None:
    answer = await api.http.get("/v1/models", headers={"Origin": "http://localhost:3000"})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_models_say_whether_they_serve(api: Api) -> None:
    api.world.enter(Mode.EMBEDDING)
    models = (await api.http.get("/v1/models")).json()
    assert models["object"] == "list"
    assert {model["id"]: model["status"] for model in models["data"]} == {
        api.world.models[Slot.GENERATION]: "stopped",
        api.world.models[Slot.EMBEDDING]: "serving",
    }


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/switch", b'{"mode": "idle", "hold": 1e999}'),
        ("/api/switch", b'{"mode": "idle", "hold": NaN}'),
        ("/api/switch", b'{"mode": "idle", "hold": -Infinity}'),
        ("/api/switch", b'{"mode": "idle", "hold": ' + b"9" * 5000 + b"}"),
        ("/api/switch", b'{"mode": "\\ud800"}'),
        ("/api/switch", b'{"mode": "idle", "\\ud800": 1}'),
        ("/api/runs", b'{"paths": ["/a\\u0000b"]}'),
        ("/api/runs", b'{"paths": ["/\\udcff"]}'),
        ("/api/models/use", b'{"model": "\\u0000"}'),
        ("/embed", b'{"text": "\\udfff"}'),
        ("/embed", b'{"text": "a", "metadata": {"a": [{"b": "\\ud800"}]}}'),
        ("/embed", b'{"text": "a", "metadata": {"\\ud800": 1}}'),
        ("/embed", b'{"text": "a", "metadata": {"a": 1e999}}'),
        ("/embed", b'{"text": "a", "metadata": {"a": 9223372036854775808}}'),
        ("/embed", b'{"text": "a", "metadata": {"a": ' + b"[" * 100 + b"]" * 100 + b"}}"),
        ("/embed", b'{"text": "a", "metadata": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"),
        ("/embed", b'{"text": "\xff"}'),
        ("/embed", b"\xff\xfe"),
        ("/embed", b"[]"),
        ("/embed", b'"text"'),
        ("/switch-backend", b'{"model_name": "\\ud800"}'),
    ],
)
async def test_a_body_that_makes_no_sense(api: Api, path: str, body: bytes) -> None:
    for kind in ("application/json", "application/json; charset=utf-16", "text/plain", "multipart/form-data", ""):
        answer = await api.http.post(path, content=body, headers={"Content-Type": kind})
        assert answer.status_code in (400, 404, 415, 422), (kind, answer.text)
        assert isinstance(answer.json()["detail"], str)
    assert not api.world.switches
    assert not api.world.texts
    assert api.world.run is None


async def test_metadata_that_makes_sense_is_taken_as_it_is(api: Api) -> None:
    metadata = {"a": [1, -(2**63), 2**63 - 1, 1.5, None, True], "b": {"é \U0001f600": "line\nline"}}
    assert (await api.http.post("/embed", json={"text": "a\tb", "metadata": metadata})).status_code == 202
    assert api.world.texts == [("a\tb", metadata)]


@pytest.mark.parametrize("number", [2**63, 2**64, -1, 10**400, "9" * 5000, "1e3", "0x1", "inf"])
async def test_numbers_beyond_what_a_database_holds(api: Api, number: object) -> None:
    for path in (
        f"/api/documents/{number}",
        f"/api/documents?offset={number}",
        f"/api/documents?limit={number}",
        f"/api/runs?limit={number}",
        f"/api/search?q=a&k={number}",
        f"/api/search?q=a&per_document={number}",
    ):
        assert (await api.http.get(path)).status_code == 422, path
    assert (await api.http.post(f"/api/documents/{number}/retry")).status_code == 422


async def test_a_method_that_a_path_has_not_is_answered_with_those_that_it_has(api: Api) -> None:
    refused = await api.http.request("PATCH", "/api/runs")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, POST")
