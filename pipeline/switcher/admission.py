"""Who may use a slot now: reservations, a bounded queue during a switch, and the drain.

A request holds a reservation from its admission to its last byte. A switch closes a slot before it
drains it, so that steady traffic cannot starve the switch; requests that come meanwhile wait, where
the slot is expected to open again, and are turned away where it is not. Knows no HTTP and no process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Self

from pipeline.core.errors import NotServing, WaitedTooLong, WaitingFull
from pipeline.core.modes import Slot


class Gate(Enum):
    """Whether a slot takes requests: now, soon, or not in this mode."""

    OPEN = "open"
    SOON = "soon"
    CLOSED = "closed"


@dataclass(eq=False, slots=True)
class Reservation:
    """A request's right to a slot's backend, until released. Use it as an asynchronous context manager.

    cut: set when the request has to end now; whoever streams is to end the stream with an error.
    """

    slot: Slot
    _owner: Admission
    cut: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """The last byte is through, or will never be. May be called twice."""
        self._owner._release(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass(slots=True)
class _Door:
    gate: Gate = Gate.CLOSED
    held: set[Reservation] = field(default_factory=set)
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    empty: asyncio.Event = field(default_factory=asyncio.Event)


class Admission:
    """The doors of the slots.

    max_waiting: requests that may wait at one door. max_wait: seconds that one may wait.
    """

    def __init__(self, max_waiting: int = 100, max_wait: float = 60.0) -> None:
        self._max_waiting = max_waiting
        self._max_wait = max_wait
        self._doors = {slot: _Door() for slot in Slot}
        for door in self._doors.values():
            door.empty.set()

    async def reserve(self, slot: Slot) -> Reservation:
        """The right to use `slot`, at once or when a switch has opened it.

        Raises:
            NotServing: the slot is closed, and nobody said that it is about to open.
            WaitingFull: it is about to open, and enough requests wait for that already.
            WaitedTooLong: it did not open in time.
        """
        door = self._doors[slot]
        deadline = asyncio.get_running_loop().time() + self._max_wait
        while door.gate is not Gate.OPEN:
            if door.gate is Gate.CLOSED:
                raise NotServing(slot.value)
            if len(door.waiting) >= self._max_waiting:
                raise WaitingFull(slot.value, self._max_waiting)
            await self._wait(door, slot, deadline)
        # Nothing is awaited between the look at the gate and the reservation: a door that closes finds it held.
        reservation = Reservation(slot, self)
        door.held.add(reservation)
        door.empty.clear()
        return reservation

    def set_gate(self, slot: Slot, gate: Gate) -> None:
        """Open or close a slot's door. Who waits is let in, goes on waiting, or is turned away."""
        door = self._doors[slot]
        door.gate = gate
        if gate is not Gate.SOON:
            while door.waiting:
                waiter = door.waiting.popleft()
                if not waiter.done():
                    waiter.set_result(None)

    def gate(self, slot: Slot) -> Gate:
        """How a slot's door stands."""
        return self._doors[slot].gate

    def in_flight(self, slot: Slot) -> int:
        """Requests that hold the slot."""
        return len(self._doors[slot].held)

    def waiting(self, slot: Slot) -> int:
        """Requests that wait for it."""
        return len(self._doors[slot].waiting)

    async def drained(self, slot: Slot, seconds: float) -> bool:
        """Wait until nobody holds the slot, or so many seconds; whether nobody does."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._doors[slot].empty.wait()
        except TimeoutError:
            return False
        return True

    def cut(self, slot: Slot) -> int:
        """Tell every request that holds the slot to end now; returns how many there are."""
        held = list(self._doors[slot].held)
        for reservation in held:
            reservation.cut.set()
        return len(held)

    async def _wait(self, door: _Door, slot: Slot, deadline: float) -> None:
        waiter = asyncio.get_running_loop().create_future()
        door.waiting.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except TimeoutError as error:
            raise WaitedTooLong(slot.value, self._max_wait) from error
        finally:
            if waiter in door.waiting:
                door.waiting.remove(waiter)

    def _release(self, reservation: Reservation) -> None:
        door = self._doors[reservation.slot]
        door.held.discard(reservation)
        if not door.held:
            door.empty.set()
