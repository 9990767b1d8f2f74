"""The switch: the one writer of the mode.

    close    no new request gets in; those for a slot that is about to open wait
    drain    requests under way end, are cut at the deadline, or put the switch off
    stop     the backends that go: TERM, a deadline, KILL of all that is left
    release  proof that they are gone: no process of theirs, memory back where it was
    start    the backends that come, until their processes run
    ready    until they have loaded and answer
    canary   one token, one vector
    open     requests are let in

Each phase is timed, and written to the switch's row as it ends. A failure after `stop` brings the mode
before back. A release that fails is never loaded over: nothing is started until it is proved.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Protocol

import structlog

from pipeline.core.errors import NightshiftError, ReleaseFailed, SwitchDeferred, SwitchFailed
from pipeline.core.modes import Action, Device, Mode, Placement, Slot, Step, place, plan_switch
from pipeline.switcher.admission import Admission, Gate
from pipeline.switcher.record import DrainPolicy, Reason, SwitchRecord

log = structlog.get_logger(__name__)

CLOSE_GRACE = DrainPolicy("wait", timeout=10.0, cut_grace=2.0)
"""What requests under way have when the whole program ends."""


class Server(Protocol):
    """A model server that fills a slot. `died` is set when it ended without being asked to."""

    @property
    def slot(self) -> Slot: ...  # noqa: D102
    @property
    def device(self) -> Device: ...  # noqa: D102
    @property
    def died(self) -> asyncio.Event: ...  # noqa: D102

    def pids(self) -> set[int]:
        """Its process and all that descend from it."""
        ...

    def describe_death(self) -> str:
        """How it ended, in a sentence."""
        ...

    async def prepare(self) -> None:
        """Do what can be done before the device is free. May fail silently: `start` does it all."""
        ...

    async def start(self) -> None:
        """Start the process. Raises a NightshiftError."""
        ...

    async def ready(self) -> None:
        """Wait until it serves. Raises a NightshiftError."""
        ...

    async def canary(self) -> None:
        """Prove that it is of use. Raises a NightshiftError."""
        ...

    def begin_drain(self) -> None:
        """Note that what is in flight ends and nothing new comes; `end_drain` takes it back."""
        ...

    def end_drain(self) -> None:
        """Note that new requests come again. Nothing, where it does not drain."""
        ...

    async def stop(self) -> None:
        """End it and all its processes; returns when they are gone."""
        ...


class Memory(Protocol):
    """The device's memory. `used` is None where there is no device to ask."""

    name: str | None

    async def used(self) -> int | None:
        """Bytes in use, by anybody."""
        ...

    async def mark(self) -> None:
        """Remember how it stands now, before anything of ours is loaded."""
        ...

    async def released(self, pids: set[int], *, to_mark: bool) -> str | None:
        """Wait for the proof that `pids` hold nothing any more; why there is none, or None.

        to_mark: nothing else of ours is on the device, so that it has to be as it was at the mark.
        """
        ...


class Journal(Protocol):
    """Keeps the records. It deals with its own failures: a journal that is away stops no switch."""

    async def write(self, record: SwitchRecord) -> None:
        """Keep `record` as it is now; called at the start, after each phase and at the end."""
        ...


class Switcher:
    """Holds the backends of this host, and changes its mode.

    make_server: a fresh server for a slot on a device. configured: the slots that have a model.
    since: when the mode came.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        memory: Memory,
        journal: Journal,
        make_server: Callable[[Slot, Device], Server],
        configured: Collection[Slot],
        has_gpu: bool,
    ) -> None:
        self.mode = Mode.IDLE
        self.since = _now()
        self.servers: dict[Slot, Server] = {}
        self.under_way: SwitchRecord | None = None
        self.unreleased: str | None = None
        self.configured = frozenset(configured)
        self._admission = admission
        self._memory = memory
        self._journal = journal
        self._make_server = make_server
        self._has_gpu = has_gpu
        self._lock = asyncio.Lock()
        self._prepared: dict[tuple[Slot, Device], Server] = {}
        self._stopped_pids: set[int] = set()

    def placement(self, mode: Mode) -> Placement:
        """Where each slot of a mode runs on this host."""
        return place(mode, configured=self.configured, has_gpu=self._has_gpu)

    async def switch(
        self,
        target: Mode,
        reason: Reason,
        detail: str = "",
        drain: DrainPolicy = DrainPolicy(),  # noqa: B008 - frozen
    ) -> SwitchRecord | None:
        """Bring the host to `target`; None where it is there already. Switches follow each other.

        Raises:
            SwitchDeferred: requests are under way and the policy is to let them be. Nothing was changed.
            ReleaseFailed: what was stopped still holds memory; nothing was loaded.
            SwitchFailed: it failed; the mode before is back, or as much of it as would start.
        """
        async with self._lock:
            # A server that died is no server: what is left of it goes, and its place is filled anew.
            dead = [Step(Action.STOP, s.slot, s.device) for s in self.servers.values() if s.died.is_set()]
            steps = plan_switch(self._running(), self.placement(target))
            changes = dead + [step for step in steps if step.action is not Action.KEEP]
            if target is self.mode and not changes and self.unreleased is None:
                return None
            async with self._recorded(target, reason, detail) as record:
                await self._carry_out(record, changes, drain)
            return record

    async def prepare(self, target: Mode) -> None:
        """Do ahead of a switch what does not need the device: read the model's file, spawn the child."""
        if self._lock.locked():
            return
        for step in plan_switch(self._running(), self.placement(target)):
            where = (step.slot, step.device)
            if step.action is Action.START and where not in self._prepared:
                server = self._prepared[where] = self._make_server(*where)
                log.info("the next backend is made ready", slot=step.slot.value, mode=target.value)
                await server.prepare()

    async def unprepare(self) -> None:
        """End what was made ready and was not needed after all."""
        async with self._lock:
            servers, self._prepared = list(self._prepared.values()), {}
            await asyncio.gather(*(server.stop() for server in servers))

    async def recover(self, server: Server) -> None:
        """Start a server again that died: the very same, because a run may be waiting for it to come back.

        Raises ReleaseFailed, or a BackendError or ModelError where it does not start; the slot stays its own.
        """
        async with self._lock:
            if self.servers.get(server.slot) is not server:
                return  # a switch has dealt with it
            async with self._recorded(self.mode, "recovery", first_line(server.describe_death())) as record:
                async with self._phase(record, "close"):
                    self._admission.set_gate(server.slot, Gate.SOON)
                    record.in_flight = record.cut = self._admission.cut(server.slot)
                try:
                    async with self._phase(record, "release"):
                        self._stopped_pids |= server.pids()
                        await self._prove_release(without=server)
                    await self._bring_up([server], record)
                except BaseException:
                    self._admission.set_gate(server.slot, Gate.CLOSED)
                    raise
                async with self._phase(record, "open"):
                    self._open()

    async def empty(self, slot: Slot) -> None:
        """Take a server that died for good out of its slot."""
        async with self._lock:
            server = self.servers.pop(slot, None)
            self._admission.set_gate(slot, Gate.CLOSED)
            if server is not None:
                await server.stop()

    async def close(self) -> None:
        """Let requests end within seconds, and stop everything. The mode is then idle."""
        for slot in Slot:
            self._admission.set_gate(slot, Gate.CLOSED)
        async with self._lock:
            await self._drain(
                list(self.servers), CLOSE_GRACE, SwitchRecord(self.mode, Mode.IDLE, "operator", "", _now())
            )
            servers = [*self.servers.values(), *self._prepared.values()]
            self.servers, self._prepared = {}, {}
            await asyncio.gather(*(server.stop() for server in servers))
            self._be(Mode.IDLE)

    async def _carry_out(self, record: SwitchRecord, changes: Collection[Step], drain: DrainPolicy) -> None:
        before, mode_before = self._running(), self.mode
        stops = [step.slot for step in changes if step.action is Action.STOP]
        starts = {step.slot: step.device for step in changes if step.action is Action.START}
        async with self._phase(record, "close"):
            for slot in Slot:
                if slot in starts:
                    self._admission.set_gate(slot, Gate.SOON)
                elif slot in stops:
                    self._admission.set_gate(slot, Gate.CLOSED)
        draining = [self.servers[slot] for slot in stops]
        try:
            async with self._phase(record, "drain"):
                for server in draining:
                    server.begin_drain()
                await self._drain(stops, drain, record)
            async with self._phase(record, "stop"):
                await self._stop(stops)
            async with self._phase(record, "release"):
                await self._prove_release()
            record.memory_after = await self._memory.used()
        except BaseException as error:
            for server in draining:
                server.end_drain()
            if isinstance(error, (SwitchDeferred, ReleaseFailed)):
                self._open()
            raise
        try:
            await self._start(record, starts)
        except (NightshiftError, OSError) as error:
            await self._roll_back(record, before, mode_before, error)
        async with self._phase(record, "open"):
            self._be(record.to_mode)
            self._open()

    async def _drain(self, slots: Collection[Slot], policy: DrainPolicy, record: SwitchRecord) -> None:
        record.in_flight = sum(self._admission.in_flight(slot) for slot in slots)
        if not record.in_flight:
            return
        if policy.kind == "defer":
            raise SwitchDeferred(f"{record.in_flight} requests are under way, and the policy is not to cut them")
        if policy.kind == "wait":
            deadline = time.monotonic() + policy.timeout
            for slot in slots:
                await self._admission.drained(slot, deadline - time.monotonic())
        record.cut = sum(self._admission.cut(slot) for slot in slots)
        deadline = time.monotonic() + policy.cut_grace
        for slot in slots:
            await self._admission.drained(slot, deadline - time.monotonic())

    async def _stop(self, slots: Collection[Slot]) -> None:
        going = [self.servers.pop(slot) for slot in slots]
        for server in going:
            self._stopped_pids |= await asyncio.to_thread(server.pids)
        await asyncio.gather(*(server.stop() for server in going))

    async def _prove_release(self, without: Server | None = None) -> None:
        """Raises ReleaseFailed, and remembers: nothing is started until this has passed."""
        on_gpu = any(server.device is Device.GPU for server in self.servers.values() if server is not without)
        why = await self._memory.released(self._stopped_pids, to_mark=not on_gpu)
        self.unreleased = why
        if why is not None:
            self._be(Mode.IDLE if not self.servers else self.mode)
            raise ReleaseFailed(f"what was stopped is not gone: {why}; nothing is loaded until it is")
        self._stopped_pids = set()

    async def _start(self, record: SwitchRecord, starts: Placement) -> None:
        if not any(server.device is Device.GPU for server in self.servers.values()):
            await self._memory.mark()
        fresh = {slot: self._take(slot, device) for slot, device in starts.items()}
        servers = list(fresh.values())
        try:
            await self._bring_up(servers, record)
        except BaseException:
            for server in servers:
                self._stopped_pids |= server.pids()
            await asyncio.shield(asyncio.gather(*(server.stop() for server in servers)))
            raise
        self.servers |= fresh

    async def _bring_up(self, servers: Collection[Server], record: SwitchRecord) -> None:
        async with self._phase(record, "start"):
            await asyncio.gather(*(server.start() for server in servers))
        async with self._phase(record, "ready"):
            await asyncio.gather(*(server.ready() for server in servers))
        async with self._phase(record, "canary"):
            await asyncio.gather(*(server.canary() for server in servers))

    def _take(self, slot: Slot, device: Device) -> Server:
        """A server for a slot: the one that was made ready, if there is one."""
        if (slot, device) in self._prepared:
            return self._prepared.pop((slot, device))
        return self._make_server(slot, device)

    async def _roll_back(self, record: SwitchRecord, before: Placement, mode: Mode, error: Exception) -> None:
        log.error("the switch failed; the mode before comes back", to=record.to_mode.value, error=str(error))
        record.error = str(error)
        missing = {slot: device for slot, device in before.items() if slot not in self.servers}
        try:
            await self._prove_release()
            await self._start(SwitchRecord(mode, mode, "recovery", "", _now()), missing)
        except (NightshiftError, OSError) as again:
            self._be(Mode.IDLE if not self.servers else mode)
            self._open()
            record.outcome = "failed"
            raise SwitchFailed(f"{error}; and {mode.value} did not come back: {again}") from error
        self._be(mode)
        self._open()
        record.outcome = "rolled-back"
        raise SwitchFailed(f"{error}; {mode.value} is back") from error

    def _be(self, mode: Mode) -> None:
        if mode is not self.mode:
            self.mode, self.since = mode, _now()

    def _open(self) -> None:
        for slot in Slot:
            self._admission.set_gate(slot, Gate.OPEN if slot in self.servers else Gate.CLOSED)

    def _running(self) -> Placement:
        return {slot: server.device for slot, server in self.servers.items() if not server.died.is_set()}

    async def _all_pids(self) -> list[int]:
        # On a thread: it looks through all processes of the host.
        servers = list(self.servers.values())
        return await asyncio.to_thread(lambda: sorted(pid for server in servers for pid in server.pids()))

    @asynccontextmanager
    async def _recorded(self, target: Mode, reason: Reason, detail: str) -> AsyncIterator[SwitchRecord]:
        record = SwitchRecord(self.mode, target, reason, detail, _now(), self._memory.name)
        record.memory_before, record.pids_before = await self._memory.used(), await self._all_pids()
        self.under_way = record
        await self._journal.write(record)
        try:
            yield record
            record.outcome = "done"
        except SwitchDeferred as error:
            record.outcome, record.error = "deferred", str(error)
            raise
        except BaseException as error:
            if record.outcome == "running":
                record.outcome = "failed" if isinstance(error, NightshiftError) else "interrupted"
            record.error = record.error or str(error) or type(error).__name__
            raise
        finally:
            self.under_way = None
            record.phase = ""
            record.pids_after = await self._all_pids()
            await self._journal.write(record)
            log.info(
                "the mode was switched" if record.outcome == "done" else "the switch ended otherwise",
                outcome=record.outcome,
                before=record.from_mode.value,
                to=record.to_mode.value,
                seconds=round(record.seconds, 2),
            )

    @asynccontextmanager
    async def _phase(self, record: SwitchRecord, name: str) -> AsyncIterator[None]:
        record.phase = name
        began = time.monotonic()
        try:
            yield
        finally:
            record.phases[name] = record.phases.get(name, 0.0) + time.monotonic() - began
            await self._journal.write(record)


def first_line(text: str) -> str:
    """What a story begins with; the rest of it is a log's."""
    return text.partition("\n")[0].strip()


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
