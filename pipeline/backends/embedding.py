"""An embedding server of one's own: started when it is needed, restarted when it dies, and asked for vectors.

Ask for outcomes: `ensure_ready` brings up what is down, `embed` gives vectors or says precisely
why not. For whoever holds the server alone, as a run without a daemon does; knows no chunks,
documents or database.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import structlog

from pipeline.backends.client import Timeouts
from pipeline.backends.embedder import ServerEmbedder
from pipeline.backends.launch import Programs, own_kind
from pipeline.backends.server import ModelServer
from pipeline.core.errors import BackendDied, BackendError, BackendStartFailed
from pipeline.core.modes import Device, Slot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from pipeline.backends.models import ModelFile
    from pipeline.backends.options import EmbeddingOptions
    from pipeline.backends.orphans import ChildRegistry

log = structlog.get_logger(__name__)

START_ATTEMPTS = 3
"""Starts in a row that may fail before `ensure_ready` gives up."""


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What a ready backend says about itself.

    dimension: of its vectors. max_tokens: longest input. contexts: batches it computes side by
    side. n_batch: tokens in one batch.
    """

    dimension: int
    max_tokens: int
    model: str
    port: int
    pid: int
    contexts: int = 1
    n_batch: int = 0
    on_gpu: bool = False


class EmbeddingBackend(ServerEmbedder):
    """One embedding model behind our own server; an async context manager.

    model: a GGUF or a Hugging Face model directory. log_dir: where `<name>.log` goes. command: what
    is run, before the options; None is our server for such a model. registry: notes the child, so that a
    later process finds one that this one left. start_stall: seconds without a sign of life after which a
    start has failed. stop_grace: seconds between SIGTERM and SIGKILL. start_backoff: seconds before the
    second start in a row, doubled for the third.
    """

    def __init__(
        self,
        options: EmbeddingOptions,
        model: ModelFile,
        log_dir: Path,
        *,
        name: str = "embedding",
        command: Sequence[str] | None = None,
        registry: ChildRegistry | None = None,
        start_stall: float | None = None,
        stop_grace: float = 10.0,
        start_backoff: float = 1.0,
        timeouts: Timeouts = Timeouts(),  # noqa: B008  frozen
    ) -> None:
        # The options say whether the GPU is used; where they say nothing, the server finds out.
        device = Device.CPU if options.n_gpu_layers == 0 else Device.GPU
        self._own = ModelServer(
            Slot.EMBEDDING,
            device,
            own_kind(model),
            options,
            model,
            log_dir,
            name=name,
            registry=registry,
            programs=Programs() if command is None else Programs(own=command, torch=command),
            start_stall=start_stall,
            stop_grace=stop_grace,
        )
        super().__init__(self._own, timeouts)
        self._info: BackendInfo | None = None
        self._start_backoff = start_backoff
        self._bringing_up = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def info(self) -> BackendInfo:
        """Of the child that was started last. Raises BackendDied where none ever became ready."""
        if self._info is None:
            raise BackendDied("the embedding server has not been started")
        return self._info

    @property
    def alive(self) -> bool:
        """Whether the child is running and was ready."""
        return self._own.alive

    async def start(self) -> None:
        """Start the child unless it runs, and make sure that it gives vectors.

        A death in native code is answered with one more start with safe settings. Raises
        BackendStartFailed with the end of the log, or ModelError where the model is to blame.
        """
        async with self._bringing_up:
            if not self.alive:
                await self._start()

    async def ensure_ready(self) -> None:
        """Restart the child where it has died; return at once where it lives.

        Raises BackendStartFailed after several starts in a row that failed, ModelError as `start`.
        """
        async with self._bringing_up:
            if self.alive:
                return
            for attempt in range(1, START_ATTEMPTS + 1):
                try:
                    await self._start()
                except BackendStartFailed as error:
                    if attempt == START_ATTEMPTS:
                        raise
                    wait = self._start_backoff * 2 ** (attempt - 1)
                    log.warning("The embedding server did not start", attempt=attempt, wait=wait, error=str(error))
                    await asyncio.sleep(wait)
                else:
                    return

    async def stop(self) -> None:
        """End the child and wait until it is gone. May be called at any time and twice."""
        await self._own.stop()
        await self.disconnect()

    async def _start(self) -> None:
        await self._own.start()
        try:
            try:
                await self.check()
            except BackendDied:
                # It died of its first real work: a death in native code makes the next start a safe one.
                await self._own.start()
                await self.check()
            self._info = _read_info(self._own.told, self._own.pid or 0)
        except BaseException as error:
            await self.stop()
            if isinstance(error, BackendError) and not isinstance(error, BackendStartFailed):
                raise BackendStartFailed(f"the embedding server started but is of no use: {error}") from error
            raise


def _read_info(told: Mapping[str, Any], pid: int) -> BackendInfo:
    try:
        return BackendInfo(
            dimension=int(told["dimension"]),
            max_tokens=int(told["max_tokens"]),
            model=str(told["model"]),
            port=int(told["port"]),
            pid=pid,
            contexts=int(told.get("contexts", 1)),
            n_batch=int(told.get("n_batch", 0)),
            on_gpu=bool(told.get("on_gpu", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BackendStartFailed(f"the embedding server's first line makes no sense: {told!r}") from error
