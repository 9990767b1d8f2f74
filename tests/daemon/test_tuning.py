"""`tune` beside a daemon: it is idle meanwhile, and loads its next server with what was kept."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx

from pipeline.backends.models import resolve
from pipeline.cli.pause import daemon_paused
from pipeline.cli.remote import DaemonClient
from pipeline.store.database import Database
from pipeline.store.tunings import keep_tuning, tunings_of
from tests.conftest import DEFAULT_MODEL
from tests.daemon.daemons import Daemon, make_place, wait_for


def test_tune_has_the_daemon_idle_meanwhile_and_its_next_server_uses_what_was_kept(tmp_path: Path) -> None:
    place = make_place(tmp_path, mode="embedding", language_model=False, embedding_model=str(DEFAULT_MODEL))
    with place.daemon() as daemon:
        wait_for(lambda: daemon.mode() == "embedding", "the embedding mode")
        refused = place.command("tune")
        assert refused.returncode == 2
        assert "--pause" in refused.stderr

        with subprocess.Popen(
            [sys.executable, "-m", "pipeline", "tune", "--pause", "--budget", "200s", "--json"],
            env=place.environment(),
            cwd=place.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as tuning:
            assert tuning.stderr is not None
            measured = 0
            for line in tuning.stderr:
                measured += "tokens/s" in line
                if measured == 1 and "tokens/s" in line:
                    assert daemon.mode() == "idle"
                    beside = place.command("tune", "--pause")
                    assert beside.returncode == 1
                    assert "tune (pid" in beside.stderr
                if measured == 2:
                    tuning.send_signal(signal.SIGINT)
                    break
            out, err = tuning.communicate(timeout=120)
        assert tuning.returncode == 3, err
        assert json.loads(out)["engines"][0]["kept"]
        wait_for(lambda: daemon.mode() == "embedding", "the embedding mode again")
        assert daemon.get("/api/status")["host"]["hold"] is None

        daemon.switch("idle", "1h")
        with Database.open(f"sqlite:///{place.data / 'nightshift.db'}") as store, store.begin() as session:
            (kept,) = tunings_of(session, resolve(str(DEFAULT_MODEL), place.data).fingerprint)
            keep_tuning(session, replace(kept, options={"contexts": 3, "threads": 1}))
        daemon.switch("embedding", "1h")
        daemon.post("/v1/embeddings", {"model": "any", "input": ["one"]}).raise_for_status()
        assert 'nightshift_engine_batches_total{context="2"}' in httpx.get(f"{daemon.url}/metrics").text

        # What an operator held is held again afterwards.
        with closing(DaemonClient(daemon.url, None)) as client:
            asyncio.run(_pause(client, daemon))
        assert daemon.mode() == "embedding"
        assert daemon.get("/api/status")["host"]["hold"]["mode"] == "embedding"


async def _pause(client: DaemonClient, daemon: Daemon) -> None:
    async with daemon_paused(client):
        assert daemon.mode() == "idle"
