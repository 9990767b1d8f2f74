"""A language model through llama-cpp-python's `Llama`: one answer at a time, that can be given up between tokens.

Knows OpenAI's parameters and answers as plain objects; knows no HTTP.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import llama_cpp  # before numpy: the other order has crashed at model load
import llama_cpp.llama_cpp

from pipeline.backends.llama_cpp.protocol import ApiError
from pipeline.backends.serving.tuned import usable_cores
from pipeline.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

native: Any = llama_cpp.llama_cpp

SAMPLING = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "stop", "seed", "max_tokens", "presence_penalty", "frequency_penalty"}
    | {"repeat_penalty"}
)
CHAT = frozenset({"messages", "tools", "tool_choice", "response_format"})
COMPLETION = frozenset({"prompt", "suffix", "echo"})
NOT_OFFERED = ("logprobs", "top_logprobs", "logit_bias")


@dataclass(frozen=True, slots=True)
class GeneratorOptions:
    """How the model is loaded, and what holds for requests that do not say. See `pipeline.backends.options`."""

    model: Path
    n_ctx: int = 4096
    n_gpu_layers: int = -1
    n_batch: int = 2048
    n_ubatch: int = 2048
    threads: int | None = None
    flash_attn: str = "auto"
    mlock: bool = False
    use_extra_bufts: bool = True
    temperature: float = 0.7
    top_p: float = 0.9
    max_tokens: int = 2048
    repeat_penalty: float = 1.1


class GivenUp(Exception):
    """The answer is not wanted any more."""


class Generator:
    """The model in memory; for one thread at a time."""

    def __init__(self, options: GeneratorOptions, on_progress: Callable[[float], None]) -> None:
        self._defaults = {
            "temperature": options.temperature,
            "top_p": options.top_p,
            "max_tokens": options.max_tokens,
            "repeat_penalty": options.repeat_penalty,
        }
        self._llama = _load(options, on_progress)
        self._given_up = threading.Event()
        self._llama.generate = self._interruptible(self._llama.generate)
        self.name = str(self._llama.metadata.get("general.name") or options.model.stem)

    def warm_up(self) -> None:
        """Compute one token: a build that crashes on this model does so now."""
        self._llama.create_completion("The", max_tokens=1, temperature=0.0)
        self._llama.reset()

    def answer(self, request: Mapping[str, Any], *, chat: bool, given_up: threading.Event) -> dict[str, Any]:
        """The whole answer to a request in OpenAI's form.

        Raises ApiError for a request that makes no sense, GivenUp soon after `given_up` is set.
        """
        answer: dict[str, Any] = self._call({**request, "stream": False}, chat=chat, given_up=given_up)
        return answer

    def stream(self, request: Mapping[str, Any], *, chat: bool, given_up: threading.Event) -> Iterator[dict[str, Any]]:
        """The pieces of the answer as they come. Raises as `answer`."""
        pieces = self._call({**request, "stream": True}, chat=chat, given_up=given_up)
        try:
            yield from pieces
        except ValueError as error:
            raise ApiError(400, str(error)) from error

    def close(self) -> None:
        """Free the model."""
        self._llama.close()

    def _call(self, request: Mapping[str, Any], *, chat: bool, given_up: threading.Event) -> Any:
        arguments = {**self._defaults, **check_request(request, chat=chat), "model": request.get("model") or self.name}
        self._given_up = given_up
        call = self._llama.create_chat_completion if chat else self._llama.create_completion
        try:
            return call(**arguments)
        except (ValueError, TypeError) as error:
            raise ApiError(400, str(error)) from error

    def _interruptible(self, generate: Callable[..., Iterator[int]]) -> Callable[..., Iterator[int]]:
        """The library's loop over tokens, with a look between two whether anybody still wants the next one."""

        def looking(*arguments: Any, **named: Any) -> Iterator[int]:
            for token in generate(*arguments, **named):
                if self._given_up.is_set():
                    raise GivenUp
                yield token

        return looking


def check_request(request: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
    """The library's arguments for a request. Raises ApiError for what it does not offer or cannot mean."""
    for name in NOT_OFFERED:
        if request.get(name):
            raise ApiError(400, f"{name} is not offered by this server", param=name)
    if request.get("n") not in (None, 1):
        raise ApiError(400, "n can only be 1", param="n")
    given = {name: value for name, value in request.items() if value is not None}
    if "max_completion_tokens" in given:
        given["max_tokens"] = given["max_completion_tokens"]
    _check_numbers(given)
    if chat:
        messages = given.get("messages")
        if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
            raise ApiError(400, "messages must be a list of objects with a role", param="messages")
    elif not isinstance(given.get("prompt"), str):
        raise ApiError(400, "prompt must be a string", param="prompt")
    known = SAMPLING | (CHAT if chat else COMPLETION) | {"stream"}
    return {name: value for name, value in given.items() if name in known}


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)


def _check_numbers(given: Mapping[str, Any]) -> None:
    for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repeat_penalty"):
        value = given.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ApiError(400, f"{name} must be a number", param=name)
    for name in ("max_tokens", "top_k", "seed"):
        if type(given.get(name, 0)) is not int:
            raise ApiError(400, f"{name} must be an integer", param=name)
    if given.get("max_tokens", 1) < 1:
        raise ApiError(400, "max_tokens must be at least 1", param="max_tokens")


def _load(options: GeneratorOptions, on_progress: Callable[[float], None]) -> Any:
    threads = options.threads or usable_cores()
    n_batch = min(options.n_batch, options.n_ctx)
    try:
        with _model_parameters(options, on_progress):
            return llama_cpp.Llama(
                model_path=os.fspath(options.model),
                n_gpu_layers=options.n_gpu_layers,
                n_ctx=options.n_ctx,
                n_batch=n_batch,
                n_ubatch=min(options.n_ubatch, n_batch),
                n_threads=threads,
                n_threads_batch=threads,
                # The library's class knows on and off only, and off is right for every model.
                flash_attn=options.flash_attn == "on",
                use_mlock=options.mlock,
                verbose=True,
            )
    except ValueError as error:
        raise ModelError(f"llama.cpp cannot load {options.model}: {error}; its log says why") from error


@contextmanager
def _model_parameters(options: GeneratorOptions, on_progress: Callable[[float], None]) -> Iterator[None]:
    """While a `Llama` is made: what its constructor has no argument for.

    That is the report of progress, and whether weights are repacked.
    """
    defaults = native.llama_model_default_params

    def report(progress: float, _: Any) -> bool:
        on_progress(progress)
        return True

    callback = native.llama_progress_callback(report)

    def ours() -> Any:
        params = defaults()
        params.use_extra_bufts = options.use_extra_bufts
        params.progress_callback = callback
        return params

    native.llama_model_default_params = ours
    try:
        yield
    finally:
        native.llama_model_default_params = defaults
