"""The engine's raw ceiling: chunks straight into llama.cpp's low-level API, in one process.

    python -m benchmarks.ceiling DATABASE [--contexts N --threads N --n-batch N]

Reads the chunks of a database, tokenizes and packs them beforehand, and times nothing but the
computing: no server, no queue, no database. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import threading
import time
from pathlib import Path

from pipeline.backends.llama_cpp.engine import Engine
from pipeline.backends.llama_cpp.plan import EngineOptions
from pipeline.core.batching import pack

DEFAULT_MODEL = Path(__file__).parents[1] / "data" / "models" / "all-MiniLM-L6-v2-F16.gguf"


def measure(database: Path, options: EngineOptions) -> dict[str, float]:
    """Chunks, seconds, and chunks a second of all chunks in `database`."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    texts = [text for (text,) in connection.execute("SELECT text FROM chunks ORDER BY id")]
    connection.close()
    engine = Engine(options)
    sequences = [engine.tokenize(text) for text in texts]
    batches = pack([len(tokens) for tokens in sequences], engine.plan.n_batch, engine.plan.n_seq_max)
    for context in engine.contexts:
        context.warm_up()
    waiting = iter(batches)
    lock = threading.Lock()

    def work(number: int) -> None:
        while True:
            with lock:
                batch = next(waiting, None)
            if batch is None:
                return
            engine.contexts[number].embed([sequences[index] for index in batch])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(engine.contexts))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    engine.close()
    return {
        "chunks": len(texts),
        "tokens": sum(map(len, sequences)),
        "seconds": seconds,
        "chunks_per_second": len(texts) / seconds,
    }


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", type=Path)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    for name in ("contexts", "threads", "n-batch"):
        parser.add_argument(f"--{name}", type=int)
    given = parser.parse_args()
    options = EngineOptions(given.model, threads=given.threads, n_batch=given.n_batch, contexts=given.contexts)
    print(json.dumps(measure(given.database, options)))


if __name__ == "__main__":
    main()
