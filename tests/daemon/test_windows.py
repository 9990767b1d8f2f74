"""`until` is kept: windows of seconds, by a clock that is set as the test needs it, with the real models."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from benchmarks.corpus import write_corpus
from benchmarks.tiny_models import tiny_llama
from pipeline.daemon import run_daemon
from pipeline.runner.ownership import owner_of
from pipeline.settings import load
from tests.runs import rows

NIGHT = 'cron = "0 2 * * *"\nuntil = "25s"\nmode = "embedding"\ntask = "ingest"\ntimezone = "UTC"\npriority = 1\n'
ALWAYS = 'cron = "0 0 * * *"\nuntil = "24:00"\nmode = "generation"\ntimezone = "UTC"\n'
START = dt.datetime(2026, 6, 1, 1, 59, 52, tzinfo=dt.UTC)
WINDOW = dt.datetime(2026, 6, 1, 2, 0, 0, tzinfo=dt.UTC), dt.datetime(2026, 6, 1, 2, 0, 25, tzinfo=dt.UTC)
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}


@pytest.mark.timeout(180)
async def test_a_night_of_seconds_ends_with_generation_serving_and_nothing_lost(tmp_path: Path) -> None:
    """The night begins, works, stops early enough, and generation answers before the window is over."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "night.toml").write_text(NIGHT)
    (tmp_path / "jobs" / "always.toml").write_text(ALWAYS)
    # More than a night's work, so that it is the clock that ends it.
    write_corpus(tmp_path / "data" / "inbox", pages=600)
    settings = load(
        {
            "data_dir": str(tmp_path / "data"),
            "jobs_dir": str(tmp_path / "jobs"),
            "generation.model": str(tiny_llama(tmp_path)),
            "generation.n_ctx": 1024,
            "switch.reserve": 6.0,
            "port": 0,
        },
        environ={},
        cwd=tmp_path,
    )
    began = time.monotonic()

    def clock() -> dt.datetime:
        return START + dt.timedelta(seconds=time.monotonic() - began)

    daemon = asyncio.create_task(run_daemon(settings, clock))
    answered: list[dt.datetime] = []
    refused: list[dt.datetime] = []
    try:
        async with httpx.AsyncClient(timeout=30) as client:
            while clock() < WINDOW[1] + dt.timedelta(seconds=6):
                assert not daemon.done(), daemon.result()
                await asyncio.sleep(0.1)
                owner = owner_of(tmp_path / "data")
                if owner is None or owner.url is None:
                    continue
                with contextlib.suppress(httpx.TransportError):
                    status = (await client.post(f"{owner.url}/v1/chat/completions", json=CHAT)).status_code
                    (answered if status == 200 else refused).append(clock())
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await daemon
    start, end = WINDOW
    assert [at for at in answered if at < start], "it served before the night"
    assert [at for at in refused if start < at < end], "it did not serve in the night"
    served_again = min((at for at in answered if at > start + dt.timedelta(seconds=2)), default=None)
    assert served_again is not None
    assert served_again <= end, f"generation was late by {served_again - end}"
    assert not [at for at in refused if at > served_again], "and then it went on serving"

    database = tmp_path / "data" / "nightshift.db"
    ((state, chunks, job),) = rows(database, "SELECT state, chunks_embedded, job FROM runs")
    assert (state, job) == ("stopped", "night")
    assert chunks > 0
    assert rows(database, "SELECT count(*) FROM embeddings") == [(chunks,)]
    assert rows(database, "SELECT count(*) FROM contents WHERE claimed_by IS NOT NULL") == [(0,)]
    switches = rows(database, "SELECT from_mode, to_mode, outcome FROM mode_switches ORDER BY id")
    assert switches == [
        ("idle", "generation", "done"),
        ("generation", "embedding", "done"),
        ("embedding", "generation", "done"),
    ]
