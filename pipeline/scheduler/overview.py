"""The jobs and what they want now, as one document for programs."""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from pipeline.core.redaction import redacted
from pipeline.core.schedule import Desired, Job, Window, next_windows, window_at
from pipeline.core.windows import until_text
from pipeline.scheduler.jobs import LoadedJobs

_NEXT_WINDOWS = 3


def overview(loaded: LoadedJobs, now: datetime, desired: Desired) -> dict[str, Any]:
    """JSON: `now`, `wanted`, `jobs` with their windows, and `problems`; a job's instants have its own offset."""
    return {
        "now": now.isoformat(timespec="seconds"),
        "wanted": {
            "mode": desired.mode,
            "job": desired.job and desired.job.name,
            "reason": desired.reason,
            "until": _instant(desired.until, now.tzinfo),
        },
        "jobs": [_job(job, loaded, now, desired) for job in loaded.jobs],
        "problems": [
            {"file": str(problem.file), "line": problem.line, "message": problem.message} for problem in loaded.problems
        ],
    }


def zone_name(zone: ZoneInfo) -> str:
    """The name of a time zone; `local` where only its rules are known."""
    return zone.key or "local"


def _job(job: Job, loaded: LoadedJobs, now: datetime, desired: Desired) -> dict[str, Any]:
    following = next_windows(job, now, _NEXT_WINDOWS) if job.enabled else ()
    return {
        "name": job.name,
        "file": str(loaded.files[job.name]),
        "enabled": job.enabled,
        "current": desired.job is not None and desired.job.name == job.name,
        "mode": job.mode,
        "cron": job.cron.text,
        "until": until_text(job.until),
        "timezone": zone_name(job.timezone),
        "task": job.task,
        "sources": [redacted(str(source)) for source in job.sources],
        "on_finish": job.on_finish,
        "drain": job.drain,
        "drain_timeout": job.drain_timeout,
        "retries": job.retries,
        "catch_up": job.catch_up,
        "priority": job.priority,
        "order": job.order,
        "workers": job.workers,
        "nice": job.nice,
        "open": _window(window_at(job, now) if job.enabled else None, job.timezone),
        "next": [_window(window, job.timezone) for window in following],
    }


def _window(window: Window | None, zone: tzinfo) -> dict[str, str | None] | None:
    return None if window is None else {"start": _instant(window.start, zone), "end": _instant(window.end, zone)}


def _instant(instant: datetime | None, zone: tzinfo | None) -> str | None:
    return None if instant is None else instant.astimezone(zone).isoformat(timespec="seconds")
