"""A host in memory: servers that do as they are told, memory that comes back or does not, a journal that remembers."""

from __future__ import annotations

import asyncio
import copy
import itertools
from dataclasses import dataclass, field

from pipeline.core.errors import BackendStartFailed
from pipeline.core.modes import Device, Slot
from pipeline.switcher.admission import Admission
from pipeline.switcher.record import SwitchRecord
from pipeline.switcher.switcher import Switcher

_pids = itertools.count(1000)


@dataclass(eq=False)
class FakeServer:
    slot: Slot
    device: Device
    host: FakeHost
    died: asyncio.Event = field(default_factory=asyncio.Event)
    pid: int | None = None
    prepared: bool = False
    drains: bool = False

    def pids(self) -> set[int]:
        return set() if self.pid is None else {self.pid}

    def describe_death(self) -> str:
        return "it was killed"

    def begin_drain(self) -> None:
        self.drains = True

    def end_drain(self) -> None:
        self.drains = False

    async def prepare(self) -> None:
        self.host.say("prepare", self)
        self.prepared = True

    async def start(self) -> None:
        self.host.say("start", self)
        self.died.clear()
        if self.host.disk_full:
            self.host.disk_full -= 1
            raise OSError(28, "No space left on device")
        assert not [s for s in self.host.running if s.device is Device.GPU and self.device is Device.GPU], (
            "two on the GPU"
        )
        self.pid = next(_pids)
        self.host.running.append(self)
        if self.host.fails(self.slot, "start"):
            raise BackendStartFailed(f"{self.slot.value} does not start")

    async def ready(self) -> None:
        if self.host.fails(self.slot, "ready"):
            raise BackendStartFailed(f"{self.slot.value} does not load")
        if self.host.hang is not None:
            await self.host.hang.wait()

    async def canary(self) -> None:
        if self.host.fails(self.slot, "canary"):
            raise BackendStartFailed(f"{self.slot.value} is of no use")

    async def stop(self) -> None:
        self.host.say("stop", self)
        if self in self.host.running:
            self.host.running.remove(self)
        if self.pid is not None and self.host.leaks:
            self.host.leaked.add(self.pid)

    def die(self) -> None:
        self.host.running.remove(self)
        self.died.set()


class FakeHost:
    """failing: (slot, phase) -> how often that fails."""

    def __init__(self, configured: frozenset[Slot] = frozenset(Slot), *, has_gpu: bool = True) -> None:
        self.running: list[FakeServer] = []
        self.log: list[str] = []
        self.failing: dict[tuple[Slot, str], int] = {}
        self.hang: asyncio.Event | None = None
        self.disk_full = 0
        self.leaks = False
        self.leaked: set[int] = set()
        self.name: str | None = "fake"
        self.written: list[SwitchRecord] = []
        self.marked_with: int | None = None
        self.proofs: list[bool] = []
        self.admission = Admission(max_waiting=3, max_wait=5.0)
        self.switcher = Switcher(
            admission=self.admission,
            memory=self,
            journal=self,
            make_server=lambda slot, device: FakeServer(slot, device, self),
            configured=configured,
            has_gpu=has_gpu,
        )

    def say(self, what: str, server: FakeServer) -> None:
        self.log.append(f"{what} {server.slot.value} on {server.device.value}")

    def fails(self, slot: Slot, phase: str) -> bool:
        left = self.failing.get((slot, phase), 0)
        self.failing[slot, phase] = left - 1
        return left > 0

    async def used(self) -> int | None:
        return 100 + 10 * len(self.running) + len(self.leaked)

    async def mark(self) -> None:
        self.marked_with = sum(server.device is Device.GPU for server in self.running)

    async def released(self, pids: set[int], *, to_mark: bool) -> str | None:
        self.proofs.append(to_mark)
        held = pids & (self.leaked | {pid for server in self.running for pid in server.pids()})
        return f"processes {sorted(held)} still hold memory" if held else None

    async def write(self, record: SwitchRecord) -> None:
        self.written.append(copy.deepcopy(record))

    @property
    def last(self) -> SwitchRecord:
        return self.written[-1]
