"""The endpoints that other software calls already, by their names and shapes."""

from __future__ import annotations

import pytest

from pipeline.core.errors import SwitchFailed, SwitchUnderWay
from pipeline.core.modes import Mode, Slot
from pipeline.web import shapes
from pipeline.web.management import health_report
from tests.web.conftest import Api


async def test_health_is_one_word(api: Api) -> None:
    assert (await api.http.get("/health")).json() == {"status": "healthy"}


@pytest.mark.parametrize("path", ["/management/health", "/api/management/health"])
async def test_management_health(api: Api, path: str) -> None:
    api.world.gpu = shapes.GpuMemory(used_bytes=3 * 2**30, total_bytes=4 * 2**30)
    report = (await api.http.get(path)).json()
    assert report["status"] == "healthy"
    assert report["server_mode"] == "mixed"
    assert report["loaded_model"] == "tiny-llama"
    assert report["gpu_memory_usage"] == {"used_bytes": 3 * 2**30, "total_bytes": 4 * 2**30, "percent": 75.0}
    assert report["loaded_models"] == {"generation": "tiny-llama", "embedding": "tiny-minilm"}


async def test_the_loaded_model_is_that_of_the_mode(api: Api) -> None:
    api.world.enter(Mode.EMBEDDING)
    report = (await api.http.get("/management/health")).json()
    assert (report["loaded_model"], report["gpu_memory_usage"]) == ("tiny-minilm", None)
    api.world.enter(Mode.IDLE)
    assert (await api.http.get("/management/health")).json()["loaded_model"] is None


async def test_a_daemon_that_cannot_go_on_is_to_be_restarted(api: Api) -> None:
    api.world.broken = "the scheduler ended"
    answer = await api.http.get("/management/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "unhealthy")
    assert answer.json()["problems"] == ["the scheduler ended"]


async def test_a_failed_slot_is_no_reason_to_restart_the_host(api: Api) -> None:
    api.world.failed[Slot.EMBEDDING] = "died 5 times"
    answer = await api.http.get("/management/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["problems"] == answer.json()["reasons"] == ["embedding: died 5 times"]


def test_another_mode_than_the_wanted_one_is_degraded_unless_a_switch_is_under_way(api: Api) -> None:
    host = api.world.services().host().model_copy(update={"wanted": Mode.GENERATION})
    report = health_report(host, None)
    because = f" ({host.wanted_because})" if host.wanted_because else ""
    assert (report.status, report.reasons) == (
        "degraded",
        [f"the host is in mode {host.mode}, and generation is wanted{because}"],
    )
    assert report.reasons[0] in report.problems
    switching = shapes.Switching(
        source=Mode.MIXED, target=Mode.GENERATION, phase="drain", reason="schedule", seconds=0.5
    )
    assert health_report(host.model_copy(update={"switching": switching}), None).status == "healthy"


@pytest.mark.parametrize(
    ("query", "body", "mode", "model"),
    [
        ({}, None, Mode.GENERATION, "tiny-llama"),
        ({"model_type": "embedding"}, None, Mode.EMBEDDING, "tiny-minilm"),
        ({"model_name": "tiny-minilm", "model_type": "embedding"}, None, Mode.EMBEDDING, "tiny-minilm"),
        ({"model_name": "", "model_type": "generation"}, None, Mode.GENERATION, "tiny-llama"),
        ({}, {"model_type": "embedding"}, Mode.EMBEDDING, "tiny-minilm"),
        ({}, {"model_name": "tiny-llama"}, Mode.GENERATION, "tiny-llama"),
        ({"model_name": "tiny-minilm-F16"}, None, Mode.EMBEDDING, "tiny-minilm"),
        ({"model_name": "TINY-MINILM-F16.gguf"}, None, Mode.EMBEDDING, "tiny-minilm"),
        ({"model_name": "hf:owner/repo/tiny-llama-F16.gguf"}, None, Mode.GENERATION, "tiny-llama"),
        ({}, {"model_name": "my embedding", "model_type": "embedding"}, Mode.EMBEDDING, "tiny-minilm"),
    ],
)
async def test_switch_backend(
    api: Api, query: dict[str, str], body: dict[str, str] | None, mode: Mode, model: str
) -> None:
    answer = await api.http.post("/switch-backend", params=query, json=body)
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "success",
        "model_name": model,
        "model_type": mode.value,
        "server_mode": mode.value,
        "seconds": 1.25,
    }
    assert api.world.switches == [(mode, "request", None)]


async def test_switch_backend_refuses(api: Api) -> None:
    unknown = await api.http.post("/switch-backend", params={"model_name": "gpt-4"})
    assert unknown.status_code == 404
    assert unknown.json()["detail"] == (
        "gpt-4: no such model here; there are: tiny-llama (generation), tiny-minilm (embedding)"
    )
    other = await api.http.post("/switch-backend", params={"model_name": "tiny-llama", "model_type": "embedding"})
    assert (other.status_code, other.json()["detail"]) == (
        404,
        "tiny-llama: no such model here; there are: tiny-minilm (embedding)",
    )
    assert (await api.http.post("/switch-backend", params={"model_type": "vision"})).status_code == 422
    api.world.failure = SwitchUnderWay("one is under way")
    assert (await api.http.post("/switch-backend")).status_code == 409
    api.world.failure = SwitchFailed("it did not load")
    assert (await api.http.post("/switch-backend")).status_code == 503
    del api.world.models[Slot.GENERATION]
    assert (await api.http.post("/switch-backend")).status_code == 404
    assert not api.world.switches


async def test_texts_are_queued_until_the_queue_is_full(api: Api) -> None:
    taken = await api.http.post("/embed", json={"text": "hello", "metadata": {"user": 7}})
    assert taken.status_code == 202
    assert taken.json() == {"id": "t1", "status": "queued", "waiting": 1}
    assert (await api.http.post("/embed", json={"text": "more"})).status_code == 202
    full = await api.http.post("/embed", json={"text": "too much"})
    assert (full.status_code, full.json()) == (429, {"detail": "Queue full"})
    assert int(full.headers["retry-after"]) >= 1
    assert api.world.texts == [("hello", {"user": 7}), ("more", {})]
    assert (await api.http.get("/embed/t1")).json()["status"] == "queued"
    assert (await api.http.get("/embed/t9")).status_code == 404
    assert (await api.http.post("/embed", json={"text": ""})).status_code == 422
