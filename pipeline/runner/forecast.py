"""The plan of a host: what waits, how fast it is here, which times are ahead, and when all is done."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sqlalchemy.orm import Session

from pipeline.core.documents import DocumentKind
from pipeline.core.modes import Mode, Slot, serves
from pipeline.core.plan import Backlog, Finish, Forecast, WorkTime, plan_nights
from pipeline.core.rates import Rate, Rates, Sample, measure_rates
from pipeline.core.schedule import Desired, Hold, Job, forecast, latest_end, next_windows, so_far, window_at
from pipeline.settings import Settings
from pipeline.store import loads, models, pending, runs
from pipeline.store.database import name_of_host
from pipeline.store.jobs import job_states
from pipeline.store.pending import Aimed, Density, Pending
from pipeline.store.runs import StoredRun

RUNS = 8
"""Runs whose measurements count."""

UNKNOWN_LOAD = 60.0
"""Seconds that a model is taken to need to load that was never loaded here."""

UNKNOWN_BYTES_A_PAGE = 50_000
UNKNOWN_TOKENS_A_PAGE = 500
"""Of documents while none of their kind was read yet: text with a few pictures, and a page of running text."""

HORIZON = dt.timedelta(days=400)


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """What waits in a source. pages: an estimate, of what is to be read. tokens: of what is read already.

    anew: of the documents to be read, those that were made with other settings.
    """

    source: str
    documents: int
    pages: float
    read: int
    chunks: int
    tokens: int
    anew: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that the forecast is made from, and the forecast.

    assumed: what was not measured here, in words. never_looked_at: folders that no run has looked at yet; nothing of
    them is in the forecast.
    """

    made_at: dt.datetime
    sources: Sequence[SourcePlan]
    backlog: Backlog
    rates: Rates
    forecast: Forecast
    next_time: WorkTime | None
    assumed: Sequence[str] = field(default_factory=list)
    never_looked_at: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """For programs: instants in UTC, ISO 8601."""
        night = next((night for night in self.forecast.nights if not night.time.reads_only), None)
        return {
            "made_at": _instant(self.made_at),
            "pending": {
                "documents_to_read": self.backlog.documents,
                "pages_to_read": round(self.backlog.pages),
                "documents_read": sum(source.read for source in self.sources),
                "chunks": sum(source.chunks for source in self.sources),
                "tokens": round(self.backlog.tokens),
                "tokens_of_unread": round(self.backlog.new_tokens),
                "by_source": [asdict(source) | {"pages": round(source.pages)} for source in self.sources],
            },
            "rates": {
                "runs": self.rates.runs,
                "pages_per_second": _rate(self.rates.pages),
                "tokens_per_second": _rate(self.rates.tokens),
                "slowest_request_seconds": round(self.rates.request_seconds, 3),
            },
            "assumed": list(self.assumed),
            "never_looked_at": list(self.never_looked_at),
            "next_window": None
            if self.next_time is None
            else {
                "job": self.next_time.job,
                "start": _instant(self.next_time.start),
                "stop_at": _instant(self.next_time.end),
                "seconds": round(self.next_time.seconds),
                "pages": None if night is None else round(night.pages),
                "tokens": None if night is None else round(night.tokens),
                "done_at": None if night is None else _instant(night.done_at),
            },
            "read_ahead": [
                {
                    "job": night.time.job,
                    "start": _instant(night.time.start),
                    "end": _instant(night.time.end),
                    "pages": round(night.pages),
                }
                for night in self.forecast.nights
                if night.time.reads_only
            ][:20],
            "known": self.forecast.known,
            "nights": {
                "soonest": _finish(self.forecast.soonest),
                "likely": _finish(self.forecast.likely),
                "latest": _finish(self.forecast.latest),
            },
        }


@dataclass(frozen=True, slots=True)
class Timing:
    """What a change of mode takes: seconds for requests to end, and for the last batch to be stored.

    default, hold, finished: as `desired_mode` takes them; jobs that are not in `finished` are looked up.
    """

    drain: float = 5.0
    reserve: float = 10.0
    default: Mode = Mode.IDLE
    hold: Hold | None = None
    finished: Mapping[str, dt.datetime] = field(default_factory=dict)


def timing_of(settings: Settings, hold: Hold | None = None) -> Timing:
    """What a change of mode takes by the settings."""
    return Timing(reserve=settings.switch.reserve, default=Mode(settings.default_mode), hold=hold)


def make_plan(
    session: Session, jobs: Sequence[Job], now: dt.datetime, timing: Timing, aim: Aimed | None = None
) -> Plan:
    """The plan of this host, from what its database holds at this moment; changes nothing.

    aim: what the settings want; what was made for something else waits too.
    """
    waiting = pending.pending_by_source(session, aim)
    kinds = {density.kind: density for density in pending.densities(session, [kind.value for kind in DocumentKind])}
    sources, backlog = _backlog(waiting, kinds)
    states = job_states(session)
    ended = so_far({name: state.last_finished for name, state in states.items() if state.last_finished}, now)
    timing = replace(timing, finished=ended | dict(timing.finished))
    device = _device(jobs, now, timing)
    rates = measure_rates(samples(session, device, None if aim is None else aim.fingerprint))
    times = list(work_times(jobs, now, _load_seconds(session), timing))
    next_time = next((time for time in times if not time.reads_only), None)
    return Plan(
        made_at=now,
        sources=sources,
        backlog=backlog,
        rates=rates,
        forecast=plan_nights(backlog, rates, times),
        next_time=next_time,
        assumed=list(_assumed(waiting, kinds, rates, backlog)),
    )


def samples(session: Session, device: str | None = None, model: str | None = None) -> list[Sample]:
    """What this host's last runs measured, newest first; of embedding only by the model that is waited for.

    model: its fingerprint, where the database is not to be asked.
    device: that it is to be embedded on; None is the GPU, where it was ever done there. Reading depends on neither.
    """
    found = runs.measured_runs(session, name_of_host(session), RUNS)
    if device is None and any(run.measured.device == "gpu" for run in found):
        device = "gpu"
    model = model or pending.awaited_model(session)
    return [_sample(run, model, device) for run in found]


def bytes_a_page(session: Session) -> dict[str, float]:
    """Of each kind of document that was read before."""
    found = pending.densities(session, [kind.value for kind in DocumentKind])
    return {density.kind: max(1.0, density.size / density.pages) for density in found if density.pages}


def work_times(jobs: Sequence[Job], now: dt.datetime, load_seconds: float, timing: Timing) -> Iterator[WorkTime]:
    """The times ahead in which something is read or embedded, by their start, as the schedule has them."""
    times = list(_embedding_times(jobs, now, load_seconds, timing))
    until = times[-1].end if times else now + HORIZON
    busy = [(time.start, time.end) for time in times]
    for job in jobs:
        if job.task == "extract" and job.enabled:
            times += _reading_times(job, now, until, busy, timing.finished.get(job.name))
    yield from sorted(times, key=lambda time: time.start)


def _embedding_times(jobs: Sequence[Job], now: dt.datetime, load_seconds: float, timing: Timing) -> Iterator[WorkTime]:
    """The windows of jobs that embed; one that a window of a higher priority interrupts is two."""
    open_since: tuple[dt.datetime, Desired] | None = None
    at = now
    for at, wanted in forecast(jobs, now, timing.hold, timing.default, finished=timing.finished):
        if open_since is not None and open_since[1].window != wanted.window:
            yield from _until_next(*open_since, at, wanted, load_seconds, timing)
            open_since = None
        if open_since is None and _has_work(wanted, timing.finished):
            open_since = (at, wanted)
        if at - now > HORIZON:
            break
    if open_since is not None:  # no change is in sight
        yield from _until_next(*open_since, open_since[1].window.end if open_since[1].window else at, None, 0.0, timing)


def _has_work(wanted: Desired, finished: Mapping[str, dt.datetime]) -> bool:
    """Whether a task with the embedding model is open, and was not done in this window already."""
    job, window = wanted.job, wanted.window
    if job is None or window is None or job.task != "ingest":
        return False
    done = finished.get(job.name)
    return done is None or done < window.start


def _until_next(
    start: dt.datetime, mine: Desired, end: dt.datetime, following: Desired | None, load_seconds: float, timing: Timing
) -> Iterator[WorkTime]:
    assert mine.job is not None
    if following is not None and serves(following.mode, Slot.GENERATION) and not serves(mine.mode, Slot.GENERATION):
        # The next mode is loaded before its time where it is to serve what this one does not.
        end = latest_end(end, load_seconds, timing.drain, timing.reserve)
    if end > start:
        yield WorkTime(start, end, mine.job.name)


def _reading_times(
    job: Job,
    now: dt.datetime,
    until: dt.datetime,
    busy: Sequence[tuple[dt.datetime, dt.datetime]],
    finished: dt.datetime | None,
) -> Iterator[WorkTime]:
    opened = window_at(job, now)
    if opened is not None and finished is not None and finished >= opened.start:
        opened = None
    windows = [*([] if opened is None else [opened]), *next_windows(job, now, 2000)]
    for window in windows:
        if window.start >= until:
            return
        start = max(window.start, now)
        for begin, end in busy:  # there it makes room
            if begin < window.end and end > start:
                if begin > start:
                    yield WorkTime(start, begin, job.name, reads_only=True)
                start = max(start, end)
        if start < window.end:
            yield WorkTime(start, window.end, job.name, reads_only=True)


def _backlog(waiting: Sequence[Pending], kinds: Mapping[str, Density]) -> tuple[list[SourcePlan], Backlog]:
    sources: list[SourcePlan] = []
    total, tokens_of_unread = Backlog(), 0.0
    for each in waiting:
        pages = 0.0
        for kind, unread in each.unread.items():
            density = kinds.get(kind)
            a_page = density.size / density.pages if density and density.pages else UNKNOWN_BYTES_A_PAGE
            of_kind = unread.pages + max(float(unread.unmeasured), unread.size / max(1.0, a_page))
            tokens_a_page = density.tokens / density.pages if density and density.pages else UNKNOWN_TOKENS_A_PAGE
            pages += of_kind
            tokens_of_unread += of_kind * tokens_a_page
        documents = sum(unread.documents for unread in each.unread.values())
        sources.append(SourcePlan(each.source, documents, pages, each.read, each.chunks, each.tokens, each.anew))
        total = Backlog(total.documents + documents, total.pages + pages, tokens_of_unread, total.tokens + each.tokens)
    return sources, total


def _device(jobs: Sequence[Job], now: dt.datetime, timing: Timing) -> str | None:
    """Where the next night embeds: in the mode `mixed` on the processor; else as it was measured last."""
    for _, wanted in forecast(jobs, now, timing.hold, timing.default, finished=timing.finished):
        if _has_work(wanted, timing.finished):
            return "cpu" if wanted.mode is Mode.MIXED else None
    return None


def _sample(run: StoredRun, fingerprint: str | None, device: str | None) -> Sample:
    measured = run.measured
    same = fingerprint is None or measured.fingerprint in (None, fingerprint)
    same = same and (device is None or measured.device in (None, device))
    return Sample(
        pages=measured.pages_read,
        read_seconds=measured.extract_seconds,
        tokens=measured.tokens_embedded if same else 0,
        embed_seconds=measured.embed_seconds if same else 0.0,
        request_seconds=measured.request_seconds if same else 0.0,
    )


def _load_seconds(session: Session) -> float:
    """Until the language model serves again: the one that was loaded last here, wherever it takes the longest."""
    embedding = set(models.known_fingerprints(session).values())
    others = [load for load in loads.measured_loads(session) if load.fingerprint not in embedding]
    return max((load.seconds_max for load in others if load.fingerprint == others[0].fingerprint), default=UNKNOWN_LOAD)


def _assumed(waiting: Sequence[Pending], kinds: Mapping[str, Density], rates: Rates, backlog: Backlog) -> Iterator[str]:
    unread = sorted({kind for each in waiting for kind in each.unread} - kinds.keys())
    if unread:
        names = " and ".join(kind.upper() for kind in unread)
        yield (
            f"no {names} was read yet: a page is taken to be {UNKNOWN_BYTES_A_PAGE // 1000} kB "
            f"with {UNKNOWN_TOKENS_A_PAGE} tokens"
        )
    if rates.pages is None and backlog.pages:
        yield "how fast documents are read here is not known until a run has read some"
    if rates.tokens is None and backlog.all_tokens:
        yield "how fast this model embeds here is not known until a run has embedded something"


def _rate(rate: Rate | None) -> dict[str, float] | None:
    return None if rate is None else {name: round(value, 3) for name, value in asdict(rate).items()}


def _finish(finish: Finish) -> dict[str, Any]:
    return {"nights": finish.nights, "at": _instant(finish.at)}


def _instant(instant: dt.datetime | None) -> str | None:
    return None if instant is None else instant.astimezone(dt.UTC).isoformat(timespec="seconds")
