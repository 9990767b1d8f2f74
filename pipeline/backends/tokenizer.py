"""A model's own tokenizer, from its file: a GGUF's, or that of a Hugging Face model directory. Loads no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pipeline.backends.directory import read_directory
from pipeline.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class LimitedTokenizer(Protocol):
    """A tokenizer that knows how many tokens its model takes at once, special tokens included."""

    @property
    def limit(self) -> int:
        """That number."""
        ...

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of `text`, with the special tokens that the model wants around it."""
        ...


def open_tokenizer(path: Path) -> LimitedTokenizer:
    """The tokenizer of the model at `path`. Raises ModelError where there is none."""
    if path.is_dir():
        return DirectoryTokenizer(path)
    from pipeline.backends.llama_cpp.tokenizer import GgufTokenizer

    return GgufTokenizer(path)


class DirectoryTokenizer:
    """The `tokenizer.json` of a Hugging Face model directory, by the library that transformers uses itself.

    Raises ModelError where it is missing or damaged, or the library is not installed.
    """

    def __init__(self, path: Path) -> None:
        facts = read_directory(path)
        self.limit = facts.max_tokens
        self._lower_case = facts.lower_case
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ModelError(f"{path} is a model directory: .venv/bin/pip install -e '.[torch]' to use it") from error
        file = path / "tokenizer.json"
        if not file.is_file():
            raise ModelError(f"{path} has no tokenizer.json: save the model's fast tokenizer there, with transformers")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare exceptions
            raise ModelError(f"{file} is damaged: {error}; download the model again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True

    @property
    def vocabulary(self) -> int:
        """Ids go from 0 to below it."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with the special tokens that the model wants around it.

        Whatever looks like a special token in the text is text. Lone surrogates, which no file can hold,
        count as question marks.
        """
        clean = text.encode("utf-8", errors="replace").decode("utf-8")
        ids: list[int] = self._tokenizer.encode(clean.lower() if self._lower_case else clean).ids
        return ids
