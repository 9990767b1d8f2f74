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
import ipaddress
import json
import logging
import os
import select
import signal
import socket
import stat
import sys
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp  # noqa: F401  before anything that imports numpy: the other order has crashed at model load
import uvicorn

from pipeline.backends.llama_cpp.chat import ChatService, make_chat_app
from pipeline.backends.llama_cpp.dispatch import Dispatcher
from pipeline.backends.llama_cpp.engine import Engine, set_log_level
from pipeline.backends.llama_cpp.generator import Generator, GeneratorOptions
from pipeline.backends.llama_cpp.plan import EngineOptions
from pipeline.backends.llama_cpp.protocol import Limits
from pipeline.backends.llama_cpp.server import Service, make_app
from pipeline.core.errors import ModelError, NightshiftError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.applications import Starlette

API_KEY_VARIABLE = "NIGHTSHIFT_BACKEND_API_KEY"
"""Read from the environment, since every user of the host may read a command line."""

MAX_WAITING_TOKENS = 1_000_000
"""Of requests that were admitted and not computed yet, about 10 MB of them."""

DRAIN_SECONDS = 5
"""How long requests in flight may take after SIGTERM."""

PARENT_CHECK_SECONDS = 1.0


class Channel:
    """JSON lines to the parent. Takes standard output over, so that no library can write in between."""

    def __init__(self) -> None:
        self._descriptor = os.dup(1)
        os.dup2(2, 1)
        self._last_progress = 0.0

    def send(self, **fields: Any) -> None:
        """Write one line; a parent that reads no longer is no error."""
        try:
            os.write(self._descriptor, json.dumps(fields).encode() + b"\n")
        except OSError:
            return

    def progress(self, share: float) -> None:
        """Tell the parent, a few times a second at most, how much of the model is loaded (0 to 1)."""
        now = time.monotonic()
        if now - self._last_progress >= 0.25:
            self._last_progress = now
            self.send(progress=round(share, 3))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until SIGTERM; the exit status."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    channel = Channel()
    told_to_go = watch_parent()
    set_log_level(given.log_level)
    serve = _serve_chat if given.slot == "generation" else _serve_embeddings
    try:
        with _bind(given.host, given.port) as listener:
            if given.wait:
                channel.send(prepared=True)
                told_to_go.wait()
            return serve(given, listener, channel)
    except NightshiftError as error:
        channel.send(error=str(error), kind="model" if isinstance(error, ModelError) else "start")
        print(error, file=sys.stderr)  # noqa: T201  standard error is this program's log
        return 1


def watch_parent() -> threading.Event:
    """End this process as soon as its parent is gone, even in the middle of a native call.

    The parent holds the other end of standard input for as long as it lives. A process that it
    forked meanwhile may hold that end too, so the parent's id is looked at as well. Returns what
    is set as soon as the parent writes something, or at once where standard input is no pipe.
    """
    spoken = threading.Event()
    if not stat.S_ISFIFO(os.fstat(0).st_mode) and not stat.S_ISSOCK(os.fstat(0).st_mode):
        spoken.set()
        return spoken
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            if select.select([0], [], [], PARENT_CHECK_SECONDS)[0]:
                if not os.read(0, 4096):
                    break
                spoken.set()
        os._exit(3)

    threading.Thread(target=watch, name="watch the parent", daemon=True).start()
    return spoken


def _serve_embeddings(given: argparse.Namespace, listener: socket.socket, channel: Channel) -> int:
    engine = Engine(
        EngineOptions(
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
        ),
        on_progress=channel.progress,
    )
    plan = engine.plan
    for context in engine.contexts:
        context.warm_up()
    dispatcher = Dispatcher(
        engine.contexts,
        dimension=engine.dimension,
        budget=plan.n_batch,
        n_seq_max=plan.n_seq_max,
        max_waiting=MAX_WAITING_TOKENS,
    )
    service = Service(
        dispatcher=dispatcher,
        limits=Limits(engine.dimension, plan.max_tokens, engine.vocabulary, given.matryoshka),
        tokenize=engine.tokenize,
        model=given.alias or engine.name,
        api_key=os.environ.pop(API_KEY_VARIABLE, ""),
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        dispatcher.start()
        channel.send(
            port=listener.getsockname()[1],
            dimension=engine.dimension,
            max_tokens=plan.max_tokens,
            model=service.model,
            contexts=plan.contexts,
            threads=plan.threads,
            n_batch=plan.n_batch,
            on_gpu=engine.on_gpu,
        )
        yield

    _run(make_app(service, lifespan), listener)
    if not dispatcher.close(DRAIN_SECONDS):
        sys.stderr.flush()
        os._exit(0)
    engine.close()
    return 0


def _serve_chat(given: argparse.Namespace, listener: socket.socket, channel: Channel) -> int:
    wanted = {field.name: getattr(given, field.name, None) for field in dataclasses.fields(GeneratorOptions)}
    wanted["use_extra_bufts"] = not given.no_extra_bufts
    options = GeneratorOptions(**{name: value for name, value in wanted.items() if value is not None})
    generator = Generator(options, channel.progress)
    generator.warm_up()
    service = ChatService(generator, given.alias or generator.name, os.environ.pop(API_KEY_VARIABLE, ""))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        channel.send(port=listener.getsockname()[1], model=service.model, n_ctx=options.n_ctx)
        yield

    _run(make_chat_app(service, lifespan), listener)
    # A thread may still compute an answer that nobody waits for; the end of the process is the unload.
    sys.stderr.flush()
    os._exit(0)


def _run(app: Starlette, listener: socket.socket) -> None:
    """Serve until SIGTERM, and then for as long as requests in flight may take."""
    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops on these and then raises them again for whoever handled them before: nobody.
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, since asyncio turns Nagle's delay off (40 ms an answer) only on sockets that say so.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise NightshiftError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def _loopback(text: str) -> str:
    host = "127.0.0.1" if text == "localhost" else text
    try:
        if ipaddress.ip_address(host).is_loopback:
            return host
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text} is not a loopback address; this server is not for the network")


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
    parser.add_argument("--host", type=_loopback, default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", type=int, default=0, help="0: any free one; standard output says which")
    parser.add_argument("--n-gpu-layers", type=int, help="negative: all; 0: none (default: all where there is a GPU)")
    parser.add_argument("--threads", type=int, help="of each context")
    parser.add_argument("--n-batch", type=int, help="tokens packed into one batch")
    parser.add_argument("--n-ubatch", type=int, help="capacity of a batch in tokens, and so the longest input")
    parser.add_argument("--contexts", type=int, help="batches computed side by side")
    parser.add_argument("--flash-attn", choices=["on", "off", "auto"], help="default: on for a CPU, auto for a GPU")
    parser.add_argument("--pooling", choices=["", "mean", "cls", "last"], default="", help="default: the model's own")
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
