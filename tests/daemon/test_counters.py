"""The engine's counters go on over its servers."""

from __future__ import annotations

from pathlib import Path

from pipeline.backends.models import resolve
from pipeline.backends.options import EmbeddingOptions
from pipeline.backends.server import ModelServer
from pipeline.core.modes import Device, Slot
from pipeline.daemon.counters import EngineCounters
from tests.conftest import DEFAULT_MODEL


async def test_totals_survive_a_death_and_a_new_server(tmp_path: Path) -> None:
    file, counters = resolve(str(DEFAULT_MODEL), tmp_path), EngineCounters()
    assert (await counters.look(None)).total.tokens == 0
    server = ModelServer(Slot.EMBEDDING, Device.CPU, "llama-cpp", EmbeddingOptions(str(file.path)), file, tmp_path)
    try:
        await server.start()
        first = (await counters.look(server)).total.tokens
        await server.embedder.embed([[101, 7592, 102]] * 10)
        assert (await counters.look(server)).total.tokens == first + 30
        await server.kill("it hangs")
        await server.died.wait()
        assert (await counters.look(server)).total.tokens == first + 30
        assert counters.tokens_per_second == 0
        await server.start()
        again = (await counters.look(server)).total.tokens
        assert again >= first + 30, "a total never goes down"
        await server.embedder.embed([[101, 7592, 102]])
        assert (await counters.look(server)).total.tokens == again + 3
    finally:
        await server.stop()
    ended = await counters.look(None)
    assert (ended.total.tokens, ended.queued_tokens) == (again + 3, 0)
