"""Which server fills which slot on this host: from the settings to `ModelServer`s that the switcher can use."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.backends.client import Timeouts
from pipeline.backends.gpus import server_devices, unused_by_server, unused_gpu
from pipeline.backends.launch import (
    BackendKind,
    Gpu,
    Options,
    Programs,
    choose_backend,
    sentence_transformers_installed,
)
from pipeline.backends.models import ModelFile
from pipeline.backends.orphans import ChildRegistry
from pipeline.backends.remote import RemoteServer
from pipeline.backends.served import Served
from pipeline.backends.server import ModelServer
from pipeline.backends.serving.tuned import device_name
from pipeline.core.modes import Device, Slot

_CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class SlotModel:
    """A slot's model, and how it is served.

    fingerprint: what its measured loads are known by. file: None for one that somebody else serves, at `url`.
    told: what is known of the server before it is started. unused_gpu: a GPU that it was built without, in words.
    """

    slot: Slot
    name: str
    fingerprint: str
    kind: BackendKind
    options: Options
    file: ModelFile | None = None
    url: str = ""
    api_key: str | None = field(default=None, repr=False)
    gzip: bool = False
    told: Mapping[str, Any] = field(default_factory=dict)
    unused_gpu: str | None = None


class SlotServer:
    """A server as the switcher sees it: `start` is over when its process runs, `ready` when it serves.

    before_load: awaited before a process may be started for it.
    """

    def __init__(
        self,
        model: Served,
        on_ready: Callable[[Served], Awaitable[None]],
        before_load: Callable[[Served], Awaitable[None]],
    ) -> None:
        self.model = model
        self._on_ready = on_ready
        self._before_load = before_load

    @property
    def slot(self) -> Slot:
        """The slot that it fills."""
        return self.model.slot

    @property
    def device(self) -> Device:
        """Where it computes."""
        return self.model.device

    @property
    def died(self) -> asyncio.Event:
        """Set when it ended without being asked to."""
        return self.model.died

    def pids(self) -> set[int]:
        """Its process and all that descend from it."""
        return self.model.pids()

    def describe_death(self) -> str:
        """How it ended."""
        return self.model.why_failed or self.model.exit_story

    async def prepare(self) -> None:
        """Page cache, and the child up to before it takes the device."""
        await self._before_load(self.model)
        await self.model.prepare()

    async def start(self) -> None:
        """Until its process runs."""
        await self._before_load(self.model)
        await self.model.launch()

    async def ready(self) -> None:
        """Until it serves."""
        await self.model.start()
        await self._on_ready(self.model)

    async def canary(self) -> None:
        """One token or one vector."""
        await self.model.canary()

    def begin_drain(self) -> None:
        """Nothing new comes."""
        self.model.begin_drain()

    def end_drain(self) -> None:
        """New requests come again."""
        self.model.end_drain()

    async def stop(self) -> None:
        """End it and all its processes."""
        await self.model.stop()


def find_programs() -> Programs:
    """The servers that are installed: llama-server on the PATH, or where scripts/build_llama_server.py puts it."""
    found = shutil.which("llama-server")
    built = _CHECKOUT / ".cache" / "llama-server" / version("llama-cpp-python") / "llama-server"
    return Programs(llama_server=Path(found) if found else built if built.is_file() else None)


def with_device(model: SlotModel, programs: Programs) -> SlotModel:
    """A slot's model with what can be told of its server's build. Asks programs, which may take a moment."""
    if model.kind not in ("llama-cpp", "llama-server") or model.options.n_gpu_layers == 0:
        return model
    if model.kind == "llama-cpp" or programs.llama_server is None:
        return replace(model, unused_gpu=unused_gpu())
    devices = server_devices(programs.llama_server)
    told = {"device": ", ".join(devices) or device_name(on_gpu=False), "build": f"llama-server {programs.llama_server}"}
    return replace(model, told=told, unused_gpu=unused_by_server(programs.llama_server, devices))


def kind_of(slot: Slot, asked: str, file: ModelFile, gpu: Gpu, programs: Programs) -> BackendKind:
    """The kind of server for a slot's model; `auto` is chosen by the host."""
    return choose_backend(
        asked,  # type: ignore[arg-type]  # the settings allow the known names only
        slot=slot,
        gpu=gpu,
        model_is_directory=file.kind == "directory",
        llama_server=programs.llama_server,
        vllm=shutil.which("vllm") is not None,
        sentence_transformers=sentence_transformers_installed(),
    )


def make_server(
    model: SlotModel,
    device: Device,
    *,
    log_dir: Path,
    gpu: Gpu,
    programs: Programs,
    registry: ChildRegistry,
    timeouts: Timeouts,
    on_ready: Callable[[Served], Awaitable[None]],
    before_load: Callable[[Served], Awaitable[None]],
) -> SlotServer:
    """A fresh server for a slot's model on a device; the callables are those of `SlotServer`."""
    if model.file is None or model.kind == "remote":
        remote = RemoteServer(
            model.slot, model.url, model.name, api_key=model.api_key, gzip=model.gzip, timeouts=timeouts
        )
        remote.device = device  # wherever it computes, it fills the place that the mode gives it
        return SlotServer(remote, on_ready, before_load)
    server = ModelServer(
        model.slot,
        device,
        model.kind,
        model.options,
        model.file,
        log_dir,
        gpu=gpu,
        programs=programs,
        registry=registry,
        timeouts=timeouts,
    )
    return SlotServer(server, on_ready, before_load)
