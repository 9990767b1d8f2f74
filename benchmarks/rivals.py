"""One engine on one set of chunks, in a process of its own: `python -m benchmarks.rivals KIND CHUNKS JSON-OPTIONS`.

CHUNKS is a JSON file with `texts` and `tokens`. Says `{"ready": true}` when everything is loaded and warm; then for
each line on standard input embeds all chunks once, and answers `{"seconds": ...}`. At the end of its input it writes
the last vectors to the file named by the option `save` (.npy) and ends. Nothing is timed but the embedding.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vectors: TypeAlias = NDArray[np.float32]
Work: TypeAlias = Callable[[], Vectors]

REQUEST = 64
IN_FLIGHT = 3
"""As run-now sends them."""


@contextmanager
def llama_embed(
    chunks: dict[str, Any], *, model: str, n_batch: int | None = None, flash: bool = False
) -> Iterator[Work]:
    """llama-cpp-python's `Llama.embed` on all texts at once; without `n_batch` at its defaults."""
    import llama_cpp

    more: dict[str, Any] = {} if n_batch is None else {"n_ctx": n_batch, "n_batch": n_batch, "n_ubatch": n_batch}
    llama = llama_cpp.Llama(model, embedding=True, verbose=False, flash_attn=flash, **more)
    yield lambda: np.array(llama.embed(chunks["texts"], normalize=True), dtype=np.float32)
    llama.close()


@contextmanager
def llama_server(
    chunks: dict[str, Any], *, model: str, binary: str, batch: int, parallel: int, flags: Sequence[str] = ()
) -> Iterator[Work]:
    """The real server on all cores, asked for token ids as our own servers are; base64 back."""
    from pipeline.backends.server import free_port

    port = free_port()
    command = [binary, "--model", model, "--embedding", "--port", str(port), "--parallel", str(parallel), "--offline"]
    command += ["--batch-size", str(batch), "--ubatch-size", str(batch), "--kv-unified", "--no-warmup", *flags]
    cores = str(len(os.sched_getaffinity(0)))
    command += ["--threads", cores, "--threads-batch", cores]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process)
        yield lambda: asyncio.run(_ask(f"http://127.0.0.1:{port}", chunks["tokens"], None))
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def sentence_transformers(
    chunks: dict[str, Any], *, model: str, precision: str, batch: int, processes: int = 1
) -> Iterator[Work]:
    """`encode` on all texts at once, which sorts them by length itself. precision: float32, bfloat16 or autocast.

    processes: more than one is its own pool of so many, on one thread each.
    """
    if processes > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from sentence_transformers import SentenceTransformer

    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    loaded = SentenceTransformer(model, device="cpu", local_files_only=True, model_kwargs={"dtype": dtype}).to(dtype)

    if processes > 1:
        pool = loaded.start_multi_process_pool(["cpu"] * processes)
        yield lambda: np.asarray(loaded.encode(chunks["texts"], pool=pool, batch_size=batch), dtype=np.float32)
        loaded.stop_multi_process_pool(pool)
        return

    def work() -> Vectors:
        with torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else contextlib.nullcontext():
            found = loaded.encode(chunks["texts"], batch_size=batch, show_progress_bar=False, convert_to_tensor=True)
        vectors: Vectors = found.float().numpy()
        return vectors

    yield work


@contextmanager
def ours(chunks: dict[str, Any], *, model: str, bare: bool = False) -> Iterator[Work]:
    """Our server for such a model, at its defaults, over HTTP as run-now asks it; or `bare`, the engine without it."""
    if bare:
        yield _bare(chunks, Path(model))
        return
    module = "torch_engine" if Path(model).is_dir() else "llama_cpp"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", f"pipeline.backends.{module}", "--model", model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"NIGHTSHIFT_BACKEND_API_KEY": "k", "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert process.stdout is not None
    told: dict[str, Any] = {"progress": 0}
    while "progress" in told:
        told = json.loads(process.stdout.readline())
    try:
        yield lambda: asyncio.run(_ask(f"http://127.0.0.1:{told['port']}", chunks["tokens"], "k"))
    finally:
        process.terminate()
        process.wait(20)


def _bare(chunks: dict[str, Any], model: Path) -> Work:
    """The engine in this process: packed beforehand, a thread for each context."""
    from pipeline.core.batching import pack, take_alike

    sequences = [np.array(tokens, dtype=np.int32) for tokens in chunks["tokens"]]
    lengths = [len(tokens) for tokens in sequences]
    batches: list[list[int]] = []
    if model.is_dir():
        from pipeline.backends.torch_engine.memory import keep_freed_memory

        keep_freed_memory()
        from pipeline.backends.torch_engine.engine import Engine as TorchEngine
        from pipeline.backends.torch_engine.plan import TorchOptions

        torch_engine = TorchEngine(TorchOptions(model))
        contexts: Sequence[Any] = torch_engine.contexts
        waiting = sorted((length, -index) for index, length in enumerate(lengths))
        while waiting:
            batches.append([-key for _, key in take_alike(waiting, torch_engine.plan.n_batch, 4096)])
    else:
        from pipeline.backends.llama_cpp.engine import Engine
        from pipeline.backends.llama_cpp.plan import EngineOptions

        engine = Engine(EngineOptions(model))
        contexts = engine.contexts
        batches = pack(lengths, engine.plan.n_batch, engine.plan.n_seq_max)

    def work() -> Vectors:
        left = iter(batches)
        found: dict[int, Vectors] = {}

        def compute(context: Any) -> None:
            while (batch := next(left, None)) is not None:
                vectors, _ = context.embed([sequences[index] for index in batch])
                found.update(zip(batch, vectors, strict=True))

        with ThreadPoolExecutor(len(contexts)) as pool:
            list(pool.map(compute, contexts))
        return np.stack([found[index] for index in range(len(sequences))])

    return work


async def _ask(url: str, tokens: Sequence[Sequence[int]], key: str | None) -> Vectors:
    """All sequences, the longest first, in requests of REQUEST, IN_FLIGHT at a time: as run-now does."""
    from pipeline.backends.client import EmbeddingClient, Timeouts

    order = sorted(range(len(tokens)), key=lambda index: -len(tokens[index]))
    parts = [order[start : start + REQUEST] for start in range(0, len(order), REQUEST)]
    slots = asyncio.Semaphore(IN_FLIGHT)
    found: dict[int, Vectors] = {}
    patient = Timeouts(10.0, 600.0, 600.0)
    async with EmbeddingClient(url, api_key=key, timeouts=patient, gzip_above=None, trust_env=False) as client:

        async def one(part: Sequence[int]) -> None:
            async with slots:
                found.update(zip(part, await client.embed([tokens[index] for index in part]), strict=True))

        await asyncio.gather(*(one(part) for part in parts))
    return np.stack([found[index] for index in range(len(tokens))])


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise SystemExit(f"llama-server ended with {process.returncode}")


KINDS: dict[str, Callable[..., contextlib.AbstractContextManager[Work]]] = {
    "llama-embed": llama_embed,
    "llama-server": llama_server,
    "sentence-transformers": sentence_transformers,
    "ours": ours,
}


def main() -> None:
    """Serve one benchmark."""
    kind, chunk_file, options = sys.argv[1:]
    given = json.loads(options)
    save = given.pop("save")
    chunks = json.loads(Path(chunk_file).read_text())
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print too
    with KINDS[kind](chunks, **given) as work:
        few = {name: values[:4] for name, values in chunks.items()}
        everything = dict(chunks)
        chunks.update(few)
        if not given.get("bare"):
            work()
        chunks.update(everything)
        replies.write('{"ready": true}\n')
        vectors = np.empty((0, 0), np.float32)
        for _ in sys.stdin:
            began = time.perf_counter()
            vectors = work()
            replies.write(json.dumps({"seconds": time.perf_counter() - began}) + "\n")
        np.save(save, vectors)


if __name__ == "__main__":
    main()
