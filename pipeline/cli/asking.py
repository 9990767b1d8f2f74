"""`search` beside a daemon: the daemon answers, whose model is loaded, or stays loaded for the next question."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import structlog

from pipeline.cli.remote import running_daemon
from pipeline.core.errors import NightshiftError
from pipeline.runner.ownership import owner_of
from pipeline.runner.searching import Asked
from pipeline.settings import Settings

log = structlog.get_logger(__name__)


def ask_daemon(settings: Settings, asked: Asked) -> dict[str, Any] | None:
    """What this host's daemon answers, as `runner.searching.answer` does; None where it is to be found out here.

    That is so where no daemon runs on this data folder, where it serves another database, where another model is
    asked for than search uses, and where it does not answer, for whatever reason.
    """
    daemon = running_daemon(settings) if asked.model is None else None
    if daemon is None:
        return None
    if asked.by is None and not asked.documents:
        asked = replace(asked, by=settings.search.by)
    path = "/api/search/documents" if asked.documents else "/api/search"
    try:
        theirs = {each["key"]: each["value"] for each in daemon.get("/api/config")}
        if theirs.get("database_url") != settings.flatten()["database_url"]:
            return None
        # It may have to load the model first.
        answer = daemon.get(f"{path}?{urlencode(asked.parameters())}", patience=settings.embedding.total_timeout)
    except NightshiftError as error:
        log.info("the daemon does not answer; the search is done here", url=daemon.url, why=str(error))
        return None
    finally:
        daemon.close()
    # One of an earlier version passes over what it does not know.
    return answer if isinstance(answer, dict) and "by" in answer else None


def gpu_is_ours(settings: Settings) -> bool:
    """Whether a model may be loaded onto the GPU: not where a daemon or a run has this host."""
    return owner_of(settings.data_dir) is None
