"""A GGUF's own tokenizer: loads the vocabulary and no weights, a few megabytes and milliseconds.

Knows nothing of chunks. The counts are those of the embedding server, which reads the same file.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any, Self

import llama_cpp.llama_cpp as native

from pipeline.core.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_MAGIC = b"GGUF"
_FIRST_ROOM = 8192


def _discard(_level: int, _text: bytes, _data: Any) -> None:
    """Takes the library's log lines."""


_LOG_CALLBACK = native.llama_log_callback(_discard)  # held here: the library keeps a bare pointer


class GgufTokenizer:
    """The tokenizer in the GGUF file at `path`, for one thread at a time.

    `limit` is the number of tokens that the model was trained to see at once, special tokens
    included. Raises ModelError where the file is no model with a vocabulary.
    """

    def __init__(self, path: Path) -> None:
        _require_gguf(path)
        native.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(None))
        native.llama_backend_init()
        params = native.llama_model_default_params()
        params.vocab_only = True
        params.n_gpu_layers = 0
        self._model = native.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ModelError(f"{path} is damaged or of a newer kind than this llama.cpp reads; download it again")
        try:
            self._vocab = self._vocabulary(path)
            self.limit = self._trained_context(path)
        except BaseException:
            self.close()
            raise
        self._buffer = (native.llama_token * _FIRST_ROOM)()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with the special tokens that the model wants around it.

        Whatever looks like a special token in the text is text. Lone surrogates, which no file
        can hold, count as question marks. Raises ValueError for more text than 2**31 bytes.
        """
        if not self._model:
            raise ValueError("the tokenizer is closed")
        data = text.encode("utf-8", errors="replace")
        if len(data) > 2**31 - 1:
            raise ValueError(f"{len(data)} bytes are too many to tokenize at once")
        count = self._tokenize(data)
        if count < 0:
            self._buffer = (native.llama_token * -count)()
            count = self._tokenize(data)
        ids: list[int] = self._buffer[:count]
        return ids

    def close(self) -> None:
        """Frees the vocabulary; a second time does nothing."""
        model, self._model = self._model, None
        if model:
            native.llama_model_free(model)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tokenize(self, data: bytes) -> int:
        return int(native.llama_tokenize(self._vocab, data, len(data), self._buffer, len(self._buffer), True, False))

    def _vocabulary(self, path: Path) -> Any:
        vocab = native.llama_model_get_vocab(self._model)
        if native.llama_vocab_type(vocab) == native.LLAMA_VOCAB_TYPE_NONE:
            raise ModelError(f"{path} holds no vocabulary, so text cannot be counted; choose an embedding model")
        return vocab

    def _trained_context(self, path: Path) -> int:
        """From the file's metadata: a model loaded without weights says 0."""
        architecture = self._metadata("general.architecture")
        length = self._metadata(f"{architecture}.context_length")
        if not length.isdecimal() or int(length) < 1:
            raise ModelError(f"{path} does not say how many tokens the model takes; choose another file of it")
        return int(length)

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        native.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace")


def _require_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise ModelError(
            f"the model {path} cannot be read ({error.strerror}); check the path or download it"
        ) from error
    if magic != _MAGIC:
        raise ModelError(f"{path} is not a GGUF file; give the path of one, or download the model again")
