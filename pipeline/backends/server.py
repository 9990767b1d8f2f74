"""One model server in one slot: prepared, started, checked, watched and stopped, whatever its kind.

Ask for outcomes: `start` and `stop` may be called at any time, by several at once, and each ends in
the state that it names. Knows one process and one model; knows no mode, no schedule and no requests,
and never restarts by itself what has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import structlog

import pipeline
from pipeline.backends.client import Timeouts
from pipeline.backends.launch import OWN_KINDS, STALL_SECONDS, Gpu, Launch, Options, Programs, plan_launch
from pipeline.backends.process import ChildProcess, ChildSpec
from pipeline.backends.readahead import read_ahead
from pipeline.backends.served import BackendState, Served
from pipeline.core.errors import BackendDied, BackendError, BackendStartFailed, ModelError
from pipeline.core.modes import Device, Slot

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from pipeline.backends.launch import BackendKind
    from pipeline.backends.models import ModelFile
    from pipeline.backends.orphans import ChildRegistry

__all__ = ["BackendState", "ModelServer", "free_port"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

LAST_WORDS_SECONDS = 1.0
"""A connection may break a moment before the death of the process is known, which says more."""


class ModelServer(Served):
    """A model behind a child process on a loopback port.

    log_dir: where `<name>.log` goes. name: the slot's, unless two fill one. gpu: the maker of the GPU, for
    what differs by it. registry: notes the children, so that a later process finds those that this one
    left. start_stall: seconds without a sign of life after which a start has failed; None is the kind's own.
    stop_grace: seconds between SIGTERM and SIGKILL. second_chance: start it with safe settings after a
    native crash.
    """

    def __init__(
        self,
        slot: Slot,
        device: Device,
        kind: BackendKind,
        options: Options,
        model: ModelFile,
        log_dir: Path,
        *,
        name: str | None = None,
        gpu: Gpu = None,
        programs: Programs = Programs(),  # noqa: B008  frozen
        registry: ChildRegistry | None = None,
        start_stall: float | None = None,
        stop_grace: float = 10.0,
        second_chance: bool = True,
        timeouts: Timeouts = Timeouts(),  # noqa: B008  frozen
    ) -> None:
        super().__init__(slot, device, kind, model.name, timeouts)
        self._second_chance = second_chance
        self._options = options
        self._model = model
        self._log_path = log_dir / f"{name or slot.value}.log"
        self._name = f"the {name or slot.value} server"
        self._gpu = gpu
        self._programs = programs
        self._registry = registry
        self._start_stall = STALL_SECONDS[kind] if start_stall is None else start_stall
        self._stop_grace = stop_grace
        self._child: ChildProcess | None = None
        self._launch: Launch | None = None
        self._prepared = False
        self._launched = False
        self._began = 0.0
        self._crashed = False
        self._changing = asyncio.Lock()
        self._stops = 0
        self._watching: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """See `Served`; never after its process has ended, however shortly."""
        return super().alive and self._child is not None and not self._child.exited.is_set()

    @property
    def options(self) -> Options:
        """As they were used last: after a death in native code, the safe ones."""
        return self._options

    def use(self, options: Options) -> None:
        """From the next process on."""
        self._options = options

    @property
    def pid(self) -> int | None:
        """Of the server's process; None where there is none."""
        return None if self._child is None or self._child.exited.is_set() else self._child.pid

    @property
    def exit_story(self) -> str:
        """One sentence on how its process stands or ended, with the end of its log."""
        return f"{self._name} is not running" if self._child is None else self._child.describe_exit()

    def pids(self) -> set[int]:
        """Of the server and all that it started, for as long as `stop` has not ended. Scans all processes."""
        return set() if self._child is None else {process.pid for process in self._child.family()}

    @property
    def shows_work(self) -> bool:
        """Whether `worked` says that it computes. On a GPU it does not: to wait for one is work of the processor."""
        return self.device is Device.CPU

    def worked(self) -> float:
        """Processor seconds of the server and all that it started. Scans all processes."""
        seconds = 0.0
        for process in () if self._child is None else self._child.family():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                seconds += times.user + times.system
        return seconds

    async def prepare(self) -> None:
        """Make the next `start` short: the model's file in the page cache, and the program waiting.

        Our own server is spawned up to the point before it touches the GPU; the others cannot be
        halted there. What fails here is logged and costs nothing: `start` does without.
        """
        await read_ahead(self._model.path)
        if self.kind not in OWN_KINDS:
            return
        async with self._changing:
            if self._child is not None or self._stops:
                return
            try:
                child = await self._spawn(wait=True)
                await child.prepared(self._start_stall)
                self._prepared = True
            except (BackendError, ModelError) as error:
                if not self._stops:
                    log.warning("A model server could not be prepared", slot=self.slot.value, error=str(error))
            finally:
                if not self._prepared:
                    await self._discard()

    async def launch(self) -> None:
        """See `Served`."""
        async with self._changing:
            if not self.alive and not self._launched:
                await self._or_fail(self._go())

    async def start(self) -> None:
        """Start it unless it runs, and wait until it is ready.

        A death in native code is answered with one more start with safe settings. Raises
        BackendStartFailed with the end of the log, or ModelError where the model is to blame; then
        nothing of it is left.
        """
        async with self._changing:
            if self.alive:
                return
            await self._or_fail(self._start())
            assert self._child is not None
            self.load_seconds = asyncio.get_running_loop().time() - self._began
            self._watching = asyncio.create_task(self._watch(self._child), name=f"watch {self._name}")
            self._enter(BackendState.READY)
            log.info(
                "A model server is ready",
                slot=self.slot.value,
                model=self.model_name,
                kind=self.kind,
                device=_told_device(self.told, self.device).value,
                pid=self._child.pid,
                seconds=round(self.load_seconds, 2),
                **({"on": self.told["device"]} if self.told.get("device") else {}),
                **({"build": self.told["build"]} if self.told.get("build") else {}),
                **({"tuned": self.told["tuned_at"]} if self.told.get("tuned_at") else {}),
            )

    async def stop(self) -> None:
        """End it and all that it started, and wait until they are gone; a start that is under way fails."""
        self._stops += 1
        try:
            if self._child is not None:
                self._enter(BackendState.STOPPING)
                await self._child.stop(self._stop_grace)
            async with self._changing:
                await self._discard()
                self.why_failed = None
                self._enter(BackendState.STOPPED)
        finally:
            self._stops -= 1

    async def kill(self, why: str) -> None:
        """End a server that hangs, as if it had died: `died` is set, and whoever watches over it restarts it.

        why: what is said of its end: "it computed nothing for 60 s".
        """
        if self._child is not None:
            await self._child.stop(0.0, why)

    async def while_alive(self, call: Coroutine[Any, Any, T]) -> T:
        """What `call` gives; it is given up as soon as the process is gone. Raises BackendDied then."""
        child = self._child
        if child is None or child.exited.is_set():
            call.close()
            raise BackendDied(self.exit_story)
        calling = asyncio.create_task(call, name=f"ask {self._name}")
        death = asyncio.create_task(child.gone(), name=f"watch {self._name}")
        try:
            await asyncio.wait({calling, death}, return_when=asyncio.FIRST_COMPLETED)
            if not calling.done():
                raise BackendDied(death.result())
            try:
                return calling.result()
            except BackendDied as error:
                await asyncio.wait({death}, timeout=LAST_WORDS_SECONDS)
                raise BackendDied(death.result() if death.done() else str(error)) from error
        finally:
            calling.cancel()
            death.cancel()
            await asyncio.gather(calling, death, return_exceptions=True)

    async def _watch(self, child: ChildProcess) -> None:
        await child.exited.wait()
        if self.state not in (BackendState.READY, BackendState.DRAINING):
            return
        self.why_failed = child.describe_exit()
        self._enter(BackendState.FAILED)
        self.died.set()
        log.warning("A model server died", slot=self.slot.value, exit=child.returncode, log=str(self._log_path))
        self.why_failed = await child.gone()

    async def _or_fail(self, work: Coroutine[Any, Any, None]) -> None:
        """A part of a start: where it fails, nothing is left, and the state says so."""
        self.why_failed = None
        self.died.clear()
        if self.state is not BackendState.STARTING:
            self._enter(BackendState.STARTING)
        try:
            await work
        except BaseException as error:
            await self._discard()
            self.why_failed = str(error) or type(error).__name__
            self._enter(BackendState.FAILED)
            raise

    async def _start(self) -> None:
        self._distrust_a_crash()
        try:
            await self._attempt()
        except BackendDied as error:
            if self._stops or not self._distrust_a_crash():
                raise BackendStartFailed(str(error)) from error
            try:
                await self._attempt()
            except BackendDied as again:
                raise BackendStartFailed(f"with safe settings too: {again}") from again

    async def _go(self) -> None:
        """Have its process load the model: one that is prepared, or a new one."""
        self._began = asyncio.get_running_loop().time()
        child = self._child
        if child is not None and self._prepared and not child.exited.is_set():
            self._prepared = False
            child.release()
        else:
            await self._discard()
            await self._spawn()
        self._launched = True

    async def _attempt(self) -> None:
        """One start, up to readiness. Raises BackendDied, BackendStartFailed or ModelError."""
        if not self._launched:
            await self._go()
        self._launched = False
        child = self._child
        assert child is not None
        if self._stops:
            raise BackendStartFailed(f"{self._name} was stopped while it started")
        self.told = await child.ready(self._start_stall)
        if "error" in self.told:
            kind = ModelError if self.told.get("kind") == "model" else BackendStartFailed
            raise kind(str(self.told["error"]))
        assert self._launch is not None
        self.base_url = self._launch.base_url or _told_url(self._name, self.told)

    async def _spawn(self, *, wait: bool = False) -> ChildProcess:
        self.api_key = secrets.token_urlsafe(24)
        launch = self._launch = plan_launch(
            self.kind,
            self.slot,
            self.device,
            self._options,
            self._model,
            port=free_port(),
            api_key=self.api_key,
            gpu=self._gpu,
            programs=self._programs,
            wait=wait,
        )
        if shutil.which(launch.argv[0]) is None:
            raise BackendStartFailed(f"{self._name} cannot be started: there is no program {launch.argv[0]}")
        child = self._child = await ChildProcess.spawn(
            ChildSpec(
                name=self._name,
                argv=launch.argv,
                env={**os.environ, **(_where_we_are() if self.kind in OWN_KINDS else {}), **launch.env},
                log=self._log_path,
                health_url=launch.health_url,
                leashed=launch.leashed,
            )
        )
        if self._registry is not None:
            await asyncio.to_thread(self._registry.add, child.pid, launch.argv[0], child.mark)
        return child

    async def _discard(self) -> None:
        self._prepared = self._launched = False
        child = self._child
        if child is not None:
            await child.stop(self._stop_grace)
            self._crashed = self._crashed or child.crashed_natively
            if self._registry is not None:
                await asyncio.to_thread(self._registry.remove, child.pid)
            self._child = None
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        await self.embedder.disconnect()

    def _distrust_a_crash(self) -> bool:
        """After a death in native code go on with safe settings; whether that changed anything."""
        crashed = self._crashed or (self._child is not None and self._child.crashed_natively)
        if (
            not crashed
            or not self._second_chance
            or not self._options.use_extra_bufts
            or self.kind not in ("llama-cpp", "llama-server")
        ):
            return False
        log.warning(
            "A model server crashed in native code; it is started with safe settings (no repacked weights)",
            slot=self.slot.value,
            log=str(self._log_path),
        )
        self._options = replace(self._options, use_extra_bufts=False)
        return True


def free_port() -> int:
    """A loopback port that nobody uses now. Somebody may take it before a child does: its start fails then."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _where_we_are() -> dict[str, str]:
    """What makes a child's `python -m` find this package."""
    package_root = str(Path(pipeline.__file__).absolute().parents[1])
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": package_root + (os.pathsep + inherited if inherited else "")}


def _told_device(told: dict[str, Any], planned: Device) -> Device:
    """Where it computes, as our own servers say: the host may have no GPU. Of others nothing but the plan is known."""
    on_gpu = told.get("on_gpu")
    return planned if on_gpu is None else Device.GPU if on_gpu else Device.CPU


def _told_url(name: str, told: dict[str, Any]) -> str:
    try:
        return f"http://127.0.0.1:{int(told['port'])}"
    except (KeyError, TypeError, ValueError) as error:
        raise BackendStartFailed(f"{name}'s first line makes no sense: {told!r}") from error
