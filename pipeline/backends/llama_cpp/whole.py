"""Computes one long text in a context made for it, which is freed after it: whole documents and stretches of them.

The contexts that compute chunks stay as they are, so that these do not get slower because a long text may
come. Making a context takes about a millisecond; what it takes in memory grows with the text's length, for an
encoder with its square (the attention mask).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.backends.llama_cpp.engine import BatchArrays, Engine, compute_function, follow, native, open_context
from pipeline.backends.serving.sequences import Course, EngineError, Tokens
from pipeline.core.stretches import LONGEST, USUAL
from pipeline.core.vectors import Matrix, normalise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PIECE = 1024
"""Tokens of a text that a decoder computes at once; what it remembers of those before joins them."""

SAME = 0.999
"""The cosine from which on two vectors of one text are the same."""


def plan_longest(engine: Engine, asked: int | None) -> int:
    """Tokens of the longest text that is computed in one go: as asked, as far as the model was trained for it."""
    most = asked if asked is not None else LONGEST if engine.on_gpu else USUAL
    return min(engine.n_ctx_train, max(most, engine.plan.max_tokens))


class WholeTexts:
    """Vectors of long texts over a loaded model. Any thread may call; each call has a context of its own.

    piece: tokens that a decoder computes at once.
    """

    def __init__(self, engine: Engine, piece: int = PIECE) -> None:
        self._engine = engine
        self._piece = piece

    def vector(self, tokens: Tokens, course: Course) -> Matrix:
        """The unit vector float32 [1, d] of a text, pooled as the model's vectors are; one that is not finite is zero.

        `course` is told how far it has come. Raises EngineError where the library fails, or nobody wants it any more.
        """
        engine = self._engine
        # What a decoder's tokens are pooled to is computed batch by batch, and only the last one's end is the text's.
        if engine.causal and engine.pooling != native.LLAMA_POOLING_TYPE_LAST:
            first_only = engine.pooling == native.LLAMA_POOLING_TYPE_CLS
            return self.spans(tokens, [(0, 1 if first_only else len(tokens))], course)
        with self._computing(tokens, engine.pooling, course) as computing:
            for _ in computing.pieces():
                pass
            return _unit(computing.pooled()[np.newaxis])

    def spans(self, tokens: Tokens, spans: Sequence[tuple[int, int]], course: Course) -> Matrix:
        """The unit vectors float32 [n, d] of the means of the tokens in each span; one that is not finite is zero.

        Raises as `vector`.
        """
        sums = np.zeros((len(spans), self._engine.dimension), np.float64)
        with self._computing(tokens, native.LLAMA_POOLING_TYPE_NONE, course) as computing:
            for first, size in computing.pieces():
                vectors = computing.token_vectors(size)
                for total, (start, end) in zip(sums, spans, strict=True):
                    inside = vectors[max(0, start - first) : max(0, end - first)]
                    total += inside.sum(axis=0, dtype=np.float64)
        return _unit(sums)

    def spans_agree(self, course: Course) -> bool:
        """Whether the mean of token vectors is what this model's vectors are: a text is computed both ways."""
        engine = self._engine
        if engine.causal:
            return bool(engine.pooling == native.LLAMA_POOLING_TYPE_MEAN)
        tokens = np.arange(min(24, engine.plan.max_tokens), dtype=np.int32) % engine.vocabulary
        pooled = self.vector(tokens, course)
        return float(pooled[0] @ self.spans(tokens, [(0, len(tokens))], course)[0]) > SAME

    def _computing(self, tokens: Tokens, pooling: int, course: Course) -> _Computing:
        piece = min(len(tokens), self._piece) if self._engine.causal else len(tokens)
        return _Computing(self._engine, tokens, piece, pooling, self._threads(len(tokens)), course)

    def _threads(self, length: int) -> int:
        """A stretch of usual length shares the cores with others beside it; a longer one is alone and has them all."""
        plan = self._engine.plan
        return plan.threads if length <= plan.max_tokens else plan.threads * plan.contexts


class _Computing:
    """One native context over one text, with the pieces that it is computed in."""

    def __init__(self, engine: Engine, tokens: Tokens, piece: int, pooling: int, threads: int, course: Course) -> None:
        self._tokens = tokens
        self._dimension = engine.dimension
        self._course = course
        self._piece = piece
        plan = dataclasses.replace(engine.plan, n_ubatch=self._piece, n_seq_max=1, threads=threads)
        self._context = open_context(engine.model, plan, engine.options, pooling, capacity=len(tokens))
        if not self._context:
            raise EngineError(f"llama.cpp cannot make a context of {len(tokens)} tokens: too little memory?")
        self._compute = compute_function(engine.model, native.llama_get_memory(self._context))
        self._arrays = BatchArrays(self._piece, 1)
        pieces = -(-len(tokens) // piece)
        course.all_steps = engine.contexts[0].all_steps * pieces
        self._followed = follow(self._context, self._step)

    def _step(self) -> bool:
        self._course.steps += 1
        return self._course.unwanted

    def __enter__(self) -> _Computing:
        return self

    def __exit__(self, *_: object) -> None:
        native.llama_free(self._context)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Compute the text piece by piece; after each, where it begins and its tokens."""
        for first in range(0, len(self._tokens), self._piece):
            part = self._tokens[first : first + self._piece]
            status = int(self._compute(self._context, self._arrays.fill([part], first)))
            if self._course.unwanted:
                raise EngineError("nobody waits for this text any more")
            if status != 0:
                raise EngineError(f"llama.cpp could not compute a text of {len(self._tokens)} tokens (status {status})")
            yield first, len(part)

    def pooled(self) -> npt.NDArray[np.float32]:
        """The vector float32 [d] that the library made of the tokens."""
        pointer = native.llama_get_embeddings_seq(self._context, 0)
        if not pointer:
            raise EngineError("llama.cpp returned no vector for a text")
        return np.ctypeslib.as_array(pointer, shape=(self._dimension,)).copy()

    def token_vectors(self, count: int) -> npt.NDArray[np.float32]:
        """The vectors float32 [count, d] of the last piece's tokens; they hold until the next piece."""
        pointer: Any = native.llama_get_embeddings(self._context)
        if not pointer:
            raise EngineError("llama.cpp returned no token vectors")
        return np.ctypeslib.as_array(pointer, shape=(count, self._dimension))


def _unit(vectors: npt.NDArray[Any]) -> Matrix:
    finite = np.isfinite(vectors).all(axis=1)
    return normalise(np.where(finite[:, np.newaxis], vectors, 0.0).astype(np.float32))
