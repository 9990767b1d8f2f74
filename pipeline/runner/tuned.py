"""What `tune` kept for a model, into the options of its server."""

from __future__ import annotations

from dataclasses import replace

from pipeline.backends.options import EmbeddingOptions, Tuned
from pipeline.store import tunings
from pipeline.store.database import Database


async def with_tunings(
    options: EmbeddingOptions, store: Database, fingerprint: str, engine: str = "llama-cpp"
) -> EmbeddingOptions:
    """The options, and all that was measured for the model with this engine; its server takes what is its own.

    fingerprint: the model's `identity`.
    """
    kept = await store.read(tunings.tunings_of, fingerprint)
    return replace(
        options,
        tuned=tuple(
            Tuned(one.device, one.build, one.options, one.measured_at.isoformat(timespec="minutes"))
            for one in kept
            if one.engine == engine and one.options
        ),
    )
