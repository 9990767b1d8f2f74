"""Finds the fastest options for this host's device, model and chunks, and keeps them.

The search is decided in `core.tuning`, one measurement is made by `backends.tuning`; here they meet the clock, the
database and whoever watches.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from pipeline.backends.accelerator import gpu_vendor
from pipeline.backends.launch import BackendKind, Programs, sentence_transformers_installed
from pipeline.backends.models import ModelFile, resolve
from pipeline.backends.options import EmbeddingOptions
from pipeline.backends.serving.tuned import device_name, usable_cores
from pipeline.backends.tuning import Bench, Measured, measure
from pipeline.core.errors import BackendStartFailed, ModelError
from pipeline.core.modes import Device
from pipeline.core.tuning import (
    Combination,
    Dimension,
    Space,
    Trial,
    Verdict,
    judge,
    llama_cpp_space,
    measured,
    next_trial,
    padded_space,
)
from pipeline.ingest.work import utc_now
from pipeline.runner.sample import Sample, take_sample
from pipeline.runner.target import embedding_options, identity, take_aim
from pipeline.settings import Settings
from pipeline.store import tunings
from pipeline.store.database import Database
from pipeline.store.tunings import StoredTuning

log = structlog.get_logger(__name__)

SHARE_OF_BUDGET = 100
SHORTEST, LONGEST = 1.0, 5.0
"""Seconds of one measurement, which is a hundredth of the budget between these."""

TUNABLE: Mapping[str, Any] = {
    "n_batch": None, "contexts": None, "threads": None, "flash_attn": None, "use_extra_bufts": True,
}  # fmt: skip
"""Options that are measured, with what each is where nobody chose."""


@dataclass(slots=True)
class Engine:
    """One engine under measurement. file: its model. began, budget: seconds, of `time.monotonic` and for it alone.

    told: what its server said about itself. verdict: None until something was measured. kept: whether it was stored.
    """

    kind: BackendKind
    file: ModelFile
    budget: float
    began: float = 0.0
    device: str = ""
    build: str = ""
    space: Space = field(default_factory=lambda: Space((), ()))
    trials: list[Trial] = field(default_factory=list)
    last: Measured | None = None
    at_work: Combination | None = None
    verdict: Verdict | None = None
    kept: bool = False

    def options(self, combination: Combination) -> dict[str, Any]:
        """What a combination sets."""
        return self.space.options(combination)

    def rates(self) -> Mapping[Combination, Sequence[float]]:
        """Every combination that worked, the fastest first, with the rates that count."""
        return measured(self.trials)

    def problems(self) -> Mapping[Combination, str]:
        """Every combination that failed, and how."""
        return {trial.combination: trial.problem for trial in self.trials if trial.rate is None}

    def best_options(self) -> dict[str, Any]:
        """What is to be kept: nothing where the engine's own choice is as good."""
        return self.options(self.verdict.best) if self.verdict and self.verdict.proved else {}


@dataclass(slots=True)
class Tuning:
    """All of one `tune`: what it measures with, and how far it has come. stopped: somebody ended it early."""

    budget: float
    on_cpu: bool = False
    model: str = ""
    sample: Sample | None = None
    engines: list[Engine] = field(default_factory=list)
    stopped: bool = False
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    changed: Callable[[], None] = lambda: None

    @property
    def fastest(self) -> Engine | None:
        """The engine with the best rate; None where nothing worked."""
        rated = [engine for engine in self.engines if engine.verdict]
        return max(rated, key=lambda engine: engine.verdict.rate if engine.verdict else 0.0, default=None)


async def tune(
    settings: Settings,
    store: Database,
    tuning: Tuning,
    programs: Programs,
    *,
    all_engines: bool = False,
    other_model: str | None = None,
) -> None:
    """Measure until the time is over, nothing is left to learn, or `tuning.stop` is set; keep what was found.

    all_engines: compare all that are installed. other_model: the same model in the form that another engine reads.

    Raises:
        ModelError, SettingsError, StoreError: as `take_aim`.
        BackendStartFailed: an engine does not start, whatever its options.
    """
    aim = await take_aim(settings, store)
    tuning.model = aim.model.name
    files = [aim.file]
    if other_model is not None:
        files.append(await asyncio.to_thread(resolve, other_model, settings.data_dir / "models"))
    kinds = [(kind, file) for file in files for kind in kinds_for(file, programs, all_engines=all_engines)]
    tuning.engines = [Engine(kind, file, tuning.budget / len(kinds)) for kind, file in kinds]
    with tempfile.TemporaryDirectory(prefix="nightshift-tune-") as folder:
        for engine in tuning.engines:
            if tuning.stop.is_set():
                break
            bench = _bench(settings, tuning, engine, programs, Path(folder))
            if tuning.sample is None:
                safe = _options(settings, engine, {"use_extra_bufts": False})
                tuning.sample = await take_sample(settings, store, aim, bench, safe)
            bench = dataclasses.replace(bench, chunks=tuning.sample.chunks)
            await _tune_engine(settings, tuning, engine, bench)
            await _keep(store, settings, engine)
            tuning.changed()
    tuning.stopped = tuning.stop.is_set()


def kinds_for(file: ModelFile, programs: Programs, *, all_engines: bool) -> list[BackendKind]:
    """The engines here that read a model in this form, our own first."""
    if file.kind == "directory":
        if not sentence_transformers_installed():
            raise ModelError("a model folder needs sentence-transformers: .venv/bin/pip install -e '.[torch]'")
        return ["sentence-transformers"]
    return ["llama-cpp", "llama-server"] if all_engines and programs.llama_server else ["llama-cpp"]


def overriding(settings: Settings) -> list[str]:
    """The settings that an operator made and that stand above what was measured."""
    return [f"embedding.{name}" for name, own in TUNABLE.items() if getattr(settings.embedding, name) != own]


def _bench(settings: Settings, tuning: Tuning, engine: Engine, programs: Programs, folder: Path) -> Bench:
    vendor = gpu_vendor()
    on_cpu = tuning.on_cpu or vendor is None or settings.embedding.n_gpu_layers == 0
    return Bench(
        kind=engine.kind,
        device=Device.CPU if on_cpu else Device.GPU,
        model=engine.file,
        chunks=(),
        seconds=min(max(engine.budget / SHARE_OF_BUDGET, SHORTEST), LONGEST),
        log_dir=folder,
        programs=programs,
        gpu=vendor,
    )


def _options(settings: Settings, engine: Engine, chosen: Mapping[str, Any]) -> EmbeddingOptions:
    """Those of the settings, but what is measured."""
    own = dataclasses.replace(embedding_options(settings, str(engine.file.path)), **TUNABLE, tuned=())
    return dataclasses.replace(own, **chosen)


async def _tune_engine(settings: Settings, tuning: Tuning, engine: Engine, bench: Bench) -> None:
    engine.began = time.monotonic()
    first = await _first(settings, tuning, engine, bench)
    if first is None:
        return
    engine.trials.append(first)
    engine.verdict = judge(engine.space, engine.trials)
    tuning.changed()
    while not tuning.stop.is_set():
        left = engine.budget - (time.monotonic() - engine.began)
        combination = next_trial(engine.space, engine.trials, left)
        if combination is None:
            return
        engine.at_work = combination
        tuning.changed()
        result = await _unless_stopped(tuning, measure(bench, _options(settings, engine, engine.options(combination))))
        engine.at_work = None
        if result is None:
            return
        engine.last = result
        engine.trials.append(Trial(combination, result.rate, result.problem, result.seconds))
        engine.verdict = judge(engine.space, engine.trials)
        log.debug("a combination was measured", options=engine.options(combination), rate=result.rate)
        tuning.changed()


async def _first(settings: Settings, tuning: Tuning, engine: Engine, bench: Bench) -> Trial | None:
    """The engine's own choice, measured, which also says what can be chosen. None: stopped."""
    result = await _unless_stopped(tuning, measure(bench, _options(settings, engine, {})))
    if result is None:
        return None
    told = result.told
    if result.rate is None:
        # What it chose is not known, unless it was the repacking of weights that ended it.
        again = await _unless_stopped(tuning, measure(bench, _options(settings, engine, {"use_extra_bufts": False})))
        if again is None:
            return None
        if again.rate is None:
            raise BackendStartFailed(f"{engine.kind} does not work with this model at all: {result.problem}")
        told = again.told
    on_cpu = bench.device is Device.CPU
    engine.device = str(told.get("device") or device_name(on_gpu=not on_cpu))
    engine.build = str(told.get("build") or engine.kind)
    engine.space = space_of(engine.kind, told)
    engine.last = result
    return Trial(engine.space.start, result.rate, result.problem, result.seconds)


def space_of(kind: str, told: Mapping[str, Any]) -> Space:
    """What can be chosen of an engine, from what its server said that it chose by itself."""
    cores = usable_cores()
    if kind == "llama-cpp":
        return llama_cpp_space(
            on_gpu=bool(told["on_gpu"]),
            cores=cores,
            n_batch=int(told["n_batch"]),
            contexts=int(told["contexts"]),
            threads=int(told["threads"]),
            flash_attn=str(told["flash_attn"]),
        )
    if kind == "llama-server":
        sizes = tuple({"n_batch": size} for size in (512, 1024, 2048))
        side_by_side = tuple({"contexts": count} for count in (1, 2, 4, 8))
        return Space((Dimension("batch", sizes), Dimension("parallel", side_by_side)), (2, 2))
    if told.get("n_batch") and told.get("threads") and told.get("contexts"):
        return padded_space(
            on_gpu=bool(told.get("on_gpu")),
            cores=cores,
            n_batch=int(told["n_batch"]),
            contexts=int(told["contexts"]),
            threads=int(told["threads"]),
        )
    return Space((), ())


async def _unless_stopped(tuning: Tuning, work: Any) -> Any:
    """What `work` gives, or None where a stop was asked for first; its server is ended all the same."""
    doing = asyncio.create_task(work, name="measure")
    stopping = asyncio.create_task(tuning.stop.wait(), name="stop")
    try:
        await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        doing.cancel()
        stopping.cancel()
        await asyncio.gather(doing, stopping, return_exceptions=True)


async def _keep(store: Database, settings: Settings, engine: Engine) -> None:
    """Store what was found, unless nothing was compared."""
    if engine.verdict is None or len({trial.combination for trial in engine.trials}) < 2:
        return
    await store.write(
        tunings.keep_tuning,
        StoredTuning(
            fingerprint=identity(engine.file, settings.embedding.pooling),
            device=engine.device,
            build=engine.build,
            engine=engine.kind,
            options=engine.best_options(),
            tokens_per_second=round(engine.verdict.rate, 1),
            trials=table(engine),
            measured_at=utc_now(),
        ),
    )
    engine.kept = True


def table(engine: Engine) -> list[dict[str, Any]]:
    """Every combination that was measured, the fastest first, then those that failed; fit for JSON."""
    rates, problems = engine.rates(), engine.problems()
    best = engine.verdict.best if engine.verdict else None
    rows = [
        {
            "options": engine.options(combination),
            "tokens_per_second": round(statistics.median(found), 1),
            "measurements": [round(rate, 1) for rate in found],
            "own_choice": combination == engine.space.start,
            "best": combination == best,
            "problem": None,
        }
        for combination, found in rates.items()
    ]
    return rows + [
        {
            "options": engine.options(combination),
            "tokens_per_second": None,
            "measurements": [],
            "own_choice": combination == engine.space.start,
            "best": False,
            "problem": problem,
        }
        for combination, problem in problems.items()
    ]
