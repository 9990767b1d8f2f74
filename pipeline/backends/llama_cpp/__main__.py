"""Our model server as a program: `python -m pipeline.backends.llama_cpp --model PATH`.

It speaks to its parent in JSON lines on standard output: `{"progress": 0.4}` while it loads,
then `{"port": ..., "model": ..., ...}` when it is ready, or `{"error": "..."}`. With `--wait` it first
says `{"prepared": true}`, everything imported and nothing loaded, and goes on at the first line on
standard input. Logs go to standard error. SIGTERM lets it finish what is in flight and exit 0. Where
standard input is a pipe, its end means that the parent has died, and so does this.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import llama_cpp  # before anything that imports numpy: the other order has crashed at model load

from pipeline.backends.llama_cpp.chat import ChatService, make_chat_app
from pipeline.backends.llama_cpp.dispatch import Dispatcher
from pipeline.backends.llama_cpp.engine import Engine, build_name, gpu_in_use, set_log_level
from pipeline.backends.llama_cpp.generator import Generator, GeneratorOptions
from pipeline.backends.llama_cpp.lane import WholeLane
from pipeline.backends.llama_cpp.plan import EngineOptions
from pipeline.backends.llama_cpp.protocol import Limits
from pipeline.backends.llama_cpp.server import Service, make_app
from pipeline.backends.llama_cpp.whole import WholeTexts, plan_longest
from pipeline.backends.serving.child import (
    API_KEY_VARIABLE,
    DRAIN_SECONDS,
    MAX_WAITING_TOKENS,
    Channel,
    bind,
    loopback,
    run_app,
    watch_parent,
)
from pipeline.backends.serving.tuned import Host, device_name, fill, from_argument, own_tuning
from pipeline.core.errors import ModelError, NightshiftError

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Sequence

    from starlette.applications import Starlette


LIBRARY = "llama-cpp-python"
"""What a build is one of."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until SIGTERM; the exit status."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    channel = Channel()
    told_to_go = watch_parent()
    set_log_level(given.log_level)
    serve = _serve_chat if given.slot == "generation" else _serve_embeddings
    try:
        with bind(given.host, given.port) as listener:
            if given.wait:
                channel.send(prepared=True)
                told_to_go.wait()
            return serve(given, listener, channel)
    except NightshiftError as error:
        channel.send(error=str(error), kind="model" if isinstance(error, ModelError) else "start")
        print(error, file=sys.stderr)  # noqa: T201  standard error is this program's log
        return 1


def _serve_embeddings(given: argparse.Namespace, listener: socket.socket, channel: Channel) -> int:
    asked = EngineOptions(
        model=given.model,
        n_gpu_layers=given.n_gpu_layers,
        threads=given.threads,
        n_batch=given.n_batch,
        n_ubatch=given.n_ubatch,
        contexts=given.contexts,
        flash_attn=given.flash_attn,
        pooling=given.pooling,
        mlock=given.mlock,
        use_extra_bufts=not given.no_extra_bufts,
    )
    host = Host(device_name(on_gpu=gpu_in_use(asked)), build_name())
    tuned = own_tuning(given.tuned, host)
    engine = Engine(fill(asked, tuned), on_progress=channel.progress)
    plan = engine.plan
    for context in engine.contexts:
        context.warm_up(lambda: channel.progress(1.0))
    dispatcher = Dispatcher(
        engine.contexts,
        dimension=engine.dimension,
        budget=plan.n_batch,
        n_seq_max=plan.n_seq_max,
        max_waiting=MAX_WAITING_TOKENS,
    )
    whole = WholeLane(WholeTexts(engine), workers=plan.contexts, usual=plan.max_tokens, max_waiting=MAX_WAITING_TOKENS)
    longest = plan_longest(engine, given.document_tokens)
    service = Service(
        dispatcher=dispatcher,
        limits=Limits(engine.dimension, plan.max_tokens, engine.vocabulary, given.matryoshka, longest),
        tokenize=engine.tokenize,
        model=given.alias or engine.name,
        api_key=os.environ.pop(API_KEY_VARIABLE, ""),
        whole=whole,
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        dispatcher.start()
        channel.send(
            port=listener.getsockname()[1],
            dimension=engine.dimension,
            max_tokens=plan.max_tokens,
            longest=longest,
            model=service.model,
            contexts=plan.contexts,
            threads=plan.threads,
            n_batch=plan.n_batch,
            n_ubatch=plan.n_ubatch,
            flash_attn=plan.flash_attn,
            on_gpu=engine.on_gpu,
            device=host.device,
            build=host.build,
            library=LIBRARY,
            tuned_at=tuned.measured_at if tuned else None,
            counts=True,
        )
        yield

    run_app(make_app(service, lifespan), listener)
    if not (whole.close() & dispatcher.close(DRAIN_SECONDS)):
        sys.stderr.flush()
        os._exit(0)
    engine.close()
    return 0


def _serve_chat(given: argparse.Namespace, listener: socket.socket, channel: Channel) -> int:
    wanted = {field.name: getattr(given, field.name, None) for field in dataclasses.fields(GeneratorOptions)}
    wanted["use_extra_bufts"] = not given.no_extra_bufts
    options = GeneratorOptions(**{name: value for name, value in wanted.items() if value is not None})
    generator = Generator(options, channel.progress)
    on_gpu = bool(llama_cpp.llama_supports_gpu_offload()) and options.n_gpu_layers != 0
    generator.warm_up()
    service = ChatService(generator, given.alias or generator.name, os.environ.pop(API_KEY_VARIABLE, ""))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        channel.send(
            port=listener.getsockname()[1],
            model=service.model,
            n_ctx=options.n_ctx,
            on_gpu=on_gpu,
            device=device_name(on_gpu=on_gpu),
            build=build_name(),
            library=LIBRARY,
        )
        yield

    run_app(make_chat_app(service, lifespan), listener)
    # A thread may still compute an answer that nobody waits for; the end of the process is the unload.
    sys.stderr.flush()
    os._exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.backends.llama_cpp",
        description="Serves a model (GGUF) over OpenAI's API on a loopback port.",
        epilog=f"An API key, where one is wanted, is read from {API_KEY_VARIABLE}.",
    )
    parser.add_argument("--model", type=Path, required=True, help="path of a GGUF file")
    parser.add_argument("--slot", choices=["embedding", "generation"], default="embedding", help="what it is for")
    parser.add_argument("--wait", action="store_true", help="load nothing before a line comes on standard input")
    parser.add_argument("--alias", default="", help="the model's name in answers (default: its own)")
    parser.add_argument("--host", type=loopback, default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", type=int, default=0, help="0: any free one; standard output says which")
    parser.add_argument("--n-gpu-layers", type=int, help="negative: all; 0: none (default: all where there is a GPU)")
    parser.add_argument("--threads", type=int, help="of each context")
    parser.add_argument("--n-batch", type=int, help="tokens packed into one batch")
    parser.add_argument("--n-ubatch", type=int, help="capacity of a batch in tokens, and so the longest input")
    parser.add_argument("--document-tokens", type=int, help="the longest text that is computed by itself")
    parser.add_argument("--contexts", type=int, help="batches computed side by side")
    parser.add_argument("--flash-attn", choices=["on", "off", "auto"], help="default: on for a CPU, auto for a GPU")
    parser.add_argument("--pooling", choices=["", "mean", "cls", "last"], default="", help="default: the model's own")
    parser.add_argument("--tuned", type=from_argument, default=[], help="what was measured, as JSON; see serving/tuned")
    parser.add_argument("--mlock", action="store_true", help="keep the weights from being swapped out")
    parser.add_argument("--no-extra-bufts", action="store_true", help="do not repack weights for matrix instructions")
    parser.add_argument("--matryoshka", action="store_true", help="the model's vectors may be cut to fewer dimensions")
    parser.add_argument("--n-ctx", type=int, help="tokens of context, for generation")
    parser.add_argument("--temperature", type=float, help="for requests that do not say; so are the next three")
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--repeat-penalty", type=float)
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="warning")
    return parser


if __name__ == "__main__":
    sys.exit(main())
