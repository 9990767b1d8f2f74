"""Which settings do not go together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.settings.fields import Settings


def contradictions(settings: Settings) -> Iterator[dict[str, str]]:
    """For each pair that does not go together: dotted key -> what is wrong with it when the other stands."""
    chunk, embedding, run = settings.chunk, settings.embedding, settings.run
    if chunk.overlap * 2 >= chunk.tokens:
        yield {
            "chunk.overlap": f"should be less than half of chunk.tokens ({chunk.tokens}), not {chunk.overlap}",
            "chunk.tokens": f"should be more than twice chunk.overlap ({chunk.overlap}), not {chunk.tokens}",
        }
    if embedding.n_batch is not None and embedding.n_ubatch is not None and embedding.n_ubatch < embedding.n_batch:
        yield {
            "embedding.n_ubatch": f"should be at least embedding.n_batch ({embedding.n_batch}), "
            f"not {embedding.n_ubatch}: an encoder computes a batch in one go"
        }
    if embedding.n_ubatch is not None and embedding.n_ubatch < chunk.tokens:
        yield {
            "embedding.n_ubatch": f"should be at least chunk.tokens ({chunk.tokens}), not {embedding.n_ubatch}: "
            "a chunk must fit a batch",
            "chunk.tokens": f"should be at most embedding.n_ubatch ({embedding.n_ubatch}), not {chunk.tokens}: "
            "a chunk must fit a batch",
        }
    longest = embedding.document_tokens
    if embedding.late_chunking and longest is not None and longest < chunk.tokens:
        yield {
            "embedding.document_tokens": f"should be at least chunk.tokens ({chunk.tokens}) for late chunking, "
            f"not {longest}",
            "chunk.tokens": f"should be at most embedding.document_tokens ({longest}) for late chunking, "
            f"not {chunk.tokens}",
        }
    if embedding.late_chunking and embedding.backend not in ("auto", "llama-cpp"):
        yield {
            "embedding.late_chunking": f"needs our own server (llama-cpp): {embedding.backend} gives no token vectors",
            "embedding.backend": f"should be auto or llama-cpp for late chunking, not {embedding.backend}",
        }
    for key, part in (
        ("embedding.connect_timeout", embedding.connect_timeout),
        ("embedding.read_timeout", embedding.read_timeout),
    ):
        if part > embedding.total_timeout:
            yield {
                key: f"should be at most embedding.total_timeout ({embedding.total_timeout:g}), not {part:g}",
                "embedding.total_timeout": f"should be at least {key} ({part:g}), not {embedding.total_timeout:g}",
            }
    if run.request_chunks > run.look_ahead:
        yield {
            "run.request_chunks": f"should be at most run.look_ahead ({run.look_ahead}), not {run.request_chunks}",
            "run.look_ahead": f"should be at least run.request_chunks ({run.request_chunks}), not {run.look_ahead}",
        }
    if settings.qdrant.url is not None and settings.qdrant.path is not None:
        yield {
            "qdrant.url": "should not be set where qdrant.path is: vectors have one home beside the database",
            "qdrant.path": "should not be set where qdrant.url is: vectors have one home beside the database",
        }
    if settings.search.vectors == "qdrant" and settings.qdrant.url is None and settings.qdrant.path is None:
        yield {"search.vectors": "should be database where neither qdrant.url nor qdrant.path is set, not qdrant"}
