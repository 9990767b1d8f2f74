"""Has this host's daemon serve nothing while something else needs the host to itself, and go on afterwards."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pipeline.cli.console import complain
from pipeline.cli.remote import DaemonClient
from pipeline.cli.switch import PATIENCE
from pipeline.core.errors import HostBusy, NightshiftError

HOLD_SECONDS = 180.0
RENEWED_SECONDS = 60.0
"""Between two renewals: a pause whose process was killed ends by itself, soon."""


@asynccontextmanager
async def daemon_paused(daemon: DaemonClient) -> AsyncIterator[None]:
    """The daemon is idle for as long as the block runs; then what an operator held before is held again.

    Raises HostBusy where it reads documents at the moment, and what `DaemonClient` raises.
    """
    before = (await asyncio.to_thread(daemon.get, "/api/status"))["host"]["hold"]
    await asyncio.to_thread(_hold_idle, daemon)
    renewing = asyncio.create_task(_renew(daemon), name="keep the daemon idle")
    try:
        if (await asyncio.to_thread(daemon.get, "/api/status"))["run"] is not None:
            raise HostBusy("the daemon reads documents")
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        await asyncio.to_thread(_give_back, daemon, before)


def _hold_idle(daemon: DaemonClient) -> None:
    daemon.post("/api/switch", {"mode": "idle", "hold": HOLD_SECONDS}, patience=PATIENCE)


async def _renew(daemon: DaemonClient) -> None:
    while True:
        await asyncio.sleep(RENEWED_SECONDS)
        try:
            await asyncio.to_thread(_hold_idle, daemon)
        except NightshiftError as error:
            complain(f"the daemon may not stay idle: {error}")


def _give_back(daemon: DaemonClient, before: dict[str, Any] | None) -> None:
    """Follow the schedule again, or what was held; the daemon loads its models by itself meanwhile."""
    try:
        until = before and before["until"]
        left = (dt.datetime.fromisoformat(until) - dt.datetime.now(dt.UTC)).total_seconds() if until else None
        if before is not None and (left is None or left > 0):
            daemon.post("/api/switch", {"mode": before["mode"], "hold": left}, patience=PATIENCE)
        else:
            daemon.delete("/api/hold")
    except NightshiftError as error:
        complain(f"the daemon could not be told to go on: {error}; it does so by itself in {HOLD_SECONDS:.0f} s")
