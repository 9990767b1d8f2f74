"""A model that is slow on this host: it embeds a long document without a restart, and generation serves by `until`.

    python -m benchmarks.slow_model [--pages 300] [--window 120] [--mode embedding|mixed] [--shape large|huge]

An encoder with random weights (BERT-large's shape, or one of 20 times its work) embeds one PDF. A daemon begins in
generation mode. A window opens after ten seconds and ends while the model is at work. Then a run by hand embeds
what is left. Prints when the night was over, how many chunks the window and the whole took, and how many model
servers died, which has to be none.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import os
import signal
import tempfile
import time
from pathlib import Path

import httpx
import structlog

from benchmarks.corpus import write_corpus
from benchmarks.random_encoders import BERT_LARGE, Shape, Weights, write_gguf
from benchmarks.tiny_models import tiny_llama
from pipeline.daemon import run_daemon
from pipeline.ingest.progress import Progress
from pipeline.runner.ownership import owner_of
from pipeline.runner.run import run_now
from pipeline.settings import LoadedSettings, load

HUGE = Shape("huge", 48, 2048, 32, 8192)
NIGHT = 'cron = "0 2 * * *"\nuntil = "{window}s"\nmode = "{mode}"\ntask = "ingest"\ntimezone = "UTC"\npriority = 1\n'
ALWAYS = 'cron = "0 0 * * *"\nuntil = "24:00"\nmode = "generation"\ntimezone = "UTC"\n'
OPENS = dt.datetime(2026, 6, 1, 2, tzinfo=dt.UTC)
BEFORE = 10.0
AFTER = 20.0
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}


async def serve_a_night(loaded: LoadedSettings, window: float) -> tuple[float, int]:
    """Seconds from the end of the night to `until` (below zero: late), and how many model servers died.

    The night is over when no run is at work and a chat is answered.
    """
    began = time.monotonic()

    def clock() -> dt.datetime:
        return OPENS + dt.timedelta(seconds=time.monotonic() - began - BEFORE)

    end = OPENS + dt.timedelta(seconds=window)
    by_day: list[dt.datetime] = []
    by_night: list[dt.datetime] = []
    with structlog.testing.capture_logs() as logs:
        daemon = asyncio.create_task(run_daemon(loaded, clock))
        try:
            async with httpx.AsyncClient(timeout=30) as client:
                while clock() < end + dt.timedelta(seconds=AFTER):
                    if daemon.done():
                        break
                    await asyncio.sleep(0.1)
                    owner = owner_of(loaded.settings.data_dir)
                    if owner is None or owner.url is None:
                        continue
                    with contextlib.suppress(httpx.TransportError):
                        status = (await client.post(f"{owner.url}/v1/chat/completions", json=CHAT)).status_code
                        run = (await client.get(f"{owner.url}/api/runs/current")).json()["run"]
                        day = status == httpx.codes.OK and run is None
                        (by_day if day else by_night).append(clock())
        finally:
            if not daemon.done():
                os.kill(os.getpid(), signal.SIGTERM)
            await daemon
    night = [at for at in by_night if at > OPENS]
    over = next((at for at in by_day if night and at > night[-1]), None)
    died = sum(entry["event"] == "A model server died" for entry in logs)
    return ((end - over).total_seconds() if over else float("nan")), died


def main() -> None:
    """Do as the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--window", type=float, default=120.0, help="seconds")
    parser.add_argument("--mode", choices=["embedding", "mixed"], default="embedding")
    parser.add_argument("--shape", choices=["large", "huge"], default="large")
    parser.add_argument("--no-rest", action="store_true", help="leave out the run that embeds what is left")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slow-model-") as name:
        folder = Path(name)
        model = folder / "slow.gguf"
        write_gguf(Weights(BERT_LARGE if given.shape == "large" else HUGE), model)
        write_corpus(folder / "data" / "inbox", pages=given.pages, pages_per_document=given.pages)
        (folder / "jobs").mkdir()
        (folder / "jobs" / "night.toml").write_text(NIGHT.format(window=round(given.window), mode=given.mode))
        (folder / "jobs" / "always.toml").write_text(ALWAYS)
        loaded = load(
            {
                "data_dir": str(folder / "data"),
                "jobs_dir": str(folder / "jobs"),
                "embedding.model": str(model),
                "generation.model": str(tiny_llama(folder)),
                "generation.n_ctx": 1024,
                "port": 0,
            },
            environ={},
            cwd=folder,
        )
        early, died = asyncio.run(serve_a_night(loaded, given.window))
        print(f"the night was over {early:.1f} s before `until`; {died} model servers died in the window")
        if given.no_rest:
            return
        progress = Progress(started_monotonic=time.monotonic())
        with structlog.testing.capture_logs() as logs:
            report = asyncio.run(run_now(loaded.settings, None, progress, asyncio.Event()))
        died = sum(entry["event"] == "A model server died" for entry in logs)
        print(
            f"then {report.outcome}: {report.chunks['embedded']} of {report.chunks['total']} chunks, "
            f"{report.chunks_embedded} of them in {report.seconds:.0f} s; {died} model servers died"
        )


if __name__ == "__main__":
    main()
