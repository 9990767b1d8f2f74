"""llama.cpp's embedding API through ctypes: one loaded model and the contexts that compute on it.

Knows tokens and vectors; knows no requests, queues or HTTP. What would abort the process in
native code (token ids and lengths out of range, capacities that do not divide) is refused here
first, as an exception.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp  # before numpy: the other order has crashed at model load
import numpy as np
import numpy.typing as npt

from pipeline.backends.llama_cpp.plan import EngineOptions, EnginePlan, load_mode_name, plan_engine
from pipeline.backends.serving.sequences import Course, EngineError, Tokens
from pipeline.backends.serving.tuned import usable_cores
from pipeline.core.errors import ModelError
from pipeline.core.vectors import Matrix, normalise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

native: Any = llama_cpp.llama_cpp
"""The bindings' own annotations describe C arrays where pointers are meant."""

POOLING_TYPES = {
    "": native.LLAMA_POOLING_TYPE_UNSPECIFIED,
    "mean": native.LLAMA_POOLING_TYPE_MEAN,
    "cls": native.LLAMA_POOLING_TYPE_CLS,
    "last": native.LLAMA_POOLING_TYPE_LAST,
}
WORTH_FOLLOWING = 1.0
"""Seconds of a full batch from which on it is told how far it has come, and given up where nobody waits for it."""

FLASH_ATTENTION_TYPES = {
    "auto": native.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "off": native.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    "on": native.LLAMA_FLASH_ATTN_TYPE_ENABLED,
}


class Engine:
    """A model in memory and its contexts. Each context is used by one thread at a time.

    `dimension` of the vectors, `vocabulary` size, and the `plan` that the contexts follow. `causal`
    models are decoders; `n_ctx_train` is the model's own limit in tokens.
    """

    def __init__(self, options: EngineOptions, on_progress: Callable[[float], None] | None = None) -> None:
        on_gpu = gpu_in_use(options)
        self.options = options
        self._model = _load_model(options, on_progress)
        self.contexts: list[Context] = []
        try:
            vocab = native.llama_model_get_vocab(self._model)
            self._vocab = vocab
            self.vocabulary = int(native.llama_vocab_n_tokens(vocab))
            self.dimension = int(native.llama_model_n_embd_out(self._model))
            self.name = _metadata(self._model, "general.name") or options.model.stem
            self.on_gpu = on_gpu
            self.causal = _is_causal(self._model)
            self.n_ctx_train = int(native.llama_model_n_ctx_train(self._model))
            self.plan = plan_engine(
                options,
                n_ctx_train=self.n_ctx_train,
                causal=self.causal,
                max_sequences=int(native.llama_max_parallel_sequences()),
                cores=usable_cores(),
                on_gpu=on_gpu,
            )
            self._open_contexts(options)
        except BaseException:
            self.close()
            raise

    def _open_contexts(self, options: EngineOptions) -> None:
        """All that the plan wants; where nobody asked for so many, as many as there is memory for."""
        while len(self.contexts) < self.plan.contexts:
            try:
                self.contexts.append(Context(self, self._model, self.plan, options))
            except ModelError:
                if not self.contexts or options.contexts is not None:
                    raise
                self.plan = dataclasses.replace(self.plan, contexts=len(self.contexts))

    @property
    def model(self) -> Any:
        """The native model, for contexts beside `contexts`."""
        return self._model

    @property
    def pooling(self) -> int:
        """How token vectors become one, as the library's number."""
        return self.contexts[0].pooling

    def tokenize(self, text: str) -> Tokens:
        """Token ids of `text`, int32 [n], with the special tokens that the model wants around it."""
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8
        while True:
            ids = np.empty(room, dtype=np.int32)
            pointer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            count = int(native.llama_tokenize(self._vocab, data, len(data), pointer, room, True, False))
            if count >= 0:
                return ids[:count].copy()
            room = -count

    def close(self) -> None:
        """Free the contexts and the model; further use is an error. May be called twice."""
        for context in self.contexts:
            context.close()
        self.contexts = []
        if self._model is not None:
            native.llama_model_free(self._model)
            self._model = None


class Context:
    """One native context: computes one batch at a time, on `plan.threads` threads.

    all_steps: steps of a batch's `Course`, as the last batch took them; 0 before the first, and on a GPU.
    """

    def __init__(self, engine: Engine, model: Any, plan: EnginePlan, options: EngineOptions) -> None:
        self._plan = plan
        self._vocabulary = engine.vocabulary
        self._dimension = engine.dimension
        self._context = _make_context(model, plan, options)
        self.pooling = int(native.llama_pooling_type(self._context))
        try:
            _check_pooling(self.pooling, options)
        except ModelError:
            self.close()
            raise
        self._memory = native.llama_get_memory(self._context)
        self._compute = compute_function(model, self._memory)
        self._arrays = BatchArrays(plan.n_ubatch, plan.n_seq_max)
        self._course = Course()
        self.all_steps = 0
        self._on_step: Callable[[], None] | None = None
        self._followed = follow(self._context, self._step)
        self._follows = True

    def embed(self, sequences: Sequence[Tokens], course: Course | None = None) -> tuple[Matrix, npt.NDArray[np.bool_]]:
        """Unit vectors float32 [n, d] of `sequences`, and bool [n]: which of them are finite.

        The sequences go into one native batch: together at most `plan.n_ubatch` tokens, each at
        most `plan.max_tokens`, at most `plan.n_seq_max` of them. `course` is told how far it has come.
        Raises ValueError where they do not fit or hold ids outside the vocabulary, EngineError where the
        library fails or nobody wants the batch any more.
        """
        self._check(sequences)
        if self._memory:
            native.llama_memory_clear(self._memory, False)
        batch = self._arrays.fill(sequences)
        self._course = course = course or Course()
        course.all_steps = self.all_steps
        began = time.monotonic()
        status = int(self._compute(self._context, batch))
        self._follow_if_slow((time.monotonic() - began) / batch.n_tokens * self._plan.n_ubatch)
        if course.unwanted:
            raise EngineError("nobody waits for this batch any more")
        if status != 0:
            raise EngineError(f"llama.cpp could not compute a batch of {batch.n_tokens} tokens (status {status})")
        self.all_steps = course.steps or self.all_steps
        vectors = np.empty((len(sequences), self._dimension), dtype=np.float32)
        for row in range(len(sequences)):
            pointer = native.llama_get_embeddings_seq(self._context, row)
            if not pointer:
                raise EngineError("llama.cpp returned no vector for a sequence")
            vectors[row] = np.ctypeslib.as_array(pointer, shape=(self._dimension,))
        finite: npt.NDArray[np.bool_] = np.isfinite(vectors).min(axis=1)
        vectors[~finite] = 0.0
        return normalise(vectors), finite

    def warm_up(self, on_step: Callable[[], None] | None = None) -> None:
        """Compute a small batch and forget it: a build that crashes on this model does so now.

        on_step: called as the batch comes on; a large model takes a while for it.
        """
        tokens = np.zeros(min(32, self._plan.max_tokens), dtype=np.int32)
        self._on_step = on_step
        self.embed([tokens] * min(2, self._plan.n_seq_max))
        self._on_step = None

    def _follow_if_slow(self, seconds: float) -> None:
        """Count the steps of the next batch only where a full one takes a while; counting costs about 2 %.

        seconds: what a full batch takes.
        """
        if (seconds >= WORTH_FOLLOWING) is not self._follows:
            self._follows = not self._follows
            callback = self._followed if self._follows else native.ggml_abort_callback()
            native.llama_set_abort_callback(self._context, callback, None)

    def _step(self) -> bool:
        self._course.steps += 1
        if self._on_step is not None:
            self._on_step()
        return self._course.unwanted

    def _check(self, sequences: Sequence[Tokens]) -> None:
        plan = self._plan
        if not 1 <= len(sequences) <= plan.n_seq_max:
            raise ValueError(f"a batch holds 1 to {plan.n_seq_max} sequences, not {len(sequences)}")
        for tokens in sequences:
            if not 1 <= len(tokens) <= plan.max_tokens:
                raise ValueError(f"a sequence holds 1 to {plan.max_tokens} tokens, not {len(tokens)}")
            if int(tokens.min()) < 0 or int(tokens.max()) >= self._vocabulary:
                raise ValueError(f"token ids go from 0 to {self._vocabulary - 1}")
        if sum(map(len, sequences)) > plan.n_ubatch:
            raise ValueError(f"a batch holds at most {plan.n_ubatch} tokens")

    def close(self) -> None:
        """Free the context. May be called twice."""
        if self._context is not None:
            native.llama_free(self._context)
            self._context = None


class BatchArrays:
    """The memory behind a `llama_batch`, filled by array copies: no Python loop over tokens."""

    def __init__(self, capacity: int, n_seq_max: int) -> None:
        self._token = np.zeros(capacity, dtype=np.int32)
        self._position = np.zeros(capacity, dtype=np.int32)
        self._ids_each = np.ones(capacity, dtype=np.int32)
        self._output = np.ones(capacity, dtype=np.int8)
        self._sequence_ids = np.arange(n_seq_max, dtype=np.int32)
        self._id_addresses = np.zeros(capacity, dtype=np.uintp)
        self._steps = np.arange(capacity, dtype=np.int32)

    def fill(self, sequences: Sequence[Tokens], position: int = 0) -> Any:
        """The batch of `sequences`, each of which begins at `position`. Holds until the next call."""
        base = self._sequence_ids.ctypes.data
        end = 0
        for number, tokens in enumerate(sequences):
            start, end = end, end + len(tokens)
            self._token[start:end] = tokens
            self._position[start:end] = self._steps[: end - start] + position
            self._id_addresses[start:end] = base + number * self._sequence_ids.itemsize
        pointer_to_int = ctypes.POINTER(ctypes.c_int32)
        batch = native.llama_batch()
        batch.n_tokens = end
        batch.token = self._token.ctypes.data_as(pointer_to_int)
        batch.embd = None
        batch.pos = self._position.ctypes.data_as(pointer_to_int)
        batch.n_seq_id = self._ids_each.ctypes.data_as(pointer_to_int)
        batch.seq_id = self._id_addresses.ctypes.data_as(ctypes.POINTER(pointer_to_int))
        batch.logits = self._output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        return batch


def compute_function(model: Any, memory: Any) -> Any:
    """What computes a batch in a context of this model: `llama_encode`, or `llama_decode` where it has memory."""
    encoder_only = native.llama_model_has_encoder(model) and not native.llama_model_has_decoder(model)
    return native.llama_encode if encoder_only or not memory else native.llama_decode


def follow(context: Any, step: Callable[[], bool]) -> Any:
    """Have `step` called for each part of a model that the processor has computed; it ends the batch by True.

    A GPU calls nothing. Keep what this returns for as long as the context lives: the library holds a bare pointer.
    """
    called = native.ggml_abort_callback(lambda _: step())
    native.llama_set_abort_callback(context, called, None)
    return called


def gpu_in_use(options: EngineOptions) -> bool:
    """Whether an engine of these options computes on a GPU."""
    return bool(native.llama_supports_gpu_offload()) and options.n_gpu_layers != 0


def build_name() -> str:
    """The version of the bindings, and what its llama.cpp was compiled for: `0.3.36 (CPU: SSE3 AVX2)`."""
    told = native.llama_print_system_info().decode("utf-8", errors="replace")
    parts = [part.strip() for part in told.split("|")]
    used = [part.removesuffix(" = 1") for part in parts if part and not part.endswith(" = 0")]
    return f"{llama_cpp.__version__} ({' '.join(used).replace(' : ', ': ')})"


def _load_model(options: EngineOptions, on_progress: Callable[[float], None] | None) -> Any:
    params = native.llama_model_default_params()
    if options.n_gpu_layers is not None:
        params.n_gpu_layers = options.n_gpu_layers
    params.use_extra_bufts = options.use_extra_bufts
    params.load_mode = getattr(native, f"LLAMA_LOAD_MODE_{load_mode_name(mlock=options.mlock)}")

    def report(progress: float, _: Any) -> bool:
        if on_progress is not None:
            on_progress(progress)
        return True

    params.progress_callback = native.llama_progress_callback(report)
    model = native.llama_model_load_from_file(os.fsencode(options.model), params)
    if not model:
        raise ModelError(f"llama.cpp cannot load {options.model}; its log says why")
    return model


def _make_context(model: Any, plan: EnginePlan, options: EngineOptions) -> Any:
    context = open_context(model, plan, options, POOLING_TYPES[options.pooling])
    if not context:
        raise ModelError(
            f"llama.cpp cannot make a context of {plan.n_ubatch} tokens for {options.model};"
            " its log says why (too little memory? then lower embedding.n_ubatch or embedding.contexts)"
        )
    return context


def open_context(model: Any, plan: EnginePlan, options: EngineOptions, pooling: int, capacity: int = 0) -> Any:
    """A native context, or a null pointer where that fails; `llama_free` frees it.

    pooling: the library's number. capacity: tokens of all sequences together; 0: one batch of them.
    """
    params = native.llama_context_default_params()
    params.n_ctx = capacity or plan.n_ubatch
    params.n_batch = plan.n_ubatch
    params.n_ubatch = plan.n_ubatch
    params.n_seq_max = plan.n_seq_max
    params.n_threads = params.n_threads_batch = plan.threads
    params.pooling_type = pooling
    params.flash_attn_type = FLASH_ATTENTION_TYPES[plan.flash_attn]
    params.embeddings = True
    params.kv_unified = True
    context = native.llama_init_from_model(model, params)
    if not context and options.flash_attn is None and plan.flash_attn == "on":
        params.flash_attn_type = FLASH_ATTENTION_TYPES["auto"]
        context = native.llama_init_from_model(model, params)
    return context


def _check_pooling(pooling: int, options: EngineOptions) -> None:
    if pooling == native.LLAMA_POOLING_TYPE_NONE:
        raise ModelError(
            f"{options.model.name} does not say how its token vectors become one:"
            " set embedding.pooling to mean, cls or last, as the model's page says"
        )
    if pooling == native.LLAMA_POOLING_TYPE_RANK:
        raise ModelError(f"{options.model.name} is a reranker: it scores pairs of texts and makes no vectors")


def _metadata(model: Any, key: str) -> str | None:
    buffer = ctypes.create_string_buffer(512)
    length = int(native.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer)))
    return buffer.value.decode("utf-8", errors="replace") if length > 0 else None


def _is_causal(model: Any) -> bool:
    architecture = _metadata(model, "general.architecture") or ""
    encoder_only = native.llama_model_has_encoder(model) and not native.llama_model_has_decoder(model)
    return not encoder_only and _metadata(model, f"{architecture}.attention.causal") != "false"


_LOG_LEVELS = {1: "debug", 2: "info", 3: "warning", 4: "error"}
_log_threshold = 3
_log_continues = False


_OTHER_POOLING = b"model default pooling_type"
"""A warning at each context that is to give token vectors of a model that pools them."""


def _log(level: int, text: bytes, _: Any) -> None:
    """Warnings and errors to standard error."""
    global _log_continues
    shown = _log_continues if level == 5 else level >= _log_threshold and _OTHER_POOLING not in text
    _log_continues = shown
    if shown and text:
        sys.stderr.write(text.decode("utf-8", errors="replace"))
        sys.stderr.flush()


def set_log_level(level: str) -> None:
    """Which of llama.cpp's own messages go to stderr: debug, info, warning or error, and worse."""
    global _log_threshold
    _log_threshold = next(number for number, name in _LOG_LEVELS.items() if name == level)


_native_log = native.llama_log_callback(_log)  # referenced for good: freed while in use, it crashes the process
native.llama_log_set(_native_log, None)
native.llama_backend_init()
