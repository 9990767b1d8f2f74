"""The loop that makes the host be what it should be: looks, decides (core.shift), acts, sleeps until the next change.

Level-triggered: each round starts from the clock, the jobs and what runs, so a round that was missed,
late or interrupted costs nothing. Edges (a timer, a file, a person) only wake it earlier.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import structlog

from pipeline.core.errors import NightshiftError, SwitchDeferred, SwitchError
from pipeline.core.modes import Mode, Slot
from pipeline.core.schedule import Hold
from pipeline.core.shift import Margins, Past, Shift, Situation, plan_shift
from pipeline.daemon.runs import ActiveRun, Runs
from pipeline.daemon.servers import SlotServer
from pipeline.scheduler.jobs import LoadedJobs
from pipeline.store import holds, jobs
from pipeline.store.database import Database
from pipeline.switcher.record import DrainPolicy
from pipeline.switcher.switcher import Switcher, first_line

log = structlog.get_logger(__name__)

BACKOFF = (5.0, 15.0, 60.0, 300.0, 600.0)
"""Seconds between tries at a switch that failed."""

RESTARTS = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before each restart of a server that died; after the last one its slot is given up."""

RESTARTS_WITHIN = 600.0
"""Deaths further apart than this, in seconds, have nothing to do with each other."""

DEFERRED = 10.0

BLIND = 120.0
"""Seconds past the time for a look after which a host that was not looked after is called broken."""

RUN_GRACE = 5.0
"""Seconds over the reserve that a run has to end before a switch; then it is cut off."""


@dataclass(slots=True)
class Governor:
    """Holds what the host should be against what it is.

    clock: the time, aware. load_seconds: how long a mode's models take to be ready.
    """

    store: Database
    switcher: Switcher
    runs: Runs
    read_jobs: Callable[[], LoadedJobs]
    load_seconds: Callable[[Mode], float]
    clock: Callable[[], dt.datetime]
    margins: Margins
    cut_grace: float = 5.0
    default: Mode = Mode.IDLE
    on_death: Callable[[Slot], None] = lambda slot: None
    restarts: Sequence[float] = RESTARTS
    backoff: Sequence[float] = BACKOFF
    blind: float = BLIND
    shift: Shift | None = None
    hold: Hold | None = None
    failed: dict[Slot, str] = field(default_factory=dict)
    problem: str | None = None
    ahead: Sequence[str] = ()
    """What was noted for a time that is to come, in words."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _failures: int = 0
    _not_before: float = 0.0
    _past: dict[str, Past] = field(default_factory=dict)
    _known: frozenset[str] = frozenset()
    _preparing: asyncio.Task[None] | None = None
    _look_due: float = field(default_factory=time.monotonic)

    def wake(self) -> None:
        """Have it look at once."""
        self._wake.set()

    async def govern(self) -> None:
        """Until cancelled. Errors of the host are logged and tried again; a bug ends the program loudly."""
        async with asyncio.TaskGroup() as watchers:
            watching = watchers.create_task(self._watch_servers(), name="watch the servers")
            try:
                while True:
                    self._wake.clear()
                    looked = self.shift
                    wait = await self._round()
                    if self.shift is not looked:  # else the next look is overdue until there is one
                        self._look_due = time.monotonic() + wait
                    try:
                        async with asyncio.timeout(wait):
                            await self._wake.wait()
                    except TimeoutError:
                        pass
            finally:
                watching.cancel()
                if self._preparing is not None:
                    self._preparing.cancel()

    @property
    def finished(self) -> dict[str, dt.datetime]:
        """When each job's task was last completed, for whoever asks the schedule."""
        return {name: past.finished for name, past in self._past.items() if past.finished is not None}

    @property
    def broken(self) -> str | None:
        """Why nobody looks after the host, as far as that is known; None where somebody does.

        A database that does not answer is one reason, and what only a restart ends is another.
        """
        late = time.monotonic() - self._look_due
        if late < self.blind or self.switcher.under_way is not None:
            return None
        return f"the host has not been looked after for {late:.0f} s: {self.problem or 'the daemon is stuck'}"

    async def set_hold(self, hold: Hold, who: str) -> None:
        """Keep a mode against the schedule, also over a restart."""
        await self.store.write(holds.set_hold, hold, who, self.clock())
        self.hold = hold
        self.wake()

    async def end_hold(self) -> bool:
        """Follow the schedule again; whether there was a hold."""
        had = await self.store.write(holds.clear_hold)
        self.hold = None
        self.wake()
        return had is not None

    async def switch_now(self, hold: Hold, reason: Literal["operator", "request"], detail: str) -> None:
        """A person's switch, at once: whatever run needs the embedding model is stored and ended first.

        The mode is held as `hold` says; where the switch fails, what was held before is held again.
        Raises as `Switcher.switch`.
        """
        async with self._turn:
            before = self.hold
            await self.set_hold(hold, reason)
            try:
                await self._end_run_for(hold.mode)
                self._failures, self._not_before = 0, 0.0
                await self.switcher.switch(hold.mode, reason, detail, self._drain(None))
            except NightshiftError:
                if before is None:
                    await self.end_hold()
                else:
                    await self.set_hold(before, "operator")
                raise
            self.failed.clear()

    async def _round(self) -> float:
        try:
            # One hand on the mode at a time: a person's switch must not be undone by a look from before it.
            async with self._turn:
                self.shift = shift = await self._look()
                acted = await self._act(shift)
            if not acted:
                return max(0.05, self._not_before - asyncio.get_running_loop().time())
            self.problem = None
        except SwitchDeferred as error:
            log.info("the switch waits for requests under way", error=str(error))
            return DEFERRED
        except NightshiftError as error:
            self.problem = str(error)
            if self.shift is not None and self.shift.reason == "request":
                self.runs.refuse(f"the host could not be switched for it: {error}")
            log.error("the host is not what it should be; it is tried again", error=str(error))
            return self._back_off() if isinstance(error, SwitchError) else DEFERRED
        left = (shift.look_again - self.clock()).total_seconds()
        return max(0.05, min(left, 30.0))

    async def _look(self) -> Shift:
        now = self.clock()
        loaded = self.read_jobs()
        names = frozenset(job.name for job in loaded.jobs)
        states = await self.store.read(jobs.job_states)
        if names != self._known or any(state.known_since > now for state in states.values()):
            await self.store.write(jobs.note_known, names, now)
            self._known = names
            states = await self.store.read(jobs.job_states)
        self._past = {
            name: Past(state.known_since, state.last_started, state.last_finished, state.failures)
            for name, state in states.items()
        }
        before, self.ahead = self.ahead, await self.store.read(jobs.noted_ahead, now)
        for noted in self.ahead:
            if noted not in before:
                log.warning("a time is to come that should be past", problem=noted)
        held = await self.store.read(holds.current_hold, now)
        if held is not None and held.set_at > now:
            set_at, held = held.set_at, await self.store.write(holds.begin_anew, now)
            until = held and held.hold.until
            log.warning("the hold was set by a clock that was ahead", set_at=str(set_at), until=str(until))
        self.hold = None if held is None else held.hold
        return plan_shift(
            Situation(
                now=now,
                jobs=loaded.jobs,
                mode=self.switcher.mode,
                load_seconds=self.load_seconds,
                hold=self.hold,
                past=self._past,
                requested=self.runs.wanted_by_a_person,
                default=self.default,
                margins=self.margins,
            )
        )

    async def _act(self, shift: Shift) -> bool:
        """Act; False where a switch that failed has to wait for its next try."""
        active = self.runs.active
        if active is not None and active.reads_only:
            if self._makes_room(active, shift):
                active.stop.set()
            active = None  # the mode is nothing to it
        ends = [at for at in (shift.stop_at, active.task.stop_at if active and active.task else None) if at is not None]
        if active is not None and ends and self.clock() >= min(ends):
            log.info("the run ends in time for the next mode", run=active.id, mode=shift.mode.value)
            active.stop.set()
        elif (
            active is not None
            and active.task is not None
            and (shift.task is None or shift.task.job.name != active.task.job.name)
        ):
            active.stop.set()
        if self._wanted_elsewhere(shift.mode):
            if asyncio.get_running_loop().time() < self._not_before:
                return False
            await self._end_run_for(shift.mode)
            await self.switcher.switch(shift.mode, shift.reason, shift.detail, self._drain(shift))
            self._failures, self._not_before = 0, 0.0
            self.failed.clear()
        self._begin_run(shift)
        if self._preparing is not None and not self._preparing.done():
            return True
        if shift.prepare is not None:
            self._preparing = asyncio.create_task(self._prepare(shift.prepare), name="prepare the next backend")
        else:
            await self.switcher.unprepare()  # the plan has changed
        return True

    def _wanted_elsewhere(self, mode: Mode) -> bool:
        if self.switcher.mode is not mode or self.switcher.unreleased is not None:
            return True
        # A slot that was given up stays empty until the mode changes or a person switches.
        running = {slot: server.device for slot, server in self.switcher.servers.items()}
        wanted = {s: d for s, d in self.switcher.placement(mode).items() if s not in self.failed}
        return running != wanted

    def _begin_run(self, shift: Shift) -> None:
        server = self.switcher.servers.get(Slot.EMBEDDING)
        if server is None and Slot.EMBEDDING in self.failed:
            self.runs.refuse(f"the embedding slot failed: {self.failed[Slot.EMBEDDING]}")
        if self.runs.active is not None:
            return
        in_time = shift.stop_at is None or self.clock() < shift.stop_at
        if isinstance(server, SlotServer) and in_time:
            self.runs.start(server.model.embedder, shift.task, server.device.value)
        if not self._model_wanted(shift):
            self.runs.start_reading(shift.reading)

    def _makes_room(self, reading: ActiveRun, shift: Shift) -> bool:
        """Whether a run that only reads has to end: for one with the model, or because its window is over."""
        task = reading.task
        if task is None:
            return self._model_wanted(shift)
        over = shift.reading is None or shift.reading.job.name != task.job.name or self.clock() >= task.stop_at
        return over or self._model_wanted(shift)

    def _model_wanted(self, shift: Shift) -> bool:
        """Whether a run with the model is to begin, now or as soon as the mode is on."""
        serving = Slot.EMBEDDING in self.switcher.servers
        return shift.task is not None or self.runs.wanted_by_a_person or (serving and self.runs.texts_wait)

    async def _end_run_for(self, mode: Mode) -> None:
        """A run that the new mode has no embedding model for, or another one, ends before the switch."""
        wanted = self.switcher.placement(mode).get(Slot.EMBEDDING)
        server = self.switcher.servers.get(Slot.EMBEDDING)
        active = self.runs.active
        if active is not None and not active.reads_only and (server is None or wanted is not server.device):
            self.runs.stop()
            # What was promised to others goes before a batch that hangs: it is still queued in the database.
            await self.runs.ended_within(self.margins.reserve + RUN_GRACE)

    async def _prepare(self, mode: Mode) -> None:
        try:
            await self.switcher.prepare(mode)
        except NightshiftError as error:
            log.warning("the next backend could not be made ready ahead", error=str(error))

    def _drain(self, shift: Shift | None) -> DrainPolicy:
        job = None if shift is None else shift.job
        if job is None:
            return DrainPolicy(cut_grace=self.cut_grace)
        seconds = job.drain_timeout if shift is None or shift.drain is None else min(job.drain_timeout, shift.drain)
        return DrainPolicy(job.drain, seconds, self.cut_grace)

    def _back_off(self) -> float:
        wait = self.backoff[min(self._failures, len(self.backoff) - 1)]
        self._failures += 1
        self._not_before = asyncio.get_running_loop().time() + wait
        return wait

    async def _watch_servers(self) -> None:
        """Bring back servers that die, and give up a slot whose server dies again and again."""
        deaths: dict[Slot, list[float]] = {slot: [] for slot in Slot}
        loop = asyncio.get_running_loop()
        while True:
            servers = list(self.switcher.servers.values())
            dead = next((server for server in servers if server.died.is_set()), None)
            if dead is None:
                waits = [asyncio.create_task(server.died.wait()) for server in servers]
                waits.append(asyncio.create_task(asyncio.sleep(0.5)))  # type: ignore[arg-type]  # only its end counts
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for each in waits:
                    each.cancel()
                continue
            self.on_death(dead.slot)
            recent = [at for at in deaths[dead.slot] if loop.time() - at < RESTARTS_WITHIN]
            deaths[dead.slot] = [*recent, loop.time()]
            why = dead.describe_death()
            if len(recent) >= len(self.restarts):
                self.failed[dead.slot] = (
                    f"it died {len(recent) + 1} times within {RESTARTS_WITHIN:.0f} s: {first_line(why)}"
                )
                log.error("a slot is given up", slot=dead.slot.value, why=first_line(why))
                await self.switcher.empty(dead.slot)
                self.wake()
                continue
            log.warning(
                "a server died and is started again", slot=dead.slot.value, attempt=len(recent) + 1, why=first_line(why)
            )
            await asyncio.sleep(self.restarts[len(recent)])
            try:
                await self.switcher.recover(dead)
            except (NightshiftError, OSError) as error:
                log.error("a server did not come back", slot=dead.slot.value, error=str(error))
                dead.died.set()
