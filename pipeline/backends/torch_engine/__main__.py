"""Our embedding server for model directories: `python -m pipeline.backends.torch_engine --model DIRECTORY`.

The same lines to its parent, the same routes and the same end as `pipeline.backends.llama_cpp`; see there.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.backends.llama_cpp.dispatch import Dispatcher
from pipeline.backends.llama_cpp.protocol import Limits
from pipeline.backends.llama_cpp.server import Service, make_app
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
from pipeline.backends.torch_engine.memory import keep_freed_memory
from pipeline.backends.torch_engine.plan import TorchOptions
from pipeline.core.errors import ModelError, NightshiftError

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Sequence

    from starlette.applications import Starlette


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until SIGTERM; the exit status."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    keep_freed_memory()
    channel = Channel()
    told_to_go = watch_parent()
    try:
        with bind(given.host, given.port) as listener:
            # The import takes seconds: it is most of what a prepared start saves.
            channel.progress(0.0)
            _import_engine()
            if given.wait:
                channel.send(prepared=True)
                told_to_go.wait()
            return _serve(given, listener, channel)
    except NightshiftError as error:
        channel.send(error=str(error), kind="model" if isinstance(error, ModelError) else "start")
        print(error, file=sys.stderr)  # noqa: T201  standard error is this program's log
        return 1


def _import_engine() -> None:
    try:
        import pipeline.backends.torch_engine.engine  # noqa: F401
    except ImportError as error:
        raise ModelError(f".venv/bin/pip install -e '.[torch]' to serve model directories: {error}") from error


def _serve(given: argparse.Namespace, listener: socket.socket, channel: Channel) -> int:
    from pipeline.backends.torch_engine.engine import Engine, build_name, find_device

    asked = TorchOptions(
        model=given.model,
        threads=given.threads,
        n_batch=given.n_batch,
        n_ubatch=given.n_ubatch,
        contexts=given.contexts,
        pooling=given.pooling,
        dtype=given.dtype,
    )
    host = Host(device_name(on_gpu=find_device().on_gpu), build_name())
    tuned = own_tuning(given.tuned, host)
    engine = Engine(fill(asked, tuned))
    plan = engine.plan
    dispatcher = Dispatcher(
        engine.contexts,
        dimension=engine.dimension,
        budget=plan.n_batch,
        n_seq_max=plan.n_seq_max,
        max_waiting=MAX_WAITING_TOKENS,
        padded=True,
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
            longest=plan.max_tokens,
            model=service.model,
            contexts=plan.contexts,
            threads=plan.threads,
            n_batch=plan.n_batch,
            precision=plan.precision,
            on_gpu=engine.on_gpu,
            device=host.device,
            build=host.build,
            tuned_at=tuned.measured_at if tuned else None,
            counts=True,
        )
        yield

    run_app(make_app(service, lifespan), listener)
    dispatcher.close(DRAIN_SECONDS)
    # The end of the process is the unload: torch's own goodbye takes a while and can hang.
    sys.stderr.flush()
    os._exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.backends.torch_engine",
        description="Serves an embedding model (a Hugging Face model directory) over OpenAI's API on a loopback port.",
        epilog=f"An API key, where one is wanted, is read from {API_KEY_VARIABLE}.",
    )
    parser.add_argument("--model", type=Path, required=True, help="path of a Hugging Face model directory")
    parser.add_argument("--wait", action="store_true", help="load nothing before a line comes on standard input")
    parser.add_argument("--alias", default="", help="the model's name in answers (default: its directory's)")
    parser.add_argument("--host", type=loopback, default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", type=int, default=0, help="0: any free one; standard output says which")
    parser.add_argument("--threads", type=int, help="of each context")
    parser.add_argument("--n-batch", type=int, help="tokens of one batch, padding counted")
    parser.add_argument("--n-ubatch", type=int, help="the longest input, where that is less than the model's own")
    parser.add_argument("--contexts", type=int, help="batches computed side by side")
    parser.add_argument("--pooling", choices=["", "mean", "cls", "last"], default="", help="default: the model's own")
    parser.add_argument(
        "--dtype",
        choices=["auto", "half", "float16", "bfloat16", "float", "float32"],
        default="auto",
        help="auto: float16 on a GPU, bfloat16 on a processor that has it, else float32",
    )
    parser.add_argument("--tuned", type=from_argument, default=[], help="what was measured, as JSON; see serving/tuned")
    parser.add_argument("--matryoshka", action="store_true", help="the model's vectors may be cut to fewer dimensions")
    return parser


if __name__ == "__main__":
    sys.exit(main())
