"""Metrics for Prometheus: what happened is counted as it happens, what is so is asked at each scrape.

Every name begins with `nightshift_`; docs/api.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from pipeline.core.engine_stats import FILL_BOUNDS, ContextStats
from pipeline.core.modes import Mode, Slot

if TYPE_CHECKING:
    from datetime import datetime

    from prometheus_client import Metric

    from pipeline.switcher.admission import Admission
    from pipeline.web import shapes
    from pipeline.web.services import EngineFigures

_PHASES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
_REQUESTS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

_ENGINE_COUNTERS: Mapping[str, tuple[str, Callable[[ContextStats], float]]] = {
    "tokens": ("Tokens that the embedding engine computed.", lambda context: context.tokens),
    "sequences": ("Inputs that it computed.", lambda context: context.sequences),
    "batches": ("Batches that it computed them in.", lambda context: context.batches),
    "computing_seconds": ("Seconds in which it computed.", lambda context: context.computing),
    "waiting_seconds": ("Seconds in which it waited for input.", lambda context: context.waiting),
}


class Metrics:
    """The counters of one daemon. Its methods are called by whoever sees a thing happen."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._switches = Counter(
            "nightshift_switches_total",
            "Switches that ended.",
            ["source", "target", "reason", "outcome"],
            registry=self.registry,
        )
        self._switch_seconds = Histogram(
            "nightshift_switch_seconds",
            "A whole switch, from closed admission to open.",
            ["target", "outcome"],
            buckets=_PHASES,
            registry=self.registry,
        )
        self._phase_seconds = Histogram(
            "nightshift_switch_phase_seconds",
            "A phase of a switch.",
            ["phase"],
            buckets=_PHASES,
            registry=self.registry,
        )
        self._requests = Counter(
            "nightshift_requests_total", "Requests that ended.", ["route", "outcome"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "nightshift_request_seconds",
            "A request, from its head to its last byte, the wait for a switch included.",
            ["route"],
            buckets=_REQUESTS,
            registry=self.registry,
        )
        self._deaths = Counter(
            "nightshift_backend_deaths_total",
            "Backends whose process ended without being asked.",
            ["slot"],
            registry=self.registry,
        )
        self._runs = Counter("nightshift_runs_total", "Runs that ended.", ["outcome"], registry=self.registry)
        self._run_ended = Gauge(
            "nightshift_last_run_end_seconds",
            "When a run last ended so, in seconds since 1970.",
            ["outcome"],
            registry=self.registry,
        )
        self._chunks = Counter("nightshift_chunks_embedded_total", "Vectors stored.", registry=self.registry)

    def observe_switch(
        self, source: Mode, target: Mode, *, reason: str, outcome: str, seconds: float, phases: Mapping[str, float]
    ) -> None:
        """A switch ended. phases: seconds of each that it went through."""
        self._switches.labels(source.value, target.value, reason, outcome).inc()
        self._switch_seconds.labels(target.value, outcome).observe(seconds)
        for phase, spent in phases.items():
            self._phase_seconds.labels(phase).observe(spent)

    def observe_request(self, route: str, outcome: str, seconds: float) -> None:
        """A request ended."""
        self._requests.labels(route, outcome).inc()
        self._request_seconds.labels(route).observe(seconds)

    def observe_backend_death(self, slot: Slot) -> None:
        """A backend's process ended without being asked."""
        self._deaths.labels(slot.value).inc()

    def observe_run(self, outcome: str, ended_at: datetime) -> None:
        """A run ended."""
        self._runs.labels(outcome).inc()
        self._run_ended.labels(outcome).set(ended_at.timestamp())

    def observe_chunks(self, embedded: int) -> None:
        """So many more vectors were stored."""
        self._chunks.inc(embedded)

    def page(self, now: Figures) -> bytes:
        """All of it, in Prometheus's text format (version 1.0.0, `CONTENT_TYPE_LATEST`)."""
        asked = CollectorRegistry()
        asked.register(now)
        return generate_latest(self.registry) + generate_latest(asked)


@dataclass(frozen=True, eq=False, slots=True)
class Figures(Collector):
    """What is so at one moment. counts: None where the database did not answer."""

    host: shapes.HostState
    admission: Admission
    progress: shapes.RunProgress | None
    counts: shapes.Counts | None
    engine: EngineFigures

    def collect(self) -> Iterator[Metric]:
        """The gauges, and the engine's counters."""
        yield from self._host()
        yield from self._work()
        yield from self._engine()

    def _engine(self) -> Iterator[Metric]:
        stats = self.engine.stats
        for name, (about, read) in _ENGINE_COUNTERS.items():
            counter = CounterMetricFamily(f"nightshift_engine_{name}", about, labels=["context"])
            for number, context in enumerate(stats.contexts):
                counter.add_metric([str(number)], read(context))
            if name != "waiting_seconds":
                counter.add_metric(["whole"], read(stats.whole))
            yield counter
        fill = HistogramMetricFamily(
            "nightshift_engine_batch_fill", "Tokens of a batch over its budget; 1 is full.", labels=["context"]
        )
        for number, context in enumerate(stats.contexts):
            bounds = [*map(str, FILL_BOUNDS), "+Inf"]
            fill.add_metric([str(number)], list(zip(bounds, accumulate(context.fills), strict=True)), context.fill_sum)
        yield fill
        yield GaugeMetricFamily(
            "nightshift_engine_tokens_per_second",
            "Tokens that the embedding engine computed, over some seconds.",
            value=self.engine.tokens_per_second,
        )
        yield GaugeMetricFamily(
            "nightshift_engine_queued_tokens", "Tokens that wait for a context.", value=stats.queued_tokens
        )
        yield GaugeMetricFamily(
            "nightshift_engine_queued_requests", "Requests of which something waits.", value=stats.queued_requests
        )

    def _host(self) -> Iterator[Metric]:
        mode = GaugeMetricFamily("nightshift_mode", "1 for the mode that is on.", labels=["mode"])
        wanted = GaugeMetricFamily("nightshift_mode_wanted", "1 for the mode that is wanted.", labels=["mode"])
        for each in Mode:
            mode.add_metric([each.value], each is self.host.mode)
            wanted.add_metric([each.value], each is self.host.wanted)
        yield mode
        yield wanted
        yield GaugeMetricFamily(
            "nightshift_switching", "1 while a switch is under way.", value=self.host.switching is not None
        )
        up = GaugeMetricFamily("nightshift_backend_ready", "1 where a slot's backend is ready.", labels=["slot"])
        failed = GaugeMetricFamily("nightshift_backend_failed", "1 where it has failed.", labels=["slot"])
        for state in self.host.slots:
            up.add_metric([state.slot.value], state.state == "ready")
            failed.add_metric([state.slot.value], state.state == "failed")
        yield up
        yield failed
        flying = GaugeMetricFamily("nightshift_requests_in_flight", "Requests that hold a slot.", labels=["slot"])
        waiting = GaugeMetricFamily("nightshift_requests_waiting", "Requests that wait for it.", labels=["slot"])
        for slot in Slot:
            flying.add_metric([slot.value], self.admission.in_flight(slot))
            waiting.add_metric([slot.value], self.admission.waiting(slot))
        yield flying
        yield waiting
        yield from self._questions()
        if self.host.gpu is not None:
            memory = GaugeMetricFamily("nightshift_gpu_memory_bytes", "Memory of the GPU.", labels=["kind"])
            memory.add_metric(["used"], self.host.gpu.used_bytes)
            memory.add_metric(["total"], self.host.gpu.total_bytes)
            yield memory

    def _questions(self) -> Iterator[Metric]:
        asked = self.host.questions
        yield GaugeMetricFamily(
            "nightshift_question_server_up",
            "1 while the server for questions runs, which answers while the slot does not.",
            value=asked.state == "ready",
        )
        yield GaugeMetricFamily("nightshift_questions_in_flight", "Questions that are with it.", value=asked.asking)
        yield CounterMetricFamily("nightshift_question_server_starts", "How often it was started.", value=asked.starts)
        yield CounterMetricFamily("nightshift_questions", "Questions that it answered.", value=asked.answered)

    def _work(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("nightshift_run_active", "1 while a run is at work.", value=self.progress is not None)
        rate = self.progress.chunks_per_second if self.progress else 0.0
        yield GaugeMetricFamily("nightshift_chunks_per_second", "Of the run at work, over half a minute.", value=rate)
        yield GaugeMetricFamily("nightshift_store_up", "1 where the database answers.", value=self.counts is not None)
        if self.counts is None:
            return
        documents = GaugeMetricFamily("nightshift_documents", "Documents by state.", labels=["state"])
        for state, number in self.counts.documents.items():
            if state != "total":
                documents.add_metric([state], number)
        yield documents
        chunks = GaugeMetricFamily("nightshift_chunks", "Chunks by state.", labels=["state"])
        embedded = self.counts.chunks.get("embedded", 0)
        chunks.add_metric(["embedded"], embedded)
        chunks.add_metric(["waiting"], self.counts.chunks.get("total", 0) - embedded)
        yield chunks
        texts = GaugeMetricFamily("nightshift_texts", "Texts of POST /embed by state.", labels=["state"])
        for state, number in self.counts.texts.items():
            if state != "total":
                texts.add_metric([state], number)
        yield texts
