"""What `status` found, in words: a name and a value for each line. Knows nothing of where it was found."""

from __future__ import annotations

import datetime as dt
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.cli.report import WHY, named
from pipeline.cli.tunings import tuning_in_words
from pipeline.cli.view import duration
from pipeline.cli.words import counted, moment, never_looked, size
from pipeline.store.overview import ModelLine
from pipeline.store.tunings import StoredTuning

SOURCES_SHOWN = 3

Said = Mapping[str, Any]
Rows = Iterator[tuple[str, str]]

_SLOTS = {"generation": "language", "embedding": "embedding"}
_UNSET = {
    "generation": "NIGHTSHIFT_GENERATION_MODEL is not set",
    "embedding": "NIGHTSHIFT_EMBEDDING_MODEL is not set",
}
_SLOT_STATES = {"stopped": "not loaded", "ready": "serves"}


def rows_of(said: Said, now: dt.datetime) -> Rows:
    """The lines, the most urgent first. An empty name belongs to the line above."""
    yield from _daemon(said, now)
    yield from _mode(said, now)
    yield from _slots(said)
    if "documents" in said:
        yield from _run(said, now)
        yield from _waiting(said)
        yield from _library(said)
        yield from _failed(said, now)
    yield from _disk(said)


def _daemon(said: Said, now: dt.datetime) -> Rows:
    daemon, owner = said["daemon"], said["owner"]
    if daemon is None:
        what = "`python -m pipeline daemon` starts one"
        if owner:
            what = f"{owner['kind']} is at work there (pid {owner['pid']}, since {owner['since']})"
        yield "daemon", f"none on the data folder {said['data_dir']}: {what}"
    elif daemon["problem"]:
        yield "daemon", f"{daemon['url']}: {daemon['problem']}" if daemon["url"] else daemon["problem"]
    else:
        yield "daemon", f"{daemon['url']} (pid {owner['pid'] if owner else '?'}), {_since(daemon['started_at'], now)}"
    problems = [*(said["host"] or {}).get("problems", ()), said["device"]["unused_gpu"]]
    for problem in dict.fromkeys(filter(None, problems)):
        yield "problem", problem


def _mode(said: Said, now: dt.datetime) -> Rows:
    """The mode, the hold and the next switch."""
    host, wanted, hold = said["host"], said.get("wanted"), said.get("hold")
    if host is not None and hold is None and host["hold"] is not None:
        hold = host["hold"]
    why, until = "", ""
    if wanted is not None:
        why = _why(wanted["why"])
        until = f", until {_at(wanted['next_change'], now)}" if wanted["next_change"] else ""
    if host is not None:
        elsewhere = f"; {host['wanted']} is wanted" if host["wanted"] != host["mode"] else ""
        yield "mode", f"{host['mode']} {_since(host['since'], now)}{until or ', for good'}{elsewhere}: {why}"
        if (switching := host["switching"]) is not None:
            way = f"{switching['source']} to {switching['target']}"
            yield "switching", f"{way}: {switching['phase']}, for {duration(switching['seconds'])}"
    elif wanted is not None:
        yield "mode", f"none without a daemon; wanted: {wanted['mode']}{until}: {why}"
    if wanted is None:
        return
    if hold is None:
        yield "hold", "none"
    else:
        ends = f"until {_at(hold['until'], now)}" if hold["until"] else "until it is taken back"
        by = f", since {_at(hold['set_at'], now)}" if "set_at" in hold else ""
        yield "hold", f"{hold['mode']} {ends}{by}: `python -m pipeline switch schedule` ends it"
    if wanted["next_change"]:
        left = duration((_instant(wanted["next_change"]) - now).total_seconds())
        yield "next", f"{wanted['next_mode']} at {_at(wanted['next_change'], now)}, in {left}"
    else:
        yield "next", "no other mode is in sight: `python -m pipeline jobs`"


def _why(because: str) -> str:
    """`schedule job nightly` as people say it."""
    reason, _, detail = because.partition(" ")
    if reason == "operator":
        return "held by hand"
    return detail or "no job's window is open"


def _slots(said: Said) -> Rows:
    for slot in said["slots"]:
        name, why = _SLOTS[slot["slot"]], slot.get("why_failed")
        if slot["model"] is None:
            yield name, f"no model: {why or _UNSET[slot['slot']]}"
            continue
        device = slot.get("device_name") or slot.get("device")
        kind = f"{slot.get('kind') or ''}{f' on {device}' if device else ''}"
        kind += f"; {slot['build']}" if slot.get("build") else ""
        state = _SLOT_STATES.get(slot["state"], slot["state"])
        yield name, f"{slot['model']}{f' ({kind})' if kind else ''}: {state}{f' ({why})' if why else ''}"
    device = said["device"]
    if device["name"] and said["host"] is None:
        yield "device", f"{device['name']}, {device['build']}: the last run's"
    gpu = (said["host"] or {}).get("gpu")
    if gpu is not None:
        yield "gpu", f"{gpu['name'] or 'GPU'}: {size(gpu['used_bytes'])} of {size(gpu['total_bytes'])} in use"


# Runs


def _run(said: Said, now: dt.datetime) -> Rows:
    run, ended = said["run"], said["last_ended"]
    if run is not None:
        what = f"job {run['job']}" if run["job"] else "by hand"
        reads = ", reads only" if run["task"] == "extract" else ""
        yield "run", f"{run['run_id']}: {what}{reads}, {_since(run['started_at'], now)}{_deadline(run, now)}"
        yield "", _pace(run, now)
        if run["current"]:
            yield "", f"now {run['current']}"
    for other in said["other_runs"]:
        if run is None or other["run_id"] != run["run_id"]:
            yield "other run", run_in_words(other)
    if ended is not None:
        yield "last run", run_in_words(ended)
    elif run is None:
        yield "last run", "none yet: `python -m pipeline run-now`"


def _deadline(run: Said, now: dt.datetime) -> str:
    if run["stop_at"] is None:
        return ""
    left = (_instant(run["stop_at"]) - now).total_seconds()
    if left <= 0:
        return f", was to end by {_at(run['stop_at'], now)}"
    return f", ends by {_at(run['stop_at'], now)} (in {duration(left)})"


def _pace(run: Said, now: dt.datetime) -> str:
    if run["phase"] == "scanning":
        return "looking for documents"
    failed = f" ({run['documents_failed']:,} could not be read)" if run["documents_failed"] else ""
    parts = [
        f"documents {run['documents_done'] + run['documents_failed']:,} of {run['documents_total']:,}{failed}",
        f"chunks {run['chunks_done']:,} of {run['chunks_total']:,}",
    ]
    if run["phase"] == "finishing":
        return ", ".join([*parts, "finishing"])
    if run["chunks_per_second"]:
        rate = run["chunks_per_second"]
        parts.append(f"{rate:.1f} chunks/s" if rate >= 1 else f"{rate:.2g} chunks/s")
    left = run["seconds_left"]
    if left is not None:
        late = run["stop_at"] is not None and now + dt.timedelta(seconds=left) > _instant(run["stop_at"])
        parts.append(
            f"about {duration(left)} left" + (": more than fits, the rest is the next night's" if late else "")
        )
    return ", ".join(parts)


def run_in_words(run: Said) -> str:
    """A run that is over, or of another host."""
    state = "died; the next run takes up what it left" if run["outcome"] == "interrupted" else run["outcome"]
    reason = f" ({run['error']})" if run["error"] else ""
    job = f" of job {run['job']}" if run["job"] else ""
    who = f"pid {run['pid']} on {run['host']}"
    started = moment(_instant(run["started_at"]))
    return f"{run['run_id']}{job}: {state}{reason}, started {started}, {who}, {_embedded(run)}"


def _embedded(run: Said) -> str:
    return f"{counted(run['chunks_embedded'], 'chunk')} embedded"


# The library


def _waiting(said: Said) -> Rows:
    waiting, parts = said["waiting"], []
    if waiting["documents_to_read"]:
        parts.append(f"{counted(waiting['documents_to_read'], 'document')} to read")
    if waiting["documents_to_embed"]:
        chunks = counted(waiting["chunks"], "chunk")
        parts.append(f"{counted(waiting['documents_to_embed'], 'document')} to embed ({chunks})")
    if said["texts_queued"]:
        parts.append(counted(said["texts_queued"], "text"))
    yield "waits", ", ".join(parts) or "nothing, as of the last look at the folders"
    for line in never_looked(said["never_looked_at"]):
        yield "unseen", line
    for line in said["clock"]:
        yield "clock", line
    mirror = said["mirror"]
    if mirror is not None and mirror["owed"]:
        why = f" ({mirror['error']})" if mirror["error"] else ""
        yield "qdrant", f"documents owed to it: {mirror['owed']:,}{why}; see `python -m pipeline mirror`"
    for one in said["deletions"]:
        files = "the file of 1 document" if one["documents"] == 1 else f"the files of {one['documents']:,} documents"
        confirm = f"`python -m pipeline run-now {shlex.quote(one['root'])} --confirm-deletions`"
        since = moment(_instant(one["since"]))
        yield "gone", f"{files} in {one['root']}, since {since}; still searched, and deleted by {confirm}"


def _library(said: Said) -> Rows:
    documents, chunks = said["documents"], said["chunks"]
    by_state = ", ".join(f"{number:,} {state}" for state, number in documents.items() if number and state != "total")
    yield "documents", f"{documents['total']:,}" + (f": {by_state}" if by_state else "")
    yield "chunks", f"{chunks['embedded']:,} of {chunks['total']:,} embedded"
    yield from _models(said)
    for tuned in said["tunings"]:
        yield "tuned", tuning_in_words(StoredTuning(fingerprint="", trials=(), **tuned))
    sources: Sequence[Said] = said["sources"]
    for place, source in enumerate(sources[:SOURCES_SHOWN]):
        yield "" if place else "sources", f"{source['root']}: {counted(source['documents'], 'document')}"
    if len(sources) > SOURCES_SHOWN:
        yield "", f"and {len(sources) - SOURCES_SHOWN} more: `python -m pipeline status --json`"


def _models(said: Said) -> Rows:
    model, total, later = said["model"], said["documents"]["total"], said["found_after_move"]
    if model is not None:
        yield "model", _named(model)
    elif not said["next_models"]:
        yield "model", "search has none yet"
    for other in said["next_models"]:
        if other["set_aside"]:
            yield "set aside", f"{_named(other)}: search moves to it by `python -m pipeline models use` only"
            continue
        more = f", and then finds {later:,} more" if later else ""
        done = f"{max(0, total - other['waiting']):,} of {counted(total, 'document')} embedded"
        yield "next model", f"{_named(other)}: {done}; search moves over to it once all are{more}"


def _named(model: Said) -> str:
    return f"{named(ModelLine(active=False, **model))}, {model['dimension']} dimensions"


def _failed(said: Said, now: dt.datetime) -> Rows:
    label = "failed"
    for one in said["failures"]:
        when = f" ({_at(one['at'], now)})" if one["at"] else ""
        what = one["name"] if one["what"] == "document" else f"{one['what']} {one['name']}"
        yield label, f"{what}{when}: {' '.join(one['error'].split())}"
        label = ""
    if any(one["what"] == "document" for one in said["failures"]):
        yield "why", f"`{WHY}`"


def _disk(said: Said) -> Rows:
    disk = said["disk"]
    free = "what is free cannot be told"
    if disk["free_bytes"] is not None:
        free = f"{size(disk['free_bytes'])} free of {size(disk['total_bytes'])}"
    yield "disk", f"{free} at {said['data_dir']}"
    taken = "" if disk["database_bytes"] is None else f": {size(disk['database_bytes'])}"
    yield "database", f"{said['database']}{taken}"


# Times


def _instant(instant: str | dt.datetime) -> dt.datetime:
    return dt.datetime.fromisoformat(instant) if isinstance(instant, str) else instant


def _at(instant: str | dt.datetime, now: dt.datetime) -> str:
    """Local time to the minute. The day is named where it is not today's, and the date where that is far away."""
    local, today = _instant(instant).astimezone(), now.astimezone().date()
    days = abs((local.date() - today).days)
    return f"{local:%H:%M}" if not days else f"{local:%a %H:%M}" if days < 7 else f"{local:%a %Y-%m-%d %H:%M}"


def _since(instant: str | dt.datetime, now: dt.datetime) -> str:
    return f"since {_at(instant, now)} ({duration(max(0.0, (now - _instant(instant)).total_seconds()))})"
