"""The second engine as a child process: the same interface as the first one's."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from pipeline.backends.embedding import EmbeddingBackend
from pipeline.backends.models import ModelFile
from pipeline.backends.options import EmbeddingOptions
from pipeline.backends.server import ModelServer
from pipeline.core.errors import BackendRefused, ModelError
from pipeline.core.modes import Device, Slot


def options(directory: ModelFile) -> EmbeddingOptions:
    return EmbeddingOptions(str(directory.path))


async def test_from_start_to_stop(directory: ModelFile, tmp_path: Path) -> None:
    async with EmbeddingBackend(options(directory), directory, tmp_path) as backend:
        info = backend.info
        assert (info.dimension, info.max_tokens, info.model) == (384, 256, directory.name)
        vectors = await backend.embed([[101, 7592, 2088, 102], [101, 102], [101, *[2088] * 200, 102]])
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        by_text = (await backend.embed(["hello world"]))[0]
        assert float(by_text @ vectors[0]) > 0.9999
        with pytest.raises(BackendRefused, match=r"input\[1\] has 257 tokens, 1 more") as refused:
            await backend.embed([[101], [101] * 257])
        assert (refused.value.status, refused.value.param) == (400, "input[1]")
        with pytest.raises(BackendRefused, match="token id outside"):
            await backend.embed([[30522]])
        async with httpx.AsyncClient(trust_env=False) as stranger:
            base = f"http://127.0.0.1:{info.port}"
            assert (await stranger.post(f"{base}/v1/embeddings", json={"input": "x"})).status_code == 401
            assert (await stranger.get(f"{base}/health")).json()["status"] == "ok"
        await _each_request_gets_its_own_vectors(backend)
        stats = await backend.stats()
        assert stats is not None
        assert stats.total.sequences >= 80
    assert not psutil.pid_exists(info.pid)


async def _each_request_gets_its_own_vectors(backend: EmbeddingBackend) -> None:
    random = np.random.default_rng(0)
    requests = [
        [random.integers(1000, 20000, size=int(length)).tolist() for length in random.integers(1, 257, size=count)]
        for count in (1, 20, 30, 3, 17)
    ]
    together = await asyncio.gather(*(backend.embed(request) for request in requests))
    for request, vectors in zip(requests, together, strict=True):
        alone = await backend.embed([request[-1]])
        # In bfloat16 the last digits depend on what else is in a batch.
        assert float(vectors[-1] @ alone[0]) > 0.999
        assert float(vectors[0] @ alone[0]) < 0.99 or len(request) == 1


async def test_it_can_be_prepared_and_ends_on_sigterm(directory: ModelFile, tmp_path: Path) -> None:
    server = ModelServer(Slot.EMBEDDING, Device.CPU, "sentence-transformers", options(directory), directory, tmp_path)
    await server.prepare()
    prepared = server.pid
    assert prepared is not None
    await server.start()
    assert server.pid == prepared
    await server.canary()
    os.kill(prepared, signal.SIGTERM)
    await server.died.wait()
    assert "exit status 0" in server.exit_story
    await server.stop()


async def test_a_damaged_directory_says_so(directory: ModelFile, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in directory.path.iterdir():
        if file.is_file() and file.suffix == ".json":
            (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"not weights")
    backend = EmbeddingBackend(EmbeddingOptions(str(broken)), ModelFile(broken, "f", "b", "directory"), tmp_path)
    with pytest.raises(ModelError, match="cannot load"):
        await backend.start()
