"""`plan`: what waits, what fits into the next window, and in how many nights it is done."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace

from pipeline.cli.console import errors_explained, not_there_yet, open_store, out, print_json
from pipeline.cli.view import duration, printable
from pipeline.cli.words import as_called, counted, never_looked
from pipeline.core.plan import Finish, Night
from pipeline.core.rates import Rate
from pipeline.ingest.work import utc_now
from pipeline.runner.forecast import Plan, make_plan, timing_of
from pipeline.runner.inbox import never_looked_at
from pipeline.runner.target import aimed_at
from pipeline.scheduler.jobs import load_jobs
from pipeline.store import holds, models

SOURCES_SHOWN = 20
NIGHTS_SHOWN = 5


def plan_command(database: str | None, *, as_json: bool) -> None:
    """Print the plan. Of a database that is not there yet nothing waits, and none is made."""
    with errors_explained(as_json=as_json), open_store(database) as (loaded, store):
        settings, now = loaded.settings, utc_now()
        jobs = load_jobs(settings.jobs_dir).jobs
        with store.snapshot() as session:
            held = holds.current_hold(session, now)
            aim = aimed_at(settings, models.known_fingerprints(session))
            plan = make_plan(session, jobs, now, timing_of(settings, None if held is None else held.hold), aim)
            plan = replace(plan, never_looked_at=never_looked_at(session, settings, jobs))
        missing = not_there_yet(loaded)
    if as_json:
        print_json(plan.as_json())
        return
    console = out()
    for line in [*([missing] if missing else []), *lines(plan)]:
        console.print(printable(as_called(line), console.encoding), soft_wrap=True, markup=False)


def lines(plan: Plan) -> Iterator[str]:
    """The plan, line by line."""
    if plan.backlog.empty:
        yield "Nothing waits, as of the last look at the folders."
    else:
        yield from _waiting(plan)
    yield from never_looked(plan.never_looked_at)
    yield from _speed(plan)
    yield from _nights(plan)


def _waiting(plan: Plan) -> Iterator[str]:
    yield "Waiting, as of the last look at the folders:"
    for source in plan.sources[:SOURCES_SHOWN]:
        parts = []
        if source.documents:
            pages = counted(round(source.pages), "page")
            parts.append(f"{counted(source.documents, 'document')} to read (about {pages})")
        if source.chunks:
            chunks, tokens = counted(source.chunks, "chunk"), counted(source.tokens, "token")
            parts.append(f"{chunks} to embed ({tokens})")
        yield f"  {source.source}: {', '.join(parts) or 'nothing'}"
    anew = sum(source.anew for source in plan.sources)
    if anew:
        yield f"The settings changed: {counted(anew, 'document')} will be made anew, and can be searched until then."
    if len(plan.sources) > SOURCES_SHOWN:
        yield f"  and {len(plan.sources) - SOURCES_SHOWN} more sources: `python -m pipeline plan --json`"


def _speed(plan: Plan) -> Iterator[str]:
    rates = plan.rates
    if rates.pages is not None:
        yield f"Reads {_range(rates.pages)} pages/s here."
    if rates.tokens is not None:
        yield f"Embeds {_range(rates.tokens)} tokens/s here."
    if rates.pages is None and rates.tokens is None:
        yield "How fast this host is is not known yet: `python -m pipeline run-now` measures it."
    for each in plan.assumed:
        yield f"Assumed: {each}."


def _nights(plan: Plan) -> Iterator[str]:
    if plan.next_time is None:
        yield "No window in which anything is embedded is in sight: `python -m pipeline jobs`."
        return
    time = plan.next_time
    yield f"Next window: {time.job}, {_span(time.start, time.end)} ({duration(time.seconds)} for work)."
    if plan.backlog.empty:
        return
    for night in [night for night in plan.forecast.nights if night.pages or night.tokens][:NIGHTS_SHOWN]:
        yield f"  {_night(night)}"
    likely = plan.forecast.likely
    if not plan.forecast.known:
        yield "When all is done cannot be said before that is measured."
    elif likely.at is None or likely.nights is None:
        yield "It is not done in any window that is in sight."
    else:
        yield f"Done in {_in_nights(likely)}{_between(plan.forecast.soonest, plan.forecast.latest)}."


def _night(night: Night) -> str:
    what = f"read about {counted(round(night.pages), 'page')}" if night.pages >= 1 else ""
    if not night.time.reads_only:
        what += (", " if what else "") + f"embed about {counted(round(night.tokens), 'token')}"
    done = f", done at {_clock(night.done_at)}" if night.done_at else ""
    return f"{night.time.job}, {_span(night.time.start, night.time.end)}: {what or 'nothing left to read'}{done}"


def _in_nights(finish: Finish) -> str:
    assert finish.nights is not None
    assert finish.at is not None
    return f"{counted(finish.nights, 'night')}, {_clock(finish.at)}"


def _between(soonest: Finish, latest: Finish) -> str:
    """The range, where its ends differ in nights."""
    if soonest.nights == latest.nights:
        return ""
    early = "" if soonest.nights is None else f"{soonest.nights} at the best"
    late = "more than are in sight at the worst" if latest.nights is None else f"{latest.nights} at the worst"
    return f" ({', '.join(part for part in (early, late) if part)})"


def _range(rate: Rate) -> str:
    return f"{_figure(rate.likely)} ({_figure(rate.low)} to {_figure(rate.high)})"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def _span(start: dt.datetime, end: dt.datetime) -> str:
    return f"{_clock(start)} to {end.astimezone():%H:%M}"


def _clock(instant: dt.datetime) -> str:
    return f"{instant.astimezone():%a %Y-%m-%d %H:%M}"
