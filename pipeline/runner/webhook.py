"""Reports to whoever wants them by HTTP: from the outbox in the database, until the receiver took them.

A report is owed from the transaction that ends its run; a receiver that is away, or a process that dies
here, only puts it off. A receiver may get one twice (its answer was lost): the header names the run.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable

import httpx
import stamina
import structlog

import pipeline
from pipeline.core.errors import StoreError
from pipeline.core.redaction import redacted
from pipeline.settings.fields import ReportSettings
from pipeline.store import reports
from pipeline.store.database import Database
from pipeline.store.reports import Delivery

log = structlog.get_logger(__name__)

TIMEOUT = httpx.Timeout(10.0, connect=5.0)
"""Of each step, in seconds."""

LONGEST = 30.0
"""Seconds for all tries of a round at one report: a receiver may send its answer a byte at a time for ever."""

TRIES = 3
"""At once, seconds apart, against what passes by itself."""

AGAIN = (60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, reports.LONGEST.total_seconds())
"""Seconds until the next round of tries, after each round that failed; the last one is repeated."""

ROUNDS = 14
"""After which a report is given up; by then a week has passed."""

TAKEN = 60.0
"""Seconds after the last try at a report until another host tries, where this one does not say what came of it."""

MOST_ERROR = 300


async def deliver_due(store: Database, settings: ReportSettings, now: dt.datetime, longest: float = LONGEST) -> int:
    """Try to deliver every report that is due, oldest first; returns how many the receiver took.

    longest: seconds for each.

    Failures are noted with the time of the next try, and are in no other way the caller's business. What a receiver
    that does not answer is owed besides stays due: the next call tries the next report.

    Raises:
        StoreError: the outbox cannot be read or written.
    """
    if settings.webhook is None:
        return 0
    taken, until = 0, now + dt.timedelta(seconds=longest + TAKEN)
    async with httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False) as client:
        while (delivery := await store.write(reports.take_due, now, until)) is not None:
            error, answered = await _try(client, settings, delivery, longest)
            if error is None:
                await store.write(reports.note_delivered, delivery.run_id, now)
                taken += 1
                continue
            again = _next_try(delivery.attempts + 1, now)
            await store.write(reports.note_failed, delivery.run_id, error, again)
            log.warning("a report could not be delivered", run=delivery.run_id, error=error, again=str(again))
            if not answered:
                break
    return taken


async def keep_delivering(
    store: Database,
    settings: ReportSettings,
    look: float,
    wake: asyncio.Event,
    before: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Deliver what is due every `look` seconds, and whenever `wake` is set. Until cancelled.

    before: called each time, to make what is to be delivered.
    """
    while True:
        if before is not None:
            await before()
        try:
            await deliver_due(store, settings, dt.datetime.now(dt.UTC))
        except StoreError as error:
            log.warning("the reports that are owed could not be looked up", error=str(error))
        try:
            async with asyncio.timeout(look):
                await wake.wait()
            wake.clear()
        except TimeoutError:
            pass


def signature(secret: str, body: bytes) -> str:
    """What `X-Nightshift-Signature` holds: the HMAC-SHA256 of the body, in hex, after `sha256=`."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


async def _try(
    client: httpx.AsyncClient, settings: ReportSettings, delivery: Delivery, longest: float
) -> tuple[str | None, bool]:
    """What went wrong, without anything secret: None where the receiver took it. And whether it answered at all."""
    assert settings.webhook is not None
    body = json.dumps(delivery.report, ensure_ascii=False).encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"nightshift/{pipeline.__version__}",
        "X-Nightshift-Run": delivery.run_id,
    }
    if settings.token is not None:
        headers["Authorization"] = f"Bearer {settings.token.get_secret_value()}"
    if settings.secret is not None:
        headers["X-Nightshift-Signature"] = signature(settings.secret.get_secret_value(), body)
    url = settings.webhook.get_secret_value()
    try:
        async with asyncio.timeout(longest):
            async for attempt in stamina.retry_context(on=_passes, attempts=TRIES, wait_initial=0.5, wait_max=5.0):
                # Only the head of the answer is read: what else it sends may have no end.
                with attempt:
                    async with client.stream("POST", url, content=body, headers=headers) as answer:
                        answer.raise_for_status()
    except httpx.HTTPStatusError as error:
        return f"the receiver answered {error.response.status_code}", True
    except TimeoutError:
        return f"the receiver did not answer within {longest:.0f} s", False
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return redacted(f"{type(error).__name__}: {error}").rstrip(": ")[:MOST_ERROR], False
    return None, True


def _passes(error: Exception) -> bool:
    """Whether a second try soon may go better. A receiver that says no is not asked again for a while."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR
    return isinstance(error, httpx.TransportError)


def _next_try(rounds: int, now: dt.datetime) -> dt.datetime | None:
    if rounds >= ROUNDS:
        return None
    return now + dt.timedelta(seconds=AGAIN[min(rounds, len(AGAIN)) - 1])
