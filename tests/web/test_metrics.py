"""What Prometheus reads."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from pipeline.core.engine_stats import ContextStats, EngineStats
from pipeline.core.errors import StoreError
from pipeline.core.modes import Mode, Slot
from pipeline.web import shapes
from tests.web.conftest import Api


async def scraped(api: Api) -> Mapping[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a scrape."""
    answer = await api.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value for each in families for sample in each.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """A sample's name and labels."""
    return f"nightshift_{name}", frozenset(labels.items())


async def test_what_is_so_is_asked_at_each_scrape(api: Api) -> None:
    api.world.gpu = shapes.GpuMemory(used_bytes=5, total_bytes=9)
    api.world.run = "r1"
    api.world.failed[Slot.EMBEDDING] = "why"
    async with await api.world.admission.reserve(Slot.GENERATION):
        found = await scraped(api)
    assert [found[key("mode", mode=mode.value)] for mode in Mode] == [0, 0, 1, 0]
    assert found[key("requests_in_flight", slot="generation")] == 1
    assert found[key("requests_waiting", slot="embedding")] == 0
    assert found[key("backend_ready", slot="generation")] == 1
    assert found[key("backend_failed", slot="embedding")] == 1
    assert found[key("gpu_memory_bytes", kind="used")] == 5
    assert found[key("documents", state="embedded")] == 2
    assert key("documents", state="total") not in found
    assert (found[key("chunks", state="embedded")], found[key("chunks", state="waiting")]) == (9, 3)
    assert found[key("texts", state="queued")] == 1
    assert (found[key("run_active")], found[key("chunks_per_second")]) == (1, 20)
    assert found[key("store_up")] == 1
    assert found["process_resident_memory_bytes", frozenset()] > 0

    api.world.enter(Mode.IDLE)
    api.world.run = None
    found = await scraped(api)
    assert [found[key("mode", mode=mode.value)] for mode in Mode] == [0, 0, 0, 1]
    assert (found[key("run_active")], found[key("chunks_per_second")]) == (0, 0)


async def test_what_happened_is_counted(api: Api) -> None:
    for seconds in (0.3, 4.0):
        api.metrics.observe_switch(
            Mode.GENERATION,
            Mode.EMBEDDING,
            reason="schedule",
            outcome="done",
            seconds=seconds,
            phases={"drain": 0.2, "start": seconds},
        )
    api.metrics.observe_run("complete", datetime(2026, 3, 1, tzinfo=UTC))
    api.metrics.observe_chunks(64)
    api.metrics.observe_backend_death(Slot.GENERATION)
    found = await scraped(api)
    labels = {"source": "generation", "target": "embedding", "reason": "schedule", "outcome": "done"}
    assert found[key("switches_total", **labels)] == 2
    assert found[key("switch_seconds_count", target="embedding", outcome="done")] == 2
    assert found[key("switch_phase_seconds_sum", phase="start")] == 4.3
    assert found[key("switch_phase_seconds_bucket", phase="drain", le="0.25")] == 2
    assert found[key("runs_total", outcome="complete")] == 1
    assert found[key("last_run_end_seconds", outcome="complete")] == 1772323200
    assert found[key("chunks_embedded_total")] == 64
    assert found[key("backend_deaths_total", slot="generation")] == 1


async def test_requests_are_counted_by_route_and_outcome_whatever_paths_are_invented(api: Api) -> None:
    for path in ("/api/documents/1", "/api/documents/7", "/a", "/b", "/health"):
        await api.http.get(path)
    await api.http.post("/api/switch", json={})
    found = await scraped(api)
    assert found[key("requests_total", route="/api/documents/{document_id}", outcome="ok")] == 1
    assert found[key("requests_total", route="/api/documents/{document_id}", outcome="not_found")] == 1
    assert found[key("requests_total", route="other", outcome="not_found")] == 2
    assert found[key("requests_total", route="/health", outcome="ok")] == 1
    assert found[key("requests_total", route="/api/switch", outcome="refused")] == 1
    assert found[key("request_seconds_count", route="other")] == 2


async def test_a_database_that_does_not_answer_leaves_the_rest(api: Api) -> None:
    api.world.failure = StoreError("away")
    found = await scraped(api)
    assert found[key("store_up")] == 0
    assert found[key("mode", mode="mixed")] == 1
    assert key("documents", state="embedded") not in found


async def test_what_the_engine_counted_is_there_by_context(api: Api) -> None:
    first = ContextStats(waiting=2.5, computing=4.0).with_batch(100, 2, 100).with_batch(40, 1, 100)
    whole = ContextStats(batches=2, sequences=2, tokens=9000, computing=3.0)
    api.world.engine = EngineStats((first, ContextStats(waiting=7.0)), 100, 30, 2, whole)
    found = await scraped(api)
    one, two = {"context": "0"}, {"context": "1"}
    assert (found[key("engine_tokens_total", **one)], found[key("engine_tokens_total", **two)]) == (140, 0)
    assert found[key("engine_sequences_total", **one)] == 3
    assert found[key("engine_tokens_total", context="whole")] == 9000
    assert key("engine_waiting_seconds_total", context="whole") not in found
    assert found[key("engine_batches_total", **one)] == 2
    assert found[key("engine_computing_seconds_total", **one)] == 4.0
    assert found[key("engine_waiting_seconds_total", **two)] == 7.0
    below = [
        found[key("engine_batch_fill_bucket", context="0", le=le)] for le in ("0.25", "0.5", "0.95", "1.0", "+Inf")
    ]
    assert below == [0, 1, 1, 2, 2]
    assert found[key("engine_batch_fill_count", **one)] == 2
    assert found[key("engine_batch_fill_sum", **one)] == 1.4
    assert (found[key("engine_queued_tokens")], found[key("engine_queued_requests")]) == (30, 2)
    assert found[key("engine_tokens_per_second")] == 1234.5
