"""`verify`: whether files, rows, vectors and the mirror agree; and, where it is wanted, what mends them.

Looking changes nothing and holds up nobody: it reads one snapshot of the database. Mending holds the database as a
run does, so that nobody else is at work on it. What cannot be mended from rows, or from a chunk's own text, is left
to a run, which reads the files again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from pipeline.core.errors import BackendError, MirrorError, ModelError, UsageError
from pipeline.core.verifying import KINDS, Disagreement, Key, Remedy, Tally, is_beyond_belief
from pipeline.ingest.progress import Progress
from pipeline.runner.alone import hold_alone
from pipeline.runner.comparing import Compared, compare_files
from pipeline.runner.indexing import renew_indexes
from pipeline.runner.looking import looking
from pipeline.runner.mending import Mending, Tell
from pipeline.runner.mirroring import beside
from pipeline.runner.reembedding import compare_vectors, model_server
from pipeline.runner.report import RunReport
from pipeline.runner.run import Run, carry_out
from pipeline.runner.untold import is_alive, this_process
from pipeline.settings import Settings
from pipeline.store import models, runs
from pipeline.store.checks import vectors
from pipeline.store.checks.everything import check_database, located
from pipeline.store.database import Database, name_of_host
from pipeline.store.mirror.outbox import count_owed
from pipeline.store.qdrant.compare import PointDisagreement

log = structlog.get_logger(__name__)

ROUNDS = 20
"""Of mending: what was mended may show what was hidden behind it."""

AT_ONCE = 100_000
"""Disagreements of a kind that are mended in a round after the first."""

INDEXES = ("index-damaged", "schema-missing")
"""What is mended first: other findings may come from it."""

NOT_OF_ROWS = ("file-bytes", "vector-other", "chunk-tokens")
"""What does not come from it, and is not looked for again between two rounds."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look at. paths: None is every source. hash_all: every file's bytes, and not those of a sample.

    sample: chunks that are computed again, and files that are read. embed: compute any at all. seed: of the sample.
    """

    paths: Sequence[Path] | None = None
    hash_all: bool = False
    sample: int = 32
    embed: bool = True
    seed: int = 0


@dataclass(slots=True)
class Findings:
    """What was found. errors: what could not be looked at; notes: what was not, and why that is well.

    files, hashed, embedded: how many were looked at. places: where a run would look.
    """

    tally: Tally = field(default_factory=Tally)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    hashed: int = 0
    embedded: int = 0
    places: list[Path] = field(default_factory=list)

    @property
    def agree(self) -> bool:
        """Whether all could be looked at, and nothing was found."""
        return not self.tally.total and not self.errors


@dataclass(slots=True)
class Repaired:
    """What was done about it. mended: by code. left: what could not be mended, and why. after: what is found now.

    stopped: somebody stopped it, and `after` is `before`.
    """

    before: Findings
    after: Findings
    mended: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)
    run: RunReport | None = None
    stopped: bool = False


async def verify(settings: Settings, store: Database, wanted: Wanted, tell: Tell, *, on_gpu: bool = True) -> Findings:
    """Look at everything. on_gpu: whether the model may be loaded there.

    Raises:
        UsageError: a path is in no source.
        StoreError: the database cannot be read.
    """
    found = Findings()
    at_work = await store.read(_at_work)
    await store.read(check_database, found.tally, wanted.sample, wanted.seed, tell)
    if is_beyond_belief(found.tally):
        found.notes.append("what the database says is not to be believed: nothing else was looked at")
        found.tally.kept = await store.read(_located, found.tally.kept)
        return found
    if at_work is None:
        await _files(settings, store, wanted, found, tell)
    else:
        found.notes.append(f"{at_work} is at work: files were not compared, as it changes what is known of them")
    await _qdrant(settings, store, found, tell, at_work)
    if wanted.embed and wanted.sample:
        await _sample(settings, store, wanted, found, tell, on_gpu=on_gpu)
    else:
        found.notes.append("no vectors were computed again")
    found.tally.kept = await store.read(_located, found.tally.kept)
    return found


async def repair(
    settings: Settings, store: Database, wanted: Wanted, tell: Tell, stop: asyncio.Event, *, run: bool = True
) -> Repaired:
    """Look, mend what can be mended, have a run do the rest if `run`, and look again.

    The caller holds this host. A process that dies in between leaves what it mended, and the rest as it was.

    Raises:
        RunInProgress: a run is at work on the database, on whatever host.
        UsageError, StoreError: as `verify`.
    """
    before = await verify(settings, store, wanted, tell)
    done = Repaired(before, before)
    done.stopped = stop.is_set()
    if not before.tally.total or is_beyond_belief(before.tally) or stop.is_set():
        return done
    now, tried = before.tally, set[Key]()
    # What no document refers to may be of files that are there: a run finds it again, and clears away the rest.
    keep = ("content-unwanted",) if before.errors or any(_is_for_a_run(code) for code in now.counts) else ()
    async with hold_alone(store) as alone:
        for number in range(ROUNDS):
            mending = Mending(settings, alone, looking(settings), tell, done.mended, done.left, stop)
            progressed = await mending.mend(_untried(now, tried, keep))
            if not progressed or stop.is_set():
                break
            again, other = Findings(Tally(AT_ONCE)), replace(wanted, seed=wanted.seed + number + 1)
            await store.read(check_database, again.tally, other.sample, other.seed, tell)
            if now.counts["vector-other"]:
                await _sample(settings, store, other, again, tell, on_gpu=True)
            now = again.tally
    if run and not stop.is_set() and _needs_run(before.tally, done.mended):
        tell("a run", 0, 0)
        try:
            done.run = await _run(settings, store, before.places, stop)
        except UsageError as error:
            done.left.append(f"no run could be done: {error}")
    if done.mended:
        tell("quantized copies and indexes", 0, 0)
        await renew_indexes(store, settings.search.quantized, stop)
    if stop.is_set():
        done.stopped = True
        return done
    await _sync(settings, store, done, tell)
    done.after = await verify(settings, store, wanted, tell)
    return done


def _needs_run(found: Tally, mended: Collection[str]) -> bool:
    queued = {"content-state", "chunk-places", "row-orphan"}
    remade = (Remedy.REMAKE, Remedy.EMBED)
    return any(map(_is_for_a_run, found.counts)) or any(
        code in queued or KINDS[code].remedy in remade for code in mended
    )


def _is_for_a_run(code: str) -> bool:
    return KINDS[code].remedy is Remedy.RUN


async def _run(settings: Settings, store: Database, places: Sequence[Path], stop: asyncio.Event) -> RunReport:
    there = [path for path in dict.fromkeys(places) if await asyncio.to_thread(path.exists)]
    progress = Progress(started_monotonic=time.monotonic())
    return await carry_out(Run(settings, store, there or None, progress, stop))


def _untried(found: Tally, tried: set[Key], keep: Collection[str]) -> Tally:
    """What to mend now: not what was tried, nor what may come from a damaged index, nor what to keep."""
    first = any(found.counts[code] for code in INDEXES)
    codes = (*INDEXES, *NOT_OF_ROWS) if first else KINDS
    listed = [one for code in codes if code not in keep for one in found.kept.get(code, ()) if one.key not in tried]
    tried.update(one.key for one in listed)
    untried = Tally(AT_ONCE)
    untried.add(listed)
    return untried


async def _files(settings: Settings, store: Database, wanted: Wanted, found: Findings, tell: Tell) -> None:
    sample = None if wanted.hash_all else wanted.sample
    last = await store.read(_last_run)
    compared: Compared = await compare_files(
        store, wanted.paths, looking(settings), Tally(), sample=sample, seed=wanted.seed, tell=tell
    )
    if await store.read(_last_run) != last:
        found.notes.append("a run began meanwhile: what was seen of files does not count, as it changes what is known")
        return
    for code, listed in compared.tally.kept.items():
        found.tally.add(listed)
        found.tally.counts[code] += compared.tally.counts[code] - len(listed)
    found.errors += compared.errors
    found.files, found.hashed, found.places = compared.files, compared.hashed, compared.places
    if compared.unasked:
        folders = ", ".join(compared.unasked)
        found.notes.append(f"no run was told to look at {folders} so far: new files were not looked for there")
    if compared.elsewhere:
        found.notes.append(f"sources of other hosts, which this one does not have: {len(compared.elsewhere)}")
    if compared.unsettled:
        found.notes.append(f"files that are being written to, and were not looked at: {compared.unsettled}")


async def _qdrant(settings: Settings, store: Database, found: Findings, tell: Tell, at_work: str | None) -> None:
    """Compare Qdrant with the database, where the settings name one."""
    try:
        async with beside(settings, store) as mirroring:
            if mirroring is None:
                return
            tell("Qdrant", 0, 0)
            found.tally.add(_as_disagreement(point) for point in await mirroring.disagreements())
    except MirrorError as error:
        if at_work is not None:
            found.notes.append(f"Qdrant was not compared: {error}")
        else:
            found.errors.append(f"Qdrant could not be compared: {error}")
    if owed := await store.read(count_owed):
        found.notes.append(f"documents that Qdrant is owed, and that were not compared: {owed:,}")


async def _sync(settings: Settings, store: Database, done: Repaired, tell: Tell) -> None:
    """Bring Qdrant in line: with what disagreed, and with what was mended meanwhile."""
    try:
        async with beside(settings, store) as mirroring:
            if mirroring is None:
                return
            await mirroring.deliver(at_once=True)
            for _ in range(ROUNDS):
                points = await mirroring.disagreements()
                if not points:
                    return
                tell("mending: Qdrant", 0, len(points))
                await mirroring.repair(points)
                done.mended.update(point.code for point in points)
    except MirrorError as error:
        done.left.append(f"Qdrant: {error}")


def _as_disagreement(point: PointDisagreement) -> Disagreement:
    where = f"{point.file or 'Qdrant'}, chunk {point.ordinal}" if point.content is not None else f"point {point.point}"
    return Disagreement(point.code, point.detail, "as in the database", {"point": point.point}, where)


async def _sample(
    settings: Settings, store: Database, wanted: Wanted, found: Findings, tell: Tell, *, on_gpu: bool
) -> None:
    """Compute chunks of the model that search uses again."""
    model = await store.read(models.active_model)
    chunks = [] if model is None else await store.read(vectors.sample, model.id, wanted.sample, wanted.seed)
    if model is None:
        return
    if not chunks:
        if await store.read(vectors.count_stretched, model.id):
            found.notes.append("no vectors were computed again: all were made of more than their chunks' own tokens")
        return

    def beat(more: int) -> None:
        found.embedded += more
        tell("vectors computed again", found.embedded, len(chunks))

    tell("vectors computed again", 0, len(chunks))
    try:
        async with model_server(settings, model, on_gpu=on_gpu) as backend:
            found.tally.add(await compare_vectors(backend, chunks, beat))
    except (ModelError, BackendError) as error:
        found.errors.append(f"no vectors could be computed again: {error} (--no-embed leaves that out)")


def _at_work(session: Session) -> str | None:
    """A run that is at work on the database, in words."""
    me = this_process(name_of_host(session))
    for run in runs.living_runs(session):
        if run.process.host != me.host or is_alive(run.process):
            return f"run {run.id} (pid {run.process.pid} on {run.process.host})"
    return None


def _last_run(session: Session) -> str | None:
    return next((run.id for run in runs.latest_runs(session)), None)


def _located(session: Session, kept: Mapping[str, list[Disagreement]]) -> dict[str, list[Disagreement]]:
    return {code: located(session, listed) for code, listed in kept.items()}
